"""The page of a comparison in a real browser, opened from its file as a reader would."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import shutil
import zipfile
from dataclasses import asdict, replace
from pathlib import Path
from urllib.parse import unquote

import pytest

from esc_lab.comparison.notes import build_details, build_notes
from esc_lab.comparison.result import compute_comparison
from esc_lab.comparison.table import build_table
from esc_lab.report.comparison_figures import draw_comparison
from esc_lab.report.comparison_page import inline_svg, write_comparison_page
from esc_lab.report.comparison_results import summary
from esc_lab.report.dialogue_browser import browser_data
from esc_lab.report.reproduction import commands, name_trees
from esc_lab.runs import manifest as multirun
from tests.comparison.synthetic import write_training
from tests.report.runs import NAMES, evaluated, made_dialogues, predicted, record_command, with_prompts, write_runs

HOSTILE = "</script><img src=x onerror=\"document.title='broken'\"><!-- [[data]] &amp; \u2028 \x00 \ud83d " + "x" * 200
DIALOGUES = made_dialogues(14, 6)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[Path]:
    """Base, SFT and CSO of one model, of two seeds; the base's first reply is hostile."""
    root = tmp_path_factory.mktemp("runs")
    found = write_runs(root, DIALOGUES, models=("tiny",), seeds=(1, 2))
    rows = lines(found[0])
    rows[0]["reply"] = HOSTILE
    (found[0] / "predictions.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    metrics = json.loads((found[0] / "metrics.json").read_text())  # those of texts are no longer true
    kept = {name: value for name, value in metrics.items() if not name.startswith("text/")}
    (found[0] / "metrics.json").write_text(json.dumps(kept))
    (found[0] / "heat_map_1.html").write_text("attention")
    return found


@pytest.fixture(scope="module")
def comparison(runs):
    metrics = ["strategy/Q", "strategy/B", "strategy/accuracy", "generated/unparsable"]
    return compute_comparison(runs, metrics=metrics)


@pytest.fixture(scope="module")
def path(comparison, runs) -> Path:
    table = build_table(comparison)
    directory = runs[0].parent / "compare"
    figures = draw_comparison(comparison, table, directory / "figures")
    return write_comparison_page(comparison, figures, directory / "report.html")


def lines(directory: Path) -> list[dict]:
    return [json.loads(line) for line in (directory / "predictions.jsonl").read_text().splitlines()]


def chosen(row: dict) -> str:
    return max(row["distribution"], key=row["distribution"].__getitem__)


def spaced(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


def names_in(page, table: str) -> list[str]:
    return [spaced(text) for text in page.locator(f"#{table} tbody th").all_inner_texts()]


def heading(page) -> str:
    return page.locator("#decision h3").inner_text()


# --- what it says


def test_title_and_summary_say_what_was_found(show, path, comparison):
    page = show(path)
    assert page.title() == page.locator("h1").inner_text() == "tiny: base, SFT and CSO compared"
    told = page.locator(".lead").inner_text()
    best = comparison.estimates["tiny CSO (cso)", "strategy/Q"]
    assert "3 variants of 1 model, each with 2 seeds, judged at the same 84 decisions of 14 dialogues" in told
    assert f"CSO has the best Q, {best.interval.value:.3f}" in told
    sure = "a significant difference" if best.difference.marks else "which may well be chance"
    assert f"{best.difference.interval.value:.3f} more than its baseline (base), {sure} (p " in told


def test_nobody_wins_a_tie_and_what_was_not_tested_is_no_verdict(comparison):
    table = build_table(comparison)
    told = summary(comparison, table)[1]
    assert told.startswith("CSO has the best Q, ")
    base, *_, cso = comparison.cells
    same = dict(comparison.estimates)
    same[base.name, "strategy/Q"] = replace(
        same[base.name, "strategy/Q"], interval=same[cso.name, "strategy/Q"].interval
    )
    tied = summary(replace(comparison, estimates=same), table)[1]
    assert re.fullmatch(r"base and CSO have the same Q, 0\.\d{3}, and none has a better one\.", tied)
    best = replace(same[base.name, "strategy/Q"].interval, value=2.0)
    same[base.name, "strategy/Q"] = replace(same[base.name, "strategy/Q"], interval=best)
    for cell in comparison.cells[1:]:
        estimate = same[cell.name, "strategy/Q"]
        same[cell.name, "strategy/Q"] = replace(estimate, difference=replace(estimate.difference, corrected=math.nan))
    told = summary(replace(comparison, estimates=same), table)[1]
    assert told.endswith("It is the baseline; no difference to it was tested.")


def test_the_table_holds_every_value_and_explains_its_columns(show, path, comparison):
    page = show(path)
    assert names_in(page, "results-table") == ["base baseline", "SFT", "CSO"]
    estimate = comparison.estimates["tiny CSO (cso)", "strategy/Q"]
    half = (estimate.interval.high - estimate.interval.low) / 2
    field = page.locator("#results-table tbody tr").nth(2).locator("td").nth(1)
    difference = estimate.difference
    expected = f"{estimate.interval.value:.3f} ± {half:.3f} {difference.interval.value:+.3f}{difference.marks}"
    assert spaced(field.inner_text()) == expected
    assert field.locator("b").inner_text() == f"{estimate.interval.value:.3f}"
    assert "over dialogues and seeds" in field.get_attribute("title")
    heads = page.locator("#results-table thead button")
    assert [spaced(text) for text in heads.all_inner_texts()] == ["Run", "Seeds", "Q ↑", "B ↓", "acc ↑", "unpars. ↓"]
    assert "mean over the strategies of f1" in heads.nth(2).get_attribute("title").lower()
    assert page.locator(".gains li:visible").count() == 2  # of SFT and of CSO
    assert page.locator(".notes:not(.gains) li:visible").count() == len(build_notes(comparison))
    page.get_by_text("How intervals, tests").click()
    assert page.locator("details .notes li:visible").count() == len(build_details(comparison))


def test_sorting_by_click_and_by_keyboard(show, path, comparison):
    page = show(path)
    by_bias = sorted(comparison.cells, key=lambda cell: comparison.estimates[cell.name, "strategy/B"].interval.value)
    labels = [cell.method + (" baseline" if cell.method == "base" else "") for cell in by_bias]
    head = page.locator("#results-table thead th").nth(3)
    head.get_by_role("button", name="B").click()  # less is better, so the least comes first
    assert names_in(page, "results-table") == labels
    assert head.get_attribute("aria-sort") == "ascending"
    page.keyboard.press("Enter")
    assert names_in(page, "results-table") == labels[::-1]
    assert head.get_attribute("aria-sort") == "descending"
    page.get_by_role("button", name="Run", exact=True).focus()
    page.keyboard.press("Space")
    assert names_in(page, "results-table") == ["base baseline", "CSO", "SFT"]
    assert page.locator("#results-table [aria-sort=none]").count() == 5


def test_one_metric_strategies_and_groups_follow_their_choices(show, path, comparison):
    page = show(path)
    page.select_option("#metric-choice", "strategy/accuracy")
    one = comparison.estimates["tiny SFT (cso)", "strategy/accuracy"]
    row = spaced(page.locator("#metric-table tbody tr").nth(1).inner_text())
    assert row.startswith(f"SFT {one.interval.value:.3f} {one.interval.low:.3f} to {one.interval.high:.3f}")
    page.select_option("#strategy-choice", label="Information")
    table, place = comparison.strategies["tiny CSO (cso)"], NAMES.index("Information")
    row = spaced(page.locator("#strategy-table tbody tr").nth(2).inner_text()).split()
    assert row[1:4] == [f"{values[place]:.3f}" for values in (table.precision, table.recall, table.f1)]
    page.select_option("#group-kind", "problem")
    groups = {one.group.name: one for one in comparison.groups if one.group.kind == "problem"}
    assert names_in(page, "group-table") == sorted(groups)
    assert page.locator("#group-table thead th").all_inner_texts() == ["Problem", "Decisions", "base", "SFT", "CSO"]


def test_groups_that_are_not_there_are_accounted_for(show, tmp_path):
    few = [replace(dialogue, emotion="", problem=dialogue.problem if n else "rare") for n, dialogue in
           enumerate(made_dialogues(20, 6))]  # fmt: skip
    run = evaluated(tmp_path / "one", few, predicted(few, 0.5, 1))
    page = show(write_comparison_page(compute_comparison([run]), [], tmp_path / "report.html"))
    assert "Too few decisions to be shown, 20 at least: rare (6)." in page.locator("#groups").inner_text()
    page.select_option("#group-kind", "emotion")
    assert "Nothing to show here. The dialogues name no emotion." in page.locator("#groups").inner_text()
    assert not page.locator("#group-table").is_visible()
    run = evaluated(tmp_path / "small", few[:2], predicted(few[:2], 0.5, 1))
    page = show(write_comparison_page(compute_comparison([run]), [], tmp_path / "small.html"))
    told = page.locator("#groups").inner_text()
    assert "Problem: Too few decisions to be shown, 20 at least: " in told
    assert not page.locator("#group-kind").is_visible()


def test_a_confusion_count_leads_to_its_decisions(show, runs, tmp_path):
    page = show(write_comparison_page(compute_comparison(runs[::2]), [], tmp_path / "report.html"))
    page.select_option("#confusion-choice", label="CSO")
    field = page.locator("#confusion-table tbody tr").nth(0).locator("td").nth(0)
    expected = sum(row["gold"] == [NAMES[0]] and chosen(row) == NAMES[0] for row in lines(runs[4]))
    assert expected == int(field.inner_text())
    field.get_by_role("button").click()
    assert page.locator("#count").inner_text() == f"{expected} of 84 decisions"
    assert "right" in page.locator(".card", has_text="CSO").inner_text()


# --- the browser of dialogues


def test_a_decision_shows_context_gold_and_every_run(show, path, runs):
    dialogue = DIALOGUES[3]
    page = show(path, anchor=f"#decision={dialogue.id}.6")
    assert heading(page) == f"Reply at turn 6: {dialogue.problem}"
    context = page.locator(".context .said").all_inner_texts()
    assert context == [turn.reply.text for turn in dialogue.turns[:5]]
    assert dialogue.turns[5].reply.text in page.locator(".gold").inner_text()
    cards = page.locator(".card")
    assert cards.locator(".who").all_inner_texts() == [
        f"tiny {name}, seed {seed}" for name in ("base", "SFT", "CSO") for seed in (1, 2)
    ]
    for place, directory in enumerate(runs):
        row = next(row for row in lines(directory) if (row["dialogue"], row["turn"]) == (dialogue.id, 5))
        card = cards.nth(place)
        assert card.locator(".reply").inner_text() == row["reply"]
        assert chosen(row) in card.locator(".chose").inner_text()
        assert ("right" in card.locator(".chose").inner_text()) == (chosen(row) in row["gold"])
        widths = card.locator(".shares .bar i").evaluate_all("all => all.map(one => parseFloat(one.style.width))")
        assert widths == pytest.approx([100 * row["distribution"][name] for name in NAMES], abs=0.051)


def test_a_decision_with_replies_is_shown_first(show, tmp_path):
    rows = [
        replace(row, reply=row.reply if number in (5, 9) else None)
        for number, row in enumerate(predicted(DIALOGUES, 0.5, 1))
    ]
    run = evaluated(tmp_path / "base", DIALOGUES, rows)
    page = show(write_comparison_page(compute_comparison([run]), [], tmp_path / "report.html"))
    assert page.locator("#decision .reply").inner_text() == rows[5].reply
    assert page.locator("#list [aria-current]").evaluate("one => one.dataset.decision") == "5"
    page.check("#by-replies")
    assert page.locator("#list li").count() == 2


def test_replies_that_were_cut_off_or_never_written_say_so(show, tmp_path):
    rows = predicted(DIALOGUES, 0.5, 1)
    drawn = {"temperature": 0.0, "top_p": 1.0, "max_new_tokens": 6}
    some = [replace(row, cut_off=n == 0, sampling=drawn) if n < 2 else replace(row, reply=None)
            for n, row in enumerate(rows)]  # fmt: skip
    none = [replace(row, reply=None, strategy=None) for row in rows]
    runs = [
        evaluated(tmp_path / "some", DIALOGUES, some),
        evaluated(tmp_path / "none", DIALOGUES, none, checkpoint=str(write_training(tmp_path / "sft", "sft"))),
    ]
    path = write_comparison_page(compute_comparison(runs), [], tmp_path / "report.html")
    page = show(path, anchor=f"#decision={DIALOGUES[0].id}.2")
    cards = page.locator(".card")
    assert cards.first.locator(".reply").inner_text() == f"{rows[0].reply} [cut off at the token limit]"
    assert "This run wrote no replies." in cards.nth(1).inner_text()
    page.get_by_role("button", name="Next decision").click()
    assert "cut off" not in cards.first.inner_text()
    page.get_by_role("button", name="Next decision").click()
    assert "No reply was written here: this run has replies at 2 of its 84 decisions." in cards.first.inner_text()
    assert "replies greedy, at most 6 tokens, which cut off 50 % of them." in page.locator("#results").inner_text()


def test_filters_leave_the_decisions_that_are_so(show, path, runs):
    page = show(path)
    rows = [lines(directory) for directory in runs]
    word = DIALOGUES[2].turns[4].reply.text.split()[3]  # said by the seeker, so it is context of what comes after
    one = [row["gold"] == ["Question"] for row in rows[0]]
    wrong = [chosen(row) not in row["gold"] for row in rows[3]]
    split = [len({chosen(row) for row in of}) > 1 for of in zip(*rows, strict=True)]
    assert not page.locator("#by-replies").is_visible()  # all have some

    def count() -> int:
        return int(re.match(r"[\d,]+", page.locator("#count").inner_text())[0])

    page.select_option("#by-gold", label="Question")
    assert count() == sum(one) == page.locator("#list li").count()
    page.select_option("#by-run", label="tiny SFT, seed 2")
    page.select_option("#by-outcome", "wrong")
    assert count() == sum(map(all, zip(one, wrong, strict=True)))
    page.get_by_role("button", name="Clear").click()
    page.locator("#count", has_text=re.compile("^84 decisions")).wait_for()
    page.check("#by-disagreement")
    assert count() == sum(split)
    page.uncheck("#by-disagreement")
    page.fill("#find", word.upper())
    page.locator("#count", has_text="of 84").wait_for()
    assert page.evaluate("matches.some(one => decisions[one][0] === 2 && decisions[one][1] === 5)")
    assert not page.evaluate("matches.some(one => decisions[one][0] === 2 && decisions[one][1] < 4)")
    page.fill("#find", "no such words")
    page.get_by_text("No decision is like this").wait_for()


def test_moving_by_keyboard_and_by_address(show, path):
    page = show(path)
    assert heading(page).startswith("Reply at turn 2")
    page.keyboard.press("j")  # the focus is elsewhere
    assert heading(page).startswith("Reply at turn 2")
    page.locator("#list button").first.focus()
    for key, turn in (("j", 4), ("ArrowDown", 6), ("ArrowRight", 8), ("k", 6), ("ArrowUp", 4), ("ArrowLeft", 2)):
        page.keyboard.press(key)
        assert heading(page).startswith(f"Reply at turn {turn}:")
        assert page.evaluate("location.hash") == f"#decision={DIALOGUES[0].id}.{turn}"
    assert page.evaluate("document.activeElement.ariaCurrent") == "true"
    page.get_by_label("Text").fill("")
    page.get_by_label("Text").press("j")
    assert heading(page).startswith("Reply at turn 2:")  # a letter typed into a field is a letter
    page.get_by_label("Text").fill("")
    page.evaluate(f"location.hash = '#decision={DIALOGUES[13].id}.12'")
    page.locator("#decision h3", has_text="Reply at turn 12").wait_for()
    assert "51 to 84 listed" in page.locator("#count").inner_text()
    assert page.get_by_role("button", name="Next decision").is_disabled()
    page.get_by_role("button", name="Earlier decisions in the list").click()
    assert page.locator("#list button").count() == 50


def test_hostile_texts_stay_text(show, path):
    page = show(path, anchor=f"#decision={DIALOGUES[0].id}.2")
    assert page.title().startswith("tiny")
    assert page.locator("img").count() == 0
    assert page.locator("script").count() == 2
    assert page.locator(".card .reply").first.evaluate("one => one.textContent") == HOSTILE


def test_several_prompts_and_samples_of_a_decision(show, tmp_path):
    rows = predicted(DIALOGUES[:4], 0.5, 1)
    run = evaluated(tmp_path / "run", DIALOGUES[:4], [*rows, *with_prompts(rows, NAMES[:3])])
    again = [{**row, "sample": number} for row in lines(run) for number in range(2 if row["prompted"] is None else 1)]
    (run / "predictions.jsonl").write_text("\n".join(map(json.dumps, again)) + "\n")
    found = compute_comparison([run], metrics=["strategy/Q"])
    page = show(write_comparison_page(found, [], tmp_path / "report.html"))
    told = page.locator(".card").inner_text()
    assert page.locator(".card .reply").count() == 5
    assert page.locator(".card .shares").count() == 1
    assert [f"told to use {name}" in told for name in NAMES[:4]] == [True, True, True, False]
    assert "sample 1" in told
    assert "sample 2" in told


# --- what may be missing


def test_without_dialogues_the_context_is_said_to_be_missing(show, tmp_path):
    run = evaluated(tmp_path / "one", DIALOGUES, predicted(DIALOGUES, 0.5, 1), context=False)
    page = show(write_comparison_page(compute_comparison([run]), [], tmp_path / "report.html"))
    assert "no dialogues.jsonl" in page.locator("#dialogues").inner_text()
    assert page.locator(".context").count() == 0
    assert page.locator(".card").count() == 1


def test_trainings_alone_have_no_decisions(show, tmp_path):
    trainings = [write_training(tmp_path / stage, stage) for stage in ("sft", "cso")]
    page = show(write_comparison_page(compute_comparison(trainings), [], tmp_path / "report.html"))
    assert names_in(page, "results-table") == ["SFT training", "CSO training"]
    assert page.locator("section[id]").evaluate_all("all => all.map(one => one.id)") == [
        "results", "metric", "reproduce",
    ]  # fmt: skip


def test_more_runs_than_fit_are_named(comparison, monkeypatch, tmp_path):
    monkeypatch.setattr("esc_lab.report.dialogue_browser.MOST_RUNS", 4)
    found = browser_data(comparison, Path())
    assert [run["name"] for run in found["runs"]] == [f"tiny {name}, seed 1" for name in ("base", "SFT", "CSO")]
    assert found["left_out"] == [f"tiny {name}, seed 2" for name in ("base", "SFT", "CSO")]
    monkeypatch.setattr("esc_lab.report.dialogue_browser.MOST_CHARACTERS", 100)
    assert len(browser_data(comparison, Path())["runs"]) == 1
    page = write_comparison_page(comparison, [], tmp_path / "report.html").read_text()
    assert "Not shown here, for size: tiny base, seed 2, tiny SFT, seed 2" in page


# --- reproduction and links


def test_commands_settings_and_versions(show, path, comparison, runs):
    page = show(path)
    commands = page.locator(".commands code").all_inner_texts()
    assert len(commands) == 10  # two seeds of three evaluations and two trainings
    assert "python run.py stage=sft model=tiny seed=1 'data.limit={train: 400}'" in commands
    training = commands.index("python run.py stage=cso model=tiny seed=2 'data.limit={train: 400}'")
    evaluation = next(n for n, line in enumerate(commands) if "stage=evaluate" in line and "train_tiny_cso_2" in line)
    assert training < evaluation
    settings = page.get_by_role("region", name="Settings that differ").locator("tbody th")
    assert settings.all_inner_texts() == ["checkpoint", "training: stage"]  # every cell has the same seeds
    heads = page.get_by_role("region", name="Settings that differ").locator("thead th").all_inner_texts()
    assert heads == ["setting", "tiny base", "tiny SFT", "tiny CSO"]
    assert comparison.test.identity in page.locator("#reproduce").inner_text()
    assert "0" * 12 in page.locator("#reproduce").inner_text()
    assert "one for each of 2 seeds" in page.get_by_role("region", name="Settings that differ").inner_text()
    page.locator(".copy").first.click()
    page.locator(".copy").first.filter(has_text=re.compile("Copied|Marked")).wait_for()


def test_single_runs_stand_in_the_order_in_which_to_run_them(tmp_path):
    found = []
    for name, origin in (("sft", None), ("cso", str(tmp_path / "sft" / "sft"))):
        training = write_training(tmp_path / name / name, name, init_from=origin)
        rows = predicted(DIALOGUES[:3], 0.5, 1)
        found.append(evaluated(tmp_path / "evaluate" / name, DIALOGUES[:3], rows, checkpoint=str(training)))
        for directory in (training, found[-1]):
            record_command(directory, [f"of={directory.relative_to(tmp_path)}", "resume=auto"])
    lines = [one.line for one in commands(compute_comparison(found).cells)[0]]
    assert lines == [f"python run.py of={one}" for one in ("sft/sft", "evaluate/sft", "cso/cso", "evaluate/cso")]


def test_a_diverged_model_and_odd_line_ends(tmp_path):
    rows = predicted(DIALOGUES[:3], 0.5, 1)
    rows[0].distribution = dict.fromkeys(rows[0].distribution, math.nan)
    rows[1].sra = {"paper/name": {"sra": math.nan, "control": 0.02, "relative": 1.5}}
    rows[1].reply = "one\u2028two\u0085three"
    run = evaluated(tmp_path / "base", DIALOGUES[:3], predicted(DIALOGUES[:3], 0.5, 1))
    found = compute_comparison([run])
    (run / "predictions.jsonl").write_text("\n".join(json.dumps(asdict(row), ensure_ascii=False) for row in rows))
    data = browser_data(found, tmp_path)
    (shown,) = data["runs"]
    assert shown["shares"][0] is None
    assert shown["shares"][1] is not None
    assert "sra" not in shown
    assert rows[1].reply in data["texts"]


def test_jobs_of_a_multirun_stand_under_its_command(show, tmp_path):
    found = compute_comparison(write_runs(tmp_path, DIALOGUES[:4], seeds=(1, 2)))
    words = ["stage=evaluate", "model=tiny,other", "seed=1,2", "data.limit={test: 3}"]
    multirun.write_overrides(tmp_path, [*words, "resume=auto", "hydra.launcher.n_jobs=2"])
    page = show(write_comparison_page(found, [], tmp_path / "compare" / "report.html"))
    commands = page.locator(".commands code")
    assert shlex.split(commands.first.inner_text()) == ["python", "run.py", "-m", *words]
    assert commands.count() == 11
    assert not commands.nth(1).is_visible()
    page.get_by_text("its 10 jobs").click()
    assert commands.nth(1).is_visible()


def test_a_pipelines_steps_share_its_command_and_link_to_its_trees(show, tmp_path):
    root = tmp_path / "a run"
    for place in (root, tmp_path / "another that reused the search"):
        (place / "search" / "trees").mkdir(parents=True)
        tree = "<title>Search tree 3: job &amp; home</title>tree"
        (place / "search" / "trees" / f"{DIALOGUES[0].id}.html").write_text(tree)
    verdict = {"verdict": "rubric judge: NOT believed, AUC 0.52", "believed": False, "models": ["coin-1"]}
    write_training(root / "search", "search")
    (root / "search" / "judge_check.json").write_text(json.dumps(verdict))
    training = write_training(root / "sft", "sft", data__path=str(root / "search" / "esc_pro"))
    rows = predicted(DIALOGUES, 0.5, 1)
    rows[1].sra = {"paper/name": {"sra": 0.01, "control": 0.02, "relative": 1.5}}
    steps = [
        evaluated(root / "evaluate_base", DIALOGUES, rows, data__path=str(place / "search" / "esc_pro")),
        evaluated(root / "evaluate_sft", DIALOGUES, rows, checkpoint=str(training)),
    ]
    (steps[1] / "heat_map_1.html").write_text("attention")
    record_command(root, ["stage=pipeline"])
    found = compute_comparison(steps)
    bundle = root / "compare" / "report.zip"
    report = write_comparison_page(found, [], root / "compare" / "report.html", bundle)
    page = show(report, anchor=f"#decision={DIALOGUES[0].id}.4")
    assert page.locator(".commands code").all_inner_texts() == ["python run.py stage=pipeline"]
    links = {one.inner_text(): unquote(one.get_attribute("href")) for one in page.locator("a[href$='.html']").all()}
    assert set(links) == {"Search tree of this dialogue", "where it looks", "job & home (tree 3)"}
    assert all(os.path.exists(root / "compare" / link) for link in links.values())
    assert "evaluate_sft/heat_map_1" in links["where it looks"]
    # Mailed: unpacked elsewhere, it has all that it links.
    mailed = tmp_path / "elsewhere"
    with zipfile.ZipFile(bundle) as archive:
        archive.extractall(mailed)
    shutil.rmtree(root)
    page = show(mailed / "report.html", anchor=f"#decision={DIALOGUES[0].id}.4")
    told = page.locator("#results").text_content()
    assert "trained on data whose judge is not believed (coin-1)" in told
    assert "rubric judge: NOT believed, AUC 0.52 (coin-1)" in told
    own = {one.inner_text(): unquote(one.get_attribute("href")) for one in page.locator("a[href$='.html']").all()}
    assert own.keys() == links.keys()
    assert (mailed / own["job & home (tree 3)"]).read_text() == tree
    assert (mailed / own["where it looks"]).read_text() == "attention"


def test_trees_are_listed_by_their_problems(tmp_path):
    titles = {"c": "Search tree 10: sleep", "a": "Search tree 2: Sleep", "d": "Search tree 1: job", "b": "Tree"}
    for name, title in titles.items():
        (tmp_path / f"{name}.html").write_text(f"<title>{title}</title>")
    named = name_trees(tmp_path / f"{name}.html" for name in titles)
    assert [*named] == ["b", "job (tree 1)", "Sleep (tree 2)", "sleep (tree 10)"]


# --- how it looks


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (400, "light"), (400, "dark")])
def test_names_contrast_and_width(show, path, width, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed")
    page = show(path, width, scheme, anchor=f"#decision={DIALOGUES[0].id}.2")
    for details in page.locator("details").all():
        details.evaluate("one => { one.open = true; }")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    found = [one for one in axe.Axe().run(page).response["violations"] if one["impact"] in ("serious", "critical")]
    assert [(one["id"], [node["html"][:160] for node in one["nodes"][:3]]) for one in found] == []
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", paper))) < 150) == (scheme == "dark")


def test_on_paper_and_without_motion(show, path):
    page = show(path)
    page.emulate_media(media="print")
    assert not page.locator("nav, #filters, .found").first.is_visible()
    assert page.locator("#results-table").is_visible()
    page.emulate_media(media="screen", reduced_motion="reduce")
    assert page.locator(".on-paper").count() == 0
    assert page.evaluate("getComputedStyle(document.documentElement).scrollBehavior") == "auto"


def test_a_wide_table_says_so_and_is_whole_on_paper(show, tmp_path):
    comparison = compute_comparison(write_runs(tmp_path / "runs", DIALOGUES))  # with all columns
    page = show(write_comparison_page(comparison, [], tmp_path / "report.html"), 700)
    hint = page.locator("#results .more-hint").first
    assert hint.inner_text() == "More columns: scroll sideways \u2192"
    assert hint.is_visible()
    page.locator("#results .scroll").first.evaluate("box => box.scrollTo(1e5, 0)")
    hint.wait_for(state="hidden")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 703, "height": 1000})  # what A4 leaves
    assert not page.locator("#results-table").is_visible()
    parts = page.locator("#results .on-paper")
    heads = [spaced(text) for text in parts.locator("thead th:not(:first-child)").all_inner_texts()]
    columns = build_table(comparison).columns
    assert len(heads) == 1 + len(columns)
    assert [head.split()[0] for head in heads[1:]] == [column.heading.split()[0] for column in columns]
    assert all(box.evaluate("one => one.scrollWidth <= 703") for box in parts.all())
    assert all(box.locator("tbody th").count() == 3 for box in parts.all())
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator(".on-paper").count() == 0
    page.set_viewport_size({"width": 2500, "height": 1000})
    page.emulate_media(media="screen")
    assert page.locator("#results .more-hint").first.is_hidden()


def test_figures_have_names_own_ids_and_the_pages_colours(show, path):
    page = show(path, scheme="dark")
    names = page.locator("#figures svg").evaluate_all("all => all.map(one => one.ariaLabel)")
    assert any(name.startswith("Proficiency against bias") for name in names)
    assert page.evaluate("new Set([...document.querySelectorAll('[id]')].map(one => one.id)).size") == page.evaluate(
        "document.querySelectorAll('[id]').length"
    )
    drawn = inline_svg(path.parent / "figures" / "preference_tiny.svg", "p-", '"><script>')
    assert "<script" not in drawn
    assert "var(--c0)" in drawn
    assert not re.search(r"#(fff|000|0072b2|e4e4e4)", drawn, re.I)
    for target in re.findall(r'(?:href="#|url\(#)([^")]+)', drawn):
        assert f'id="{target}"' in drawn
    assert page.locator("#figures svg text").first.evaluate("one => getComputedStyle(one).fill") == "rgb(244, 244, 244)"


def test_a_decision_of_a_run_takes_few_bytes(path, comparison):
    """So that 6 runs of 2,900 decisions stay far below 10 MB: replies apart, some 60 bytes."""
    found = browser_data(comparison, path.parent)
    rows = sum(len(run["decision"]) for run in found["runs"])
    assert len(json.dumps(found["runs"], separators=(",", ":"))) / rows < 80
    contexts = sum(len(turn.reply.text) for dialogue in DIALOGUES for turn in dialogue.turns)
    assert len(json.dumps(found["dialogues"])) < 1.6 * contexts
