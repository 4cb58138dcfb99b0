"""A questionnaire in a real browser, opened from its file: filled in by keyboard, kept, saved, read back."""

from __future__ import annotations

import json

import pytest
from axe_playwright_python.sync_playwright import Axe

from tests.judging.surveys import make_survey, run_survey, write_templates


@pytest.fixture(scope="module")
def survey(tmp_path_factory):
    root = tmp_path_factory.mktemp("survey")
    runs = write_templates(root, ("standard", "c1_hf"))
    settings = ("survey.items=6", "survey.raters=1", "survey.checks=1", "survey.repeats=1")
    return root, make_survey(root / "made", runs, *settings)


@pytest.fixture
def path(survey):
    return survey[0] / "made/questionnaires/rater_1.html"


def press(page, *keys: str) -> None:
    for key in keys:
        page.keyboard.press(key)


def place(page) -> str:
    return page.locator("#place").inner_text()


def chosen(page) -> list[str]:
    return page.locator("input:checked").evaluate_all("nodes => nodes.map((node) => node.value)")


def test_filled_in_by_keyboard_at_phone_width_and_read_back(survey, path, show, tmp_path):
    root, key = survey
    page = show(path, width=400)
    entries = list(key.questionnaires["rater_1"].values())
    given = {}
    for number, entry in enumerate(entries):
        assert place(page) == f"Page {number + 1} of 8"
        values = [entry.check, entry.check] if entry.check is not None else [number % 9 - 4, 4 - number % 3]
        given[entry.name] = dict(zip(key.questions, values, strict=True))
        page.keyboard.type(str(values[0]))  # of the first scale that is open
        if number == 0:
            press(page, "Enter")  # goes to what is still open, not on
            assert place(page) == "Page 1 of 8"
            press(page, "ArrowLeft")  # moves along the scale in focus
            assert chosen(page) == ["-4", "4"]
        else:
            press(page, "Tab")
        page.keyboard.type(str(values[1]))
        if number == 3:
            assert chosen(page) == [str(value) for value in values]
            page.reload()
            assert place(page) == "Page 4 of 8"
            assert chosen(page) == [str(value) for value in values]
            page.get_by_text("Which reply follows the strategy more?").click()
        press(page, "Enter")
    assert place(page) == "The end"
    assert "All questions are answered" in page.locator("#left").inner_text()
    page.locator("#comment").fill("Fine. </script>")
    with page.expect_download() as waiting:
        page.locator("#save").focus()
        press(page, "Enter")
    saved = tmp_path / waiting.value.suggested_filename
    waiting.value.save_as(saved)
    assert saved.name == f"rater_1_{key.identity}.json"
    content = json.loads(saved.read_text())
    assert content["answers"] == given
    assert content["comment"] == "Fine. </script>"
    assert set(content["seconds"]) == set(given)
    metrics = run_survey(tmp_path / "out", f"survey.directory={root / 'made'}", f"survey.results=[{saved}]")
    assert (metrics["survey/ratings"], metrics["survey/missing"], metrics["survey/careless_raters"]) == (12, 0, 0)
    lines = [json.loads(line) for line in (tmp_path / "out/ratings.jsonl").read_text().splitlines()]
    by_item = {(line["item"], line["question"]): line for line in lines}
    for entry in (entry for entry in entries if entry.check is None and not entry.repeat):
        line, shown = by_item[entry.item, "adherence"], given[entry.name]["adherence"]
        assert (line["shown"], line["value"]) == (shown, -shown if entry.swapped else shown)


def test_numbers_of_two_digits_are_typed(survey, show, tmp_path):
    make_survey(tmp_path, sorted(survey[0].glob("run_*")), "survey.form.reach=10", "survey.items=2", "survey.raters=1")
    page = show(tmp_path / "questionnaires/rater_1.html")
    for keys, values in (("10", ["10"]), ("-10", ["-10"]), ("4", ["4"]), ("-4", ["-4"]), ("0", ["0"])):
        page.keyboard.type(keys)
        assert chosen(page) == values
    page.keyboard.type("1")
    press(page, "Tab")
    page.keyboard.type("0")  # of the second scale
    assert chosen(page) == ["1", "0"]


def test_pages_that_are_left_open_are_told(path, show):
    page = show(path)
    page.locator("#next").click()
    page.locator("fieldset").first.locator("input").nth(0).check()
    for _ in range(7):
        page.locator("#next").click()
    assert "8 of 8 pages have open questions" in page.locator("#left").inner_text()
    page.locator("#save").click()
    assert "8 of 8 pages have open questions" in page.locator("#saved").inner_text()
    page.get_by_role("button", name="Page 2", exact=True).click()
    assert chosen(page) == ["-4"]
    page.locator("#back").click()
    assert place(page) == "Page 1 of 8"
    assert page.locator("#back").is_disabled()


def test_two_windows_keep_the_answers_of_both(path, browser):
    context = browser.new_context()
    windows = [context.new_page() for _ in range(2)]
    for window in windows:
        window.goto(path.as_uri())
    for number, window in enumerate(windows):
        window.locator("fieldset").nth(number).locator("input").nth(0).check()
        other = windows[1 - number]
        other.wait_for_function("count => document.querySelectorAll('input:checked').length == count", arg=number + 1)
    for window in windows:
        window.reload()
        assert chosen(window) == ["-4", "-4"]
    context.close()


@pytest.mark.parametrize(("width", "scheme"), [(400, "dark"), (1280, "light")])
def test_fits_and_is_accessible(path, show, width, scheme):
    page = show(path, width=width, scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert Axe().run(page).response["violations"] == []
    boxes = page.locator(".scale label").evaluate_all("nodes => nodes.map((n) => n.getBoundingClientRect().height)")
    assert min(boxes) >= 44
