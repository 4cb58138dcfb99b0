"""Many trees at once: the same trees whatever the timing, and no finished call is made twice."""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import os
import random
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from esc_lab.config.search import ROLES, BudgetConfig, LLMConfig, MCTSConfig
from esc_lab.data.dialogue import Reply, Turn
from esc_lab.data.strategies import load_inventory
from esc_lab.errors import UserError
from esc_lab.prompts import SeekerProfile
from esc_lab.search import builder
from esc_lab.search.builder import TreeSearch, load_tree, save_tree, search_trees
from esc_lab.search.cache import RequestCache
from esc_lab.search.calls import Calls
from esc_lab.search.iteration import Call
from esc_lab.search.journal import Journal
from esc_lab.search.mcts import Search, SeedDecision
from esc_lab.search.requests import Answer, Request, TooLongError
from esc_lab.search.roles import Roles
from esc_lab.search.spending import BudgetError
from tests.search.endpoint_roles import play
from tests.search.oracle import Oracle
from tests.search.oracle import run as play_search
from tests.search.virtual_time import run as run_test

INVENTORY = load_inventory("cso")
AXES = [
    {"name": "empathy", "weight": 0.3, "rubric": "whether it feels"},
    {"name": "strategy", "weight": 0.7, "rubric": "how apt it is"},
]
START = (Turn("supporter", Reply("Hello.")), Turn("seeker", Reply("I lost my job.")))
SEED = (
    SeedDecision("Affirmation", "You did well there.", "They did not think so."),
    SeedDecision("Share Information", "There is an office for that.", "Thanks, bye."),
)
SETTINGS = MCTSConfig(min_iterations=7, max_iterations=9, max_ended=6, rollout_rounds=2, in_flight=3)
TREES = 4


class Playing:
    """Plays all roles at once; answers are hashes of the requests. One in nine cannot be used.

    Attributes:
        made: finished calls by their content.
        most_at_once: calls that were under way together.
        fails: raises what it likes, from the request and the number of calls so far.
    """

    def __init__(self, *, scores: bool = False, slow: float = 0.0, seed: int = 0) -> None:
        self.identity: Mapping[str, Any] = {"client": "playing"}
        self.scores, self.slow = scores, slow
        self.retries: Mapping[str, int] = {}
        self.made: Counter[str] = Counter()
        self.begun = self.at_once = self.most_at_once = 0
        self.fails: Callable[[Request, int], None] = lambda request, number: None
        self._delays = random.Random(seed)

    async def answer(self, request: Request) -> Answer:
        self.begun += 1
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await asyncio.sleep(self._delays.random() ** 3 * self.slow)
            self.fails(request, self.begun)
        finally:
            self.at_once -= 1
        self.made[request.key(self.identity)] += 1
        body = {"messages": [vars(message) for message in request.messages], "seed": request.seed}
        digest = hashlib.sha256(json.dumps(body).encode()).digest()
        if request.questions:
            return Answer(log_probs=tuple(_log_probs(digest, len(q.options)) for q in request.questions))
        if digest[31] % 9 == 0:
            return Answer("", refusal="I would rather not.", completion_tokens=1)
        return Answer(play(body), model="playing-1", prompt_tokens=100, completion_tokens=digest[30] % 30)

    async def close(self) -> None:
        pass


def _log_probs(digest: bytes, options: int) -> tuple[float, ...]:
    weights = [digest[index] + 1 for index in range(options)]
    return tuple(math.log(weight / sum(weights)) for weight in weights)


def unreached(search: Search) -> list[int]:
    return [number for number, node in enumerate(search.tree.nodes) if node.text is None and not node.lost][:6]


class Run:
    """Trees with journals in a directory, as a process would begin or take them up."""

    def __init__(
        self,
        directory: Path,
        client: Playing,
        concurrency: int = 64,
        *,
        budget: BudgetConfig | None = None,
        cache: bool = False,
        extend: bool = False,
        settings: MCTSConfig = SETTINGS,
    ) -> None:
        self.client, self.counts = client, Counter[str]()
        self.calls = Calls(
            dict.fromkeys(ROLES, client), concurrency, RequestCache(directory / "c.sqlite") if cache else None, budget
        )
        self.calls.retry_too_long = True
        self.trees: list[TreeSearch] = []
        self.finished: list[str] = []
        llm = LLMConfig()
        llm.judge.axes = AXES
        for role in ROLES:
            getattr(llm, role).max_tokens = 25
        for number in range(TREES):
            journal = self.calls.open_journal(directory / f"{number}.journal.jsonl", {"tree": number})
            seeker, send = SeekerProfile(f"They closed shop {number}."), partial(self.calls.send, journal)
            roles = Roles(INVENTORY, seeker, llm, self.calls.scoring, send, self.counts, number // 2)
            start = (*START[:1], Turn("seeker", Reply(f"I lost my job {number}.")))
            search = Search(settings, start, INVENTORY.names, SEED if number % 2 else (), seed=0)
            self.trees.append(TreeSearch(str(number), search, roles, journal, unreached if extend else None))

    def go(self, at_once: int = 8) -> BudgetError | None:
        """Search the trees; nothing may be left running."""

        async def main() -> BudgetError | None:
            before = asyncio.all_tasks()
            try:
                return await search_trees(self.trees, at_once, lambda tree: self.finished.append(tree.name))
            finally:
                with suppress(UserError, OSError):
                    await self.calls.close()
                assert asyncio.all_tasks() == before

        return run_test(main())

    def states(self, *numbers: int) -> list[bytes]:
        return [
            json.dumps(tree.search.state()).encode() for tree in self.trees if not numbers or int(tree.name) in numbers
        ]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[bool, bool], list[bytes]]:
    """By (a client that scores, extended): the trees as they grow one after another, a leaf and a call at a time."""
    found = {}
    for scores in (False, True):
        for extend in (False, True):
            settings = replace(SETTINGS, in_flight=1)
            run = Run(tmp_path_factory.mktemp("one"), Playing(scores=scores), 1, extend=extend, settings=settings)
            assert run.go(1) is None
            assert run.client.most_at_once == 1
            found[scores, extend] = run.states()
    return found


def test_the_trees_are_worth_comparing(undisturbed) -> None:
    for states in undisturbed.values():
        trees = [json.loads(state)["tree"] for state in states]
        assert len(set(states)) == TREES
        assert all(tree["iterations"] >= 7 for tree in trees)
        assert min(len(tree["nodes"]) for tree in trees) >= 25
        assert any(node["ended"] and not node["seed"] for tree in trees for node in tree["nodes"])
    assert undisturbed[False, False] != undisturbed[False, True]


@pytest.mark.parametrize("extend", [False, True])
@pytest.mark.parametrize("scores", [False, True])
@pytest.mark.parametrize(("concurrency", "at_once"), [(64, 8), (64, 1), (1, 8), (5, 2)])
def test_trees_do_not_depend_on_timing(
    tmp_path: Path, undisturbed, concurrency: int, at_once: int, scores: bool, extend: bool
) -> None:
    slow = 0.001 if concurrency == 1 else 0.004
    run = Run(tmp_path, Playing(scores=scores, slow=slow, seed=concurrency), concurrency, cache=True, extend=extend)
    assert run.go(at_once) is None
    assert run.states() == undisturbed[scores, extend]
    assert max(run.client.made.values()) == 1
    assert run.client.most_at_once <= concurrency
    assert run.client.most_at_once > 4 or min(concurrency, at_once) < 8
    assert sorted(run.finished) == [tree.name for tree in run.trees] == list("0123")
    assert all(tree.finished for tree in run.trees)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("extend", [False, True])
def test_a_search_goes_on_from_any_prefix_of_its_journals(tmp_path: Path, undisturbed, seed: int, extend: bool) -> None:
    whole = Run(tmp_path, Playing(slow=0.002, seed=seed), extend=extend)
    whole.go()
    cut = random.Random(seed)
    kept: set[str] = set()
    for tree in whole.trees:
        lines = tree.journal.path.read_bytes().splitlines(keepends=True)
        number = cut.choice([0, 1, cut.randint(1, len(lines)), cut.randint(1, len(lines)), len(lines)])
        torn = lines[number][: cut.randrange(len(lines[number]))] if number < len(lines) else b""
        tree.journal.path.write_bytes(b"".join(lines[:number]) + torn)
        kept.update(json.loads(line)["key"] for line in lines[1:number])
    again = Run(tmp_path, Playing(slow=0.002, seed=seed + 100), (1, 3, 64)[seed % 3], extend=extend)
    assert again.calls.spent.calls == len(kept)
    assert again.go((1, 8)[seed % 2]) is None
    assert again.states() == undisturbed[False, extend]
    assert not kept & again.client.made.keys()
    assert max(again.client.made.values(), default=1) == 1
    last = Run(tmp_path, Playing(), extend=extend)
    last.go()
    assert last.states() == undisturbed[False, extend]
    assert not last.client.begun  # nothing is asked ahead where the answers are there


@pytest.mark.parametrize("at", [1, 2, 30, 100])
@pytest.mark.parametrize("which", [Exception, UserError])
def test_an_error_in_one_tree_stops_all_and_is_the_one_raised(
    tmp_path: Path, undisturbed, at: int, which: type[Exception]
) -> None:
    error = which("the endpoint is gone")

    def fails(request: Request, number: int) -> None:
        if number >= at and "lost my job 2" in request.messages[1].content:
            raise error

    run = Run(tmp_path, Playing(slow=0.003, seed=at), 16)
    run.client.fails = fails
    with pytest.raises(which) as raised:
        run.go()
    assert raised.value is error
    assert not any(tree.finished for tree in run.trees)
    kept = {key for tree in run.trees for key in Journal(tree.journal.path, tree.journal.config).answers}
    assert kept == run.client.made.keys()
    again = Run(tmp_path, Playing(), 16)
    again.go()
    assert again.states() == undisturbed[False, False]
    assert not kept & again.client.made.keys()


@pytest.mark.parametrize(("concurrency", "at_once", "in_flight"), [(1, 1, 1), (64, 8, 3), (4, 2, 3)])
def test_a_spent_budget_keeps_everything_and_more_goes_on_to_the_same_trees(
    tmp_path: Path, concurrency: int, at_once: int, in_flight: int
) -> None:
    settings = MCTSConfig(min_iterations=5, max_iterations=5, rollout_rounds=2, in_flight=in_flight)
    (tmp_path / "undisturbed").mkdir()
    undisturbed = Run(tmp_path / "undisturbed", Playing(), 1, settings=settings)
    undisturbed.go(1)
    made: Counter[str] = Counter()
    for limit in (0, 1, 2, 3, 50, 51, 120, 150, None):
        run = Run(tmp_path, Playing(slow=0.002), concurrency, budget=BudgetConfig(calls=limit), settings=settings)
        found = run.go(at_once)
        made += run.client.made
        assert max(made.values(), default=1) == 1
        assert run.calls.spent.calls == made.total()
        kept = [key for tree in run.trees for key in Journal(tree.journal.path, tree.journal.config).answers]
        assert sorted(kept) == sorted(made)
        if limit is None:
            assert found is None
        else:
            assert str(found).startswith(f"search.budget.calls: the budget of {limit} calls is spent. Fix: a larger")
            assert limit <= made.total() < limit + concurrency
            assert not all(tree.finished for tree in run.trees)
    assert run.states() == undisturbed.states()


def test_trees_without_an_open_call_are_finished_though_the_budget_is_spent(tmp_path: Path, undisturbed) -> None:
    Run(tmp_path, Playing()).go()
    path = tmp_path / "3.journal.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-5]))
    run = Run(tmp_path, Playing(), budget=BudgetConfig(calls=5))
    assert isinstance(run.go(), BudgetError)
    assert [tree.finished for tree in run.trees] == [True, True, True, False]
    assert run.states(0, 1, 2) == undisturbed[False, False][:3]


def test_a_search_that_is_interrupted_leaves_nothing_running(tmp_path: Path, undisturbed) -> None:
    run = Run(tmp_path, Playing(slow=0.003), 16)

    async def main() -> None:
        before = asyncio.all_tasks()
        searching = asyncio.create_task(search_trees(run.trees, 8))
        while run.client.begun < 60:
            await asyncio.sleep(0.001)
        searching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await searching
        await run.calls.close()
        assert asyncio.all_tasks() == before

    run_test(main())
    again = Run(tmp_path, Playing())
    again.go()
    assert again.states() == undisturbed[False, False]
    assert not run.client.made.keys() & again.client.made.keys()


@pytest.mark.parametrize("extend", [False, True])
def test_a_tree_whose_talk_is_too_long_is_set_aside(tmp_path: Path, undisturbed, extend: bool) -> None:
    """The others finish, and are those of an undisturbed search."""

    def refuse(request: Request, number: int) -> None:
        text = "".join(message.content for message in request.messages)
        if "job 1." in text and request.role == "judge":
            raise TooLongError("the conversation is too long", where="test", fix="a longer context")

    run = Run(tmp_path, Playing(slow=0.002), extend=extend)
    run.client.fails = refuse
    assert run.go() is None
    assert sorted(run.finished) == ["0", "2", "3"]
    assert [tree.too_long is not None for tree in run.trees] == [False, True, False, False]
    assert not run.trees[1].finished
    expected = undisturbed[False, extend]
    assert run.states(0, 2, 3) == [expected[number] for number in (0, 2, 3)]
    # With room for it, the search goes on from what was answered.
    again = Run(tmp_path, Playing(), extend=extend)
    again.go()
    assert again.states() == expected
    assert not run.client.made.keys() & again.client.made.keys()


def test_a_call_made_ahead_that_is_too_long_and_not_needed_sets_nothing_aside(tmp_path: Path, undisturbed) -> None:
    needed = Run(tmp_path / "needed", Playing(), settings=replace(SETTINGS, in_flight=1))
    needed.go()

    def refuse(request: Request, number: int) -> None:
        if request.key(run.client.identity) not in needed.client.made:
            refused.append(request)
            raise TooLongError("the conversation is too long")

    refused: list[Request] = []
    run = Run(tmp_path / "ahead", Playing(slow=0.002))
    run.client.fails = refuse
    run.go()
    assert len(run.finished) == TREES
    assert run.states() == undisturbed[False, False]


@pytest.mark.parametrize("slow", [0.002, 60.0])
def test_a_journal_that_cannot_be_synced_stops_the_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slow: float
) -> None:
    """Even while no call comes back."""
    monkeypatch.setattr(builder, "SYNC_EVERY_S", 0.01)
    run = Run(tmp_path, Playing(slow=slow))
    path = run.trees[2].journal.path
    path.unlink()
    os.mkfifo(path)  # takes what is written, and cannot be synced
    run.trees[2].journal.add("key", Request("judge", ()), Answer())
    with pytest.raises(UserError, match=r"2\.journal\.jsonl: cannot write: Invalid argument"):
        run.go()


def test_a_journal_that_cannot_be_written_stops_the_search(tmp_path: Path, undisturbed) -> None:
    run = Run(tmp_path, Playing(slow=0.001))
    path = run.trees[2].journal.path
    lines: list[int] = []

    def block(request: Request, number: int) -> None:
        if not lines and number > 60:
            lines.append(path.read_bytes().count(b"\n"))
            path.rename(tmp_path / "aside")
            path.mkdir()

    run.client.fails = block

    with pytest.raises(UserError, match=r"2\.journal\.jsonl: cannot write: Is a directory"):
        run.go()
    path.rmdir()
    (tmp_path / "aside").rename(path)
    assert path.read_bytes().count(b"\n") == lines[0]
    again = Run(tmp_path, Playing())
    again.go()
    assert again.states() == undisturbed[False, False]


def test_journals_are_synced_while_trees_grow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builder, "SYNC_EVERY_S", 0.01)
    synced: Counter[Path] = Counter()
    sync = Journal.sync

    def counted(journal: Journal) -> None:
        synced[journal.path] += journal._unsynced
        sync(journal)

    monkeypatch.setattr(Journal, "sync", counted)
    run = Run(tmp_path, Playing(slow=0.02))
    synced.clear()
    run.go()
    assert set(synced) == {tree.journal.path for tree in run.trees}
    assert min(synced.values()) >= 2


def test_finished_trees_are_left_alone(tmp_path: Path, undisturbed) -> None:
    run = Run(tmp_path, Playing(slow=0.001))
    run.trees[1].finished = True
    run.go()
    assert set(run.finished) == {"0", "2", "3"}
    assert run.states(0) == undisturbed[False, False][:1]


def test_what_is_counted_does_not_depend_on_leaves_in_flight(tmp_path: Path) -> None:
    """Events at calls that were made ahead in vain are none of the tree's; how many such calls there were is told."""
    counts, unused = [], []
    for in_flight in (1, 3, 8):
        settings = replace(SETTINGS, min_iterations=20, max_iterations=20, in_flight=in_flight)
        (directory := tmp_path / str(in_flight)).mkdir()
        run = Run(directory, Playing(slow=0.01), settings=settings)
        run.go()
        counts.append(run.counts)
        unused.append(sum(tree.unused for tree in run.trees))
    assert counts[0] == counts[1] == counts[2]
    assert counts[0].total() > 20
    assert unused[0] == 0 < unused[1] < unused[2]


def test_calls_are_made_ahead_only_where_there_is_room(tmp_path: Path) -> None:
    run = Run(tmp_path, Playing(slow=0.01), 2, settings=replace(SETTINGS, in_flight=8))
    run_test(search_trees(run.trees, TREES, has_room=run.calls.has_room))  # four trees keep two connections busy
    assert sum(tree.unused for tree in run.trees) < 20


@pytest.mark.parametrize("seed", range(4))
def test_a_budget_that_refuses_calls_made_ahead_leaves_the_tree_alone(tmp_path: Path, seed: int) -> None:
    names = INVENTORY.names
    settings = MCTSConfig(min_iterations=12, max_iterations=12, in_flight=8)
    plain = play_search(Search(replace(settings, in_flight=1), START, names), Oracle(names, seed))
    refused: list[Call] = []

    class Limited:
        def __init__(self) -> None:
            self.counts: Counter[str] = Counter()

        async def result(self, call: Call) -> Any:
            if call not in plain.used:
                refused.append(call)
                raise BudgetError("spent")
            await asyncio.sleep(0.01)
            return Oracle(names, seed).result(call)

    tree = TreeSearch("a", Search(settings, START, names), Limited(), Journal(tmp_path / "j", {}))  # type: ignore[arg-type]
    assert run_test(search_trees([tree], 1)) is None
    assert tree.finished
    assert tree.search.state() == plain.state()
    assert refused


def test_saved_trees(tmp_path: Path) -> None:
    run = Run(tmp_path, Playing(), extend=True)
    run.go()
    path = save_tree(run.trees[1], tmp_path / "trees", "print")
    loaded = load_tree(path, "print", SETTINGS)
    assert loaded is not None
    search, counts = loaded
    assert (search.state(), search.done) == (run.trees[1].search.state(), True)
    assert counts == run.trees[1].roles.counts
    assert load_tree(path, "other", SETTINGS) is None
    assert load_tree(tmp_path / "trees" / "2.json", "print", SETTINGS) is None
    for content in (
        "",
        "{",
        "[]",
        "3",
        "{}",
        '{"grown_with": "print"}',
        '{"grown_with": "print", "settings": {"a": 1}}',
    ):
        path.write_text(content)
        with pytest.raises(UserError, match=r"1\.json: not a tree of this version\. Fix: delete the file"):
            load_tree(path, "print", SETTINGS)


def test_a_tree_that_an_older_version_grew_as_another_search_is_grown_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Leaves in flight changed the search once; its trees say how many there were."""
    run = Run(tmp_path, Playing())
    run.go()
    path = save_tree(run.trees[1], tmp_path / "trees", "print")
    for in_flight, warned in ((1, False), (4, True)):
        state = json.loads(path.read_text())
        path.write_text(json.dumps(state | {"settings": state["settings"] | {"in_flight": in_flight}}))
        assert load_tree(path, "print of today", SETTINGS) is None
        assert ("1.json was grown by an earlier version with 4 leaves in flight" in caplog.text) is warned


def test_a_tree_that_cannot_be_saved_stops_the_search(tmp_path: Path) -> None:
    (tmp_path / "trees").write_text("")
    run = Run(tmp_path, Playing())

    def save(tree: TreeSearch) -> None:
        save_tree(tree, tmp_path / "trees", "print")

    async def main() -> None:
        await search_trees(run.trees, 8, on_finish=save)

    with pytest.raises(UserError, match="cannot write"):
        run_test(main())


def test_nothing_to_grow(tmp_path: Path) -> None:
    assert run_test(search_trees([], 1)) is None
