"""The heat-map page in a real browser: colours, choosing tokens, hostile texts, keyboard, narrow screens, contrast."""

from __future__ import annotations

import re
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esc_lab.report.attention_files import heat_map_page

HOSTILE = [
    '</script><script>document.title = "broken"</script>',
    "<img src=x onerror=\"document.title='broken'\">",
    "<!--",
    "&amp;",
    "[[data]]",
    "\\u003c",
    "a\u2028b",
    "",
    "\x00\x1b",
    "\n\n",
    "'\"`${1}",
    "x" * 300,
    "\ud83d",  # half of a pair: a byte piece of a token
]
PROMPT = ["<s>", "Use", " the", " strategy", " Affirm", "ation", ".\n", "seeker", ":", " hello"]
REPLY = [" I", " hear", " you", ".\n", "</s>"]
SPANS = [(4, 6, "name"), (1, 7, "instruction")]


def rows(prompt=PROMPT, reply=REPLY) -> list[list[float]]:
    """Reply token r looks most at prompt token r + 2, and the first token takes the null attention."""
    table = []
    for r in range(len(reply)):
        row = [0.6, *(0.001 * (1 + i % 4) for i in range(1, len(prompt))), *(0.02 for _ in range(r))]
        row[2 + r] = 0.05
        table.append(row)
    return table


def background(locator) -> tuple[float, ...]:
    """Red, green, blue from 0 to 1, whichever way the browser writes them."""
    colour = locator.evaluate("element => getComputedStyle(element).backgroundColor")
    numbers = [float(number) for number in re.findall(r"[\d.]+", colour)[:3]]
    return tuple(number if colour.startswith("color(srgb") else number / 255 for number in numbers)


def distance(one, other) -> float:
    return sum(abs(a - b) for a, b in zip(one, other, strict=True))


def attention_in(text: str) -> float:
    return float(re.search(r"attention (\d\.\d+)", text)[1])


def test_colours_follow_the_mean_at_first(show):
    page = show(heat_map_page("Title", PROMPT, REPLY, rows(), spans=SPANS))
    tokens = page.get_by_role("option")
    assert tokens.count() == len(PROMPT)
    mean = [sum(row[i] for row in rows()) / len(REPLY) for i in range(len(PROMPT))]
    heat = [float(tokens.nth(i).evaluate("e => e.style.getPropertyValue('--heat')")) for i in range(len(PROMPT))]
    top = max(mean[1:])
    assert heat[1:] == pytest.approx([(value / top) ** 0.5 for value in mean[1:]], abs=1e-3)
    assert [attention_in(tokens.nth(i).get_attribute("title")) for i in range(10)] == pytest.approx(mean, abs=1e-6)
    white = (1.0, 1.0, 1.0)
    strongest, weakest = mean.index(top), mean.index(min(mean))
    assert distance(background(tokens.nth(strongest)), white) > 3 * distance(background(tokens.nth(weakest)), white) > 0
    ticks = page.locator("#ticks span").all_inner_texts()
    assert [float(tick) for tick in ticks] == pytest.approx([top * n * n / 16 for n in range(5)], rel=0.05)


def test_null_attention_is_off_the_scale_and_said(show):
    page = show(heat_map_page("Title", PROMPT, REPLY, rows()))
    first = page.get_by_role("option").first
    assert "repeating-linear-gradient" in first.evaluate("element => getComputedStyle(element).backgroundImage")
    assert "null attention" in first.get_attribute("title")
    assert "Null attention, on the first token: 0.6." in page.get_by_role("status").inner_text()
    assert "null attention" in page.locator("aside").inner_text()
    assert not page.locator("#span-list").is_visible()


def test_choosing_reply_tokens_by_mouse(show):
    page = show(heat_map_page("Title", PROMPT, REPLY, rows(), spans=SPANS))
    tokens, reply = page.get_by_role("option"), page.locator("#reply button")
    before = background(tokens.nth(4))
    reply.nth(2).click()
    assert reply.nth(2).get_attribute("aria-pressed") == "true"
    assert page.get_by_role("button", name="Mean over the reply").get_attribute("aria-pressed") == "false"
    for index, value in enumerate(rows()[2][:10]):
        assert attention_in(tokens.nth(index).get_attribute("title")) == pytest.approx(value)
    assert background(tokens.nth(4)) == pytest.approx((0xF0 / 255, 0x8A / 255, 0x24 / 255), abs=0.01)
    assert distance(background(tokens.nth(4)), before) > 0.05
    # Earlier reply tokens are coloured too, later ones cannot be seen by the query.
    assert "attention 0.02" in reply.nth(1).get_attribute("title")
    assert reply.nth(2).get_attribute("title") == ""
    assert background(reply.nth(3)) == (1, 1, 1)
    assert "reply token 3 of 5" in page.get_by_role("status").inner_text().lower()
    # Means of the outlined spans in this row.
    values = [float(text.split()[-3]) for text in page.locator("#spans li").all_inner_texts()]
    assert values == pytest.approx([(0.05 + 0.002) / 2, sum(rows()[2][1:7]) / 6], abs=1e-6)
    page.get_by_role("button", name="Mean over the reply").click()
    assert background(tokens.nth(4)) == before


def test_choosing_and_reading_by_keyboard(show):
    page = show(heat_map_page("Title", PROMPT, REPLY, rows(), spans=SPANS))
    status = page.get_by_role("status")
    page.get_by_role("button", name="Mean over the reply").focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert "Reply token 1 of 5" in status.inner_text()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    assert "Reply token 2 of 5, “ hear”" in status.inner_text()
    page.keyboard.press("End")
    assert "Reply token 5 of 5" in status.inner_text()
    assert page.locator("#reply [tabindex='0']").count() == 1
    for _ in range(3):  # past the two span buttons into the prompt
        page.keyboard.press("Tab")
    assert "“<s>” (prompt token 1): attention 0.6, null attention" in status.inner_text()
    for _ in range(6):
        page.keyboard.press("ArrowRight")
    assert "“.↵” (prompt token 7, in instruction): attention 0.05" in status.inner_text()
    page.keyboard.press("ArrowDown")  # the token after the line break
    assert page.evaluate("document.activeElement.textContent") in PROMPT[7:]
    page.keyboard.press("Home")
    page.keyboard.press("Escape")
    assert "“<s>” (prompt token 1): mean attention 0.6" in status.inner_text()
    assert page.get_by_role("button", name="Mean over the reply").get_attribute("aria-pressed") == "true"


def test_hovering_reads_a_value_out_and_leaving_takes_it_back(show):
    page = show(heat_map_page("Title", PROMPT, REPLY, rows()))
    status = page.get_by_role("status")
    resting = status.inner_text()
    page.get_by_role("option").nth(9).hover()
    assert "“ hello” (prompt token 10): mean attention 0.002" in status.inner_text()
    page.mouse.move(1, 1)
    assert status.inner_text() == resting


def test_spans_are_outlined_named_and_reachable(show):
    page = show(heat_map_page("Title", PROMPT, REPLY, rows(), spans=SPANS))
    boxes = page.locator("#prompt [role=group]")
    names = [boxes.nth(i).get_attribute("aria-label") for i in range(boxes.count())]
    assert names == ["instruction", "name, instruction", "instruction"]
    texts = [boxes.nth(i).locator("[role=option]").all_text_contents() for i in range(3)]
    assert texts == [["Use", " the", " strategy"], [" Affirm", "ation"], [".↵\n"]]
    assert boxes.first.evaluate("element => getComputedStyle(element).borderTopStyle") == "solid"
    page.get_by_role("button", name="name", exact=True).click()
    assert page.evaluate("document.activeElement.textContent") == " Affirm"


def test_hostile_texts_stay_text(show):
    prompt = ["<s>", *HOSTILE, " end"]
    facts = {"<b>strategy</b>": '</dd><script>document.title = "broken"</script>'}
    spans = [(1, 2, "<i>name</i>"), (2, 4, "'\"</script>")]
    page = show(heat_map_page("[[facts]] <b>& more", prompt, HOSTILE, rows(prompt, HOSTILE), spans=spans, facts=facts))
    assert page.title() == "[[facts]] <b>& more"
    assert page.locator("h1").inner_text() == "[[facts]] <b>& more"
    assert page.locator("dt").inner_text() == "<b>strategy</b>"
    assert page.locator("script").count() == 2
    assert page.locator("img, b, i").count() == 0
    shown = page.get_by_role("option").all_text_contents()
    assert shown[1:8] == HOSTILE[:7]
    assert shown[8:11] == ["∅", "␀␛", "↵\n↵\n"]
    assert shown[12] == "x" * 300
    assert page.locator("#reply button").count() == len(HOSTILE)
    assert page.get_by_role("button", name="<i>name</i>").is_visible()


@pytest.mark.parametrize(("width", "scheme"), [(400, "light"), (400, "dark"), (1280, "dark")])
def test_no_sideways_scrolling_and_contrast(show, width, scheme):
    prompt, labels = ["<s>", *HOSTILE[:-1] * 3], [(1, 3, "a label of quite some length, " * 3), (5, 30, "y" * 120)]
    facts = {f"fact {i}": "value" * 20 for i in range(5)}
    page = show(
        heat_map_page("w" * 200, prompt, HOSTILE[:-1], rows(prompt, HOSTILE[:-1]), spans=labels, facts=facts),
        width,
        scheme,
    )
    page.locator("#reply button").nth(4).click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    ink = page.evaluate("getComputedStyle(document.body).color")
    ink = [float(number) / 255 for number in re.findall(r"\d+", ink)]
    assert page.evaluate("getComputedStyle(document.documentElement).colorScheme") == "light dark"
    papers = [background(page.get_by_role("option").nth(i)) for i in range(1, len(prompt))]
    assert len(set(papers)) > 3
    assert min(contrast(ink, paper) for paper in papers) >= 4.5


def test_numbers_and_ids_do_not_wrap(show):
    facts = {"dialogue": "333a935a2f23a295, turn 6", "SRA (first_token/quoted_strategy)": "1.23e-05", "net": "-0.12"}
    for width in (1280, 400):
        page = show(heat_map_page("Title", PROMPT, REPLY, rows(), spans=SPANS, facts=facts), width)
        values = page.locator(".facts dd, #spans span").all()
        assert len(values) == 5
        # Lines of a text: the places at which its rectangles begin.
        lines = "one => { const range = document.createRange(); range.selectNodeContents(one);"
        lines += "return new Set([...range.getClientRects()].map(({ top }) => Math.round(top))).size; }"
        assert [value.evaluate(lines) for value in values] == [1] * 5


def contrast(one, other) -> float:
    """Contrast ratio of WCAG 2.2."""

    def luminance(colour):
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted([luminance(one), luminance(other)])
    return (light + 0.05) / (dark + 0.05)


def test_every_control_has_a_name(show):
    page = show(heat_map_page("Title", PROMPT, [" ", "\n", ""], rows(reply=[" ", "\n", ""]), spans=SPANS))
    for name in ("token 1: “ ”", "token 2: “↵”", "token 3: “∅”"):
        assert page.get_by_role("button", name=name).count() == 1
    assert page.get_by_role("listbox", name="Prompt").count() == 1
    assert page.get_by_role("toolbar", name="Reply").count() == 1


def test_a_prompt_of_three_thousand_tokens(show):
    prompt = [f" word{i}" if i % 11 else "\n" for i in range(3000)]
    attention = [[1 / 3001] * (3000 + r) for r in range(40)]
    html = heat_map_page("Title", prompt, ["."] * 40, attention, spans=[(2990, 3000, "late")])
    assert len(html) < 700_000
    page = show(html, height=400)
    page.locator("#spans button").click()
    assert page.evaluate("document.activeElement.textContent") == " word2990"
    assert "0.000333" in page.get_by_role("status").inner_text()
    page.keyboard.press("Home")
    for _ in range(12):  # the bar with the readout stays in view and must not cover the focused token
        page.keyboard.press("ArrowDown")
        bottom = page.evaluate("document.activeElement.getBoundingClientRect().bottom")
        assert bottom <= page.evaluate("document.querySelector('footer').getBoundingClientRect().top")


def test_no_attention_at_all_has_no_colour(show):
    page = show(heat_map_page("Title", ["<s>", "a"], ["b"], [[1.0, 0.0]]))
    assert background(page.get_by_role("option").nth(1)) == (1, 1, 1)
    assert "below 0.000001" in page.get_by_role("option").nth(1).get_attribute("title")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": []}, "rows"),
        ({"reply": [], "attention": []}, "rows"),
        ({"attention": [[0.1] * 10] * 5}, "one more in each row"),
        ({"attention": [[float("nan")] * (10 + r) for r in range(5)]}, "between 0 and 1"),
        ({"spans": [(3, 3, "empty")]}, "empty"),
        ({"spans": [(3, 11, "beyond")]}, "10 tokens"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    arguments = {"prompt": PROMPT, "reply": REPLY, "attention": rows(), **changes}
    with pytest.raises(ValueError, match=message):
        heat_map_page("Title", **arguments)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 10), st.sampled_from("abc")), max_size=4))
def test_boxes_hold_exactly_the_tokens_of_the_spans(spans):
    from esc_lab.report.attention_files import _boxes

    spans = [(start, end, label) for start, end, label in spans if start < end]
    found = [(token, set(label.split(", "))) for start, end, label in _boxes(10, spans) for token in range(start, end)]
    expected: dict[int, set[str]] = {}
    for token, (start, end, label) in product(range(10), spans):
        if start <= token < end:
            expected.setdefault(token, set()).add(label)
    assert found == sorted(expected.items())
