"""Talks side by side on the page of a comparison, in a real browser."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from esc_lab.comparison.result import compute_comparison
from esc_lab.comparison.table import build_table
from esc_lab.data.dialogue import Reply, Turn
from esc_lab.report import dialogue_browser, talk_browser
from esc_lab.report.comparison_figures import draw_comparison
from esc_lab.report.comparison_page import write_comparison_page
from esc_lab.report.talk_browser import talks_data
from tests.comparison.synthetic import predictions, write_evaluation
from tests.comparison.talk_runs import made_talk, made_talks, write_talks
from tests.report.test_comparison_page import HOSTILE

CARDS = 6


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[Path]:
    """Three supporters; the first one's first talk has 20 turns and a hostile reply, and one did not ask for
    intensities."""
    root = tmp_path_factory.mktemp("talks")
    first = made_talks(eases=0.05, seed=1, talks=2)
    long = made_talk(0, 0, eases=0.05, turns=20, seed=1)
    turns = list(long.turns)
    turns[2] = Turn("supporter", Reply(HOSTILE.replace("\ud83d", ""), ("Question",)))
    first[0] = replace(long, turns=tuple(turns))
    forced = made_talks(eases=0.3, seed=2, talks=2)
    forced[0] = replace(forced[0], turns=(*forced[0].turns, Turn("seeker", Reply("Thank you, bye."))))
    silent = [replace(t, meta={**t.meta, "intensity": []}) for t in made_talks(eases=0.1, seed=3, talks=2)]
    return [
        write_talks(root / "base", first),
        write_talks(root / "forced", forced, converse={"strategies": ["Question"]}),
        write_talks(root / "silent", silent, converse={"strategies": ["Question", "Others"]}),
    ]


def write_page(runs: list[Path], directory: Path) -> Path:
    found = compute_comparison(runs)
    figures = draw_comparison(found, build_table(found), directory / "figures")
    return write_comparison_page(found, figures, directory / "report.html")


@pytest.fixture(scope="module")
def path(runs) -> Path:
    return write_page(runs, runs[0].parent / "compare")


def heads(page) -> list[str]:
    return page.locator(".talks thead th").all_inner_texts()


def test_runs_stand_beside_one_another(show, path):
    page = show(path)
    assert page.locator(".lead").first.inner_text().startswith("3 variants of 1 model, each in 12 whole talks with the")
    assert heads(page) == ["Turn", "tiny base", "tiny base always Question", "tiny base schedule"]
    assert page.locator("#talk h3").inner_text() == "night nurse, talk 1: burnout"
    assert page.locator(".talks tbody tr").count() == 21  # the opening and 20 turns
    reply = page.locator(".talks tbody tr").nth(1).locator("td").first.locator(".turn").first
    assert reply.locator(".tag").inner_text() == "Qu"
    assert HOSTILE.split()[0] in reply.inner_text()
    assert page.title() != "broken"
    rated = reply.locator(".verdict")
    assert rated.get_attribute("aria-label").startswith("intensity of the emotion, from 1 to 5: ")
    goodbye = page.locator(".talks tbody .turn", has_text="Thank you, bye.")  # how the seeker leaves is told there
    assert goodbye.locator(".verdict").count() == 1
    last = page.locator(".talks tbody tr", has_text="Thank you, bye.").locator("td").nth(1)
    assert last.locator(".verdict").count() == 1
    assert not page.get_by_role("heading", name="Problems and emotions").count()
    ends = page.locator(".talks tfoot td")
    assert "The seeker ends the talk after 20 turns." in ends.nth(0).inner_text()
    assert "Relief +" in ends.nth(1).inner_text()
    assert "Relief" not in ends.nth(2).inner_text()  # nobody asked
    assert ends.nth(1).get_by_text("its journal").get_attribute("href") == "../forced/talks/night_nurse-0.journal.jsonl"
    assert (path.parent / "../forced/talks/night_nurse-0.journal.jsonl").exists()


def test_the_curves_have_one_axis_and_say_their_values(show, path):
    page = show(path)
    chart = page.locator("#talk .curve")
    assert chart.locator("polyline").count() == 3
    points = [chart.locator("polyline").nth(run).get_attribute("points").split() for run in range(3)]
    assert [len(of_run) for of_run in points][0::2] == [21, 0]
    assert points[0][0] == points[1][0]  # the seeker begins alike
    assert "tiny base always Question: " in chart.get_attribute("aria-label")
    page.locator("#talk-runs input").first.click()
    assert heads(page) == ["Turn", "tiny base always Question", "tiny base schedule"]
    for number in (1, 2):
        page.locator("#talk-runs input").nth(number).click()
    assert heads(page) == ["Turn", "tiny base schedule"]  # one is always shown


def test_cards_are_chosen_by_list_keys_and_address(show, path):
    page = show(path)
    page.locator("#talk-choice").select_option(label="closed bakery, talk 2: job loss")
    assert page.locator("#talk h3").inner_text() == "closed bakery, talk 2: job loss"
    assert page.url.endswith("#talk=closed_bakery.2")
    page.locator("#talk").get_by_role("button", name="Next").click()
    assert page.evaluate("document.activeElement.textContent") == "Next \u2192"
    page.keyboard.press("j")
    assert page.locator("#talk h3").inner_text() == "exam again, talk 2: academic pressure"
    page.locator(".talks").focus()
    page.keyboard.press("ArrowRight")  # scrolls
    assert page.locator("#talk h3").inner_text() == "exam again, talk 2: academic pressure"
    page.locator("#talk-order").select_option(label="where relief differs most")
    texts = page.locator("#talk-choice option").all_inner_texts()
    assert len(texts) == 12
    assert page.locator("#talk h3").inner_text() == texts[0]


def test_an_address_leads_to_a_talk_of_a_run(show, path):
    page = show(path, width=400, anchor="#talk=not_a_person.2.3")
    assert page.locator("#talk h3").inner_text() == "not a person, talk 2: ongoing depression"
    assert "Hard: testing" in page.locator("#talk").inner_text()
    assert page.locator("thead th.linked").inner_text() == "tiny base schedule"
    column, first = (page.locator(".talks thead th").nth(number).bounding_box() for number in (3, 0))
    assert column["x"] >= first["x"] + first["width"] - 1  # not below the column that stays
    assert column["x"] + column["width"] <= 400
    page.locator(".talks tfoot a").first.click()
    assert page.url.endswith("#talk=not_a_person.2.1")
    page.locator("thead th.linked", has_text=re.compile(r"^tiny base$")).wait_for()  # a busy machine takes its time
    assert page.locator("thead th.linked").count() == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_nothing_is_wider_than_the_window_and_text_is_seen(show, path, width, scheme):
    page = show(path, width=width, scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    region = page.locator(".talks")
    region.evaluate("box => { box.scrollTop = box.scrollHeight; }")
    top, head = region.bounding_box()["y"], page.locator(".talks thead th").nth(1).bounding_box()["y"]
    assert abs(top - head) < 3  # names of runs stay in sight
    turn = page.locator(".talks td .turn").first
    assert turn.evaluate("box => box.scrollWidth <= box.clientWidth")  # long words are broken
    ink, paper = (
        turn.evaluate(f"box => getComputedStyle(box.closest('{of}')).{name}")
        for of, name in (("td", "color"), ("body", "backgroundColor"))
    )
    bright = [sum(map(float, colour[colour.index("(") + 1 : -1].split(",")[:3])) for colour in (ink, paper)]
    assert abs(bright[0] - bright[1]) > 400


def test_talks_beside_evaluations_and_without_figures(show, runs, tmp_path):
    evaluation = write_evaluation(tmp_path / "evaluation", predictions(skill=0.5, seed=1))
    found = compute_comparison([evaluation, *runs])
    page = show(write_comparison_page(found, [], tmp_path / "report.html"))
    sections = page.locator("nav a").all_inner_texts()
    assert sections[:2] == ["Results", "Results of talks"]
    assert {"Talks", "Dialogues"} <= {*sections}
    table = page.locator("#talk-results-table")
    assert table.locator("tbody tr").count() == 3
    page.locator("#talk-results-table thead button").filter(has_text="relief").click()
    assert table.locator("thead th[aria-sort=descending]").count() == 1
    assert page.locator("#results-table thead th[aria-sort=descending]").count() == 0
    page.locator("#dialogues").get_by_role("button", name="Next").click()
    assert "#decision=" in page.url
    page.locator("#talk").get_by_role("button", name="Next").click()
    assert "#talk=" in page.url


def test_the_figure_of_intensities(path):
    drawn = (path.parent / "figures" / "intensity.svg").read_text()
    assert all(word in drawn for word in ("supporter turns", "intensity, 1 to 5", "tiny base always Question"))
    assert "tiny base schedule" not in drawn  # it was not asked
    assert "How strong the emotion is" in path.read_text()


def test_too_many_runs_are_named(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(dialogue_browser, "MOST_RUNS", 2)
    found = compute_comparison(runs)
    assert talks_data(found, tmp_path)["left_out"] == ["tiny base schedule"]
    monkeypatch.setattr(talk_browser, "MOST_CHARACTERS", 100)
    small = talks_data(found, tmp_path)
    assert len(small["runs"]) == 1
    assert len(small["left_out"]) == 2
    known = max(turn[1] for talk in small["runs"][0]["talks"] for turn in talk["turns"])
    assert known == len(small["texts"]) - 1  # no texts of those that are left out
    page = write_comparison_page(found, [], tmp_path / "report.html").read_text()
    assert "Not shown here, for size: tiny base schedule, tiny base always Question." in page
