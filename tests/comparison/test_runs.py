"""Reading runs: what they are called, which belong together, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from esc_lab.comparison.runs import group_cells, read_runs
from esc_lab.errors import UserError
from tests.comparison.synthetic import predictions, settings, write_evaluation, write_run, write_training

METRICS = {"strategy/Q": 0.5}


def evaluation(directory: Path, **changes) -> Path:
    return write_run(directory, settings("evaluate", **changes), METRICS)


def names(*directories: Path) -> list[str]:
    return [cell.name for cell in group_cells(read_runs(directories)[0])]


# --- names


def test_method_is_that_of_the_training_behind_it(tmp_path):
    trainings = {
        "SFT": ("sft", {}),
        "SFT full": ("sft", {"adapter__kind": "full"}),
        "CSO": ("cso", {}),
        "SimPO": ("cso", {"objective__name": "simpo"}),
        "CSO random negatives": ("cso", {"data__negatives": "random"}),
    }
    found = [evaluation(tmp_path / "base")]
    for number, (stage, changes) in enumerate(trainings.values()):
        training = write_training(tmp_path / f"training{number}", stage, **changes)
        found.append(evaluation(tmp_path / f"evaluation{number}", checkpoint=str(training)))
    adapter = tmp_path / "training0" / "adapter"
    found += [
        evaluation(tmp_path / "cot", checkpoint=str(adapter), prompt__inference="cot"),
        evaluation(tmp_path / "lost", checkpoint=str(tmp_path / "gone" / "elsewhere")),
        evaluation(tmp_path / "standard", prompt__eval={"template": "standard"}),
        tmp_path / "training0",
    ]
    assert names(*found) == [
        "tiny base (cso)", *(f"tiny {method} (cso)" for method in trainings), "tiny SFT cot (cso)",
        "tiny elsewhere (training gone) (cso)", "tiny base (standard)", "tiny SFT training (cso)",
    ]  # fmt: skip


def test_equal_names_are_told_apart_by_what_differs(tmp_path):
    found = []
    for model in ("a", "b"):
        for beta in (0.1, 0.5):
            own = {"model__name": model, "objective__beta": beta, "optimizer__lr": 0.1 if model == "a" else 0.2}
            training = write_training(tmp_path / f"{model}{beta}", "cso", **own)
            found.append(evaluation(tmp_path / f"of_{model}{beta}", model__name=model, checkpoint=str(training)))
    # The learning rate differs between models, never within one.
    assert names(*found) == [
        f"{model} CSO objective.beta={beta} (cso)" for model in ("a", "b") for beta in ("0.1", "0.5")
    ]


def test_searches_and_earlier_trainings_are_told_apart_too(tmp_path):
    sft = write_training(tmp_path / "sft", "sft")
    found = []
    for number, (c, origin) in enumerate([(1.0, None), (2.0, None), (1.0, sft)]):
        search = write_run(tmp_path / f"search{number}", settings("search", mcts__c=c), {})
        own = {"data__path": str(search / "esc_pro"), "init_from": origin and str(origin)}
        training = write_training(tmp_path / f"cso{number}", "cso", **own)
        found.append(evaluation(tmp_path / f"evaluation{number}", checkpoint=str(training)))
    assert names(*found) == [
        "tiny CSO init_from=base mcts.c=1.0 (cso)", "tiny CSO init_from=base mcts.c=2.0 (cso)",
        "tiny CSO init_from=SFT mcts.c=1.0 (cso)",
    ]  # fmt: skip
    # Seeds with searches of their own are one method.
    for seed in (1, 2):
        search = write_run(tmp_path / f"own{seed}", settings("search"), {})
        write_training(tmp_path / f"s{seed}", "cso", seed=seed, data__path=str(search / "esc_pro"))
    seeds = [evaluation(tmp_path / f"e{seed}", checkpoint=str(tmp_path / f"s{seed}")) for seed in (1, 2)]
    cells = group_cells(read_runs(seeds)[0])
    assert [(cell.name, cell.seeds) for cell in cells] == [("tiny CSO (cso)", (1, 2))]


def test_trainings_that_go_on_from_their_like_are_rounds(tmp_path):
    found, origin = [], None
    for number, (stage, own) in enumerate([("sft", {}), ("sft", {}), ("cso", {}), ("cso", {}), ("cso", {}),
                                           ("cso", {"data__shuffle_pairs": True})]):  # fmt: skip
        training = write_training(tmp_path / f"{number}", stage, init_from=origin, **own)
        found.append(evaluation(tmp_path / f"of_{number}", checkpoint=str(training)))
        origin = str(training)
    methods = ["SFT", "SFT round 2", "CSO", "CSO round 2", "CSO round 3", "CSO shuffled pairs"]
    assert names(*found) == [f"tiny {method} (cso)" for method in methods]


def test_seed_is_that_of_the_training(tmp_path):
    found = []
    for seed in (2, 1):
        training = write_training(tmp_path / f"sft{seed}", "sft", seed=seed)
        found.append(evaluation(tmp_path / f"evaluation{seed}", seed=7, checkpoint=str(training)))
    found.append(evaluation(tmp_path / "base", seed=7))
    cells = group_cells(read_runs(found)[0])
    assert [cell.seeds for cell in cells] == [(1, 2), (7,)]


def test_models_stand_together(tmp_path):
    found = [evaluation(tmp_path / f"{model}{t}", model__name=model, prompt__eval={"template": t})
             for t in ("cso", "standard") for model in ("a", "b")]  # fmt: skip
    assert names(*found) == ["a base (cso)", "a base (standard)", "b base (cso)", "b base (standard)"]


# --- directories of directories


def test_pipeline_stands_for_its_evaluations(tmp_path):
    root = write_run(tmp_path / "pipeline", settings("pipeline"), {"base/strategy/Q": 0.5})
    for method in ("cso", "sft"):
        write_training(root / method, method)
        evaluation(root / f"evaluate_{method}", checkpoint=str(tmp_path / "before_it_was_moved" / method))
    evaluation(root / "evaluate_base")
    assert names(root) == ["tiny base (cso)", "tiny SFT (cso)", "tiny CSO (cso)"]
    (root / "metrics.json").unlink()
    with pytest.raises(UserError, match=r"pipeline: no finished run: it has no metrics.json, so it crashed"):
        read_runs([root])


def test_evaluations_of_the_base_stand_first_in_the_order_of_the_pipelines_templates(tmp_path):
    whole = settings("pipeline", pipeline={"templates": ["standard", "c1_hf"]})
    root = write_run(tmp_path / "pipeline", whole, {"base_standard/strategy/Q": 0.5})
    write_training(root / "sft", "sft")
    evaluation(root / "evaluate_sft", checkpoint=str(root / "sft"), prompt__eval={"template": "standard"})
    for template in ("c1_hf", "standard"):
        evaluation(root / f"evaluate_base_{template}", prompt__eval={"template": template})
    assert names(root) == ["tiny base (standard)", "tiny base (c1_hf)", "tiny SFT (standard)"]


def multirun(directory: Path, **statuses: str) -> Path:
    directory.mkdir()
    lines = []
    for seed, (job, status) in enumerate(statuses.items()):
        if status != "failed":
            evaluation(directory / job, seed=seed)
        extra = {"error": "loss nan"} if status == "failed" else {"metrics": {}}
        record = {"job": seed, "overrides": [f"seed={seed}"], "directory": str(directory / job), "status": status}
        lines.append(json.dumps({**record, **extra}))
    (directory / "manifest.jsonl").write_text("\n".join(lines) + "\n")
    return directory


def test_multirun_stands_for_its_jobs(tmp_path):
    root = multirun(tmp_path / "multirun", first="done", second="reused")
    assert [run.method.seed for run in read_runs([root])[0]] == [0, 1]
    moved = root.rename(tmp_path / "elsewhere")
    assert [run.directory for run in read_runs([moved])[0]] == [moved / "first", moved / "second"]


def test_failed_jobs_of_a_multirun_are_refused_unless_they_were_run_again(tmp_path):
    root = multirun(tmp_path / "multirun", first="done", second="failed")
    with pytest.raises(UserError, match=r"multirun: 1 of 2 jobs failed: seed=1: loss nan. Fix: run them again"):
        read_runs([root])
    evaluation(root / "second", seed=1)
    with (root / "manifest.jsonl").open("a") as file:
        file.write(
            json.dumps({"job": 1, "overrides": ["seed=1"], "directory": str(root / "second"), "status": "done"}) + "\n"
        )
    assert len(read_runs([root])[0]) == 2
    with (root / "manifest.jsonl").open("a") as file:
        file.write("{}\n")
    with pytest.raises(UserError, match=r"manifest.jsonl:4: not the record of a job"):
        read_runs([root])


# --- doubles


def test_a_directory_counts_once(tmp_path):
    one = evaluation(tmp_path / "one")
    runs, told = read_runs([one, tmp_path / "one" / ".." / "one"])
    assert [run.directory for run in runs] == [one]
    assert told == []


def test_the_same_predictions_count_once_and_others_are_refused(tmp_path):
    rows = predictions(skill=0.5, seed=1)
    found = [write_evaluation(tmp_path / f"run{number}", rows) for number in range(3)]
    runs, told = read_runs(found)
    assert [run.directory for run in runs] == found[:1]
    assert told == [
        "tiny base (cso), seed 1 lies in several directories with the same predictions (reused): each counts once"
    ]
    other = write_evaluation(tmp_path / "other", predictions(skill=0.5, seed=2))
    with pytest.raises(UserError, match=rf"two runs of tiny base \(cso\), seed 1: {found[0]} and {other}"):
        read_runs([*found, other])


# --- what is no run


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("config.yaml", "a: [b", "no finished run: while parsing"),
        ("config.yaml", "- a", "no finished run: config.yaml holds no configuration"),
        ("config.yaml", "{}", "does not say 'stage'"),
        ("config.yaml", "stage: evaluate", "does not say"),
        ("metrics.json", "{", "no finished run: Expecting"),
        ("metrics.json", "[]", "no finished run"),
        ("metrics.json", '{"a": null}', "no finished run"),
        ("metrics.json", '{"a": 1}', "none of its metrics can be compared"),
    ],
)
def test_directories_that_are_no_run(tmp_path, name, text, message):
    directory = evaluation(tmp_path / "run")
    (directory / name).write_text(text)
    with pytest.raises(UserError, match=rf"run: .*{message}.* Fix: name run directories"):
        read_runs([directory])


def test_directories_without_files(tmp_path):
    directory = evaluation(tmp_path / "run")
    (directory / "metrics.json").unlink()
    with pytest.raises(UserError, match=r"run: no finished run: it has no metrics.json, so it crashed"):
        read_runs([directory])
    with pytest.raises(UserError, match="there is no such directory"):
        read_runs([tmp_path / "absent"])
    with pytest.raises(UserError, match=r"no finished run: .*No such file"):
        read_runs([tmp_path])
    with pytest.raises(UserError, match="there is no run to compare"):
        read_runs([])


def test_a_training_that_cannot_be_read_is_said(tmp_path):
    training = write_training(tmp_path / "sft", "sft")
    (training / "config.yaml").write_text("a: [b")
    directory = evaluation(tmp_path / "run", checkpoint=str(training))
    with pytest.raises(UserError, match=r"run: no finished run: a configuration behind it cannot be read"):
        read_runs([directory])
