"""Comparisons as a whole: estimates, differences, baselines, groups, strategies."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest

from esc_lab.comparison.formats import format_markdown
from esc_lab.comparison.groups import MIN_DECISIONS
from esc_lab.comparison.notes import build_details, build_notes
from esc_lab.comparison.result import compute_comparison
from esc_lab.comparison.table import build_table
from esc_lab.config.evaluate import GenerationConfig
from esc_lab.data.strategies import load_inventory
from esc_lab.errors import UserError
from esc_lab.evaluation.decisions import draw_decisions
from esc_lab.metrics.records import find_metric
from esc_lab.statistics.multiple_tests import holm
from tests.comparison.synthetic import predictions, settings, summary, write_evaluation, write_run, write_training

INVENTORY = load_inventory("esconv")


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    """Two models: the base model with one seed, SFT and CSO with three."""
    root = tmp_path_factory.mktemp("runs")
    found = []
    for number, model in enumerate(("first", "second")):
        rows = predictions(skill=0.1, seed=number, turns=3, replies=True)
        found.append(write_evaluation(root / f"{model}_base", rows, model__name=model))
        for method, skill in (("sft", 0.35), ("cso", 0.5)):
            for seed in (1, 2, 3):
                own = {"model__name": model, "seed": seed}
                training = write_training(root / f"{model}_{method}_{seed}", method, **own)
                rows = predictions(skill=skill, seed=10 * number + seed, turns=3, replies=True)
                directory = root / f"{model}_{method}_{seed}_evaluated"
                found.append(write_evaluation(directory, rows, checkpoint=str(training), **own))
    return found


@pytest.fixture(scope="module")
def comparison(directories):
    return compute_comparison(directories)


def test_values_are_means_of_the_recorded_metrics(comparison):
    assert [cell.name for cell in comparison.cells] == [
        f"{model} {method} (cso)" for model in ("first", "second") for method in ("base", "SFT", "CSO")
    ]
    for cell in comparison.cells:
        for column in comparison.columns:
            one = comparison.estimates[cell.name, column.name]
            assert one.values == tuple(run.metrics[column.name] for run in cell.runs)
            assert one.interval.value == pytest.approx(np.mean(one.values))
    estimate = comparison.estimates["first SFT (cso)", "strategy/Q"]
    assert estimate.over == ("dialogues", "seeds")
    assert (estimate.n, comparison.estimates["first SFT (cso)", "sra/log_sra"].n) == (36, 36)
    assert comparison.estimates["first base (cso)", "strategy/Q"].over == ("dialogues",)
    assert comparison.estimates["first base (cso)", "text/distinct_2"].over == ("dialogues",)


def test_intervals_hold_the_value_and_exist_where_something_varies(comparison):
    for (name, metric), one in comparison.estimates.items():
        found = one.interval
        same = find_metric(metric).is_count and len(set(one.values)) == 1
        if not one.over or metric in ("strategy/B", "generated/B") or same:
            assert math.isnan(found.low)
        else:
            assert found.low <= found.value <= found.high, (name, metric)


def test_differences_are_to_the_models_base_and_corrected_together(comparison):
    differences = {key: one.difference for key, one in comparison.estimates.items() if one.difference}
    assert {name for name, _ in differences} == {
        f"{m} {method} (cso)" for m in ("first", "second") for method in ("SFT", "CSO")
    }
    assert not {metric for _, metric in differences} & {"strategy/n", "strategy/classes_predicted"}
    for (name, metric), one in differences.items():
        assert one.baseline == f"{name.split()[0]} base (cso)"
        values = [comparison.estimates[cell, metric].interval.value for cell in (name, one.baseline)]
        assert one.interval.value == pytest.approx(values[0] - values[1])
        assert one.primary == (metric == "strategy/Q")
        assert math.isnan(one.p) == (metric in ("strategy/B", "generated/B")), metric  # of 36 decisions
        assert math.isnan(one.p) == math.isnan(one.interval.low)
        assert not one.marks or one.interval.low > 0 or one.interval.high < 0
        if one.primary:
            assert one.corrected == one.p
    others = [one for one in differences.values() if not one.primary]
    np.testing.assert_allclose([one.corrected for one in others], holm([one.p for one in others]))


def test_metrics_are_flat_and_finite(comparison, directories):
    metrics = comparison.metrics
    assert all(isinstance(value, float) and math.isfinite(value) for value in metrics.values())
    base = compute_comparison(directories[:1])
    assert base.metrics["first base (cso)/strategy/Q"] == base.cells[0].runs[0].metrics["strategy/Q"]
    assert "first CSO (cso)/p/strategy/Q" in metrics
    assert metrics["first CSO (cso)/difference/strategy/Q"] > 0


def test_order_of_directories_does_not_matter(directories):
    chosen = [directories[1], directories[4], directories[0]]
    ours = compute_comparison(chosen, metrics=["strategy/Q", "strategy/B"]).estimates
    again = compute_comparison(chosen[::-1], metrics=["strategy/B", "strategy/Q"], baseline="base").estimates
    assert ours == again


def test_equal_runs_do_not_differ(tmp_path):
    rows = predictions(skill=0.4, seed=1, replies=True)
    runs = [write_evaluation(tmp_path / name, rows, prompt__inference=name) for name in ("direct", "cot")]
    found = compute_comparison(runs)
    tested = [one.difference for one in found.estimates.values() if one.difference]
    assert len(tested) > 10
    for one in tested:
        assert (one.interval.value, one.marks) == (0, "")
        assert math.isnan(one.p) or (one.p, one.interval.low, one.interval.high) == (1, 0, 0)


def test_seeds_widen_the_interval(tmp_path):
    found = []
    for seed, skill in ((1, 0.2), (2, 0.6)):
        training = write_training(tmp_path / f"sft{seed}", "sft", seed=seed)
        rows = predictions(skill=skill, seed=seed, dialogues=40)
        found.append(write_evaluation(tmp_path / f"run{seed}", rows, checkpoint=str(training)))
    both = compute_comparison(found, metrics=["strategy/accuracy"]).estimates["tiny SFT (cso)", "strategy/accuracy"]
    alone = compute_comparison(found[:1], metrics=["strategy/accuracy"]).estimates[
        "tiny SFT (cso)", "strategy/accuracy"
    ]
    width = both.interval.high - both.interval.low
    assert width > 2 * (alone.interval.high - alone.interval.low)
    assert width > 2 * abs(both.values[1] - both.values[0])  # two seeds hardly say how much seeds differ


def test_b_has_an_interval_from_where_it_holds(tmp_path):
    """It is about less than the value; where the guard acts, it takes twice as many decisions."""
    every = dict(enumerate(INVENTORY.names))

    def found(count, *, guarded):
        rows = predictions(skill=0.3, seed=1, dialogues=count // 6)
        for number, row in enumerate(rows):
            if number % 3 == 0:  # all strategies are chosen wrongly now and then, unless some never are chosen
                row.distribution = dict.fromkeys(INVENTORY.names, 0.0) | {
                    every[number // 3 % (3 if guarded else 8)]: 1.0
                }
            elif guarded:
                row.distribution = dict.fromkeys(INVENTORY.names, 0.0) | {
                    row.gold[0] if number % 3 == 1 else every[0]: 1.0
                }
        run = write_evaluation(tmp_path / f"{count}{guarded}", rows)
        estimate = compute_comparison([run]).estimates["tiny base (cso)", "strategy/B"]
        assert estimate.guarded == bool(summary(rows, tmp_path)[0]["strategy/B_guard"])
        return estimate.interval

    assert math.isnan(found(498, guarded=False).low)
    assert math.isnan(found(504, guarded=True).low)
    assert not math.isnan(found(1002, guarded=True).low)
    interval = found(504, guarded=False)
    assert interval.low < interval.high
    assert (interval.low + interval.high) / 2 < interval.value


def test_a_seed_without_a_parsable_reply_leaves_no_value(tmp_path):
    runs = []
    for seed in (1, 2):
        training = write_training(tmp_path / f"sft{seed}", "sft", seed=seed)
        rows = predictions(skill=0.4, seed=seed, replies=True)
        if seed == 2:
            rows = [replace(row, strategy=None) for row in rows]
        runs.append(write_evaluation(tmp_path / f"run{seed}", rows, checkpoint=str(training), seed=seed))
    found = compute_comparison(runs)
    assert ("tiny SFT (cso)", "generated/Q") not in found.estimates
    assert found.estimates["tiny SFT (cso)", "generated/unparsable"].values[1] == 1
    assert any(remark == f"no generated/Q, as nothing could be parsed: {runs[1]}" for remark in found.remarks)
    assert "-" in format_markdown(build_table(found))


def test_seeds_of_older_code_leave_newer_metrics_out(tmp_path):
    runs = []
    for seed in (1, 2):
        training = write_training(tmp_path / f"cso{seed}", "cso", seed=seed)
        run = write_evaluation(tmp_path / f"run{seed}", predictions(skill=0.4, seed=seed), checkpoint=str(training))
        metrics = json.loads((run / "metrics.json").read_text())
        metrics |= {"preference/accuracy": 0.5, "preference/pairs": 8} | (
            {"preference/shorter": 0.9} if seed == 2 else {}
        )
        (run / "metrics.json").write_text(json.dumps(metrics))
        runs.append(run)
    found = compute_comparison(runs)
    assert found.estimates["tiny CSO (cso)", "preference/accuracy"].interval.value == 0.5
    assert ("tiny CSO (cso)", "preference/shorter") not in found.estimates
    assert not [remark for remark in found.remarks if "parsed" in remark]


def test_one_training_says_nothing_of_the_method(tmp_path):
    def notes(seeds):
        runs = []
        for method, skill in (("sft", 0.2), ("cso", 0.6)):
            for seed in seeds:
                training = write_training(tmp_path / f"{method}{seed}", method, seed=seed)
                rows = predictions(skill=skill, seed=seed)
                runs.append(write_evaluation(tmp_path / f"{method}{seed}_run", rows, checkpoint=str(training)))
        found = compute_comparison(runs, metrics=["strategy/Q"])
        assert all(len(note) <= 120 for note in build_notes(found))  # a line each, to be taken in at a glance
        return " ".join([*build_notes(found), *build_details(found)])

    assert "One training each: says nothing of the method" in notes([1])
    assert "over dialogues (" in notes([1])
    several = notes([1, 2])
    assert "One training each" not in several
    assert "over seeds and dialogues, both random" in several
    assert "runs of equal seeds are pairs" in several


# --- baselines


def test_baselines(directories):
    def baselines(asked, *chosen):
        found = compute_comparison(chosen or directories, baseline=asked, metrics=["strategy/Q"])
        return {name: cell.name for name, cell in found.baselines.items()}

    assert set(baselines("second SFT (cso)").values()) == {"second SFT (cso)"}
    assert baselines("SFT")["first base (cso)"] == "first SFT (cso)"
    assert baselines(None, *directories[1:4], *directories[4:7])["first CSO (cso)"] == "first SFT (cso)"
    assert set(baselines(None, directories[0], directories[7]).values()) == {"first base (cso)"}
    with pytest.raises(UserError, match=r"baseline: no cell or method 'STF'; did you mean 'SFT'\? Fix: base, SFT, CSO"):
        baselines("STF")


def test_a_method_under_several_templates_is_no_baseline(tmp_path):
    rows = predictions(skill=0.4, seed=1)
    runs = [write_evaluation(tmp_path / t, rows, prompt__eval={"template": t}) for t in ("cso", "c1_hf")]
    with pytest.raises(UserError, match=r"tiny has 2 cells of the method base. Fix: name one of the cells"):
        compute_comparison(runs, baseline="base")
    assert {cell.name for cell in compute_comparison(runs).baselines.values()} == {"tiny base (cso)"}


# --- runs with less


def test_runs_without_predictions_and_trainings_have_values_alone(tmp_path):
    bare = write_run(tmp_path / "bare", settings("evaluate"), {"strategy/Q": 0.5})
    training = write_training(tmp_path / "sft", "sft")
    evaluated = write_run(tmp_path / "of_sft", settings("evaluate", checkpoint=str(training)), {"strategy/Q": 0.7})
    found = compute_comparison([bare, training, evaluated])
    assert (found.test, found.groups, found.strategies) == (None, [], {})
    one = found.estimates["tiny SFT (cso)", "strategy/Q"]
    assert one.difference.interval.value == pytest.approx(0.2)
    assert math.isnan(one.interval.low)
    assert math.isnan(one.difference.p)
    assert found.estimates["tiny SFT training (cso)", "val/loss"].interval.value == 2.5
    assert found.primary == "strategy/Q"
    assert any("no predictions.jsonl in" in remark for remark in found.remarks)


def test_several_versions_of_the_program_are_said(tmp_path):
    rows = predictions(skill=0.4, seed=1)
    runs = [write_evaluation(tmp_path / name, rows, model__name=name) for name in ("a", "b")]
    (runs[0] / "environment.json").write_text('{"git_commit": "abc"}')
    assert compute_comparison(runs).remarks == ["the runs are of 2 versions of this program: 000000000000, abc"]


def test_a_primary_metric_that_nobody_measured(tmp_path):
    found = compute_comparison([write_training(tmp_path / "sft", "sft")])
    assert found.primary is None


def test_a_primary_metric_that_does_not_exist(tmp_path):
    run = write_evaluation(tmp_path / "base", predictions(skill=0.5, seed=1))
    with pytest.raises(
        UserError, match=r"compare.primary=strategy/q: no run has the metric; did you mean 'strategy/Q'"
    ):
        compute_comparison([run], primary="strategy/q")


def test_what_depends_on_the_tokenizer_is_not_tested_across_models(tmp_path):
    found = compute_comparison(
        [
            write_evaluation(tmp_path / name, predictions(skill=skill, seed=1, replies=True), model__name=name)
            for name, skill in (("one", 0.4), ("other", 0.6))
        ],
        baseline="one base (cso)",
    )
    other = {metric: one.difference for (cell, metric), one in found.estimates.items() if cell.startswith("other")}
    assert other["strategy/Q"] is not None
    assert other["text/perplexity"] is None


# --- groups and strategies


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    root = tmp_path_factory.mktemp("many")
    rows = predictions(skill=0.4, seed=1, dialogues=32, turns=4, replies=True)
    rows += [replace(row, dialogue="rare", tree="rare", problem="rare", emotion="") for row in rows[:3]]
    base = write_evaluation(root / "base", rows)
    other = [replace(row, distribution=one.distribution) for row, one in zip(rows, rows[::-1], strict=True)]
    return rows, compute_comparison([base, write_evaluation(root / "other", other, prompt__inference="cot")])


def test_groups_hold_what_their_decisions_give(many, tmp_path):
    rows, found = many
    expected = {
        name: summary([row for row in rows if name in (row.problem, row.emotion)], tmp_path)[0]
        for name in ("job crisis", "anxiety")
    }
    for one in found.groups:
        if one.cell != "tiny base (cso)" or one.group.kind == "depth":
            continue
        members = [row for row in rows if getattr(row, one.group.kind) == one.group.name]
        assert one.group.decisions == len(members)
        if one.metric in expected.get(one.group.name, {}):  # attention is measured elsewhere
            assert one.interval.value == pytest.approx(expected[one.group.name][one.metric], abs=1e-6)
        assert one.interval.low <= one.interval.high
        assert one.difference is None
    assert found.left_out == ["problem rare (3)"]
    differences = {one.metric: one.difference for one in found.groups if one.cell == "tiny base cot (cso)"}
    assert differences["strategy/Q"].value < 0
    assert differences["text/rouge_l"].value == 0


def test_depths_split_the_decisions(many):
    rows, found = many
    depths = {one.group.name: one.group for one in found.groups if one.group.kind == "depth"}
    assert sum(group.keep.astype(int) for group in depths.values()).tolist() == [1] * len(rows)
    assert all(group.decisions >= MIN_DECISIONS for group in depths.values())
    assert [group.depth for group in depths.values()] == sorted(group.depth for group in depths.values())
    spans = [[int(end) for end in name.split("-")] for name in depths]
    assert all(before[-1] < after[0] for before, after in itertools.pairwise(spans))


def test_strata_that_replies_were_drawn_from_are_the_groups_by_depth(tmp_path):
    """However few decisions they have; those without a reply are in none."""
    rows = predictions(skill=0.4, seed=1, dialogues=12, turns=8, replies=True)
    drawing = GenerationConfig(decisions=12, depths=[3, 6, 12, 16])
    drawn = draw_decisions([(row.dialogue, row.turn) for row in rows], drawing)
    for row in rows:
        if (row.dialogue, row.turn) not in drawn:
            row.reply, row.bleu, row.strategy, row.sra, row.adheres, row.copied = (None,) * 6
    settings = {"temperature": 0.0, "top_p": 1.0, "max_new_tokens": 40, "samples": 1}
    settings |= {"decisions": 12, "depths": [3, 6, 12, 16]}
    run = write_evaluation(tmp_path / "run", rows, evaluate__generation=settings)
    found = [one for one in compute_comparison([run]).groups if one.group.kind == "depth"]
    adherence = {one.group.name: one for one in found if one.metric == "adherence/accuracy"}
    assert [*adherence] == ["3-5", "6-11", "12-15"]
    for name, one in adherence.items():
        low, high = map(int, name.split("-"))
        own = [row for row in rows if (row.dialogue, row.turn) in drawn and low <= row.turn <= high]
        assert one.group.decisions == len(own) == 4
        assert one.interval.value == pytest.approx(np.mean([row.adheres for row in own]))


def test_strategy_tables_are_those_of_the_evaluation(many, tmp_path):
    rows, found = many
    table = found.strategies["tiny base (cso)"]
    expected = summary(rows, tmp_path)[1]["strategy"]
    assert table.confusion.tolist() == expected["confusion"]["predicted_by_gold"]
    for number, row in enumerate(expected["per_strategy"]):
        assert table.strategies[number] == row["strategy"]
        for name in ("precision", "recall", "f1", "predicted"):
            assert getattr(table, name)[number] == pytest.approx(row[name])
        assert table.gold[number] == row["support"]
        assert table.preference[number].value == pytest.approx(row["preference"])
        assert math.isnan(table.preference[number].low)  # of 131 decisions


def test_strategies_of_a_model_that_only_writes(tmp_path):
    rows = [replace(row, distribution={}, label_mass=None) for row in predictions(skill=0.4, seed=1, replies=True)]
    found = compute_comparison([write_evaluation(tmp_path / "run", rows)])
    table = found.strategies["tiny base (cso)"]
    assert table.of == "generated"
    assert table.confusion[-1].sum() > 0
    named = [replace(row, prompted=row.gold[0]) for row in rows]
    found = compute_comparison([write_evaluation(tmp_path / "named", named)])
    assert found.strategies == {}
    assert found.primary is None


def test_groups_go_by_name_in_lower_case_and_few_dialogues_give_no_interval(tmp_path):
    rows = predictions(skill=0.4, seed=1, dialogues=24, turns=6)
    for number, row in enumerate(rows):
        row.problem = ("Job Crisis", "job  crisis")[number // 6 % 2] if number // 6 < 20 else "rare"
    found = compute_comparison([write_evaluation(tmp_path / "run", rows)]).groups
    by_name = {one.group.name: one for one in found if one.group.kind == "problem" and one.metric == "strategy/Q"}
    assert {name: (one.group.decisions, one.group.clusters) for name, one in by_name.items()} == {
        "job crisis": (120, 20), "rare": (24, 4),
    }  # fmt: skip
    assert math.isnan(by_name["rare"].interval.low)
    assert by_name["job crisis"].interval.low < by_name["job crisis"].interval.high
