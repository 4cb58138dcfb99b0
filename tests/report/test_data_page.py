"""The page of a look at data in a real browser: narrow screens, wide tables, hostile texts."""

from __future__ import annotations

import pytest

from esc_lab.report.data_page import DataLook, ShownPrompt, Table, render_data_page

HOSTILE = '</script><img src=x onerror="document.title=1">'
WIDE = Table(
    "Labels", ["label", *(f"column number {n}" for n in range(14))], [["x" * 90, *["1,234"] * 14]] * 3, ["A note."]
)
LOOK = DataLook({"file": "w" * 120}, [WIDE], [ShownPrompt("dialogue 1", "Question", "40 tokens", HOSTILE, "y" * 300)])


@pytest.mark.parametrize(("width", "scheme"), [(400, "light"), (400, "dark"), (1280, "dark")])
def test_nothing_but_the_table_scrolls_sideways_and_it_says_so(show, width, scheme):
    page = show(render_data_page(HOSTILE, LOOK), width, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    hint = page.locator(".more-hint")
    hint.wait_for()
    page.locator(".scroll").evaluate("box => box.scrollTo(1e5, 0)")
    hint.wait_for(state="hidden")
    assert page.locator("h1").inner_text() == HOSTILE
    assert HOSTILE in page.locator(".said").inner_text()


def test_a_wide_table_is_whole_on_paper(show):
    page = show(render_data_page("data", LOOK), 700)
    page.locator(".more-hint").wait_for()
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 703, "height": 1000})  # what A4 leaves
    parts = page.locator(".on-paper")
    assert parts.locator("thead th:not(:first-child)").count() == 14
    assert all(part.evaluate("one => one.scrollWidth <= 703") for part in parts.all())
    assert not page.locator(".more-hint").is_visible()
