"""The page of a search tree in a real browser: nodes and marks, details, dialogue, keyboard, filters, hostile texts."""

from __future__ import annotations

import random
import re

import pytest

from esc_lab.data.dialogue import Reply, Turn
from esc_lab.data.strategies import load_inventory
from esc_lab.report.page import short_labels
from esc_lab.report.tree_page import tree_page
from esc_lab.search.tree import Node, Tree, compute_priors, puct
from tests.conftest import INVENTORIES

CSO = load_inventory("cso").names
HOSTILE = "</script><img src=x onerror=\"document.title='broken'\"><!-- [[data]] &amp; \u2028 \x00 " + "x" * 200
OVERLAPS = """() => {
  const boxes = [...document.querySelectorAll("#nodes .body, #nodes .chip rect, #nodes .stop")]
    .map((one) => one.getBoundingClientRect()).sort((a, b) => a.left - b.left);
  return boxes.filter((one, index) => {
    for (let next = index + 1; boxes[next]?.left < one.right - 1; next++) {
      if (boxes[next].top < one.bottom - 1 && one.top < boxes[next].bottom - 1) return true;
    }
  }).length;
}"""
# Between two columns the children of one parent have to be all above those of the next.
CROSSINGS = """() => order.filter((one, index) => order.slice(index + 1).some((other) =>
  one.number && one.column === other.column && one.parent !== other.parent
  && (nodes[one.parent].row < nodes[other.parent].row) !== (one.row < other.row))).length"""


def example() -> Tree:
    """A seed path (1, 9), a preferred path (2, 17) with rejected siblings (3, 18), a lost node (4); no more."""
    opening, trouble = Reply("Hello!", ("Others",)), Reply("I lost my job.")
    tree = Tree((Turn("supporter", opening), Turn("seeker", trouble)))
    for number in (0, 1, 2):
        tree.expand(number, compute_priors({name: 9 - place for place, name in enumerate(CSO)}))
    said = {1: (104, 0.9), 2: (3, 0.31), 3: (2, -0.4), 9: (100, 1.0), 17: (2, 0.62), 18: (1, -0.5)}
    for number, (visits, value) in said.items():
        node = tree.nodes[number]
        node.visits, node.value, node.text, node.answer = visits, value, f"Reply {number}.", f"Answer {number}."
        node.seed, node.ended = number in (1, 9), number in (9, 17)
    tree.nodes[17].answer = ""
    tree.nodes[17].turn_score, tree.nodes[17].scorings = 3.5, 2
    tree.nodes[4].lost = True
    tree.nodes[0].visits, tree.nodes[0].value, tree.iterations = 109, 0.8, 9
    return tree


PAIRS = {"preferred": [2, 17], "rejected": {2: [3], 17: [18]}}


def example_page(tree: Tree | None = None, **changes) -> str:
    arguments = {
        "title": "Seed 12",
        "situation": "Job lost.",
        "emotion": "sadness",
        "strategies": CSO,
        "c": 1.0,
        **PAIRS,
    }
    return tree_page(tree or example(), **{**arguments, **changes})


def grown(iterations: int, seed: int) -> Tree:
    """A search with random ratings and rewards around a seed path of eight decisions."""
    draw = random.Random(seed)
    tree, number = Tree((Turn("seeker", Reply("I cannot sleep.")),)), 0

    def reach(node: Node) -> None:
        node.text, node.answer = "A reply of some length. " * 6, "An answer. " * 4

    def expand(number: int) -> list[int]:
        return tree.expand(number, compute_priors({name: draw.randint(0, 10) for name in CSO}))

    for _ in range(8):
        number = draw.choice(expand(number))
        node = tree.nodes[number]
        node.seed, node.visits, node.value = True, 100, 1.0
        reach(node)
    node.ended = True
    while tree.iterations < iterations:
        number = 0
        while children := tree.nodes[number].children:
            above = tree.nodes[number].visits
            number = max(children, key=lambda child: puct(tree.nodes[child], above, 1.0))
        reach(tree.nodes[number])
        if not tree.nodes[number].ended:
            number = max(expand(number), key=lambda child: tree.nodes[child].prior)
            reach(tree.nodes[number])
        tree.back_up(number, draw.uniform(-1.5, 1))
        tree.iterations += 1
    return tree


def node(page, number: int):
    return page.locator(f"[data-node='{number}']")


def names(page) -> list[str]:
    return [item.get_attribute("aria-label") for item in page.get_by_role("treeitem").all()]


def focused(page) -> int:
    return int(page.evaluate("document.activeElement.dataset.node"))


def test_nodes_have_names_colours_marks_and_widths(show):
    page = show(example_page())
    assert names(page) == [
        "Start of the talk, Q 0.80, N 109, 4 children never reached",
        "Emotional Validation, Q 0.90, N 104, seed, 7 children never reached",
        "Emotional Validation, Q 1.00, N 100, seed, talk ended",
        "Affirmation, Q 0.31, N 3, preferred, 6 children never reached",
        "Emotional Validation, Q 0.62, N 2, preferred, talk ended",
        "Affirmation, Q \u22120.50, N 1, rejected",
        "Collaborative Planning, Q \u22120.40, N 2, rejected",
        "Empathetic Statements, N 0, lost",
    ]
    assert page.get_by_role("tree", name="Search tree").count() == 1
    texts = [node(page, number).locator("text").all_text_contents() for number in (0, 2, 4, 17)]
    assert texts == [["Start", "+4"], ["0.31", "Af", "+6"], ["lost", "ES"], ["0.62", "EV"]]
    fills = {n: node(page, n).locator(".code").evaluate("e => getComputedStyle(e).fill") for n in (1, 2, 3, 9, 18)}
    assert fills[1] == fills[9] == "rgb(0, 114, 178)"
    assert fills[2] == fills[18]
    assert len({fills[1], fills[2], fills[3]}) == 3
    assert {n: node(page, n).locator(".badge").count() for n in (1, 2, 3)} == {1: 0, 2: 1, 3: 1}
    assert node(page, 2).locator(".badge.good").count() == node(page, 3).locator(".badge.bad").count() == 1
    assert node(page, 17).locator(".stop").count() == 1
    assert page.locator("#bands path").count() == 2
    widths = page.evaluate("[1, 2, 3].map(n => Number(nodes[n].link.getAttribute('stroke-width')))")
    assert widths[0] > 3 * widths[1] > 3 * widths[2] > 3
    legend = page.locator("#strategies li").all_inner_texts()
    assert [re.sub(r"\s+", " ", text) for text in legend][:2] == ["EV Emotional Validation", "Af Affirmation"]
    assert page.evaluate(OVERLAPS) == page.evaluate(CROSSINGS) == 0


def test_details_on_hover_and_on_focus(show):
    page = show(example_page())
    status = page.get_by_role("status")
    assert "Reply 17." in status.inner_text()  # the best preferred end is selected at first
    node(page, 3).locator(".code").hover()
    text = re.sub(r"\s+", " ", status.inner_text())
    tree = example()
    expected = (
        f"Q \u22120.40 N 2 P {tree.nodes[3].prior:.3f} PUCT {puct(tree.nodes[3], 109, 1.0):.2f} Turn score \u2013"
    )
    assert expected in text
    assert "Collaborative Planning \u2715 rejected" in text
    page.mouse.move(1, 1)
    assert "Reply 17." in status.inner_text()
    node(page, 17).focus()
    assert "Turn score 3.50 (latest of 2)" in re.sub(r"\s+", " ", status.inner_text())
    page.keyboard.press("Home")
    page.keyboard.press("ArrowDown")
    assert "Search alone Q \u22121.60, N 4" in re.sub(r"\s+", " ", status.inner_text())  # (0.9 * 104 - 100) / 4
    assert node(page, 1).locator(".ring").evaluate("e => getComputedStyle(e).strokeWidth") == "3px"


def test_the_dialogue_of_the_chosen_path(show):
    page = show(example_page())
    node(page, 18).locator(".code").click()
    assert node(page, 18).get_attribute("aria-selected") == "true"
    assert page.locator("[aria-selected=true]").count() == 1
    assert page.locator("#situation").inner_text().split("\n") == ["Situation", "Job lost.", "Emotion", "sadness"]
    said = page.locator("#turns > li > .said").all_inner_texts()
    assert said == ["Hello!", "I lost my job.", "Reply 2.", "Answer 2.", "Reply 18.", "Answer 18."]
    who = page.locator("#turns > li > .who").all_inner_texts()
    assert [text.replace("\n", " ") for text in who] == [
        "Supporter, opening: Others", "Seeker", "Af Affirmation \u2713 preferred", "Seeker",
        "Af Affirmation \u2715 rejected", "Seeker",
    ]  # fmt: skip
    why = page.locator("#turns .why")
    assert why.all_inner_texts() == [
        "Emotional Validation beside it has a higher Q, 0.90. Preferred is what leads to a last reply that passes the "
        "limits on Q or visits, here Emotional Validation with Q 0.62, whatever the Q on the way."
    ]
    against = page.locator("#turns details")
    assert against.locator("summary").all_inner_texts() == ["1 reply rejected for it", "Preferred in its place"]
    assert not against.first.get_by_text("Reply 3.").is_visible()
    against.first.locator("summary").click()
    assert against.first.get_by_text("Reply 3.").is_visible()
    assert "Q\u00a0\u22120.40 \u00b7 N\u00a02" in against.first.inner_text()
    page.get_by_role("button", name="Show Collaborative Planning in the tree").click()
    assert focused(page) == 3
    node(page, 17).locator(".code").click()
    assert page.locator("#turns").inner_text().endswith("The seeker ended the talk.")
    node(page, 4).locator(".code").click()
    assert "No usable text could be had" in page.locator("#turns").inner_text()


def test_keyboard(show):
    page = show(example_page())
    page.get_by_role("button", name="Fit").focus()
    page.keyboard.press("Tab")  # one stop in the tree: the selected node
    steps = [
        ("", 17), ("ArrowUp", 2), ("ArrowLeft", 2), ("ArrowDown", 3), ("ArrowLeft", 0), ("ArrowRight", 1),
        ("ArrowRight", 9), ("End", 4), ("ArrowUp", 3), ("ArrowUp", 2), ("ArrowRight", 2), ("ArrowRight", 17),
        ("ArrowDown", 18), ("Home", 0), ("ArrowUp", 0),
    ]  # fmt: skip
    for key, number in steps:
        if key:
            page.keyboard.press(key)
        assert focused(page) == number, key
        assert page.locator("#tree [tabindex='0']").count() == 1
    node(page, 2).focus()
    page.keyboard.press("ArrowLeft")
    assert node(page, 2).get_attribute("aria-expanded") == "false"
    assert node(page, 17).count() == 0
    page.keyboard.press("Enter")
    assert page.locator("#turns").inner_text().endswith("Answer 2.")
    page.get_by_role("button", name="Open branch").click()
    assert node(page, 17).get_attribute("aria-level") == "3"
    node(page, 2).focus()
    page.keyboard.press("u")
    assert focused(page) == 2
    assert [node(page, 18 + n).get_attribute("aria-label") for n in (1, 6)] == [
        "Collaborative Planning, N 0, never reached", "Share Information, N 0, never reached",
    ]  # fmt: skip
    assert node(page, 19).get_attribute("aria-posinset") == "3"
    assert node(page, 19).get_attribute("aria-setsize") == "8"
    node(page, 19).focus()
    page.keyboard.press(" ")
    assert "Never reached: it has no text." in page.locator("#turns").inner_text()


def test_filters_counts_zoom_and_dragging(show):
    page = show(example_page(), height=500)
    count = page.get_by_role("treeitem").count
    assert count() == 8
    page.get_by_role("checkbox", name="Only preferred and rejected").check()
    assert count() == 5
    assert node(page, 1).count() == node(page, 4).count() == 0
    page.get_by_role("checkbox", name="Only preferred and rejected").uncheck()
    page.get_by_role("checkbox", name="Never reached").check()
    assert count() == len(example().nodes)
    assert page.evaluate(OVERLAPS) == page.evaluate(CROSSINGS) == 0
    node(page, 2).locator(".chip").click()  # hides these again
    assert count() == len(example().nodes) - 6
    page.get_by_role("checkbox", name="All branches").uncheck()
    assert node(page, 9).count() == node(page, 17).count() == 1  # the seed and what is preferred stay open
    for _ in range(4):
        page.get_by_role("button", name="Zoom in").click()
    assert page.evaluate("document.documentElement.scrollWidth") == 1280
    chosen, box = page.evaluate("chosen"), page.locator("#box").bounding_box()
    page.evaluate("document.getElementById('box').scrollTo(0, 0)")
    page.mouse.move(box["x"] + 300, box["y"] + 30)
    page.mouse.down()
    page.mouse.move(box["x"] + 200, box["y"] + 30)
    page.mouse.up()
    assert page.evaluate("document.getElementById('box').scrollLeft") == 100
    assert page.evaluate("chosen") == chosen
    page.get_by_role("button", name="Fit").click()
    assert page.evaluate("(box => box.scrollWidth <= box.clientWidth)(document.getElementById('box'))")
    page = show(tree_page(Tree(example().start), title="Empty", situation="", strategies=CSO, c=1.0))
    assert names(page) == ["Start of the talk, N 0"]
    assert page.get_by_role("checkbox", name="Only preferred and rejected").is_disabled()
    assert not page.locator("#situation").is_visible()


def luminance(colour: str) -> float:
    linear = [int(c) / 255 for c in re.findall(r"\d+", colour)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in linear]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize(("width", "scheme"), [(400, "light"), (400, "dark"), (1280, "dark")])
def test_hostile_texts_stay_text_and_nothing_overflows(show, width, scheme):
    tree, strategies = example(), [f"{HOSTILE} {n}" for n in range(16)]
    for one in tree.nodes[1:]:
        one.strategy = strategies[CSO.index(one.strategy)]
        one.text = one.text and HOSTILE
        one.answer = one.answer and HOSTILE
    tree.start = (Turn("seeker", Reply(HOSTILE)),)
    texts = {"title": HOSTILE, "situation": HOSTILE, "emotion": HOSTILE, "problem": HOSTILE}
    page = show(example_page(tree, strategies=strategies, **texts), width, scheme)
    page.locator("summary").last.click()
    node(page, 18).focus()
    assert page.title().startswith("</script><img src=x")
    assert page.locator("img").count() == 0
    assert page.locator("script").count() == 2
    assert page.locator("#turns > li > .said").first.evaluate("e => e.textContent") == HOSTILE
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (luminance(paper) < 0.1) == (scheme == "dark")
    for tag in page.locator("#strategies .tag").all():
        on, fill = tag.evaluate("e => [getComputedStyle(e).color, getComputedStyle(e).backgroundColor]")
        low, high = sorted([luminance(on), luminance(fill)])
        assert (high + 0.05) / (low + 0.05) >= 4.5


def test_a_full_tree(show):
    tree = grown(280, seed=4)
    assert len(tree.nodes) > 1600
    path = next(tree.path(number) for number, one in enumerate(tree.nodes) if one.ended)
    rejected = {n: [other for other in tree.siblings(n) if tree.nodes[other].visits] for n in path}
    html = example_page(tree, preferred=path, rejected=rejected)
    assert len(html.encode()) < 2_000_000
    page = show(html, 400)
    assert page.get_by_role("treeitem").count() < 100  # side branches are folded at first
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    page.get_by_role("checkbox", name="All branches").check()
    assert page.get_by_role("treeitem").count() == 1 + sum(one.text is not None for one in tree.nodes[1:])
    page.get_by_role("checkbox", name="Never reached").check()
    assert page.get_by_role("treeitem").count() == len(tree.nodes)
    assert page.evaluate(OVERLAPS) == page.evaluate(CROSSINGS) == 0
    node(page, 0).focus()
    page.keyboard.press("End")
    box, last = page.locator("#box").bounding_box(), page.locator(":focus").bounding_box()
    assert box["y"] <= last["y"] <= last["y"] + last["height"] <= box["y"] + box["height"]
    assert page.evaluate("document.documentElement.scrollWidth") <= 400


@pytest.mark.parametrize("inventory", INVENTORIES)
def test_short_labels_are_short_and_differ(inventory):
    labels = short_labels(load_inventory(inventory).names)
    assert len(set(labels)) == len(labels) == len(load_inventory(inventory))
    assert all(1 <= len(label) <= 3 for label in labels)


def test_short_labels_of_awkward_names():
    labels = short_labels(["", "!!", "the", "安慰", *["Ask more"] * 12])
    assert len(set(labels)) == 16
    assert labels[:5] == ["?", "?2", "th", "安慰", "AM"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strategies": CSO[1:]}, "outside the inventory: .*Emotional Validation"),
        ({"preferred": [0]}, "between 1 and 24"),
        ({"preferred": [25]}, "between 1 and 24"),
        ({"rejected": {3: [2]}}, "not siblings of a preferred node, 3"),
        ({"rejected": {2: [17]}}, "not siblings of a preferred node, 2"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        example_page(**changes)
