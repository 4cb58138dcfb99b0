"""Packed rows against the sequences that they were made of."""

from collections import Counter, defaultdict
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esc_lab.errors import UserError
from esc_lab.tokens import ReplyTokens, TokenSequence, pack_rows, pack_trees, pack_units, split_units
from esc_lab.tokens.packing import pack_unit_trees

relaxed = settings(max_examples=150)
LONGEST = 8


@st.composite
def token_sequences(draw, most=8):
    """Sequences over few tokens that end with a reply, as encoding makes them."""
    sequences = []
    for number in range(draw(st.integers(1, most))):
        ids = draw(st.lists(st.integers(0, 2), min_size=2, max_size=LONGEST))
        starts = sorted(draw(st.sets(st.integers(1, len(ids) - 1), min_size=1, max_size=3)))
        ends = [draw(st.integers(start + 1, limit)) for start, limit in pairwise(starts)]
        bounds = zip(starts, [*ends, len(ids)], strict=True)
        replies = [ReplyTokens((number, n), *bound) for n, bound in enumerate(bounds)]
        sequences.append(TokenSequence(np.array(ids, dtype=np.int64), tuple(replies)))
    return sequences


def replies_of(sequences):
    """(tokens before the reply, its tokens) -> keys."""
    found = defaultdict(set)
    for sequence in sequences:
        ids = tuple(sequence.input_ids.tolist())
        for reply in sequence.replies:
            found[ids[: reply.start], ids[reply.start : reply.end]].add(reply.key)
    return dict(found)


def replies_in(row):
    """The same of a row, read off its arrays: ancestors are the nodes whose interval holds a node."""
    found = []
    for number, keys in enumerate(row.keys):
        mine = row.reply == number
        query, target = row.query[mine].tolist(), tuple(row.target[mine].tolist())
        paths = [[j for j in range(q + 1) if q < row.leave[j]] for q in query]
        for path in paths:
            assert row.position_ids[path].tolist() == list(range(len(path)))
        for (shorter, longer), token in zip(pairwise(paths), target[:-1], strict=True):
            assert longer == [*shorter, longer[-1]]  # the next query is a child of this one
            assert row.input_ids[longer[-1]] == token  # and the token that this one predicts
        end = query[-1]
        children = [i for i in range(end + 1, row.leave[end]) if row.position_ids[i] == row.position_ids[end] + 1]
        assert target[-1] in row.input_ids[children]
        last = int(row.end[number])
        assert [j for j in range(last + 1) if last < row.leave[j]] == [*paths[-1], last]
        assert row.input_ids[last] == target[-1]
        assert len(set(keys)) == len(keys)
        found.append(((tuple(row.input_ids[paths[0]].tolist()), target), set(keys)))
    assert sorted(set(row.reply.tolist())) == list(range(len(row.keys)))
    return found


def trie_size(sequences):
    return len({tuple(s.input_ids[:n].tolist()) for s in sequences for n in range(1, len(s.input_ids) + 1)})


@relaxed
@given(token_sequences(), st.integers(LONGEST, 30))
def test_every_reply_once_with_all_its_keys(sequences, budget):
    rows = pack_rows([sequences], budget)
    found = [item for row in rows for item in replies_in(row)]
    assert all(len(row) <= budget for row in rows)
    assert len(dict(found)) == len(found)  # none twice, not even where a tree is split
    assert dict(found) == replies_of(sequences)


@relaxed
@given(st.lists(token_sequences(most=4), min_size=1, max_size=4), st.integers(LONGEST, 40))
def test_several_trees_keep_apart(trees, budget):
    rows = pack_rows(trees, budget)
    assert all(len(row) <= budget for row in rows)
    found = Counter((history, reply, frozenset(keys)) for row in rows for (history, reply), keys in replies_in(row))
    expected = Counter(
        (history, reply, frozenset(keys)) for tree in trees for (history, reply), keys in replies_of(tree).items()
    )
    assert found == expected


@relaxed
@given(token_sequences(), st.integers(LONGEST, 30))
def test_a_row_holds_nothing_but_paths_to_its_replies(sequences, budget):
    for row in pack_rows([sequences], budget):
        found = replies_in(row)
        needed = {(history + reply)[:n] for (history, reply), _ in found for n in range(1, len(history + reply) + 1)}
        # Two parts of one tree may meet in a row, each with the prefix that it needs; a single tree has no node twice.
        if Counter(row.position_ids.tolist())[0] == len({prefix[0] for prefix in needed}):
            assert len(row) == len(needed)
        leaves = [i for i in range(len(row)) if row.leave[i] == i + 1]
        ends = [row.query[row.reply == number][-1] for number in range(len(row.keys))]
        parents = {max(j for j in range(leaf) if leaf < row.leave[j]) for leaf in leaves}
        assert parents <= set(ends)


@relaxed
@given(token_sequences(), st.integers(LONGEST, 30))
def test_splitting_keeps_depth_first_order_and_fills_parts(sequences, budget):
    parts = split_units([[sequence] for sequence in sequences], budget)
    flat = [sequence for part in parts for sequence in part]
    order = [sequence.input_ids.tolist() for sequence in flat]
    assert order == sorted(order)
    assert sorted(map(id, flat)) == sorted(map(id, sequences))
    assert all(trie_size(part) <= budget for part in parts)
    for part, following in pairwise(parts):
        assert trie_size([*part, following[0]]) > budget
    if trie_size(sequences) <= budget:
        assert len(parts) == 1


@relaxed
@given(st.lists(token_sequences(most=2), min_size=1, max_size=6), st.integers(2 * LONGEST, 40))
def test_units_stay_whole(drawn, budget):
    """Every reply of a unit is in one row, under its own key, though equal replies of other units may be in others."""
    units = [
        [TokenSequence(s.input_ids, tuple(replace(r, key=(number, *r.key)) for r in s.replies)) for s in unit]
        for number, unit in enumerate(drawn)
    ]
    for rows in (pack_units(units, budget), pack_unit_trees([units[::2], units[1::2]], budget)):
        assert all(len(row) <= budget for row in rows)
        places = defaultdict(set)
        keys = Counter()
        for number, row in enumerate(rows):
            for (history, reply), names in replies_in(row):
                for name in names:
                    keys[name] += 1
                    places[name[0]].add(number)
                    assert name in replies_of(units[name[0]])[history, reply]
        assert keys == {reply.key: 1 for unit in units for sequence in unit for reply in sequence.replies}
        assert all(len(found) == 1 for found in places.values())


@relaxed
@given(st.lists(st.integers(1, 20), max_size=12), st.integers(20, 50))
def test_bins_are_first_fit_decreasing(sizes, budget):
    bins = pack_trees(sizes, budget)
    assert sorted(number for bin_ in bins for number in bin_) == list(range(len(sizes)))
    assert all(sum(sizes[number] for number in bin_) <= budget for bin_ in bins)
    # No item would have fitted into an earlier bin, beside the items that came before it there.
    for place, bin_ in enumerate(bins):
        for number in bin_:
            for earlier in bins[:place]:
                before = [other for other in earlier if (-sizes[other], other) < (-sizes[number], number)]
                assert sum(sizes[other] for other in before) + sizes[number] > budget


@relaxed
@given(token_sequences(), st.integers(LONGEST, 30), st.randoms())
def test_rows_depend_on_the_sequences_alone(sequences, budget, random):
    def content(given):
        return [(row.input_ids.tolist(), dict(replies_in(row))) for row in pack_rows([given], budget)]

    shuffled = sequences.copy()
    random.shuffle(shuffled)
    assert content(sequences) == content(shuffled) == content(sequences)


def sequence(ids, *replies):
    return TokenSequence(np.array(ids), tuple(ReplyTokens(*reply) for reply in replies))


def test_a_shared_reply_of_a_split_tree_stays_one():
    """Both sequences carry the reply 2 3 after 1; each part could hold it, only one does."""
    tree = [sequence([1, 2, 3, 4, 5], ("a", 1, 3), ("b", 4, 5)), sequence([1, 2, 3, 6, 7], ("c", 1, 3), ("d", 4, 5))]
    rows = pack_rows([tree], 5)
    assert sorted(sorted(keys) for row in rows for keys in row.keys) == [["a", "c"], ["b"], ["d"]]
    assert sum(len(row.target) for row in rows) == 4


def test_sequence_above_the_budget():
    with pytest.raises(UserError, match=r"long: 6 tokens exceed the budget of 5.*row_tokens"):
        pack_rows([[sequence([1, 2, 3, 4, 5, 6], ("long", 5, 6))]], 5)


def test_a_reply_needs_a_token_before_it():
    with pytest.raises(ValueError, match="cannot start a sequence"):
        pack_rows([[sequence([1, 2], ("first", 0, 1))]], 5)


def test_no_tree_makes_no_row():
    assert pack_rows([[]], 5) == pack_rows([], 5) == []
