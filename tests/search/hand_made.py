"""A small search tree with every case of the preference rule."""

from __future__ import annotations

from typing import Any

from esc_lab.config.search import PreferenceConfig
from esc_lab.data.dialogue import Dialogue, Reply, Turn
from esc_lab.data.strategies import load_inventory
from esc_lab.search.preferences import extract_dialogues, find_preferences
from esc_lab.search.tree import Node, Tree

NAMES = load_inventory("cso").names
EV, AFF, CP, ES, AJC, PDP, RNT, SI = (
    "Emotional Validation",
    "Affirmation",
    "Collaborative Planning",
    "Empathetic Statements",
    "Avoid Judgment and Criticism",
    "Provide Different Perspectives",
    "Reframe Negative Thoughts",
    "Share Information",
)
START = (
    Turn("supporter", Reply(" Hello. ", value=0.3, visits=2), (Reply("Hi."),)),
    Turn("seeker", Reply("They closed the shop.\n")),
)


def add(tree: Tree, parent: int, strategy: str, n: int = 0, q: float = 0.0, **fields: Any) -> None:
    """A node that has texts if it has visits."""
    number = len(tree.nodes)
    texts = {"text": f" reply {number} ", "answer": f"answer {number}\n"} if n else {}
    tree.nodes.append(Node(parent, strategy, visits=n, value=q, **{**texts, **fields}))
    tree.nodes[parent].children.append(number)


def hand_made() -> Tree:
    tree = Tree(START, iterations=23)
    tree.nodes[0].seed, tree.nodes[0].visits, tree.nodes[0].value = True, 120, 0.8
    add(tree, 0, EV, 104, 98 / 104, seed=True)  # 1: the seed's, judged 4 times with -0.5
    add(tree, 0, AFF, 6, -0.4)  # 2: below what is rejected beside it
    add(tree, 0, CP, 1, 0.5)  # 3: exactly at the rejected limits
    add(tree, 0, ES)  # 4: not reached
    add(tree, 0, AJC, text="unjudged", answer="well")  # 5: has texts, N = 0
    add(tree, 0, PDP, lost=True)  # 6
    add(tree, 0, RNT, 3, 0.51)  # 7: too good to be rejected, but the talk goes on
    add(tree, 1, SI, 100, 1.0, seed=True, ended=True, answer="")  # 8: the seed's last, never judged
    add(tree, 1, AFF, 1, 0.5, ended=True)  # 9: good enough, N too small
    add(tree, 1, EV)  # 10: not reached
    add(tree, 2, CP, 2, 0.5, ended=True)  # 11: exactly at the preferred limits
    add(tree, 2, SI, 9, 0.49, ended=True)  # 12: ended, below the limit
    add(tree, 2, EV, 5, 0.2)  # 13: low, but on a preferred way
    add(tree, 2, AFF, 1, 0.9, ended=True)  # 14: N too small to be preferred, too good to be rejected
    add(tree, 13, RNT, 4, 0.75, ended=True, answer="  ")  # 15
    add(tree, 13, ES)  # 16: not reached
    add(tree, 13, AJC, lost=True)  # 17
    return tree


def make(tree: Tree, rule: PreferenceConfig) -> list[Dialogue]:
    seed = Dialogue((), "cso", "t", "Shop.", problem="Work", meta={"of": "the seed"})
    return extract_dialogues(tree, find_preferences(tree, rule), seed)
