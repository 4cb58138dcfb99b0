"""Whole talks compared: against computations of their own and a planted truth; what must not be compared."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from statistics import fmean

import numpy as np
import pytest
from scipy import stats

from esc_lab.artifacts import file_fingerprint
from esc_lab.comparison.files import write_comparison
from esc_lab.comparison.result import compute_comparison
from esc_lab.comparison.table import build_table
from esc_lab.errors import UserError
from esc_lab.evaluation.arena.measures import measure_talk, measure_talks
from esc_lab.statistics.multiple_tests import holm
from tests.comparison.synthetic import predictions, settings, write_evaluation, write_run, write_training
from tests.comparison.talk_runs import MAX_TURNS, SUCCESS, made_talks, write_talks
from tests.statistics.talk_simulation import count_covered

BASE, CSO = "tiny base (cso)", "tiny CSO (cso)"
LIMITS = {"success": SUCCESS, "max_turns": MAX_TURNS}


@pytest.fixture(scope="module")
def talks():
    return {name: made_talks(eases=eases, seed=seed, cards=9, talks=3) for name, eases, seed in
            (("base", 0.05, 1), ("cso", 0.25, 2))}  # fmt: skip


@pytest.fixture(scope="module")
def runs(talks, tmp_path_factory):
    root = tmp_path_factory.mktemp("talks")
    training = str(write_training(root / "training", "cso"))
    return [write_talks(root / "base", talks["base"]), write_talks(root / "cso", talks["cso"], checkpoint=training)]


@pytest.fixture(scope="module")
def compared(runs):
    return compute_comparison(runs)


def left_out(first, second, metric) -> tuple[float, float, float, float]:
    """Difference, ends of its interval and p, from the talks alone: all talks of a card are left out together."""
    names = sorted({talk.meta["card"] for talk in first})

    def difference(without=None):
        rest = ([talk for talk in of if talk.meta["card"] != without] for of in (second, first))
        return -np.subtract(*(measure_talks(of, **LIMITS)[metric] for of in rest))

    whole, count = difference(), len(names)
    pseudo = [count * whole - (count - 1) * difference(name) for name in names]
    error = np.std(pseudo, ddof=1) / math.sqrt(count)
    half = stats.t.ppf(0.975, count - 1) * error
    return whole, whole - half, whole + half, 2 * stats.t.sf(abs(whole) / error, count - 1)


def test_differences_are_those_of_cards_left_out_in_turn(talks, compared):
    tested = [name for name in compared.estimates if name[0] == CSO and compared.estimates[name].difference]
    ps = {}
    for _, name in tested:
        difference = compared.estimates[CSO, name].difference
        if math.isnan(difference.p):
            continue
        expected = left_out(talks["cso"], talks["base"], name.removeprefix("converse/"))
        found = difference.interval
        assert (found.value, found.low, found.high, difference.p) == pytest.approx(expected, rel=1e-6, abs=1e-9), name
        ps[name] = difference.p
    assert {"converse/relief", "converse/success", "converse/strategy_entropy", "converse/repeated"} <= ps.keys()
    primary = compared.estimates[CSO, "converse/relief"].difference
    assert primary.primary
    assert primary.corrected == primary.p
    assert compared.primary == "converse/relief"
    rest = [name for name in ps if name != "converse/relief"]
    corrected = [compared.estimates[CSO, name].difference.corrected for name in rest]
    assert corrected == pytest.approx(holm([ps[name] for name in rest]))


def test_values_are_those_of_the_runs_and_intervals_over_cards(talks, compared):
    for name, cell in (("base", BASE), ("cso", CSO)):
        estimate = compared.estimates[cell, "converse/relief"]
        assert estimate.interval.value == pytest.approx(fmean(measure_talk(t, **LIMITS)["relief"] for t in talks[name]))
        assert (estimate.n, estimate.over) == (27, ("cards",))
    assert compared.baselines[CSO].name == BASE
    assert compared.metrics[f"{CSO}/difference/converse/relief"] > 0.5
    assert any("has more relief" in gain for gain in build_table(compared).gains)


def test_differences_are_of_the_talks_that_both_have(talks, runs, tmp_path):
    """A run of which the intensity is not known in the talks that went worst is compared in the others alone."""
    worst = {talk.tree_id for talk in sorted(talks["cso"], key=lambda t: measure_talk(t, **LIMITS)["relief"])[:5]}
    silent = [
        replace(talk, meta={**talk.meta, "intensity": [None] * len(talk.meta["intensity"])})
        if talk.tree_id in worst
        else talk
        for talk in talks["cso"]
    ]
    run = write_talks(tmp_path / "silent", silent, converse={"strategies": ["Question"]})
    found = compute_comparison([runs[0], run])
    cell = next(cell.name for cell in found.cells if cell.name != BASE)
    estimate = found.estimates[cell, "converse/relief"]
    assert (estimate.n, found.estimates[BASE, "converse/relief"].n) == (22, 27)
    assert found.estimates[cell, "converse/turns"].n == 27
    kept = [[talk for talk in of if talk.tree_id not in worst] for of in (silent, talks["base"])]
    expected = left_out(*kept, "relief")
    interval = estimate.difference.interval
    assert (interval.value, interval.low, interval.high, estimate.difference.p) == pytest.approx(expected, rel=1e-6)
    apart = estimate.interval.value - found.estimates[BASE, "converse/relief"].interval.value
    assert interval.value != pytest.approx(apart, abs=0.01)
    notes = build_table(found).notes
    told = "relief: not all talks have it (22 in tiny base always Question); differences are of"
    assert any(note.startswith(told) for note in notes)
    assert not any(note.startswith("turns: not all") for note in notes)


def test_mean_intensities_after_each_turn(talks, compared):
    for turn, interval, count in compared.intensity[CSO]:
        known = [(talk.meta["card"], talk.meta["intensity"][turn]) for talk in talks["cso"]
                 if turn < len(talk.meta["intensity"])]  # fmt: skip
        assert (interval.value, count) == (pytest.approx(fmean(value for _, value in known)), len(known))
        assert math.isnan(interval.low) == (len({card for card, _ in known}) < 5)
    assert [turn for turn, *_ in compared.intensity[CSO]] == [*range(MAX_TURNS + 1)]


@pytest.mark.parametrize("cards", [6, 12])
def test_intervals_hold_the_truth_with_several_talks_of_few_cards(cards):
    repeats = 1000
    _, covered, different = count_covered(cards, 3, repeats, seed=5)
    assert 0.93 <= covered / repeats <= 0.97
    assert 0.03 <= different / repeats <= 0.07
    _, covered, different = count_covered(cards, 3, repeats, seed=5, apart=True)
    assert covered / repeats < 0.87
    assert different / repeats > 0.13


# --- what must not be compared


def refused(*runs, **asked) -> str:
    with pytest.raises(UserError) as error:
        compute_comparison([*runs], **asked)
    return str(error.value)


def test_other_seekers_cards_or_seeds_are_refused(talks, runs, tmp_path):
    one, other = runs[0], {"converse": {"strategies": ["Question"]}}
    found = refused(one, write_talks(tmp_path / "seed", talks["cso"], seeker={"seed": 2}, **other))
    assert f"the seekers of {one} and {tmp_path / 'seed'} differ" in found
    assert "seed is 1 and 2" in found
    roles = {"roles": {"seeker": {"temperature": 1.0}, "supporter": {}}}
    found = refused(one, write_talks(tmp_path / "warm", talks["cso"], seeker=roles, **other))
    assert "roles.seeker.temperature is 0.7 and 1.0" in found
    changed = [replace(talk, situation=f"{talk.situation} More.") for talk in talks["cso"]]
    found = refused(one, write_talks(tmp_path / "changed", changed, **other))
    assert "the same talks with other situations" in found
    found = refused(one, write_talks(tmp_path / "fewer", talks["cso"][:-2], **other))
    assert "27 talks of 9 cards" in found
    assert "25 talks of 9 cards" in found
    assert "25 talks are in both" in found
    found = refused(one, write_talks(tmp_path / "easy", talks["cso"], success=3.0, **other))
    assert "converse.success differs: 2 in" in found
    named = {"name": "extes"}
    found = refused(one, write_talks(tmp_path / "labels", talks["cso"], inventory=named, journals=False, **other))
    assert "label sets differ" in found


def test_the_same_seeker_may_be_served_elsewhere(talks, tmp_path):
    made = []
    for port in (1, 2):
        seeker = {"temperature": 0.7, "client": {"model": "m", "base_url": f"http://127.0.0.1:{port}/v1"}}
        roles = {"roles": {"seeker": seeker, "supporter": {}}}
        name = {"converse": {"strategies": ["Question"] * port}}
        made.append(write_talks(tmp_path / str(port), talks["cso"], seeker=roles, **name))
    assert len(compute_comparison(made).cells) == 2


def test_without_journals_the_seeker_is_not_sure(talks, runs, tmp_path):
    other = write_talks(tmp_path / "other", talks["cso"], journals=False, converse={"strategies": ["Question"]})
    remarks = compute_comparison([runs[0], other]).remarks
    assert f"no journals in {other}: that its seekers are those of the others is not sure" in remarks


def test_what_cannot_be_read_is_named(talks, tmp_path):
    run = write_talks(tmp_path / "run", talks["base"])
    metrics = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").write_text(json.dumps(metrics | {"converse/turns": 2.0}))
    assert "metrics.json says converse/turns = 2, measures.json gives" in refused(run)
    (run / "measures.json").write_text("{}")
    assert f"{run / 'measures.json'}: not the measures of talks.jsonl: KeyError 'talks'" in refused(run)
    (run / "talks.jsonl").unlink()
    assert str(run / "talks.jsonl") in refused(run)


# --- names, seeds, and what else may be named with talks


def test_supporters_are_named_by_what_they_are(talks, tmp_path):
    served = {"supporter": {"client": "openai", "model": None}, "openai": {"model": "gpt-x"}}
    found = compute_comparison(
        [
            write_talks(tmp_path / "plain", talks["base"]),
            write_talks(tmp_path / "one", talks["cso"], converse={"strategies": ["Question"]}),
            write_talks(tmp_path / "two", talks["cso"], converse={"strategies": ["Question", "Others"]}),
            write_talks(tmp_path / "served", talks["cso"], llm=served),
        ]
    )
    assert [cell.name for cell in found.cells] == [
        "tiny base (cso)", "tiny base always Question (cso)", "tiny base schedule (cso)", "gpt-x base (cso)",
    ]  # fmt: skip


def test_seeds_of_a_training_are_one_row(talks, tmp_path):
    made = []
    for seed in (1, 2):
        training = str(write_training(tmp_path / f"training_{seed}", "cso", seed=seed))
        own = made_talks(eases=0.2, seed=seed, cards=9, talks=3)
        made.append(write_talks(tmp_path / f"cso_{seed}", own, checkpoint=training, seed=seed))
    found = compute_comparison([write_talks(tmp_path / "base", talks["base"]), *made])
    estimate = found.estimates[CSO, "converse/relief"]
    assert (estimate.over, len(estimate.values)) == (("cards", "seeds"), 2)
    assert estimate.difference.interval.low < estimate.difference.interval.value < estimate.difference.interval.high


def test_talks_beside_evaluations_have_a_table_of_their_own(runs, compared, tmp_path):
    evaluation = write_evaluation(tmp_path / "evaluation", predictions(skill=0.5, seed=1))
    found = compute_comparison([evaluation, *runs], metrics=["strategy/Q", "converse/relief", "converse/turns"])
    assert ([cell.name for cell in found.cells], [c.name for c in found.columns]) == ([BASE], ["strategy/Q"])
    assert found.test.kind == ("decisions", "dialogues")
    assert [column.name for column in found.beside.columns] == ["converse/relief", "converse/turns"]
    mine, other = (of.estimates[CSO, "converse/relief"].difference for of in (found.beside, compared))
    assert (mine.interval, mine.p) == (other.interval, other.p)
    write_comparison(found, build_table(found), [], tmp_path)
    written = json.loads((tmp_path / "comparison.json").read_text())
    assert (written["test_set"]["dialogues"], written["talks"]["test_set"]["cards"]) == (12, 9)
    assert [curve["cell"] for curve in written["talks"]["intensity"]] == [BASE, CSO]
    text = (tmp_path / "comparison.md").read_text()
    assert "# Talks" in text
    assert "27 talks with the seekers of 9 cards" in text
    assert "tab:talks" in (tmp_path / "comparison.tex").read_text()
    assert f"{CSO},tiny,CSO,cso,1,converse" in (tmp_path / "runs.csv").read_text()
    assert found.metrics[f"{CSO}/converse/turns"] == compared.metrics[f"{CSO}/converse/turns"]
    only = compute_comparison([evaluation, *runs], metrics=["strategy/Q"])
    assert [c.name for c in only.beside.columns] == [c.name for c in compared.columns]


# --- what a judge says of talks


def judged(directory, runs, talks, *, not_believed=(), forced=(), yes_no=False):
    """A judge that gives each talk its relief as a score, and passes those that succeed."""
    write_run(directory, settings("judge"), {"judge/calls": 1.0})
    named = [{"label": run.name, "talks": file_fingerprint(run / "talks.jsonl")} for run in runs]
    questions = [{"name": "empathy", "title": "feels"}, {"name": "stays", "title": "does stay"}]
    rubric = {"yes_no": yes_no, "questions": questions}
    record = {"judge": {"models": ["j"]}, "rubric": rubric, "forced": [*forced], "runs": named}
    (directory / "judge.json").write_text(json.dumps(record | {"not_believed": [*not_believed]}))
    lines = []
    for run in runs:
        for talk in talks[run.name]:
            measures = measure_talk(talk, **LIMITS)
            of_talk = {"run": run.name, "card": talk.meta["card"], "talk": talk.meta["talk"]}
            failed = [] if measures["success"] else ["stays"]
            lines.append({"kind": "talk", **of_talk, "scores": {"empathy": measures["relief"], "stays": 0.9},
                          "failed": failed})  # fmt: skip
            lines.append({"kind": "talk_pair", **of_talk, "aspect": "insight", "outcome": measures["success"]})
    (directory / "judgements.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return directory


def test_numbers_of_a_judge_are_metrics_of_talks(runs, talks, tmp_path):
    judge = judged(tmp_path / "judge", runs, talks, not_believed=["stays"], forced=["failed"])
    found = compute_comparison([*runs, judge])
    for cell in (BASE, CSO):
        mine, theirs = (found.estimates[cell, name] for name in ("converse/judge/empathy", "converse/relief"))
        assert (mine.interval, mine.n) == (theirs.interval, theirs.n)
    mine, theirs = (found.estimates[CSO, name].difference for name in ("converse/judge/empathy", "converse/relief"))
    assert (mine.interval, mine.p) == (theirs.interval, theirs.p)
    wins, success = (found.estimates[CSO, f"converse/{name}"] for name in ("judge/preferred, insight", "success"))
    assert wins.interval == success.interval
    assert "judge: empathy" in [column.heading for column in found.columns]
    assert "converse/judge/stays" not in [column.name for column in found.columns]
    assert any("is not believed there: stays" in remark for remark in found.remarks)
    assert any("forced" in remark for remark in found.remarks)
    passed = compute_comparison([*runs, judged(tmp_path / "safety", runs, talks, yes_no=True)])
    assert passed.estimates[CSO, "converse/judge/does stay"].interval == success.interval


def test_judges_of_other_talks_or_twice_the_same_are_refused(runs, talks, tmp_path):
    judge, again = (judged(tmp_path / name, runs, talks) for name in ("judge", "again"))
    assert "another judge says converse/judge/empathy, " in refused(*runs, judge, again)
    other = write_talks(tmp_path / "other", made_talks(eases=0.1, seed=7, cards=9, talks=3))
    assert "it judged the talks of none of the compared runs" in refused(other, judge)
    (judge / "judgements.jsonl").write_text('{"kind": "talk"}\n')
    assert f"{judge}: no finished run of the judge" in refused(*runs, judge)
