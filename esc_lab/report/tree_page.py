"""One web page that shows one search tree and the dialogue of the path chosen in it, no network, no library.

The page's own style and script are `tree_page.css`, `tree_drawing.js` and `tree_page.js` beside this module; they are
written into the page after the shared ones.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from esc_lab.report.page import page, read, short_labels
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
    facts = _facts(tree, set(preferred), sum(len(set(others)) for others in rejected.values()), c)
    style, script = read("page.css", "tree_page.css"), read("page.js", "tree_drawing.js", "tree_page.js")
    return page(title, _MAIN, data, style=style, script=script, facts=facts)


def _facts(tree: Tree, preferred: set[int], pairs: int, c: float) -> dict[str, str]:
    reached = sum(node.text is not None for node in tree.nodes[1:])
    return {
        "Iterations": str(tree.iterations),
        "Replies reached": f"{reached:,} of {len(tree.nodes) - 1:,}",
        "Ended leaves": str(tree.ended()),
        "Preferred": str(len(preferred)),
        "Rejected": str(pairs),
        "PUCT's c": f"{c:g}",
    }


def _nodes(
    tree: Tree, strategies: list[str], c: float, preferred: set[int], rejected: Mapping[int, Collection[int]]
) -> list[dict[str, Any]]:
    """What the page needs of each node; what is false or missing is left out."""
    rows = []
    for number, node in enumerate(tree.nodes):
        parent = tree.nodes[node.parent] if number else None
        judged = node.judged
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


_MAIN = """<main>
<section class="search" aria-labelledby="tree-name">
<div class="row">
<h2 id="tree-name">Search tree</h2>
<label><input type="checkbox" id="pairs"> Only preferred and rejected</label>
<label><input type="checkbox" id="branches"> All branches</label>
<label><input type="checkbox" id="unreached"> Never reached</label>
<span class="zoom" role="group" aria-label="Zoom">
<button type="button" id="out" aria-label="Zoom out">&minus;</button>
<button type="button" id="in" aria-label="Zoom in">+</button>
<button type="button" id="fit">Fit</button>
</span>
</div>
<noscript><p>The tree is drawn by a script in this file; please allow it to run.</p></noscript>
<div class="frame">
<div id="box"><svg id="tree" role="tree" aria-labelledby="tree-name" aria-describedby="keys">
<g id="bands" aria-hidden="true"></g><g id="edges" aria-hidden="true"></g><g id="links" aria-hidden="true"></g>
<g id="nodes" role="none"></g></svg></div>
<div id="readout" role="status"></div>
</div>
<details id="legend"><summary>Legend</summary>
<div class="legend"><ul id="strategies" aria-label="Strategies"></ul><ul id="marks" aria-label="Marks"></ul></div>
</details>
<p class="soft" id="keys">Click or Enter: read. Arrows: move; Left folds, Right opens. U: what was never reached.
+, &minus;: zoom. Drag: move.</p>
</section>
<section class="talk" aria-labelledby="talk-name" tabindex="0">
<div class="row"><h2 id="talk-name">Dialogue of this path</h2>
<button type="button" id="fold"></button></div>
<dl id="situation"></dl>
<ol id="turns"></ol>
</section>
</main>"""
