"""Prefixes are found again by their tokens, as long as there is room for them."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from esc_lab.models.slots import PrefixIndex

SEQUENCES = st.lists(st.lists(st.integers(0, 2), max_size=9), min_size=1, max_size=20)


@given(SEQUENCES, st.integers(0, 25))
def test_what_is_found_are_the_tokens_asked_for(sequences, size):
    index = PrefixIndex(size)
    holds: dict[int, tuple[int, ...]] = {}  # what was written to each slot, with all before it
    for tokens in sequences:
        ids = np.array(tokens, dtype=np.int64)
        index.tick()
        found = index.find(ids)
        assert [holds[slot] for slot in found] == [tuple(tokens[: end + 1]) for end in range(len(found))]
        known, added = index.add(ids)
        assert known == len(found)
        assert len(set(added) | set(found)) == len(added) + known <= size
        assert set(added) <= set(range(size))
        for number, slot in enumerate(added.tolist()):
            holds[slot] = tuple(tokens[: known + number + 1])
        # As long as it is the only one of its tick, a sequence that fits is there to its end.
        assert known + len(added) == min(len(tokens), size)
        assert index.find(ids).tolist() == [*found, *added]


def test_what_was_not_used_for_longest_goes_first():
    index = PrefixIndex(12)
    old, kept, new = (np.arange(start, start + 5) for start in (0, 100, 200))
    for ids in (old, kept):
        index.tick()
        index.add(ids)
    index.tick()
    index.find(old[:2])  # its beginning is used again
    index.tick()
    index.find(kept)
    index.add(new)
    assert [len(index.find(ids)) for ids in (old, kept, new)] == [2, 5, 5]


def test_nothing_of_this_tick_goes():
    index = PrefixIndex(6)
    index.tick()
    index.add(np.arange(5))
    assert index.add(np.arange(10, 14)) == (0, index.find(np.arange(10, 14)))
    assert len(index.find(np.arange(5))) == 5
    assert len(index.find(np.arange(10, 14))) == 1
