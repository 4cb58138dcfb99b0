"""Stage `reward`: train a reward model, which scores replies in their dialogues, and see how far it can be trusted."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from esc_lab.artifacts import write_atomic
from esc_lab.config import Config
from esc_lab.data.dialogue import Dialogue
from esc_lab.data.strategies import Inventory, build_inventory
from esc_lab.evaluation.reward_check import (
    calibrate,
    center_strategies,
    check_reward,
    draw_rated,
    score_cases,
    score_strategies,
)
from esc_lab.judge_check.cases import RATED, STRATEGY, JudgeCase
from esc_lab.models.load import LoadedModel, load_model
from esc_lab.prompts import build_layout
from esc_lab.runs.layout import REWARD_CHECK, TRAINING_TREES, read_config
from esc_lab.scorers.comparisons import ComparisonPool, hold_out_rated
from esc_lab.scorers.conversations import take_words
from esc_lab.scorers.reward_files import new_reward, save_reward
from esc_lab.scorers.reward_model import RewardModel
from esc_lab.scorers.reward_training import RewardModule, RewardSteps
from esc_lab.seeds import EVALUATION_SEED
from esc_lab.training.datamodule import load_splits
from esc_lab.training.fit import fit_best, start_training
from esc_lab.training.model_card import write_card
from esc_lab.training.negatives import write_negatives
from esc_lab.training.steps import StepDataModule, TurnEncoder
from esc_lab.training.trainer import prepare

log = logging.getLogger(__name__)


def run(cfg: Config) -> dict[str, float]:
    """Train, calibrate on the validation split, check on the test split; reward/ and reward_check.json go into the run.

    The weights are the best by validation loss if there is a validation split, else the last.
    """
    prepare(cfg)
    cfg = replace(cfg, trainer=replace(cfg.trainer, devices="1"))
    inventory, directory = build_inventory(cfg.inventory), Path(cfg.run_dir)
    splits, report = load_splits(cfg, inventory)
    splits = hold_out_rated(splits, cfg.reward, cfg.seed)
    loaded = load_model(cfg.model, Path(cfg.cache_dir))
    own = {split: _own_replies(cfg, loaded, inventory, dialogues) for split, dialogues in splits.items()}
    pools = {split: ComparisonPool(splits.get(split, []), cfg.reward, own.get(split)) for split in ("train", "val")}
    words = take_words(build_layout(cfg.prompt.train).wording)
    adapter = replace(cfg.adapter, layers=cfg.reward.layers or cfg.adapter.layers)
    reward = new_reward(loaded, cfg.model, adapter, cfg.reward, words, cfg.data.row_tokens)
    steps = RewardSteps(pools, reward, cfg.reward, cfg.seed)
    start_training(cfg, reward.model)
    module = RewardModule(reward, cfg.reward, cfg.optimizer, cfg.scheduler, cfg.trainer.gradient_clip, cfg.seed)
    metrics = fit_best(cfg, StepDataModule(splits, steps), module, validation="val" in steps.pools)
    metrics |= {f"data/{name}": float(value) for name, value in asdict(report).items()}
    metrics |= {f"data/{name}": float(value) for name, value in asdict(reward.conversations.report).items()}
    reward.to_device()
    reward = _calibrated(cfg, reward, splits.get("val", []), own.get("val"), inventory.names)
    metrics |= {f"reward/{name}": value for name, value in asdict(reward.calibration).items()}
    if test := splits.get("test"):
        rated = _draw_rated(cfg, test) or _draw_rated(cfg, splits.get("val", ()))
        cases = score_cases(reward.score, test, cfg.reward.check, EVALUATION_SEED, own["test"], rated)
        check = check_reward(cases, test, EVALUATION_SEED)
        metrics |= {f"reward/{name}": value for name, value in check.metrics().items()}
        write_atomic(directory / REWARD_CHECK, json.dumps(check.record(), indent=1))
        check.show(f"{cfg.model.name}: reward model on the test dialogues of {cfg.data.name}")
    write_atomic(directory / TRAINING_TREES, json.dumps(sorted({each.tree_id for each in splits["train"]})))
    target = save_reward(reward, cfg.model, inventory, directory)
    write_atomic(target / "README.md", write_card(read_config(directory), metrics, run=directory, adapter=True))
    log.info("saved %s", target)
    return metrics


def _own_replies(
    cfg: Config, loaded: LoadedModel, inventory: Inventory, dialogues: Sequence[Dialogue]
) -> list[Dialogue] | None:
    """The dialogues with what the base model writes under wrong strategies as rejected replies, if they are wanted."""
    if not cfg.reward.kinds.get("own_reply") or not dialogues:
        return None
    row_tokens = min(cfg.data.row_tokens, loaded.context_tokens)
    turns = TurnEncoder(
        loaded.encoder, inventory, cfg.prompt.train, row_tokens, drop_too_long=cfg.data.too_long == "drop"
    )
    written, counts = write_negatives(loaded, dialogues, turns, cfg.data, cfg.seed, Path(cfg.cache_dir))
    log.info("own replies: %s", ", ".join(f"{value} {name}" for name, value in asdict(counts).items()))
    return written


def _draw_rated(cfg: Config, dialogues: Sequence[Dialogue]) -> list[JudgeCase]:
    """Cases of the kind `rated`, if it learns from values."""
    wanted = cfg.reward.kinds.get(RATED, 0) > 0
    return draw_rated(dialogues, cfg.reward.check, EVALUATION_SEED, cfg.reward.tie_margin) if wanted else []


def _calibrated(
    cfg: Config,
    reward: RewardModel,
    dialogues: Sequence[Dialogue],
    own: Sequence[Dialogue] | None,
    names: Sequence[str],
) -> RewardModel:
    """The reward model with temperature and centers from the validation dialogues, of which two at least are needed."""
    if len({dialogue.tree_id for dialogue in dialogues}) < 2:
        log.warning("fewer than two validation dialogues: the scores are not calibrated")
        return reward
    parts = replace(reward, strategy_share=0.0)
    rated = _draw_rated(cfg, dialogues)
    cases = score_cases(parts.score, dialogues, cfg.reward.check, EVALUATION_SEED, own, rated)
    if cfg.reward.kinds.get("strategy"):
        cases["strategy"] = score_strategies(parts.score, [each.case for each in cases.get(STRATEGY, ())])
    calibrated = replace(parts, calibration=calibrate(cases, cfg.reward.kinds))
    centers = center_strategies(calibrated.score, dialogues, names) if cfg.reward.strategy_share else {}
    return replace(calibrated, strategy_share=reward.strategy_share, strategy_centers=centers)
