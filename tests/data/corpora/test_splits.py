"""Splits: no tree on two sides, reproducible whatever the order, fractions nested."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esc_lab.data.corpora import proportional_split, published_split, seed_fraction
from esc_lab.data.dialogue import Dialogue, Reply, Turn
from esc_lab.errors import UserError


def dialogues_of(trees: list[int]) -> list[Dialogue]:
    """One dialogue for every entry, in the tree of that number."""
    return [
        Dialogue((Turn("supporter", Reply(str(index))),), "cso", f"tree {tree}") for index, tree in enumerate(trees)
    ]


def ids(dialogues: list[Dialogue]) -> list[str]:
    return [dialogue.id for dialogue in dialogues]


SHARES = st.lists(st.integers(0, 5), min_size=1, max_size=4).filter(any)


@given(trees=st.lists(st.integers(0, 30), min_size=1, max_size=60), weights=SHARES, seed=st.integers(0, 3))
@settings(max_examples=150)
def test_proportional_split(trees: list[int], weights: list[int], seed: int) -> None:
    dialogues, total = dialogues_of(trees), len(set(trees))
    proportions = {f"split {index}": weight / sum(weights) for index, weight in enumerate(weights)}
    shared = [name for name, share in proportions.items() if share]
    if total < len(shared):
        with pytest.raises(UserError, match="cannot fill the splits"):
            proportional_split(dialogues, proportions, seed)
        return
    splits = proportional_split(dialogues, proportions, seed)
    assert list(splits) == list(proportions)
    assert sorted([dialogue.id for part in splits.values() for dialogue in part]) == sorted(ids(dialogues))
    of_split = {name: {dialogue.tree_id for dialogue in part} for name, part in splits.items()}
    assert sum(map(len, of_split.values())) == total
    position = {name: index for index, name in enumerate(ids(dialogues))}
    for name, part in splits.items():
        order = [position[dialogue.id] for dialogue in part]
        assert order == sorted(order)
        assert bool(part) == (name in shared)
        if total >= 20 * len(shared):
            assert abs(len(of_split[name]) - proportions[name] * total) < 1
    backwards = proportional_split(dialogues[::-1], proportions, seed)
    assert {name: ids(part[::-1]) for name, part in backwards.items()} == {n: ids(p) for n, p in splits.items()}


def test_eight_one_one_is_exact_and_pinned() -> None:
    splits = proportional_split(dialogues_of(list(range(1300))))
    assert {name: len(part) for name, part in splits.items()} == {"train": 1040, "val": 130, "test": 130}
    few = proportional_split(dialogues_of(list(range(10))), seed=7)
    assert [d.tree_id for d in few["val"] + few["test"]] == ["tree 7", "tree 2"]


def test_seeds_differ_and_rounding_is_by_largest_remainder() -> None:
    dialogues = dialogues_of(list(range(100)))
    assert ids(proportional_split(dialogues, seed=0)["test"]) != ids(proportional_split(dialogues, seed=1)["test"])
    sizes = {n: len(p) for n, p in proportional_split(dialogues, {"a": 0.29, "b": 0.58, "c": 0.13}).items()}
    assert sizes == {"a": 29, "b": 58, "c": 13}
    sizes = {n: len(p) for n, p in proportional_split(dialogues[:7], {"a": 0.5, "b": 0.3, "c": 0.2}).items()}
    assert sizes == {"a": 4, "b": 2, "c": 1}
    sizes = {n: len(p) for n, p in proportional_split(dialogues[:3], {"a": 0.98, "b": 0.01, "c": 0.01}).items()}
    assert sizes == {"a": 1, "b": 1, "c": 1}


@pytest.mark.parametrize("proportions", [{"a": 0.5}, {"a": 1.5, "b": -0.5}, {"a": float("nan")}, {}, {"a": 0.0}])
def test_wrong_proportions(proportions: dict[str, float]) -> None:
    with pytest.raises(UserError, match="sum to 1"):
        proportional_split(dialogues_of([1, 2]), proportions)


@given(
    trees=st.lists(st.integers(0, 20), min_size=1, max_size=40),
    fractions=st.tuples(st.floats(0.001, 1), st.floats(0.001, 1)).map(sorted),
    seed=st.integers(0, 3),
)
@settings(max_examples=100)
def test_fractions_are_nested_whole_trees(trees: list[int], fractions: list[float], seed: int) -> None:
    dialogues, total = dialogues_of(trees), len(set(trees))
    small, large = (seed_fraction(dialogues, fraction, seed) for fraction in fractions)
    assert set(ids(small)) <= set(ids(large))
    kept = {dialogue.tree_id for dialogue in large}
    assert large == [dialogue for dialogue in dialogues if dialogue.tree_id in kept]
    assert max(1, fractions[1] * total - 0.5) <= len(kept) <= max(1, fractions[1] * total + 0.5)
    assert seed_fraction(dialogues, 1, seed) == dialogues


@pytest.mark.parametrize("fraction", [0, -0.1, 1.01, float("nan")])
def test_wrong_fraction(fraction: float) -> None:
    with pytest.raises(UserError, match="fraction"):
        seed_fraction(dialogues_of([1]), fraction)


@pytest.mark.parametrize("names", [("train.txt", "valid.txt", "test.txt"), ("train.json", "val.jsonl", "test.json")])
def test_published_split(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        (tmp_path / name).touch()
    assert published_split(tmp_path) == dict(zip(("train", "val", "test"), (tmp_path / n for n in names), strict=True))


def test_published_split_is_complete_and_unambiguous(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such directory"):
        published_split(tmp_path / "nowhere")
    for name in ("train.txt", "test.txt"):
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=r"no file for the split 'val'.*valid\.txt"):
        published_split(tmp_path)
    for name in ("valid.txt", "val.json"):
        (tmp_path / name).touch()
    with pytest.raises(UserError, match="2 files for the split 'val'"):
        published_split(tmp_path)
