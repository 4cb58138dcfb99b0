"""One web page that shows one search tree and the dialogue of the path chosen in it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from esc_lab.report.page import render_page, short_labels
from esc_lab.search.tree import Tree, puct


def tree_page(
    tree: Tree,
    *,
    title: str,
    situation: str,
    strategies: Sequence[str],
    c: float,
    emotion: str = "",
    problem: str = "",
    preferred: Collection[int] = (),
    rejected: Mapping[int, Collection[int]] | None = None,
) -> str:
    """A self-contained HTML page of a search tree. Texts of models may hold anything; they stay text.

    Args:
        tree: the tree; strategies that were never reached are drawn as a count at their parent at first.
        title: heading of the page.
        situation, emotion, problem: the seeker's; shown above the dialogue where not empty.
        strategies: names of the inventory, in its order; it fixes colours and short labels.
        c: weight of the exploration term, for PUCT.
        preferred: numbers of the preferred nodes.
        rejected: preferred node -> its rejected siblings.

    Raises:
        ValueError: a node with a strategy outside the inventory, a preferred node that the tree does not have or that
            is the root, or rejected nodes that are no siblings of a preferred one.
    """
    rejected = rejected or {}
    unknown = sorted({node.strategy or "none" for node in tree.nodes[1:]} - set(strategies))
    if unknown:
        raise ValueError(f"the tree has strategies outside the inventory: {unknown}")
    if not all(0 < number < len(tree.nodes) for number in preferred):
        raise ValueError(f"preferred nodes have to be between 1 and {len(tree.nodes) - 1}: {sorted(preferred)}")
    for number, others in rejected.items():
        if number not in preferred or not set(others) <= set(tree.siblings(number)):
            raise ValueError(f"rejected {sorted(others)} are not siblings of a preferred node, {number}")
    data = {
        "strategies": list(strategies),
        "codes": short_labels(strategies),
        "situation": {"Situation": situation, "Emotion": emotion, "Problem": problem},
        "start": [[turn.speaker, turn.reply.text, ", ".join(turn.reply.strategies)] for turn in tree.start],
        "nodes": _nodes(tree, list(strategies), c, set(preferred), rejected),
    }
    reached = sum(node.text is not None for node in tree.nodes[1:])
    facts = {
        "Iterations": str(tree.iterations),
        "Replies reached": f"{reached:,} of {len(tree.nodes) - 1:,}",
        "Ended leaves": str(tree.count_ended()),
        "Preferred": str(len(set(preferred))),
        "Rejected": str(sum(len(set(others)) for others in rejected.values())),
        "PUCT's c": f"{c:g}",
    }
    styles, scripts = ["page.css", "tree_page.css"], ["page.js", "tree_drawing.js", "tree_page.js"]
    return render_page("tree.html.jinja", title, data, styles=styles, scripts=scripts, facts=facts)


def _nodes(
    tree: Tree, strategies: list[str], c: float, preferred: set[int], rejected: Mapping[int, Collection[int]]
) -> list[dict[str, Any]]:
    """What the page needs of each node; what is false or missing is left out."""
    rows = []
    for number, node in enumerate(tree.nodes):
        parent = tree.nodes[node.parent] if number else None
        judged = node.judgement
        row = {
            "parent": node.parent,
            "strategy": strategies.index(node.strategy) if node.strategy is not None else None,
            "prior": round(node.prior, 5),
            "visits": node.visits,
            "value": round(node.value, 5),
            "puct": round(puct(node, parent.visits, c), 5) if parent else None,
            "text": node.text,
            "answer": node.answer,
            "ended": node.ended or None,
            "seed": node.seed or None,
            "judged": [judged[0], None if judged[1] is None else round(judged[1], 5)] if node.seed else None,
            "lost": node.lost or None,
            "score": node.turn_score,
            "scorings": node.scorings or None,
            "preferred": number in preferred or None,
            "rejects": sorted(set(rejected[number])) if number in rejected else None,
        }
        rows.append({name: value for name, value in row.items() if value is not None})
    return rows
