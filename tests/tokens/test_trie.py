"""Token trees against a trie of nested dicts."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esc_lab.tokens import build_tree
from esc_lab.tokens.trie import shared_prefix

relaxed = settings(max_examples=150)
# Few different tokens, so that prefixes coincide; 256 and 65,538 do not sort as their lowest bytes do.
tokens = st.sampled_from([0, 1, 2, 256, 65_538])
sequences = st.lists(st.lists(tokens, min_size=1, max_size=7), min_size=1, max_size=9)


def arrays(lists):
    return [np.array(ids, dtype=np.int64) for ids in lists]


def prefixes(lists):
    return {tuple(ids[:length]) for ids in lists for length in range(1, len(ids) + 1)}


def depth_first(lists):
    """(token, depth, parent, subtree end) of each node of a dict trie whose children are visited in ascending order."""
    root = {}
    for ids in lists:
        node = root
        for token in ids:
            node = node.setdefault(token, {})
    nodes = []

    def visit(children, depth, parent):
        for token in sorted(children):
            number = len(nodes)
            nodes.append([token, depth, parent, None])
            visit(children[token], depth + 1, number)
            nodes[number][3] = len(nodes)

    visit(root, 0, -1)
    return [tuple(node) for node in nodes]


@relaxed
@given(sequences)
def test_equals_a_dict_trie(lists):
    tree = build_tree(arrays(lists))
    columns = (tree.input_ids, tree.position_ids, tree.parent, tree.leave)
    assert list(zip(*(column.tolist() for column in columns), strict=True)) == depth_first(lists)
    assert len(tree) == len(prefixes(lists))
    assert all(column.dtype == np.int64 for column in (*columns, *tree.paths))


@relaxed
@given(sequences)
def test_intervals_are_ancestry(lists):
    tree = build_tree(arrays(lists))
    for i in range(len(tree)):
        ancestors, node = set(), i
        while node >= 0:
            ancestors.add(node)
            node = int(tree.parent[node])
        seen = {j for j in range(len(tree)) if j <= i < tree.leave[j]}
        assert seen == ancestors
        assert tree.position_ids[i] == len(ancestors) - 1


@relaxed
@given(sequences)
def test_paths_spell_the_sequences_and_share_equal_prefixes(lists):
    tree = build_tree(arrays(lists))
    node_of = {}
    for ids, path in zip(lists, tree.paths, strict=True):
        assert tree.input_ids[path].tolist() == ids
        assert tree.position_ids[path].tolist() == list(range(len(ids)))
        for length in range(1, len(ids) + 1):
            assert node_of.setdefault(tuple(ids[:length]), path[length - 1]) == path[length - 1]
    assert len(set(node_of.values())) == len(node_of) == len(tree)


@relaxed
@given(sequences, st.randoms())
def test_order_of_sequences_does_not_matter(lists, random):
    shuffled = lists.copy()
    random.shuffle(shuffled)
    one, other = build_tree(arrays(lists)), build_tree(arrays(shuffled))
    for name in ("input_ids", "position_ids", "parent", "leave"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


@relaxed
@given(st.lists(tokens, max_size=6), st.lists(tokens, max_size=6))
def test_shared_prefix(first, second):
    expected = next((n for n, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), None)
    assert shared_prefix(*arrays([first, second])) == (min(len(first), len(second)) if expected is None else expected)


@pytest.mark.parametrize("lists", [[], [[]], [[1], []]])
def test_needs_tokens(lists):
    with pytest.raises(ValueError, match="one token or more"):
        build_tree(arrays(lists))
