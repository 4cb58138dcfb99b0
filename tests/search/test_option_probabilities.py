"""Ratings from the alternatives that endpoints serve, against all that a toy model could write, and local clients."""

from __future__ import annotations

import asyncio
import json
import math
from collections import Counter
from functools import partial
from typing import Any

import numpy as np
import pytest

from esc_lab.config.search import EndpointConfig, LLMConfig
from esc_lab.data.dialogue import Reply, Turn
from esc_lab.data.strategies import load_inventory
from esc_lab.errors import UserError
from esc_lab.prompts import Message, SeekerProfile
from esc_lab.search import option_probabilities
from esc_lab.search.calls import Calls
from esc_lab.search.clients.openai import OpenAIClient
from esc_lab.search.clients.replay import ReplayClient
from esc_lab.search.model_worker import normalize_options
from esc_lab.search.option_probabilities import read_options
from esc_lab.search.requests import Answer, Question, Request
from esc_lab.search.roles import Roles
from esc_lab.seeds import derive_seed
from tests.search.endpoint import Endpoint
from tests.search.virtual_time import run as virtual_run

RATINGS = tuple(map(str, range(11)))
DIGITS = tuple("0123456789")
END = "<|im_end|>"
HISTORY = (Turn("seeker", Reply("I lost my job.")),)


class Toy:
    """A model whose next token depends on the text so far.

    Args:
        tokens: its vocabulary beside words: digits, and perhaps `10`.
        space: it writes a space before a number, as a token of its own.
    """

    def __init__(self, tokens: tuple[str, ...], *, space: bool, seed: int = 0) -> None:
        self.tokens, self.space, self.seed = (*tokens, "I", "\n", END), space, seed

    def next(self, lead: str, text: str) -> dict[str, float]:
        if self.space and not text:
            return {" ": 1.0}
        draw = np.random.default_rng(derive_seed(self.seed, lead, text))
        others = ["I"] if not text.strip() else [END, "\n"]
        tokens = [token for token in self.tokens if token[0].isdigit() or token in others]
        shares = draw.dirichlet(np.full(len(tokens), 0.7))
        return dict(zip(tokens, shares.tolist(), strict=True))

    def write(self, lead: str, given: str, most: int) -> tuple[str, list[dict[str, Any]]]:
        """Greedily, after what was given of it: the text, and the alternatives to its tokens."""
        text, rows = "", []
        for _ in range(most):
            shares = self.next(lead, given + text)
            best = max(shares, key=lambda token: shares[token])
            served = sorted(shares.items(), key=lambda item: -item[1])[:20]
            top = [{"token": token, "logprob": math.log(max(share, 1e-300))} for token, share in served]
            rows.append({**top[0], "top_logprobs": top})
            if best == END:
                break
            text += best
        return text, rows

    def brute_force(self, lead: str, options: tuple[str, ...]) -> np.ndarray:
        """All that it could write of the options: each, where none of the longer ones follows."""

        def written(wanted: str, text: str) -> float:
            if len(text) >= len(wanted):
                return 1.0 if text == wanted else 0.0
            shares = self.next(lead, text)
            return sum(
                share * written(wanted, text + token)
                for token, share in shares.items()
                if wanted.startswith(text + token)
            )

        start = " " if self.space else ""
        sums = []
        for option in options:
            ways = written(start + option, "")
            longer = {o[len(option)] for o in options if o != option and o.startswith(option)}
            shares = self.next(lead, start + option) if longer else {}
            # A tokenizer joins what it can: what is one token is not written as two.
            follows = sum(share for token, share in shares.items() if token in longer)
            sums.append(ways * (1 - follows))
        return np.array(sums) / sum(sums)


def lead_of(body: dict[str, Any]) -> tuple[str, str, bool]:
    """What is rated, what was given after it, and whether it was given as the beginning of the reply."""
    last = body["messages"][-1]
    text = last["content"].rpartition("\n")[2] if last["role"] == "user" else last["content"]
    name, _, given = text.partition(":")
    return name, given, last["role"] == "assistant"


def endpoint(toy: Toy, *, repeats: bool = False) -> Endpoint:
    """Serves what a toy writes; `repeats`: what is rated first, where it is asked for in the prompt."""

    def begin(body: dict[str, Any]) -> tuple[str, list[dict[str, Any]]]:
        name, given, continued = lead_of(body)
        given = f" {given.strip()}" if given.strip() and toy.space else given.strip()
        text, rows = toy.write(name, given, body["max_tokens"])
        again = [{"token": token, "logprob": -0.1, "top_logprobs": []} for token in (name, ":")]
        return (f"{name}:{text}", again + rows) if repeats and not continued else (text, rows)

    return Endpoint(lambda body: begin(body)[0], log_probs=lambda body: {"content": begin(body)[1]})


def ask(
    served: Endpoint, *questions: Question, ratings: str = "continued", **options: Any
) -> tuple[Any, Calls, Endpoint]:
    async def run():
        async with served as url:
            settings = EndpointConfig(model="m", base_url=url, ratings=ratings, seeds=False, **options)
            calls = Calls({"judge": OpenAIClient(settings)}, 8)
            journal = calls.open_journal(options.get("path", PATH[0]) / "t.journal.jsonl", {})
            try:
                request = Request("judge", (Message("system", "S"), Message("user", "Rate it.")), tuple(questions))
                return await calls.send(journal, request), calls
            finally:
                await calls.close()

    answer, calls = virtual_run(run())
    return answer, calls, served


PATH: list[Any] = [None]


@pytest.fixture(autouse=True)
def _place(tmp_path, monkeypatch):
    PATH[0] = tmp_path
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


def rating(name: str) -> Question:
    return Question(name, f"{name}: ", RATINGS)


@pytest.mark.parametrize("space", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_a_model_that_writes_digits_against_brute_force(space, seed, monkeypatch):
    monkeypatch.setattr(option_probabilities, "_WORTH_A_CALL", 0.0)
    toy = Toy(DIGITS, space=space, seed=seed)
    names = [f"strategy {number}" for number in range(8)]
    answer, calls, served = ask(endpoint(toy), *map(rating, names))
    for name, log_probs in zip(names, answer.log_probs, strict=True):
        np.testing.assert_allclose(np.exp(log_probs), toy.brute_force(name, RATINGS), atol=1e-8)
    # One call each, and a further one where 1 may become 10 and was not written.
    assert 8 <= calls.spent.calls == len(served.requests) <= 16


@pytest.mark.parametrize(("ratings", "repeats"), [("continued", False), ("asked", False), ("asked", True)])
@pytest.mark.parametrize("seed", range(4))
def test_a_model_that_has_ten_as_a_token_needs_one_call_each(ratings, repeats, seed):
    class Joined(Toy):
        def next(self, lead: str, text: str) -> dict[str, float]:
            return super().next(lead, text) if not text.strip() else {END: 1.0}

    toy = Joined(RATINGS, space=ratings == "asked", seed=seed)
    answer, calls, _ = ask(endpoint(toy, repeats=repeats), rating("empathy"), ratings=ratings)
    np.testing.assert_allclose(np.exp(answer.log_probs[0]), toy.brute_force("empathy", RATINGS), atol=1e-8)
    assert calls.spent.calls <= 2


def test_it_is_the_rule_of_a_model_that_is_loaded_here(monkeypatch):
    """The same token probabilities give what `LocalClient` reads off them."""
    monkeypatch.setattr(option_probabilities, "_WORTH_A_CALL", 0.0)
    for seed in range(10):
        toy = Toy(DIGITS, space=False, seed=seed)
        first, second = toy.next("a", ""), toy.next("a", "1")
        ids = [np.array([int(digit) for digit in option]) for option in RATINGS]
        values = [np.log([first[option]]) for option in RATINGS[:10]] + [np.log([first["1"], second["0"]])]
        answer, _, _ = ask(endpoint(toy), rating("a"))
        np.testing.assert_allclose(np.exp(answer.log_probs[0]), np.exp(normalize_options(ids, values)), atol=1e-8)


@pytest.mark.parametrize(
    ("rows", "options", "lead", "expected"),
    [
        ([("A", 0.7, ("B", 0.2), ("C", 0.1))], "AB", "", [0.7, 0.2]),
        ([(" **", 0.9, ("b", 0.1)), ("B", 0.5, ("A", 0.4))], "AB", "better: ", [0.36, 0.55]),
        ([("cont", 0.6, ("Ends", 0.3), ("I", 0.1))], ("ends", "continues"), "", [0.3, 0.6]),
        ([("better", 1.0), (": A", 0.8, (":", 0.2))], "AB", "better: ", [1.0, 0.0]),
        ([("better", 1.0), (":", 1.0), (" A", 0.8, (" B", 0.2))], "AB", "better: ", [0.8, 0.2]),
        ([("7", 0.5, ("70", 0.3), ("7.", 0.1), ("07", 0.05))], ("0", "7"), "", [0.0, 0.6]),
        ([("An", 0.5, ("A good", 0.2))], "AB", "", [0.2, 0.0]),
        ([("I", 0.9, ("you", 0.1))], "AB", "", [0.0, 0.0]),
        ([], "AB", "", [0.0, 0.0]),
    ],
)
def test_reading(rows, options, lead, expected):
    tokens = tuple(((token, math.log(share)), *((t, math.log(s)) for t, s in others)) for token, share, *others in rows)
    masses, several = read_options(tokens, tuple(options), lead)
    np.testing.assert_allclose(masses, expected, atol=1e-12)
    assert not several


def test_what_may_become_several_options_is_told():
    tokens = ((("1", math.log(0.5)), ("2", math.log(0.3))),)
    assert read_options(tokens, RATINGS)[1] == {"1": pytest.approx(0.5)}
    tokens = ((("2", math.log(0.5)), ("1", math.log(0.3))),)
    masses, several = read_options(tokens, RATINGS)
    assert (masses[2], several) == (pytest.approx(0.5), {"1": pytest.approx(0.3)})
    # Written and served: 10 has what follows, and 1 the rest, also what is not among the alternatives.
    tokens = ((("1", math.log(0.5)),), (("0", math.log(0.4)), (".", math.log(0.1))))
    masses, several = read_options(tokens, RATINGS)
    assert (masses[10], masses[1], several) == (pytest.approx(0.2), pytest.approx(0.3), {})


def test_on_the_wire():
    answer, _, served = ask(endpoint(Toy(DIGITS, space=False)), Question("a", "a: ", tuple("0123")))
    (received,) = served.requests
    assert received.body == {
        "model": "m",
        "messages": [
            {"role": "system", "content": "S"},
            {"role": "user", "content": "Rate it."},
            {"role": "assistant", "content": "a:"},
        ],
        "continue_final_message": True,
        "add_generation_prompt": False,
        "max_tokens": 4,
        "logprobs": True,
        "top_logprobs": 20,
        "temperature": 0.0,
    }
    _, _, served = ask(endpoint(Toy(DIGITS, space=False)), Question("a", "a: ", tuple("0123")), ratings="asked")
    assert served.requests[0].body["messages"][-1] == {"role": "user", "content": "Rate it.\n\na:"}
    assert "continue_final_message" not in served.requests[0].body
    assert math.fsum(map(math.exp, answer.log_probs[0])) == pytest.approx(1)


def test_a_server_without_log_probabilities_is_an_error():
    served = Endpoint(lambda body: "7")
    with pytest.raises(UserError, match=r"serves no log-probabilities .*Fix: llm\.openai\.ratings=written"):
        ask(served, rating("a"))
    assert not [line for line in (PATH[0] / "t.journal.jsonl").read_text().splitlines() if '"answer"' in line]


@pytest.mark.parametrize(
    ("field", "setting"),
    [("top_logprobs", "llm.openai.ratings=written"), ("continue_final_message", "llm.openai.ratings=asked")],
)
def test_a_server_that_refuses_a_field(field, setting):
    body = json.dumps({"error": {"message": f"Unrecognized field: {field}", "param": field}})
    with pytest.raises(UserError, match=f"refuses the field {field} .*Fix: {setting} leaves it out"):
        ask(Endpoint(faults=lambda number, _: f"400 {body}"), rating("a"))


def roles_of(calls: Calls, journal: Any, counts: Counter[str]) -> Roles:
    send = partial(calls.send, journal, group="tree")
    return Roles(load_inventory("esconv"), SeekerProfile("I lost my job."), LLMConfig(), calls.scoring, send, counts)


async def play(calls: Calls, path: Any) -> tuple[Any, ...]:
    journal, counts = calls.open_journal(path, {}), Counter[str]()
    roles = roles_of(calls, journal, counts)
    replied = (*HISTORY, Turn("supporter", Reply("That is hard.", ("Question",))))
    return (await roles.rate(HISTORY), await roles.judge(replied), await roles.prefer(HISTORY, "Yes.", "No."),
            await roles.answer(replied), dict(counts))  # fmt: skip


def test_roles_rate_by_expected_values_and_a_journal_plays_them_again(tmp_path, monkeypatch):
    monkeypatch.setattr(option_probabilities, "_WORTH_A_CALL", 0.0)
    toy = Toy(DIGITS, space=False)

    def reply(body: dict[str, Any]) -> tuple[str, list[dict[str, Any]]]:
        name, given, _ = lead_of(body)
        if not body.get("logprobs"):
            return "I do not know what to do.", []
        if "ends" in name:
            return "continues", [row("continues", 0.9, ("ends", 0.1))]
        if name == "better":
            return "A", [row("A", 0.8, ("B", 0.2))]
        return toy.write(name, given.strip(), body["max_tokens"])

    def row(token: str, share: float, *others: tuple[str, float]) -> dict[str, Any]:
        top = [{"token": t, "logprob": math.log(p)} for t, p in ((token, share), *others)]
        return {**top[0], "top_logprobs": top}

    async def run():
        async with Endpoint(lambda b: reply(b)[0], log_probs=lambda b: {"content": reply(b)[1]}) as url:
            client = OpenAIClient(EndpointConfig(model="m", base_url=[url], ratings="continued"))
            calls = Calls(dict.fromkeys(("strategist", "judge", "seeker"), client), 16)
            try:
                return await play(calls, tmp_path / "t.journal.jsonl"), client
            finally:
                await calls.close()

    (ratings, scores, better, answer, counts), client = virtual_run(run())
    expected = {name: toy.brute_force(name, RATINGS) @ np.arange(11) for name in load_inventory("esconv").names}
    assert ratings == pytest.approx(expected, abs=6e-4)
    fours = tuple("01234")
    assert scores == pytest.approx({name: toy.brute_force(name, fours) @ np.arange(5) for name in scores}, abs=6e-4)
    assert better == pytest.approx(0.8)
    assert answer.text == "I do not know what to do."
    assert counts == {}

    async def replay():
        again = ReplayClient(tmp_path / "t.journal.jsonl", identity=client.identity, scores=True)
        return await play(
            Calls(dict.fromkeys(("strategist", "judge", "seeker"), again), 16), tmp_path / "r.journal.jsonl"
        )

    assert asyncio.run(replay()) == (ratings, scores, better, answer, counts)


def test_nothing_is_made_up_where_no_option_is_seen(tmp_path):
    def tell(body: dict[str, Any]) -> dict[str, Any]:
        name = lead_of(body)[0]
        token = "3" if name in ("Question", "empathy") else "I"
        return {"content": [{"token": token, "logprob": -0.1, "top_logprobs": [{"token": "you", "logprob": -3}]}]}

    async def run():
        async with Endpoint(lambda body: "I think so.", log_probs=tell) as url:
            client = OpenAIClient(EndpointConfig(model="m", base_url=url, ratings="asked"))
            calls = Calls(dict.fromkeys(("strategist", "judge", "seeker"), client), 16)
            try:
                return await play(calls, tmp_path / "t.journal.jsonl")
            finally:
                await calls.close()

    ratings, scores, better, answer, counts = virtual_run(run())
    assert ratings == {"Question": 3.0}
    assert (scores, better) == (None, None)
    assert not answer.ended
    assert counts == {"strategist/partly": 1, "judge/partly": 1, "judge/missing": 1, "seeker/missing": 1}


def test_an_answer_without_options_comes_back_from_json():
    answer = Answer(log_probs=((), (-0.5, -0.9)))
    assert Answer.from_json(json.loads(json.dumps(answer.to_json()))) == answer
