"""Runs that must not be compared, and what the message says of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from esc_lab.comparison.checks import check_cells, choose_metrics, load_predictions
from esc_lab.comparison.result import compute_comparison
from esc_lab.comparison.runs import group_cells, read_runs
from esc_lab.data.strategies import load_inventory
from esc_lab.errors import UserError
from esc_lab.metrics.records import METRICS
from tests.comparison.synthetic import predictions, settings, write_evaluation, write_run, write_training


def runs_of(*directories):
    return read_runs(directories)[0]


def checked(*directories, metrics=None):
    runs = runs_of(*directories)
    names = choose_metrics(runs, metrics)
    check_cells(group_cells(runs), names)
    return load_predictions(runs, names)


# --- metrics


def test_metrics_are_those_asked_for_or_the_tables(tmp_path):
    runs = runs_of(write_evaluation(tmp_path / "run", predictions(skill=0.5, seed=1, replies=True)))
    known = list(METRICS)
    found = choose_metrics(runs, None)
    assert found == sorted(found, key=known.index)
    assert {"strategy/Q", "generated/Q", "text/rouge_l", "sra/log_sra"} <= set(found)
    assert choose_metrics(runs, ["text/empty_replies", "strategy/B", "text/empty_replies"]) == [
        "text/empty_replies", "strategy/B",
    ]  # fmt: skip
    with pytest.raises(UserError, match=r"stategy/Q: no run has the metric; did you mean 'strategy/Q'\?"):
        choose_metrics(runs, ["stategy/Q"])


def test_a_missing_metric_names_the_runs(tmp_path):
    plain = write_evaluation(tmp_path / "plain", predictions(skill=0.5, seed=1))
    own = {"prompt__eval": {"template": "standard"}}
    written = write_evaluation(tmp_path / "written", predictions(skill=0.5, seed=1, replies=True), **own)
    training = write_training(tmp_path / "training", "sft")
    runs = runs_of(plain, written, training)
    with pytest.raises(UserError, match=rf"text/rouge_l: missing in {plain}"):
        choose_metrics(runs, ["text/rouge_l"])
    assert choose_metrics(runs, ["strategy/Q", "val/loss"]) == ["strategy/Q", "val/loss"]  # each kind has its own


def test_a_metric_must_be_in_all_seeds_or_in_none(tmp_path):
    one = write_evaluation(tmp_path / "one", predictions(skill=0.5, seed=1, replies=True), seed=1)
    two = write_evaluation(tmp_path / "two", predictions(skill=0.5, seed=2), seed=2)
    with pytest.raises(UserError, match=rf"generated/Q: missing in {two}, but not in other seeds"):
        checked(one, two)
    checked(one, two, metrics=["strategy/Q"])


# --- seeds, inventories, settings


def test_trained_cells_need_the_same_seeds_but_a_base_model_does_not(tmp_path):
    found = [write_run(tmp_path / "base", settings("evaluate"), {"strategy/Q": 0.5})]
    for name, seed in (("ipo", 1), ("ipo", 2), ("kto", 1), ("kto", 2), ("kto", 3)):
        training = write_training(tmp_path / f"{name}{seed}", "cso", objective__name=name, seed=seed)
        config = settings("evaluate", checkpoint=str(training))
        found.append(write_run(tmp_path / f"of_{name}{seed}", config, {"strategy/Q": 0.5}))
    checked(*found[:-1])
    message = r"cells with different seeds: 1, 2: tiny IPO \(cso\); 1, 2, 3: tiny KTO \(cso\)\. Fix: run the missing"
    with pytest.raises(UserError, match=message):
        checked(*found)


def test_label_sets(tmp_path):
    one = write_evaluation(tmp_path / "one", predictions(skill=0.5, seed=1))
    rows = predictions(skill=0.5, seed=1, inventory=load_inventory("cso"))
    other = write_evaluation(tmp_path / "other", rows, inventory__name="cso", seed=2)
    with pytest.raises(UserError, match=rf"label sets differ \(inventory.name\): esconv in {one}; cso in {other}"):
        checked(one, other)


@pytest.mark.parametrize("name", ["temperature", "top_p", "max_new_tokens", "decisions"])
def test_sampling_settings_matter_for_generated_metrics_alone(tmp_path, name):
    rows = predictions(skill=0.5, seed=1, replies=True)
    one = write_evaluation(tmp_path / "one", rows)
    generation = {**settings("evaluate")["evaluate"]["generation"], name: 0.7}
    own = {"evaluate__generation": generation, "model__name": "other"}
    other = write_evaluation(tmp_path / "other", rows, **own)
    for metric in ("generated/Q", "text/rouge_l", "sra/log_sra", "adherence/accuracy"):
        with pytest.raises(UserError, match=rf"evaluate.generation.{name} differs: .* in {one}; 0.7 in {other}"):
            checked(one, other, metrics=[metric])
    checked(one, other, metrics=["strategy/Q", "text/perplexity"])


def test_runs_whose_sampling_differs_by_name_are_compared_and_flagged(tmp_path):
    rows = predictions(skill=0.5, seed=1, replies=True)
    directories = []
    for temperature in (0.0, 0.7):
        generation = {**settings("evaluate")["evaluate"]["generation"], "temperature": temperature}
        rows[0].reply = f"at {temperature}"
        rows[0].bleu = [0, 0, 0, 0, 2, 8]
        directories.append(write_evaluation(tmp_path / str(temperature), rows, evaluate__generation=generation))
    found = compute_comparison(directories)
    assert [cell.method for cell in found.cells] == [
        f"base evaluate.generation.temperature={temperature}" for temperature in (0.0, 0.7)
    ]
    flag = (
        "replies were sampled differently: evaluate.generation.temperature is 0.0, 0.7, as the names of the cells say"
    )
    assert flag in found.remarks
    # One of another method, whose name does not say it.
    other = write_evaluation(tmp_path / "other", rows, prompt__inference="cot", evaluate__generation=generation)
    with pytest.raises(UserError, match=r"evaluate.generation.temperature differs: 0.0 in .*; 0.7 in"):
        compute_comparison([*directories, other])


def test_settings_that_older_runs_lack_are_passed_over(tmp_path):
    rows = predictions(skill=0.5, seed=1, replies=True)
    one = write_evaluation(tmp_path / "one", rows)
    own = {"evaluate": {"sra": {"definition": "paper", "span": "name"}}, "model__name": "other"}
    checked(one, write_evaluation(tmp_path / "other", rows, **own))


def test_which_strategies_prompts_named_matters_where_they_did(tmp_path):
    rows = predictions(skill=0.5, seed=1, replies=True)
    one = write_evaluation(tmp_path / "one", rows, evaluate__prompted="gold")
    other = write_evaluation(tmp_path / "other", rows, evaluate__prompted="random", model__name="other")
    for metric in ("sra/log_sra", "adherence/accuracy", "text/perplexity"):
        with pytest.raises(UserError, match=rf"evaluate.prompted differs: gold in {one}; random in {other}"):
            checked(one, other, metrics=[metric])
    checked(one, other, metrics=["strategy/Q"])


def test_prompts_with_other_contexts_are_told(tmp_path):
    rows = predictions(skill=0.5, seed=1)
    directories = [
        write_evaluation(
            tmp_path / name, rows, model__name=name, prompt__eval={"template": "cso", "situation": situation}
        )
        for name, situation in (("one", True), ("other", False))
    ]
    told = f"prompts differ in prompt.eval.situation: True in {directories[0]}; False in {directories[1]}"
    assert told in compute_comparison(directories).remarks


def test_attention_is_contrasted_under_one_control_only(tmp_path):
    """Net attention depends on the words of its control and their order, so other words are another measure."""

    def evaluated(name, system="instruction", **words):
        usual = {"instruction": "{strategy} {neutral}", "strategy": "{name}", "neutral": "{phrase}"}
        wording = {**usual, "neutral_phrase": ["short chat message", "plain text reply"], **words}
        layout = {"system": [system], "wording": wording, "baselines": {"direct": {}}}
        prompt = {"template": name, "layout": layout}
        made = predictions(skill=0.5, seed=1, replies=True)
        return write_evaluation(tmp_path / name, made, prompt__eval=prompt, prompt__train=prompt)

    usual, equal, older, turned, listed = (
        evaluated("usual"),
        evaluated("equal", role="You listen."),
        evaluated("older", neutral_phrase="short chat message"),
        evaluated("turned", instruction="{neutral} {strategy}"),
        evaluated("listed", "choice"),
    )
    checked(usual, equal, metrics=["sra/sham_net"])
    for other, what in (
        (older, "short chat message"),
        (turned, "short chat message, plain"),
        (listed, "other strategies"),
    ):
        with pytest.raises(
            UserError, match=f"net of different controls: .*{what}.*choose metrics without sra/sham_net"
        ):
            checked(usual, other, metrics=["sra/log_sra", "sra/sham_net"])
        checked(usual, other, metrics=["sra/log_sra"])


def test_layouts_of_one_name_with_other_words_are_told_apart(tmp_path):
    rows = predictions(skill=0.5, seed=1)

    def evaluation(name: str, role: str, model: str) -> Path:
        layout = {"system": ["role", "choice"], "wording": {"role": role}, "baselines": {"direct": {}}}
        prompt = {"template": "own", "layout": layout}
        return write_evaluation(tmp_path / name, rows, model__name=model, prompt__eval=prompt)

    one, other = evaluation("one", "You listen.", "tiny"), evaluation("other", "You are kind.", "tiny")
    cells = compute_comparison([one, other]).cells
    assert [cell.method.partition("=")[0] for cell in cells] == ["base prompt.eval.layout"] * 2
    assert cells[0].method != cells[1].method
    remarks = compute_comparison([one, evaluation("third", "You are kind.", "large")]).remarks
    assert any(remark.startswith("prompts differ in the layout or the words of own: ") for remark in remarks)


# --- test sets


def test_runs_without_predictions_need_the_same_settings_of_the_test_set(tmp_path):
    known = write_evaluation(tmp_path / "known", predictions(skill=0.5, seed=1), evaluate__split="test")
    decisions = json.loads((known / "metrics.json").read_text())["decisions"]
    for name, changes, size, told in (
        ("split", {"evaluate__split": "val"}, decisions, "test sets differ: evaluate.split"),
        ("size", {}, decisions + 1, "test sets differ in their decisions"),
    ):
        config = settings("evaluate", **{"model__name": name, "evaluate__split": "test", **changes})
        other = write_run(tmp_path / name, config, {"strategy/Q": 0.5, "decisions": size})
        with pytest.raises(UserError, match=told):
            compute_comparison([known, other])


def test_test_sets(tmp_path):
    one = write_evaluation(tmp_path / "one", predictions(skill=0.5, seed=1))
    fewer = write_evaluation(tmp_path / "fewer", predictions(skill=0.5, seed=1, turns=5), seed=2)
    message = (
        rf"72 decisions of 12 dialogues in {one}; 60 decisions of 12 dialogues in {fewer}; 60 decisions are in both"
    )
    with pytest.raises(UserError, match=message):
        checked(one, fewer)


def test_the_same_decisions_with_other_gold(tmp_path):
    rows = predictions(skill=0.5, seed=1)
    one = write_evaluation(tmp_path / "one", rows)
    rows[0].gold = rows[0].gold[::-1] if len(rows[0].gold) > 1 else ["Others", rows[0].gold[0]]
    other = write_evaluation(tmp_path / "other", rows, seed=2)
    with pytest.raises(UserError, match="the same decisions with other gold strategies"):
        checked(one, other)


def test_the_order_of_the_lines_is_no_difference(tmp_path):
    rows = predictions(skill=0.5, seed=1)
    found = checked(
        write_evaluation(tmp_path / "one", rows), write_evaluation(tmp_path / "other", rows[::-1], model__name="other")
    )
    assert len({id(one.test) for one in found.values()}) == 1


def test_predictions_that_are_not_those_of_the_metrics(tmp_path):
    one = write_evaluation(tmp_path / "one", predictions(skill=0.5, seed=1))
    metrics = json.loads((one / "metrics.json").read_text())
    (one / "metrics.json").write_text(json.dumps({**metrics, "strategy/B": 9.0}))
    with pytest.raises(UserError, match=r"one: metrics.json says strategy/B = 9, predictions.jsonl gives"):
        checked(one)


def test_many_files_are_read_as_few_are(tmp_path):
    directories = [
        write_evaluation(tmp_path / f"run{seed}", predictions(skill=0.5, seed=seed), seed=seed) for seed in range(9)
    ]
    many = checked(*directories)
    few = {path: found for directory in directories for path, found in checked(directory).items()}
    for path, found in many.items():
        assert found.test.identity == few[path].test.identity
        assert (found.chosen == few[path].chosen).all()
