"""SRA from the command line: what an evaluation leaves of it, every study, the judge, and bad input."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest
from safetensors.numpy import load_file

from esc_lab.data.strategies import load_inventory
from tests.conftest import model_config
from tests.e2e.conftest import execute
from tests.e2e.test_bad_input import complaint
from tests.e2e.test_stages import check_run_directory

NAMED = ("standard", "c1_hf", "c1_hl", "c3_hf", "c3_hl", "c5_hf", "c5_hl")
SMALL = ("evaluate.generation.decisions=5", "sra.draws=50", "data.limit={train: 4, val: 2, test: 3}")


@pytest.fixture(scope="module")
def judge(tmp_path_factory) -> str:
    outcome = execute(tmp_path_factory.mktemp("judge"), "stage=classifier", "trainer.max_steps=2")
    return f"evaluate.classifier={outcome.path}"


def measured(outcome) -> list[dict]:
    return [line for line in outcome.lines("predictions.jsonl") if line["sra"]]


def test_evaluation_measures_attention_and_adherence(command, judge):
    outcome = command(
        "stage=evaluate", "prompt=c1_hf", "evaluate.prompted=all", "evaluate.sra.heat_maps=2", *SMALL, judge
    )
    check_run_directory(outcome)
    lines, metrics = measured(outcome), outcome.metrics
    assert len(lines) == 5 * len(load_inventory("esconv")) == metrics["sra/n"] == metrics["adherence/n"]
    values = [line["sra"]["paper/name"] for line in lines]
    assert metrics["sra/log_sra"] == pytest.approx(np.mean([math.log(value["sra"]) for value in values]))
    assert metrics["sra/sham_net"] == pytest.approx(np.mean([math.log(v["sra"] / v["control"]) for v in values]))
    assert metrics["adherence/accuracy"] == np.mean([line["adheres"] for line in lines])
    assert metrics["adherence/classifier_accuracy"] > 0
    heads = load_file(outcome.path / "sra_heads.safetensors")["heads"]
    np.testing.assert_allclose(heads.mean(axis=(1, 2)), [value["sra"] for value in values], rtol=1e-4)
    left = outcome.read("sra.json")
    assert sum(found["n"] for found in left["by"]["strategy"].values()) == len(lines)
    assert np.mean(left["heads"]) == pytest.approx(metrics["sra/sra"])
    pages = sorted(path.name for path in outcome.path.glob("heat_map_*.html"))
    assert pages == ["heat_map_1.html", "heat_map_2.html"]
    assert lines[0]["prompted"] in (outcome.path / pages[0]).read_text()
    assert (outcome.path / "sra_heads.svg").exists()


def test_other_definition_and_span_of_given_replies(command):
    words = ("evaluate.replies=gold", "evaluate.sra.definition=reference", "evaluate.sra.span=instruction")
    outcome = command("stage=evaluate", "prompt=c3_hl", *words, *SMALL)
    values = [line["sra"]["reference/instruction"]["sra"] for line in measured(outcome)]
    assert len(values) == 5
    assert outcome.metrics["sra/log_sra"] == pytest.approx(np.log(values).mean())
    assert all(line["reply"] is None for line in outcome.lines("predictions.jsonl"))


def test_prompts_need_no_gold_label(command):
    """Contexts of one inventory, prompted with the strategies of another that its labels cannot be mapped to."""
    words = ("stage=evaluate", "prompt=c1_hf", "inventory=extes_sra")
    outcome = command(*words, "evaluate.prompted=all", *SMALL)
    check_run_directory(outcome)
    lines, names = measured(outcome), load_inventory("extes_sra").names
    assert len(lines) == 5 * len(names) == outcome.metrics["sra/n"]
    assert [line["prompted"] for line in lines[: len(names)]] == [*names]
    assert all(line["gold"] == [] and line["gold_reply"] and line["reply"] for line in lines)
    assert outcome.metrics["data/labels_mapped_away"] >= outcome.metrics["data/unlabelled_supporter_turns"] > 0
    assert not any(name.startswith(("strategy/", "generated/")) for name in outcome.metrics)
    of_texts = {name for name in outcome.metrics if name.startswith("text/")}
    assert {"text/repetition", "text/written", "text/rouge_l", "text/distinct_2"} <= of_texts  # beside what was said
    assert sum(line["tokens"] > 0 for line in lines) == 5  # given replies, each after one of the prompts of its turn
    assert "text/perplexity" in of_texts
    other = command(*words, "evaluate.prompted=all", "evaluate.generation.temperature=1.0", *SMALL)
    compared = command("stage=compare", f"compare.runs=[{outcome.path},{other.path}]", "compare.metrics=[sra/log_sra]")
    assert compared.status == 0, compared.errors
    found = complaint(command(*words, *SMALL))
    assert "no mapping from 'esconv' to 'extes_sra'" in found
    assert "needs no labels with evaluate.prompted=all" in found
    found = complaint(command(*words, "evaluate.prompted=random", "evaluate.classifier=auto", *SMALL))
    assert "evaluate.classifier=auto: no training reply of sample has a strategy of extes_sra" in found


def test_without_attention(command):
    outcome = command("stage=evaluate", "prompt=c1_hf", "evaluate.sra.enabled=false", *SMALL)
    assert not measured(outcome)
    assert not any(name.startswith("sra/") for name in outcome.metrics)
    assert not list(outcome.path.glob("heat_map*"))
    assert any(line["reply"] for line in outcome.lines("predictions.jsonl"))


def test_templates_study(command, judge):
    outcome = command("experiment=sra_templates", *SMALL, judge)
    check_run_directory(outcome)
    study, metrics = outcome.read("study.json"), outcome.metrics
    assert [one["run"] for one in study["runs"]] == list(NAMED)
    asked = [
        [(line["dialogue"], line["turn"], line["prompted"]) for line in lines_of(outcome.path / name)] for name in NAMED
    ]
    assert all(one == asked[0] for one in asked)  # the same strategies at the same turns under every template
    for one in study["runs"]:
        inner = json.loads((outcome.path / one["run"] / "metrics.json").read_text())
        assert one["log_sra"]["value"] == pytest.approx(inner["sra/log_sra"]) == metrics[f"{one['run']}/log_sra"]
        assert one["adherence"]["value"] == pytest.approx(inner["adherence/accuracy"])
    x, y = ([one[name]["value"] for one in study["runs"]] for name in ("log_sra", "adherence"))
    found = next(one for one in study["relation"] if one["measure"] == "log_sra")["pearson"]["value"]
    assert found == pytest.approx(np.corrcoef(x, y)[0, 1]) or (math.isnan(found) and len(set(y)) == 1)
    figures = [f"{measure}_{by}" for measure in ("log_sra", "sham_net") for by in ("by_depth", "adherence")]
    for name in (*figures, "adherence_by_depth"):
        assert (outcome.path / f"{name}.png").stat().st_size > 5000
        assert (outcome.path / f"{name}.svg").exists()
    assert re.search(r"Templates by sham-net log SRA: \w+ \(", outcome.output)
    assert "published order" in (outcome.path / "study.md").read_text()


def lines_of(directory) -> list[dict]:
    return [json.loads(line) for line in (directory / "predictions.jsonl").read_text().splitlines()]


def test_strategies_study(command, judge):
    outcome = command("experiment=sra_strategies", *SMALL, judge)
    found = outcome.read("study.json")["strategies"]
    assert {one["strategy"] for one in found} == set(load_inventory("esconv").names)
    assert all(one["n"] == 5 * 3 for one in found)
    assert (outcome.path / "strategies.svg").exists()


def test_heads_study(command, judge):
    outcome = command("experiment=sra_heads", *SMALL, judge)
    study = outcome.read("study.json")
    shape = np.shape(study["sra"])
    assert {line["dialogue"] for line in lines_of(outcome.path / "c1_hf") if line["sra"]} == {*study["dialogues"]}
    assert "split: val" in (outcome.path / "config.yaml").read_text()
    assert np.shape(study["relation"]) == np.shape(study["leave_one_out"]) == shape
    assert {"heads/share_of_1", "heads/share_of_4"} <= outcome.metrics.keys()
    for name in ("heads_sra", "heads_relation", "heads_left_out"):
        assert (outcome.path / f"{name}.png").exists()


def test_finetuned_study(command):
    outcome = command("experiment=sra_finetuned", "trainer.max_steps=2", "optimizer.lr=0.02", *SMALL)
    base, tuned = (lines_of(outcome.path / name) for name in ("base", "evaluate_sft"))
    keys = ("dialogue", "turn", "prompted", "gold_reply", "template")
    assert [[line[key] for key in keys] for line in base] == [[line[key] for key in keys] for line in tuned]
    changes = [
        math.log(after["sra"]["paper/name"]["sra"] / before["sra"]["paper/name"]["sra"])
        for before, after in zip(base, tuned, strict=True)
        if before["sra"]
    ]
    assert np.abs(changes).max() > 1e-3  # training did move attention
    assert outcome.metrics["difference/log_sra"] == pytest.approx(np.mean(changes))
    assert outcome.metrics["difference/pairs"] == len(changes) == 5


def test_lengths_study(command):
    outcome = command("experiment=sra_lengths", "sra.lengths=[1,3,6]", "sra.templates=[c1_hf]", *SMALL)
    asked = []
    for length in (1, 3, 6):
        lines = lines_of(outcome.path / f"c1_hf_{length}")
        assert {line["history"] for line in lines} == {length - (length % 2 == 0)}  # from where the seeker begins
        assert all(line["turn"] >= 6 for line in lines)
        asked.append([(line["dialogue"], line["turn"]) for line in lines])
    assert asked[0] == asked[1] == asked[2]
    assert (outcome.path / "log_sra_by_length.png").exists()


def test_the_automatic_judge_is_trained_once(command, tmp_path, monkeypatch):
    from esc_lab.scorers import auto_classifier

    monkeypatch.setattr(auto_classifier, "AUTO_MODEL", model_config("tiny_llama"))
    words = ("stage=evaluate", "prompt=c1_hf", "evaluate.classifier=auto", f"cache_dir={tmp_path / 'cache'}", *SMALL)
    first = command(*words)
    assert first.status == 0, first.errors
    assert "this happens once" in first.errors + first.output
    (note,) = (tmp_path / "cache" / "classifiers_v1").glob("*/classifier/classifier.json")
    second = command(*words, "evaluate.generation.temperature=1.0")
    assert "this happens once" not in second.errors + second.output
    assert second.metrics["adherence/classifier_accuracy"] == json.loads(note.read_text())["accuracy"]


FEW = ("evaluate.generation.decisions=3", "evaluate.prompted=random", "data.limit={train: 2, val: 1, test: 3}")


def test_boost_study(command, judge):
    """Each span at each dose beside none; slopes are those of the runs' own metrics, and the curves are drawn."""
    outcome = command("experiment=sra_boost", "sra.doses=[1,3]", "sra.spans=[name,neutral]", *FEW, judge)
    check_run_directory(outcome)
    study = outcome.read("study.json")
    runs = {
        "name": ("c1_hf", "c1_hf_name_1", "c1_hf_name_3"), "neutral": ("c1_hf", "c1_hf_neutral_1", "c1_hf_neutral_3")
    }  # fmt: skip
    found = {(curve["boost"], curve["metric"]): curve for curve in study["curves"]}
    assert {boost for boost, _ in found} == {"name", "neutral"}
    slopes = {}
    for (boost, metric), curve in found.items():
        metrics = [json.loads((outcome.path / run / "metrics.json").read_text())[metric] for run in runs[boost]]
        assert [point["value"] for point in curve["points"]] == pytest.approx(metrics)
        slopes[boost, metric] = np.polyfit([0, 1, 3], metrics, 1)[0]
        assert curve["slope"]["value"] == pytest.approx(slopes[boost, metric], abs=1e-9)
    assert {"sra/log_sra", "adherence/accuracy", "text/perplexity", "text/repetition"} <= {name for _, name in found}
    assert slopes["name", "sra/log_sra"] > slopes["neutral", "sra/log_sra"]
    for one in study["contrasts"]:
        difference = slopes["name", one["metric"]] - slopes["neutral", one["metric"]]
        assert (one["boost"], one["minus"]) == ("name", "neutral")
        assert one["value"] == pytest.approx(difference, abs=1e-9)
    assert "name minus neutral" in (outcome.path / "study.md").read_text()
    assert list(outcome.path.glob("dose_sra_log_sra_*.svg"))
    again = command("stage=compare", f"compare.runs=[{','.join(str(outcome.path / run) for run in runs['name'])}]")
    assert again.status == 0, again.errors
    assert "Attention boosted" in (again.path / "comparison.md").read_text()
    assert list((again.path / "figures").glob("dose_adherence_accuracy_*.png"))


def test_ablation_study_in_the_heads_of_a_study(command, tmp_path):
    """Blocked in the heads with the most attention and in as many random ones; SRA stays, from the other heads."""
    scores = np.arange(8.0).reshape(2, 4)
    (tmp_path / "study.json").write_text(json.dumps({"sra": scores.tolist()}))
    words = (
        "sra.choices=[attention,random]",
        "sra.random_draws=2",
        "sra.spans=[name]",
        f"evaluate.boost.study={tmp_path}",
    )
    outcome = command("experiment=sra_ablate", *words, "evaluate.boost.count=3", *FEW, "evaluate.classifier=null")
    check_run_directory(outcome)
    effects = {effect["boost"]: effect for effect in outcome.read("study.json")["effects"]}
    others = "without name, 3 random heads, none by attention"
    assert {*effects} == {"without name, 3 heads by attention", others, f"{others}, draw 2"}
    plain, blocked = (lines_of(outcome.path / name) for name in ("c1_hf", "c1_hf_name_attention"))
    assert [line["prompted"] for line in plain] == [line["prompted"] for line in blocked]
    heads = load_file(outcome.path / "c1_hf_name_attention" / "sra_heads.safetensors")["heads"]
    assert (heads.reshape(len(heads), -1)[:, 5:] == 0).all()
    assert (heads.reshape(len(heads), -1)[:, :5] > 0).all()
    for run in ("c1_hf_name_random", "c1_hf_name_random_2"):  # of the second layer one head is left, the first has two
        drawn = (load_file(outcome.path / run / "sra_heads.safetensors")["heads"] == 0).all(axis=0)
        assert drawn.sum(axis=1).tolist() == [2, 1]
        assert drawn[1, 0]
    change = effects["without name, 3 heads by attention"]["differences"]["sra/log_sra"]["value"]
    values = [[line["sra"]["paper/name"]["sra"] for line in lines if line["sra"]] for lines in (plain, blocked)]
    assert change == pytest.approx(np.log(values[1]).mean() - np.log(values[0]).mean())


def test_a_boost_of_nothing_changes_nothing(command):
    words = ("stage=evaluate", "prompt=c1_hf", *FEW)
    plain, none = (command(*words, *more) for more in ((), ("evaluate.boost.amount=0", "evaluate.boost.span=history")))
    assert (plain.path / "predictions.jsonl").read_bytes() == (none.path / "predictions.jsonl").read_bytes()


def test_gold_replies_under_a_boost(command):
    """Attention on the strategy's name reaches its share, and the gold replies have other probabilities."""
    words = ("stage=evaluate", "prompt=standard", "evaluate.replies=gold", *FEW)
    boost = ("evaluate.boost.mode=share", "evaluate.boost.amount=0.5", "evaluate.sra.heat_maps=1")
    outcome = command(*words, *boost)
    check_run_directory(outcome)
    for line in measured(outcome):
        tokens = 0.5 / line["sra"]["paper/name"]["sra"]  # of the name, where all heads have the share and no more
        assert 0.5 < tokens < 12
    plain = command(*words)
    assert plain.metrics["text/perplexity"] != outcome.metrics["text/perplexity"]
    assert plain.metrics["sra/log_sra"] < outcome.metrics["sra/log_sra"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("stage=evaluate", "prompt=cso", "evaluate.boost.amount=1"),
            "evaluate.boost.span=name: the template cso tells no strategy",
        ),
        (("experiment=sra_boost", "sra.doses=[0,1]"), "0 is there anyway"),
        (("experiment=sra_boost", "evaluate.boost.mode=share"), "shares are between 0 and 1"),
        (("experiment=sra_boost", "evaluate.boost.mode=block"), "what is blocked has no dose"),
        (("experiment=sra_ablate", "sra.choices=[adherence]"), "no study that ranks them"),
        (("experiment=sra_boost", "sra.spans=[name,nam]"), "sra.spans=nam: not one of"),
        (("experiment=sra_boost", "evaluate.boost.draw=2"), "sets it. Fix: leave it out; see sra.random_draws"),
        (("stage=evaluate", "evaluate.generation.depths=[5,5]"), "two numbers of turns or more, ascending"),
        (("experiment=steerable", "evaluate.sra.enabled=false"), "compare.metrics asks for sra/log_sra_paper"),
        (
            ("stage=evaluate", "prompt=c1_hf", "evaluate.boost.mode=share", "evaluate.boost.amount=1"),
            "raises to a share below 1",
        ),
        (("experiment=sra_templates", "sra.templates=[c1_hf,c2_hf]"), "sra.templates: unknown prompt 'c2_hf'"),
        (("experiment=sra_templates", "sra.templates=[cso]"), "sra.templates: 'cso' names no strategy"),
        (("experiment=sra_finetuned", "sra.templates=[standard,c1_hf]"), "compares under one template"),
        (("experiment=sra_lengths", "sra.lengths=[0,2]"), "numbers of turns"),
        (("experiment=sra_templates", "prompt.inference=cot"), "not one answer"),
        (("experiment=sra_templates", "evaluate.sra.enabled=false"), "stage=sra measures it"),
        (("stage=evaluate", "evaluate.classifier=nowhere"), "evaluate.classifier=nowhere: no such directory"),
        (
            ("stage=evaluate", "prompt=cso", "evaluate.sra.span=quoted"),
            "template cso does not write a strategy like that",
        ),
    ],
)
def test_bad_input(command, words, message):
    assert message in complaint(command(*words, "data.limit={train: 2, val: 1, test: 2}"))


def test_lengths_beyond_all_dialogues(command):
    outcome = command("experiment=sra_lengths", "sra.lengths=[1,40]", *SMALL)
    assert outcome.status == 1
    assert "error: the test split has no decision to evaluate" in outcome.errors
    assert not (outcome.path / "metrics.json").exists()
