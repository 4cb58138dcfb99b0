"""Stage `cso`: preference optimisation on the chosen and rejected replies of the training dialogues."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path

from esc_lab.config import Config
from esc_lab.config.schema import use_objective_schedule
from esc_lab.data.strategies import build_inventory
from esc_lab.evaluation.held_out_pairs import note_reference
from esc_lab.models.load import LoadedModel, check_trainable, load_model, model_identity
from esc_lab.scorers.reward_files import load_reward
from esc_lab.training.cso import CSOModule
from esc_lab.training.datamodule import build_data
from esc_lab.training.fit import fit, prepare_model
from esc_lab.training.objectives import balance_weights, objective_of
from esc_lab.training.preference_steps import PreferenceSteps
from esc_lab.training.reference import LiveReference, fill_reference
from esc_lab.training.reply_values import Values
from esc_lab.training.trainer import prepare

log = logging.getLogger(__name__)


def run(cfg: Config) -> dict[str, float]:
    """Train from the base model or from `init_from`; that starting point is also the reference."""
    objective = objective_of(cfg.objective)
    cfg = use_objective_schedule(cfg)
    prepare(cfg)
    cache_dir, init_from = Path(cfg.cache_dir), Path(cfg.init_from) if cfg.init_from else None
    sharded = cfg.trainer.strategy == "fsdp2"
    loaded = load_model(cfg.model, cache_dir, checkpoint=init_from, to_device=not sharded)
    check_trainable(loaded, cfg.adapter, cfg.model)
    data = build_data(cfg, loaded, cfg.objective, _reward_values(cfg, loaded))
    data.setup("fit")
    assert isinstance(data.steps, PreferenceSteps)
    live, fill = objective.needs_reference and cfg.objective.reference == "live", None
    if objective.needs_reference:
        identity = model_identity(loaded.model)
        note_reference(cfg, loaded, identity)
        if not live:
            splits = data.steps.preferences.values()
            fill = partial(fill_reference, loaded.model, splits, identity, data.pass_tokens, cache_dir)
    if fill is not None and not sharded:
        fill()
    loaded = prepare_model(cfg, loaded)
    reference = LiveReference(loaded.model, loaded.adapter) if live else None
    clip = cfg.trainer.gradient_clip
    settings, weights = cfg.objective, {}
    if objective.compares == "replies":
        report = data.steps.counts["train"]
        settings = balance_weights(settings, report.desirable, report.undesirable)
        weights = {f"kto/{name}": float(getattr(settings, name)) for name in ("desirable_weight", "undesirable_weight")}
        log.info("weights: %s", ", ".join(f"{name} {value:.3g}" for name, value in weights.items()))
    module = CSOModule(loaded.model, settings, cfg.optimizer, cfg.scheduler, clip, cfg.seed, reference)
    module.before_fit = fill if sharded else None  # the model is on no device before
    return fit(cfg, loaded, data, module) | weights


def _reward_values(cfg: Config, loaded: LoadedModel) -> Values | None:
    """The values that a reward model gives to replies, if it is to; it shares the weights that are to be trained."""
    if not (path := cfg.objective.reward):
        return None
    beside = None if cfg.trainer.strategy == "fsdp2" else loaded.model
    return load_reward(Path(path), build_inventory(cfg.inventory), Path(cfg.cache_dir), beside=beside).value
