"""Stage `pipeline`: which steps it takes, with which settings; the steps themselves are played."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from esc_lab import config
from esc_lab.cli.compositions import CONF
from esc_lab.config import Config, to_yaml
from esc_lab.errors import UserError
from esc_lab.stages import pipeline


@pytest.fixture
def steps(monkeypatch) -> dict[str, Config]:
    """The configurations of the steps that pipelines of a test take, in order, by name."""
    taken: dict[str, Config] = {}

    def play(cfg: Config, directory: Path) -> dict[str, float]:
        taken[directory.name] = cfg
        folder = {"search": "esc_pro", "extend": "continuations"}.get(cfg.stage)
        files = [f"{folder}/{split}.jsonl" for split in ("train", "valid", "test")] if folder else []
        for file in files:
            (directory / file).parent.mkdir(parents=True, exist_ok=True)
            (directory / file).touch()
        directory.mkdir(exist_ok=True)
        (directory / "config.yaml").write_text(to_yaml(pipeline.replace(cfg, run_dir=str(directory))))
        if cfg.stage == "search":
            return {"search/calls": 2.0, "search/from_cache": 5.0, "search/trees": float(cfg.search.seeds or 0)}
        updates = {"train/steps": float(cfg.objective.updates or 0)} if cfg.stage == "cso" else {}
        return {"seed": float(cfg.seed), **updates}

    monkeypatch.setattr(pipeline, "run_substage", play)
    return taken


def settings(run_dir: Path, *words: str) -> Config:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = config.typed(compose("config", ["stage=pipeline", "model=tiny_llama", *words]))
    cfg.run_dir = str(run_dir)
    return cfg


def played(cfg: Config) -> list[str | None]:
    """Where strategist, supporter, seeker and judge come from."""
    roles = (cfg.llm.strategist, cfg.llm.supporter, cfg.llm.seeker, cfg.llm.judge)
    return [role.checkpoint and Path(role.checkpoint).name for role in roles]


def test_each_round_goes_on_from_the_one_before(steps, tmp_path):
    words = ("pairs=rounds", "search.seeds=8", "search.skip=1", "objective.updates=7", "data.limit={train: 9}")
    metrics = pipeline.run(settings(tmp_path, *words))
    rounds = [f"{step}_{number}" for number in (1, 2, 3) for step in ("search", "cso", "evaluate_cso")]
    assert [*steps] == ["reward", "evaluate_base", "sft", "evaluate_sft", "seeker", *rounds, "compare"]
    assert [cfg.stage for cfg in steps.values()][:8] == ["reward", "evaluate", "sft", "evaluate", "sft",
                                                         "search", "cso", "evaluate"]  # fmt: skip
    searches, trainings = ([steps[f"{name}_{number}"] for number in (1, 2, 3)] for name in ("search", "cso"))
    policies = ["sft", "cso_1", "cso_2"]
    assert [played(cfg) for cfg in searches] == [[policy, policy, "seeker", "reward"] for policy in policies]
    assert [Path(str(cfg.init_from)).name for cfg in trainings] == policies
    assert [Path(str(cfg.data.path)).parent.name for cfg in trainings] == ["search_1", "search_2", "search_3"]
    assert [(cfg.search.skip, cfg.search.seeds) for cfg in searches] == [(1, 3), (4, 3), (7, 2)]
    assert [cfg.objective.updates for cfg in trainings] == [3, 2, 2]
    corpus = settings(tmp_path, *words).data
    assert all(steps[name].data == corpus for name in steps if not name.startswith(("cso", "seeker")))
    assert [Path(str(steps[f"evaluate_cso_{n}"].checkpoint)).name for n in (1, 2, 3)] == ["cso_1", "cso_2", "cso_3"]
    assert [Path(run).name for run in steps["compare"].compare.runs] == [s for s in steps if s.startswith("evaluate")]
    assert {"search_2/calls", "cso_3/seed", "base/seed"} <= metrics.keys()
    assert {name: value for name, value in metrics.items() if name.startswith("budget/")} == {
        "budget/search_trees": 8, "budget/search_calls": 21, "budget/cso_updates": 7,
    }  # fmt: skip


def test_time_left_leaves_reused_steps_out(steps, tmp_path, monkeypatch, caplog):
    """Each step takes a minute, but those that are reused."""
    now, play = [0.0], pipeline.run_substage
    monkeypatch.setattr(pipeline.time, "monotonic", lambda: now[0])

    def play_slowly(cfg, directory):
        metrics = play(cfg, directory)
        if directory.name == "sft":
            (directory / "reused.json").touch()
        else:
            now[0] += 120
        return metrics

    monkeypatch.setattr(pipeline, "run_substage", play_slowly)
    with caplog.at_level("INFO"):
        pipeline.run(settings(tmp_path, "pipeline.stages=[sft,search,cso]"))
    told = [record.getMessage() for record in caplog.records if record.getMessage().startswith("step ")]
    assert told[0] == "step 1 of 7: evaluate_base"
    assert [line.split(": ")[1] for line in told[1:]] == [
        "sft, about 12 min left", "evaluate_sft, about 10 min left", "search, about 8 min left",
        "cso, about 6 min left", "evaluate_cso, about 4 min left", "compare, about 2 min left",
    ]  # fmt: skip


def test_one_round_costs_what_three_cost(steps, tmp_path):
    words = ("pairs=trained", "search.seeds=8", "objective.updates=7", "data.limit={train: 9}")
    metrics = pipeline.run(settings(tmp_path, *words))
    assert [*steps][-4:] == ["search", "cso", "evaluate_cso", "compare"]
    assert (steps["search"].search.seeds, steps["cso"].objective.updates) == (8, 7)
    assert {"search/calls", "cso/seed"} <= metrics.keys()
    assert (metrics["budget/search_trees"], metrics["budget/search_calls"], metrics["budget/cso_updates"]) == (8, 7, 7)


def test_a_reward_model_of_searched_replies_is_trained_again_for_the_next_round(steps, tmp_path):
    pipeline.run(settings(tmp_path, "pairs=rounds", "reward=searched", "search.seeds=6"))
    assert [name for name in steps if name.startswith("reward")] == ["reward", "reward_1", "reward_2"]
    assert [played(steps[f"search_{number}"])[3] for number in (1, 2, 3)] == ["reward", "reward_1", "reward_2"]
    assert Path(str(steps["reward_2"].data.path)).parent.name == "search_2"
    assert steps["reward_2"].init_from is None


def test_given_checkpoints_play_in_all_rounds(steps, tmp_path):
    words = ("pairs=rounds", "search.seeds=6", "pipeline.stages=[sft,search,cso]")
    given = (f"llm.{role}.checkpoint={tmp_path / role}" for role in ("seeker", "judge"))
    pipeline.run(settings(tmp_path, *words, *given))
    assert [played(steps[f"search_{number}"])[2:] for number in (1, 2, 3)] == [["seeker", "judge"]] * 3


def test_extra_sft_has_the_schedule_of_cso(steps, tmp_path):
    pipeline.run(settings(tmp_path, "pairs=none", "objective.updates=5", "objective.peak_lr=0.5"))
    extra = steps["extra_sft"]
    assert [*steps] == ["evaluate_base", "sft", "evaluate_sft", "extra_sft", "evaluate_extra_sft", "compare"]
    assert (extra.stage, Path(str(extra.init_from)).name) == ("sft", "sft")
    assert (extra.trainer.max_steps, extra.trainer.max_epochs, extra.optimizer.lr) == (5, -1, 0.5)
    assert steps["sft"].trainer.max_epochs == 3


def test_rounds_share_their_directory_with_no_other_pipeline(steps, tmp_path):
    words = ("pairs=rounds", "search.seeds=6")
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "config.yaml").touch()
    pipeline.run(settings(tmp_path, *words))
    pipeline.run(settings(tmp_path, *words))  # the same again goes on
    with pytest.raises(UserError, match=r"/cso_1: a step of other settings is there: objective\.beta\. Fix: give"):
        pipeline.run(settings(tmp_path, *words, "objective.beta=0.5"))


def test_rounds_are_not_mixed_with_those_of_a_longer_pipeline(steps, tmp_path):
    pipeline.run(settings(tmp_path, "pairs=rounds", "search.seeds=6"))
    message = "it has steps of another pipeline: cso_3, evaluate_cso_3, search_3. Fix: choose another hydra.run.dir"
    with pytest.raises(UserError, match=message):
        pipeline.run(settings(tmp_path, "pairs=rounds", "search.seeds=6", "pipeline.rounds=2"))


def test_rounds_want_dialogues_of_their_own(steps, tmp_path):
    message = r"search.seeds=6: 3 rounds want 6 dialogues of train, and there are 4. Fix: search.seeds=4 or fewer"
    with pytest.raises(UserError, match=message):
        pipeline.run(settings(tmp_path, "pairs=rounds", "search.seeds=6", "data.limit={train: 4}"))
    assert not steps


def test_a_steerable_model_is_trained_on_continuations_and_judged_by_a_classifier_of_them(steps, tmp_path):
    words = ("experiment=steerable", "pipeline.templates=[standard,c1_hf]")
    pipeline.run(settings(tmp_path, *words))
    bases = ["evaluate_base_standard", "evaluate_base_c1_hf"]
    assert [*steps] == ["extend", "classifier", *bases, "sft", "evaluate_sft", "compare"]
    corpus = settings(tmp_path, *words).data
    for name in ("classifier", "sft"):
        data = steps[name].data
        assert data.path == str(tmp_path / "extend" / "continuations")
        assert (data.loss, data.split, data.limit, data.step_dialogues) == ("last_reply", "published", {}, 8)
        assert (data.row_tokens, corpus.row_tokens) == (256, 2048)
    evaluations = [steps[name] for name in (*bases, "evaluate_sft")]
    assert all(cfg.data == corpus and cfg.evaluate.classifier == str(tmp_path / "classifier") for cfg in evaluations)
    assert [cfg.prompt.eval.template for cfg in evaluations] == ["standard", "c1_hf", "standard"]
    assert "history" in evaluations[1].prompt.eval.layout["system"]
    assert evaluations[0].prompt.eval.layout == evaluations[2].prompt.eval.layout != evaluations[1].prompt.eval.layout
    sft, judge = steps["sft"], steps["classifier"]
    assert (sft.adapter.r, sft.adapter.alpha, sft.adapter.dropout, sft.optimizer.lr) == (128, 256, 0.05, 1.5e-3)
    assert (steps["extend"].extend.source, steps["extend"].extend.max_turns) == ("corpus", 23)
    assert (sft.scheduler.name, sft.data.balance_strategies, sft.trainer.max_epochs) == ("cosine", 8, 1)
    assert (judge.adapter.r, judge.optimizer.lr, judge.trainer.max_epochs) == (16, 1e-3, 1)
