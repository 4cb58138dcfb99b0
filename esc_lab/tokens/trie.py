"""The token tree of a dialogue: sequences that share prefixes as one trie in depth-first order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from esc_lab.tokens.encode import IntArray


@dataclass(frozen=True)
class TokenTree:
    """A trie of token sequences in depth-first order.

    The walk enters node i at time i and leaves its subtree at `leave[i]`. Token i may attend to token j iff
    `enter[j] <= enter[i] < leave[j]`, which is `j <= i < leave[j]`: j is i or one of its ancestors.

    Attributes:
        input_ids: [T] token of each node.
        position_ids: [T] depth of each node, which is the token's position in its sequence.
        parent: [T] node before it; -1 for a root.
        leave: [T] one past the last node of the subtree.
        paths: for each sequence, in the order given, its nodes [len(sequence)].
    """

    input_ids: IntArray
    position_ids: IntArray
    parent: IntArray
    leave: IntArray
    paths: tuple[IntArray, ...]

    def __len__(self) -> int:
        return len(self.input_ids)


def shared_prefix(first: IntArray, second: IntArray) -> int:
    """Number of leading tokens that two sequences share."""
    length = min(len(first), len(second))
    different = np.flatnonzero(first[:length] != second[:length])
    return int(different[0]) if len(different) else length


def depth_first_key(ids: IntArray) -> bytes:
    """Sequences in the order of these keys are the leaves of their trie in depth-first order."""
    return ids.astype(">i8").tobytes()


def build_tree(sequences: Sequence[IntArray]) -> TokenTree:
    """The trie of non-empty token sequences. Equal prefixes become one path; equal sequences share all their nodes.

    In depth-first order each adds the nodes after its shared prefix with the one before it.

    Raises:
        ValueError: there is no sequence, or one is empty.
    """
    if not sequences or any(len(sequence) == 0 for sequence in sequences):
        raise ValueError("a token tree needs sequences of one token or more")
    order = sorted(range(len(sequences)), key=lambda number: depth_first_key(sequences[number]))
    empty = np.empty(0, dtype=np.int64)
    ids, positions, parents = [], [], []
    paths = [empty] * len(sequences)
    leave = np.empty(sum(map(len, sequences)), dtype=np.int64)
    path, previous, size = empty, empty, 0
    for number in order:
        sequence = np.asarray(sequences[number], dtype=np.int64)
        shared = shared_prefix(previous, sequence)
        leave[path[shared:]] = size  # these nodes have no further descendants
        new = np.arange(size, size + len(sequence) - shared, dtype=np.int64)
        path = np.concatenate([path[:shared], new])
        ids.append(sequence[shared:])
        positions.append(np.arange(shared, len(sequence), dtype=np.int64))
        parents.append(np.concatenate([path[shared - 1 : shared] if shared else [-1], new[:-1]])[: len(new)])
        paths[number] = path
        previous, size = sequence, size + len(new)
    leave[path] = size
    return TokenTree(
        np.concatenate(ids),
        np.concatenate(positions),
        np.concatenate(parents).astype(np.int64),
        leave[:size],
        tuple(paths),
    )
