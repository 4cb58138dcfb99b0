"""Roles that were trained: what they are asked, what becomes of their answers, and what a policy's priors are."""

from __future__ import annotations

import asyncio
import copy
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from esc_lab.config import TemplateConfig
from esc_lab.config.prompt import PromptConfig, collect_seeker_words
from esc_lab.config.search import LLMConfig, MCTSConfig
from esc_lab.data.dialogue import Reply, Turn
from esc_lab.models.generate import Sampling, generate
from esc_lab.models.log_probs import label_log_probs
from esc_lab.prompts import Prompt, SeekerProfile, load_layout
from esc_lab.prompts.trained import SeekerPrompts, SupporterPrompts
from esc_lab.search.clients.local import LocalClient
from esc_lab.search.iteration import Iterations, SeekerTurn, StrategyPriors
from esc_lab.search.requests import Answer, Request
from esc_lab.search.roles import Roles
from esc_lab.tokens import encode_labels
from tests.conftest import INVENTORIES
from tests.models.test_row_adapters import alone, write_adapter

ESCONV = INVENTORIES["esconv"]
SUPPORTER = SupporterPrompts(ESCONV, TemplateConfig(), load_layout("cso"))
SEEKER = SeekerPrompts(collect_seeker_words(PromptConfig(), {}))
TRAINED = {"strategist": SUPPORTER.record(), "supporter": SUPPORTER.record(), "seeker": SEEKER.record(), "judge": None}
PROFILE = SeekerProfile("They closed the shop.", "sadness", "job crisis")
TALK = (
    Turn("supporter", Reply("Hello there.")),
    Turn("seeker", Reply("I lost\nmy job.")),
    Turn("supporter", Reply("That hurts.", ("Reflection of feelings", "Others"))),
    Turn("seeker", Reply("It does.")),
)
REPLY = Turn("supporter", Reply("Since when?", ("Question",)))


class Sender:
    """Gives answers one after another; keeps the requests."""

    def __init__(self, *answers: Answer | str) -> None:
        self.answers, self.requests = [*answers], list[Request]()

    async def __call__(self, request: Request) -> Answer:
        self.requests.append(request)
        answer = self.answers.pop(0)
        return Answer(answer) if isinstance(answer, str) else answer


def roles_of(sender: Sender, **settings) -> Roles:
    llm = LLMConfig()
    for name, value in settings.items():
        setattr(llm.strategist, name, value)
    return Roles(ESCONV, PROFILE, llm, TRAINED, sender, Counter(), 3)


def log_probs(shares: Sequence[float]) -> Answer:
    return Answer(log_probs=(tuple(map(math.log, shares)),))


SHARES = (0.4, 0.2, 0.1, 0.1, 0.1, 0.05, 0.05 - 1e-12, 1e-12)


@pytest.mark.parametrize(("temperature", "least"), [(1.0, 0.0), (0.5, 0.02), (2.0, 0.1)])
def test_priors_are_the_shares_at_a_temperature_above_a_floor(temperature, least):
    sender = Sender(log_probs(SHARES))
    found = asyncio.run(roles_of(sender, temperature=temperature, min_prior=least).rate(TALK))
    sharpened = np.array(SHARES) ** (1 / temperature)
    expected = least + (1 - 8 * least) * sharpened / sharpened.sum()
    assert list(found.shares) == list(ESCONV.names)
    np.testing.assert_allclose(list(found.shares.values()), expected, rtol=1e-12)
    (request,) = sender.requests
    assert request.messages == SUPPORTER.ask(PROFILE, TALK, None)[0]
    assert [question.options for question in request.questions] == [tuple(f"({name})" for name in ESCONV.names)]


def test_priors_need_no_ratings_and_are_not_scaled_again():
    iterations = Iterations(MCTSConfig(), ("a", "b"), 1)
    priors = StrategyPriors({"a": 0.3, "b": 0.7})
    assert iterations._priors(priors) == {"a": 0.3, "b": 0.7}
    assert iterations._choose_strategy({"a": 0.3, "b": 0.7}, priors, 1) == "b"


def test_the_supporters_label_is_given_and_draws_differ_by_it():
    sender = Sender("I hear you.", "I hear you, too.")
    roles = roles_of(sender)
    assert asyncio.run(roles.reply(TALK, "Question")) == "I hear you."
    assert asyncio.run(roles.reply(TALK, "Others")) == "I hear you, too."
    first, second = sender.requests
    assert (first.lead, second.lead) == ("(Question)", "(Others)")
    assert first.messages == second.messages == SUPPORTER.ask(PROFILE, TALK, "Question")[0]
    assert first.seed != second.seed
    assert first.key({}) != second.key({})
    assert replace(first, lead="").key({}) != first.key({})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Nine years.", SeekerTurn("Nine years.", False)),
        ("[END]", SeekerTurn("", True)),
        ("Thank you, bye! [END]", SeekerTurn("Thank you, bye!", True)),
        ("Bye. [ end ] And more", SeekerTurn("Bye.", True)),
    ],
)
def test_a_trained_seeker_ends_the_talk_itself(text, expected):
    sender = Sender(text)
    assert asyncio.run(roles_of(sender).answer((*TALK, REPLY))) == expected
    (request,) = sender.requests  # nothing else is asked
    assert request.messages == SEEKER.ask(PROFILE, (*TALK, REPLY))


def test_a_trained_seeker_that_may_not_end_says_something():
    sender = Sender("[END]", "Well, bye. [END]")
    answer = roles_of(sender).answer((*TALK, REPLY), may_end=False)
    assert asyncio.run(answer) == SeekerTurn("Well, bye.", False)


def test_what_cannot_be_used_is_drawn_again_and_counted():
    sender = Sender("supporter: How are you?", "You are a seeker. You have a story to tell.", "", "Fine.")
    roles = roles_of(sender)
    roles.llm.seeker.attempts = 4
    assert asyncio.run(roles.answer((*TALK, REPLY))) == SeekerTurn("Fine.", False)
    assert len({request.seed for request in sender.requests}) == 4
    assert len({request.messages for request in sender.requests}) == 1  # it is not corrected in words
    counts = {name: roles.counts[f"seeker/{name}"] for name in ("unusable", "other_side", "meta", "empty")}
    assert counts == {"unusable": 3, "other_side": 1, "meta": 1, "empty": 1}


@pytest.fixture
def clients(tiny_models, tmp_path):
    """A policy and a seeker on one base model, by role; and the policy's adapter."""
    loaded = tiny_models("llama")
    places = [write_adapter(loaded.model, tmp_path / name, seed) for seed, name in enumerate(("policy", "seeker"))]
    base = LocalClient(replace(loaded, model=copy.deepcopy(loaded.model)), "base", identity={"weights": "x"})
    policy, seeker = (base.share(base.adapters.load(place), place.name, {"adapter": place.name}) for place in places)
    return {"strategist": policy, "supporter": policy, "seeker": seeker, "judge": base}, places[0]


def test_priors_are_the_choice_that_an_evaluation_finds(tiny_models, clients):
    played, place = clients

    async def rate() -> StrategyPriors:
        async def send(request: Request) -> Answer:
            return await played[request.role].answer(request)

        try:
            return await roles_of(send, min_prior=0.0).rate(TALK)
        finally:
            await played["judge"].close()

    found = asyncio.run(rate())
    encoder = tiny_models("llama").encoder
    prompt = encoder.adapt(Prompt(SUPPORTER.ask(PROFILE, TALK, None)[0]))
    labels = encode_labels(encoder, ESCONV, prompt)
    model = alone(tiny_models("llama").model, place)
    scores = label_log_probs(model, [encoder.encode_prompt(prompt).input_ids], labels, 4096)[0]
    expected = np.exp(scores - np.logaddexp.reduce(scores))
    np.testing.assert_allclose(list(found.shares.values()), expected, atol=2e-5)


def test_a_reply_does_not_end_right_after_its_label(tiny_models, monkeypatch):
    """An answer without a label may be empty."""
    loaded = tiny_models("llama")
    messages, lead = SUPPORTER.ask(PROFILE, TALK, "Question")
    all_but_one = frozenset(range(len(loaded.encoder.tokenizer))) - {7}
    monkeypatch.setattr(type(loaded.encoder), "stop_tokens", all_but_one)
    asked = [Request("supporter", messages, max_tokens=6, temperature=0.0, lead=given) for given in (lead, "")]

    async def answers() -> list[Answer]:
        client = LocalClient(replace(loaded, model=copy.deepcopy(loaded.model)), "base", identity={"weights": "x"})
        try:
            return [await client.answer(request) for request in asked]
        finally:
            await client.close()

    assert [answer.completion_tokens for answer in asyncio.run(answers())] == [1, 0]


def test_a_reply_goes_on_from_its_label(tiny_models, clients):
    """Greedy text after the label is what the model writes after prompt and label as one text."""
    played, place = clients
    messages, lead = SUPPORTER.ask(PROFILE, TALK, "Question")
    request = Request("supporter", messages, max_tokens=6, temperature=0.0, lead=lead)

    async def both() -> tuple[Answer, Answer]:
        try:
            return await played["supporter"].answer(request), await played["seeker"].answer(request)
        finally:
            await played["judge"].close()

    found, other = asyncio.run(both())
    encoder, model = tiny_models("llama").encoder, alone(tiny_models("llama").model, place)
    prompt = encoder.adapt(Prompt(messages))
    labels = dict(zip(ESCONV.names, encode_labels(encoder, ESCONV, prompt), strict=True))
    ids = np.concatenate([encoder.encode_prompt(prompt).input_ids, labels["Question"]])
    (expected,) = generate(model.double(), [ids], encoder.stop_tokens, Sampling(6), [0])
    assert found.text == encoder.decode(expected)
    assert found.prompt_tokens == len(ids)
    assert (found.model, other.model) == ("policy", "seeker")
