"""How far work is: the points of its curves, and what trees hold while they grow."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from esc_lab.config.search import PreferenceConfig
from esc_lab.search import progress
from esc_lab.search.progress import CallProgress, TreesSoFar
from esc_lab.search.spending import Spent
from tests.search.hand_made import hand_made, make

RULE = PreferenceConfig()


@pytest.fixture
def points(monkeypatch):
    """All points that are logged, with none of the waiting between them."""
    logged: list[dict[str, float]] = []
    monkeypatch.setattr(progress, "log_curve", logged.append)
    monkeypatch.setattr(progress, "current_run", lambda: object())
    monkeypatch.setattr(progress, "CURVE_EVERY_S", 0.0)
    monkeypatch.setattr(progress, "_LOOK_EVERY_S", 0.0)
    return logged


def test_a_curve_begins_where_the_run_does_that_it_goes_on_from(points):
    """What a journal answers comes back at once, and is no progress of this run."""
    calls = SimpleNamespace(spent=Spent(), retries={})
    done = 0

    async def work() -> None:
        nonlocal done
        async with CallProgress(
            "work", 6, lambda: done, parts=("parts", 2), finished=lambda: done // 3, calls=calls,
            measure=lambda: {"of_it": 10.0 * done},
        ).shown():  # fmt: skip
            for made in (False, False, False, True, True, True):
                done += 1
                calls.spent.calls += 1
                calls.spent.made += made
                for _ in range(5):
                    await asyncio.sleep(0)

    asyncio.run(work())
    steps = [point["progress/iteration"] for point in points]
    assert steps == sorted(steps)
    assert steps[0] == 4
    last = points[-1]
    assert (last["progress/iteration"], last["progress/finished_parts"], last["progress/of_it"]) == (6, 2, 60.0)
    assert last["progress/calls"] == 6


def test_trees_are_looked_through_again_when_they_have_grown(monkeypatch):
    tree, empty = hand_made(), hand_made()
    empty.iterations = 0
    looked = []
    find = progress.find_preferences
    monkeypatch.setattr(progress, "find_preferences", lambda *of: (looked.append(1), find(*of))[1])
    so_far = TreesSoFar([tree, empty], RULE)
    found = so_far.measure()
    assert so_far.measure() == found
    assert len(looked) == 1  # and nothing of the tree in which no iteration is finished
    replies = {
        (turn.reply.text, other.text) for talk in make(tree, RULE) for turn in talk.turns[2:] for other in turn.rejected
    }
    assert found["pairs"] == len(replies) > 0
    judged = [node.judgement[1] for node in tree.nodes[1:] if node.judgement[1] is not None]
    assert found["decisions"] == len(judged)
    assert found["mean_q"] == pytest.approx(sum(judged) / len(judged))
    assert found["ended_leaves"] == 6
    tree.iterations += 1
    tree.nodes[3].value = -1.0
    assert so_far.measure()["mean_q"] < found["mean_q"]


def test_nothing_is_said_of_trees_before_they_grow():
    tree = hand_made()
    tree.iterations = 0
    assert TreesSoFar([tree], RULE).measure() == {"pairs": 0, "ended_leaves": 0, "decisions": 0}
