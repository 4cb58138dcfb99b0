"""Token trees into rows under a token budget.

A row is one forward pass: trees laid one after another. Their intervals do not overlap, so no token sees another tree;
there is no padding. A tree that exceeds the budget is split at its leaves; each part repeats the prefix that it needs,
but no reply: what counts once in one row counts once in several.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from esc_lab.errors import UserError
from esc_lab.tokens.encode import IntArray
from esc_lab.tokens.examples import ReplyTokens, TokenSequence
from esc_lab.tokens.trie import TokenTree, build_tree, depth_first_key, shared_prefix


@dataclass(frozen=True)
class PackedRow:
    """One forward pass over one or more token trees.

    Attributes:
        input_ids, position_ids, leave: [T], as in TokenTree, with nodes counted over the row.
        query: [N] node whose output predicts a reply token (the node before it).
        target: [N] the reply token that it has to predict.
        reply: [N] which reply the token belongs to: index into `keys`.
        end: [replies] node of each reply's last token.
        keys: for each reply of the row, the keys of the examples that it stands for. Equal replies after equal
            histories are one reply with several keys.
    """

    input_ids: IntArray
    position_ids: IntArray
    leave: IntArray
    query: IntArray
    target: IntArray
    reply: IntArray
    end: IntArray
    keys: tuple[tuple[Any, ...], ...]

    def __repr__(self) -> str:
        return f"PackedRow({len(self)} tokens, {len(self.keys)} replies)"

    def __len__(self) -> int:
        return len(self.input_ids)


def split_units(units: Sequence[Sequence[TokenSequence]], budget: int) -> list[list[TokenSequence]]:
    """Groups of sequences whose tries have at most `budget` nodes each, in depth-first order of the whole trie.

    The sequences of a unit stay in one group.

    Raises:
        UserError: a single unit exceeds the budget.
    """
    groups: list[list[TokenSequence]] = []
    for unit in sorted(units, key=lambda unit: min(depth_first_key(sequence.input_ids) for sequence in unit)):
        size = _trie_size(unit)
        if size > budget:
            keys = ", ".join(str(reply.key) for sequence in unit for reply in sequence.replies)
            raise UserError(f"{size} tokens exceed the budget of {budget}", where=keys, fix="raise data.row_tokens")
        if groups and _trie_size([*groups[-1], *unit]) <= budget:
            groups[-1] += unit
        else:
            groups.append(list(unit))
    return groups


def pack_trees(sizes: Sequence[int], budget: int) -> list[list[int]]:
    """Bins of item numbers whose sizes add up to at most `budget`: first fit, largest first, stable for equal sizes."""
    first = 1 << max(len(sizes) - 1, 0).bit_length()
    room = [budget] * (2 * first)  # of bin b at first + b; before that a binary tree with the largest room below
    bins: list[list[int]] = []
    for number in sorted(range(len(sizes)), key=lambda index: (-sizes[index], index)):
        place = 1
        while place < first:
            place = 2 * place + (room[2 * place] < sizes[number])
        if place - first == len(bins):
            bins.append([])
        bins[place - first].append(number)
        room[place] -= sizes[number]
        while place := place // 2:
            room[place] = max(room[2 * place : 2 * place + 2])
    return bins


def pack_rows(trees: Sequence[Sequence[TokenSequence]], budget: int) -> list[PackedRow]:
    """Rows of at most `budget` tokens that hold every reply of the given trees (sequences of each) once.

    A tree above the budget is split.
    """
    parts = [
        part for tree in trees for part in split_units([(sequence,) for sequence in _each_reply_once(tree)], budget)
    ]
    return _pack_groups(parts, budget)


def pack_units(units: Sequence[Sequence[TokenSequence]], budget: int) -> list[PackedRow]:
    """Rows of at most `budget` tokens, each one trie; the sequences of a unit are in one row.

    Raises:
        UserError: a single unit exceeds the budget.
    """
    groups = split_units(units, budget)
    return [_row([(build_tree([sequence.input_ids for sequence in group]), group)]) for group in groups]


def pack_unit_trees(trees: Sequence[Sequence[Sequence[TokenSequence]]], budget: int) -> list[PackedRow]:
    """As `pack_rows`, for trees whose sequences come in units that stay in one row: a tree is cut as rarely as can be.

    Raises:
        UserError: a single unit exceeds the budget.
    """
    return _pack_groups([group for units in trees for group in split_units(units, budget)], budget)


def _pack_groups(groups: Sequence[Sequence[TokenSequence]], budget: int) -> list[PackedRow]:
    """A trie of each group, as few rows as fit them."""
    built = [build_tree([sequence.input_ids for sequence in group]) for group in groups]
    return [
        _row([(built[number], groups[number]) for number in sorted(bin_)])
        for bin_ in pack_trees([len(tree) for tree in built], budget)
    ]


def _trie_size(sequences: Sequence[TokenSequence]) -> int:
    """Nodes of the trie of the sequences."""
    ordered = sorted((sequence.input_ids for sequence in sequences), key=depth_first_key)
    shared = sum(shared_prefix(first, second) for first, second in pairwise(ordered))
    return sum(map(len, ordered)) - shared


def _each_reply_once(sequences: Sequence[TokenSequence]) -> list[TokenSequence]:
    """The sequences with equal replies after equal histories gathered on the first of them, each cut after its last."""
    gathered: dict[bytes, tuple[IntArray, list[ReplyTokens]]] = {}
    place_of: dict[bytes, list[ReplyTokens]] = {}
    for sequence in sorted(sequences, key=lambda sequence: depth_first_key(sequence.input_ids)):
        ids = sequence.input_ids
        _, own = gathered.setdefault(ids.tobytes(), (ids, []))
        for reply in sequence.replies:
            place_of.setdefault(ids[: reply.end].tobytes(), own).append(reply)
    return [
        TokenSequence(ids[: max(reply.end for reply in replies)], tuple(replies))
        for ids, replies in gathered.values()
        if replies
    ]


def _row(members: Sequence[tuple[TokenTree, Sequence[TokenSequence]]]) -> PackedRow:
    nodes, tokens, ends = [], [], []
    keys: list[tuple[Any, ...]] = []
    offset = 0
    for tree, sequences in members:
        nodes.append((tree.input_ids, tree.position_ids, tree.leave + offset))
        for reply, reply_keys in _tree_replies(tree, sequences).items():
            path = np.array(reply, dtype=np.int64)
            tokens.append((tree.parent[path] + offset, tree.input_ids[path], np.full(len(path), len(keys))))
            ends.append(int(path[-1]) + offset)
            keys.append(tuple(reply_keys))
        offset += len(tree)
    ids, positions, leave = map(np.concatenate, zip(*nodes, strict=True))
    query, target, owner = map(np.concatenate, zip(*tokens, strict=True))
    return PackedRow(ids, positions, leave, query, target, owner, np.array(ends, dtype=np.int64), tuple(keys))


def _tree_replies(tree: TokenTree, sequences: Sequence[TokenSequence]) -> dict[tuple[int, ...], list[Any]]:
    """Distinct replies of a tree as their nodes, with the keys of the examples that share them."""
    replies: dict[tuple[int, ...], list[Any]] = {}
    for path, sequence in zip(tree.paths, sequences, strict=True):
        for reply in sequence.replies:
            if reply.start == 0:
                raise ValueError("a reply cannot start a sequence: nothing predicts its first token")
            keys = replies.setdefault(tuple(path[reply.start : reply.end].tolist()), [])
            if reply.key not in keys:
                keys.append(reply.key)
    return replies
