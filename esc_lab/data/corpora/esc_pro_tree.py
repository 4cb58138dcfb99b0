"""Pairs and labelled replies put back into the dialogues that they were cut from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from esc_lab.data.corpora.reading import ReadReport, first_seeker_text, seed_id
from esc_lab.data.dialogue import Reply, Turn
from esc_lab.errors import UserError


class Seed(NamedTuple):
    """What the records of one seed dialogue have in common, beside the seeker's first message."""

    scene: str
    description: str
    emotion: str = ""
    tree: str = ""  # what the records themselves call it


class Pair(NamedTuple):
    """A preferred reply to messages, and one that was rejected in its place."""

    seed: Seed
    prompt: tuple[Turn, ...]
    chosen: Reply
    rejected: Reply
    where: str


class LabelledReply(NamedTuple):
    """A reply to messages, preferred or not."""

    seed: Seed
    prompt: tuple[Turn, ...]
    reply: Reply
    preferred: bool
    where: str


class Path(NamedTuple):
    """One way through the tree, from the first message to a reply that nothing follows."""

    seed: Seed
    turns: tuple[Turn, ...]
    unpaired: tuple[tuple[Turn, ...], ...]
    where: str


@dataclass
class _Node:
    parent: int
    turn: Turn
    seed: Seed
    where: str
    rejected: dict[Reply, None] = field(default_factory=dict)
    inner: bool = False


class Tree:
    """The messages of all records as a trie: records with a common history share its nodes.

    A node holds one message, and if that is a preferred reply, the replies that were rejected in its place.
    """

    def __init__(self) -> None:
        self._nodes: list[_Node] = []
        self._children: dict[tuple[int | Seed, Turn], int] = {}
        self._unpaired: list[tuple[Seed, tuple[Turn, ...], int | None, str]] = []

    def add(self, seed: Seed, prompt: Sequence[Turn], chosen: Reply, rejected: Reply | None, where: str) -> bool:
        """Add a preferred reply to `prompt`, and one rejected in its place; False if that pair was there before."""
        node = self._nodes[self._walk(seed, [*prompt, Turn("supporter", chosen)], where)]
        if rejected is None:
            return True
        known = rejected in node.rejected
        node.rejected[rejected] = None
        return not known

    def add_unpaired(self, seed: Seed, prompt: Sequence[Turn], rejected: Reply, where: str) -> None:
        """Keep a rejected reply for which there is no preferred one."""
        decided = _length_to_last_decision(prompt)
        home = self._walk(seed, prompt[:decided], where) if decided else None
        self._unpaired.append((seed, (*prompt, Turn("supporter", rejected)), home, where))

    def paths(self) -> Iterator[Path]:
        """Every path that no other extends, in order of first appearance.

        Raises:
            UserError: an unpaired rejected reply has no dialogue of its seed to stay with.
        """
        turns_to: dict[int, tuple[Turn, ...]] = {}
        first_by_node: dict[int, int] = {}
        first_by_seed: dict[tuple[Seed, str], int] = {}
        for leaf, end in enumerate(self._nodes):
            if end.inner:
                continue
            nodes = self._to_root(leaf)
            turns_to[leaf] = tuple(replace(node.turn, rejected=tuple(node.rejected)) for _, node in nodes)
            first_by_seed.setdefault((end.seed, first_seeker_text(turns_to[leaf])), leaf)
            for index, _ in nodes:
                first_by_node.setdefault(index, leaf)
        kept: dict[int, list[tuple[Turn, ...]]] = {}
        for seed, turns, home, where in self._unpaired:
            key = (seed, first_seeker_text(turns))
            if home is None and key not in first_by_seed:
                fix = "add a preferred reply (label true) of this seed, or remove the record"
                raise UserError("a rejected reply without any preferred one of its seed", where=where, fix=fix)
            kept.setdefault(first_by_seed[key] if home is None else first_by_node[home], []).append(turns)
        for leaf, turns in turns_to.items():
            end = self._nodes[leaf]
            yield Path(end.seed, turns, tuple(kept.get(leaf, ())), end.where)

    def _walk(self, seed: Seed, turns: Sequence[Turn], where: str) -> int:
        """Node at the end of `turns`; nodes that are not there yet are made."""
        at = -1
        for turn in turns:
            key = (seed if at < 0 else at, turn)
            child = self._children.setdefault(key, len(self._nodes))
            if child == len(self._nodes):
                self._nodes.append(_Node(at, turn, seed, where))
                if at >= 0:
                    self._nodes[at].inner = True
            at = child
        return at

    def _to_root(self, index: int) -> list[tuple[int, _Node]]:
        """Nodes from the first message to `index`."""
        nodes = []
        while index >= 0:
            nodes.append((index, self._nodes[index]))
            index = self._nodes[index].parent
        return nodes[::-1]


def tree_of_pairs(pairs: Iterable[Pair], report: ReadReport) -> Tree:
    """The tree of pairs; a pair of equal replies is dropped and counted, and so is one that was there before."""
    tree = Tree()
    for seed, prompt, chosen, rejected, where in pairs:
        if chosen == rejected:
            report.equal_pairs_dropped += 1
        elif not tree.add(seed, prompt, chosen, rejected, where):
            report.duplicate_pairs += 1
    return tree


def tree_of_labelled(labelled: Iterable[LabelledReply], report: ReadReport) -> Tree:
    """The tree of labelled replies: every rejected one stands beside every preferred one to the same messages."""
    groups: dict[tuple[Seed, tuple[Turn, ...]], dict[tuple[Reply, bool], str]] = {}
    for seed, prompt, reply, preferred, where in labelled:
        group = groups.setdefault((seed, prompt), {})
        report.duplicate_pairs += (reply, preferred) in group
        group.setdefault((reply, preferred), where)
    tree = Tree()
    for (seed, prompt), group in groups.items():
        chosen = [(reply, where) for (reply, preferred), where in group.items() if preferred]
        rejected = [(reply, where) for (reply, preferred), where in group.items() if not preferred]
        for reply, where in chosen:
            tree.add(seed, prompt, reply, None, where)
        for other, where in rejected:
            beside = [reply for reply, _ in chosen if reply != other]
            for reply in beside:
                tree.add(seed, prompt, reply, other, where)
            if not chosen:
                tree.add_unpaired(seed, prompt, other, where)
                report.unpaired_rejected += 1
            elif not beside:
                report.equal_pairs_dropped += 1
    return tree


def tree_id(seed: Seed, turns: Sequence[Turn]) -> str:
    """The id that all dialogues of one seed share."""
    return seed.tree or seed_id(seed.scene, seed.description, first_seeker_text(turns))


def _length_to_last_decision(turns: Sequence[Turn]) -> int:
    """Number of turns up to and with the last supporter turn that answers a seeker; 0 if there is none."""
    speakers = [turn.speaker for turn in turns]
    if "seeker" not in speakers or "supporter" not in speakers[speakers.index("seeker") :]:
        return 0
    return len(turns) - speakers[::-1].index("supporter")
