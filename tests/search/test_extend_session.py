"""Continuations of many dialogues, written by a client whose answers are known: calls, counts, files, memory."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir

from esc_lab.cli.compositions import CONF
from esc_lab.config import Config, typed
from esc_lab.config.search import BudgetConfig
from esc_lab.data.corpora import read_dialogues
from esc_lab.data.dialogue import Dialogue, Reply, Turn
from esc_lab.errors import UserError
from esc_lab.search.calls import Calls
from esc_lab.search.event_loop import run_loop
from esc_lab.search.extend_result import ExtendResult
from esc_lab.search.extend_session import ExtendSession
from esc_lab.search.requests import Answer, Request


class Writer:
    """A client that answers with what `text(request)` gives, in an order of its own."""

    scores = False
    retries: Mapping[str, int] = {}

    def __init__(self, text: Callable[[Request], str]) -> None:
        self.identity: Mapping[str, Any] = {"model": "writer"}
        self.requests: list[Request] = []
        self.text = text

    async def answer(self, request: Request) -> Answer:
        self.requests.append(request)
        for _ in range(request.seed % 5):
            await asyncio.sleep(0)
        return Answer(self.text(request), model="writer", prompt_tokens=20, completion_tokens=10)

    async def close(self) -> None: ...


def talk(number: int, turns: int = 12) -> Dialogue:
    said = [Turn(("seeker", "supporter")[n % 2], Reply(f"Word {number} and turn {n}.")) for n in range(turns)]
    return Dialogue(tuple(said), "extes_sra", situation=f"Situation {number}.")


def settings(run_dir: Path, *words: str) -> Config:
    few = ("inventory=extes_sra", "search.cache=false", "extend.number=3", "extend.unconditional=1")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = typed(compose("config", ["stage=extend", *few, *words]))
    cfg.run_dir = str(run_dir)
    return cfg


def sentence(request: Request) -> str:
    return f"This is answer {request.seed} for you."


def extend(
    cfg: Config, splits: Mapping[str, list[Dialogue]], text: Callable[[Request], str] = sentence, classifier: Any = None
) -> tuple[ExtendResult, Writer, Calls]:
    client = Writer(text)
    calls = Calls({"supporter": client}, cfg.search.concurrency, budget=cfg.search.budget)
    session = ExtendSession(cfg, splits, calls, classifier)

    async def work() -> ExtendResult:
        try:
            return await session.extend()
        finally:
            await calls.close()

    return run_loop(work()), client, calls


SPLITS = {"train": [talk(n) for n in range(7)], "val": [talk(10), talk(11, turns=3)], "test": [talk(20), talk(0)]}


def written(directory: Path) -> dict[str, list[Dialogue]]:
    return {path.stem: read_dialogues(path) for path in sorted((directory / "continuations").glob("*.jsonl"))}


@pytest.fixture(scope="module")
def extended(tmp_path_factory) -> tuple[Path, ExtendResult, Writer]:
    directory = tmp_path_factory.mktemp("extended")
    result, client, _ = extend(settings(directory), SPLITS)
    return directory, result, client


def test_each_context_has_its_replies_in_the_split_of_its_dialogue(extended):
    directory, result, client = extended
    found = written(directory)
    assert {split: len(dialogues) for split, dialogues in found.items()} == {"train": 28, "valid": 4, "test": 4}
    sources = {dialogue.id: dialogue for dialogues in SPLITS.values() for dialogue in dialogues}
    order = [dialogue.meta["dialogue"] for dialogue in found["train"]]
    assert [*dict.fromkeys(order)] == [dialogue.id for dialogue in SPLITS["train"]]
    for dialogue in [dialogue for dialogues in found.values() for dialogue in dialogues]:
        source, turns = sources[dialogue.meta["dialogue"]], dialogue.meta["turns"]
        assert dialogue.turns[:-1] == source.turns[:turns]
        assert (dialogue.tree_id, dialogue.situation, dialogue.survey) == (source.tree_id, source.situation, None)
        assert dialogue.turns[turns - 1].speaker == "seeker"
        last = dialogue.turns[-1]
        assert last.speaker == "supporter"
        assert last.reply.strategies == tuple(filter(None, [dialogue.meta["prompted"]]))
    prompted = Counter(dialogue.meta["prompted"] for dialogues in found.values() for dialogue in dialogues)
    assert prompted[None] == 9
    assert result.metrics()["extend/replies"] == len(client.requests) == 36
    assert result.metrics()["extend/strategy/unconditional"] == 9
    assert result.metrics()["extend/dialogues_without_context"] == 1
    assert len({request.seed for request in client.requests}) == 36


def test_prompts_name_the_strategy_and_share_their_history(extended):
    _, _, client = extended
    for request in client.requests:
        assert (request.temperature, request.top_p, request.max_tokens) == (0.7, 0.9, 96)
        assert [message.role for message in request.messages] == ["system", "user"]  # c1: the last message alone
    named = [request for request in client.requests if "strategy: " in request.messages[0].content]
    assert len(named) == 27
    assert all("style" in request.messages[0].content for request in client.requests)


def test_a_resumed_run_asks_for_nothing_that_was_answered(tmp_path, extended):
    directory, _, _ = extended
    cfg = settings(tmp_path, f"resume={directory}")
    result, client, _ = extend(cfg, SPLITS)
    assert client.requests == []
    assert written(tmp_path) == written(directory)
    assert result.calls.spent.calls == 36


def test_memory_holds_the_answers_of_a_few_dialogues(tmp_path):
    """Answers that journals hold in memory, at each call: they do not grow with the number of dialogues."""
    for count in (10, 60):
        client = Writer(sentence)
        calls, held = Calls({"supporter": client}, 4), list[int]()

        def note(request: Request, calls: Calls = calls, held: list[int] = held) -> str:
            held.append(sum(len(journal.answers) for journal in calls.journals))
            return sentence(request)

        client.text = note
        cfg = settings(tmp_path / str(count), "search.concurrency=4")
        run_loop(ExtendSession(cfg, {"train": [talk(n) for n in range(count)]}, calls).extend())
        assert len(held) == 4 * count
        assert max(held) <= 12
        assert sum(len(journal.answers) for journal in calls.journals) == 0


def test_what_cannot_be_used_is_drawn_again_and_then_left_out(tmp_path):
    def text(request: Request) -> str:
        if 'the "Offer Hope" strategy' in request.messages[0].content:
            return ""  # never
        copies = "strategy:" not in request.messages[0].content and request.sample == 0
        return request.messages[-1].content if copies else sentence(request)

    splits = {"train": SPLITS["train"]}
    result, client, _ = extend(settings(tmp_path, "extend.number=15"), splits, text)
    assert result.counts == Counter({"asked": 112, "missing": 7, "unusable": 28, "empty": 21, "copy": 7})
    assert result.strategies == Counter({name: 7 for name in result.strategies})
    assert result.strategies.total() == 105
    draws = Counter((request.messages, request.sample) for request in client.requests)
    assert set(draws.values()) == {1}
    assert sum(request.sample == 2 for request in client.requests) == 7


def test_a_model_that_writes_nothing_usable_is_stopped(tmp_path):
    with pytest.raises(UserError, match="answers cannot be used"):
        extend(settings(tmp_path, "extend.number=15"), SPLITS, lambda request: "")
    assert not [*(tmp_path / "continuations").glob("*")]


def test_a_spent_budget_leaves_whole_dialogues(tmp_path):
    cfg = settings(tmp_path, "search.budget.calls=10", "search.concurrency=1")
    result, client, _ = extend(cfg, SPLITS)
    assert len(client.requests) == 10
    assert result.stopped
    assert result.unfinished == 9 - result.strategies.total() // 4 > 0
    assert {split: len(found) for split, found in written(tmp_path).items()} == {"train": result.strategies.total()}
    cfg.search.budget, cfg.resume = BudgetConfig(), str(tmp_path)
    result, client, _ = extend(cfg, SPLITS)
    assert (result.unfinished, len(client.requests)) == (0, 26)
    assert sum(map(len, written(tmp_path).values())) == 36


def test_a_budget_counts_what_was_spent_on_dialogues_that_come_later(tmp_path):
    """A finished run that is to write more strategies: its calls are spent before the first new one is made."""
    extend(settings(tmp_path, "extend.number=1", "extend.unconditional=0"), SPLITS)  # 9 calls
    more = settings(tmp_path, "extend.number=4", "extend.unconditional=0", "search.budget.calls=15",
                    "search.concurrency=1", f"resume={tmp_path}")  # fmt: skip
    result, client, calls = extend(more, SPLITS)
    assert len(client.requests) == 15 - 9
    assert calls.spent.calls == 15
    assert result.unfinished == 7  # 3 new ones each


def test_prompts_show_examples_of_their_strategy_which_no_reply_may_copy(tmp_path):
    cfg = settings(tmp_path, "extend.number=15", "extend.examples=1")
    exchanges = {exchange["supporter"]: exchange for exchange in cfg.inventory.examples}

    def text(request: Request) -> str:
        shown = [reply for reply in exchanges if f"supporter: {reply}" in request.messages[0].content]
        assert len(shown) == ("strategy:" in request.messages[0].content)
        for reply in shown:
            assert f'the "{exchanges[reply]["strategy"]}" strategy' in request.messages[0].content
        return shown[0] if shown and request.sample == 0 else sentence(request)

    result, client, _ = extend(cfg, {"train": SPLITS["train"]}, text)
    assert result.counts["copy"] == 7 * 15
    assert result.strategies.total() == 7 * 16
    seen = {reply for reply in exchanges for request in client.requests if reply in request.messages[0].content}
    assert len(seen) > 15  # other contexts show others


class Judge:
    """Finds in a reply the strategy whose number it says; -1: none."""

    def predict(self, texts: list[str]) -> torch.Tensor:
        found = torch.zeros(len(texts), 15)
        for row, text in enumerate(texts):
            number = int(text.split()[-1].rstrip("."))
            if number >= 0:
                found[row, number] = 1
        return found


def test_only_confirmed_replies_are_kept(tmp_path):
    cfg = settings(tmp_path, "extend.number=15")
    names = [strategy["name"] for strategy in cfg.inventory.strategies]

    def text(request: Request) -> str:
        named = next((n for n, name in enumerate(names) if f'the "{name}"' in request.messages[0].content), -1)
        return f"You could try number {named if named % 3 else 2}."

    result, _, _ = extend(cfg, {"train": SPLITS["train"]}, text, Judge())
    right = {name: 7 for number, name in enumerate(names) if number % 3}
    assert result.strategies == Counter({**right, "unconditional": 7})
    assert result.counts["unconfirmed"] == 7 * (15 - len(right))


def test_bounds_without_any_context_are_refused(tmp_path):
    with pytest.raises(
        UserError, match=r"none of \d+ dialogues has a seeker's turn to cut after, from extend.min_turns=30"
    ):
        extend(settings(tmp_path, "extend.min_turns=30", "extend.max_turns=40"), SPLITS)


def test_journals_of_other_words_are_refused(tmp_path, extended):
    directory, _, _ = extended
    with pytest.raises(UserError, match=r"the journal is of another configuration: .*template was .c1_hf"):
        extend(settings(tmp_path, f"resume={directory}", "extend.template=standard"), SPLITS)


def test_journals_are_json_lines(extended):
    directory, _, _ = extended
    for path in (directory / "contexts").iterdir():
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        assert len(lines) == 5  # a header and the answers of one context
