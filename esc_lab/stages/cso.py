"""Stage `cso`: preference optimisation on the chosen and rejected replies of the training dialogues."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from esc_lab.config import Config
from esc_lab.evaluation.held_out_pairs import note_reference
from esc_lab.models.load import LoadedModel, check_trainable, load_model
from esc_lab.training.cso import CSOModule
from esc_lab.training.cso_data import PreferenceSteps
from esc_lab.training.fit import fit, trainable
from esc_lab.training.objectives import objective_of
from esc_lab.training.preference_split import PreferenceSettings
from esc_lab.training.reference import LiveReference, label_and_text_log_probs, model_identity, stored_log_probs
from esc_lab.training.trainer import build_data, prepare

log = logging.getLogger(__name__)


def run(cfg: Config) -> dict[str, float]:
    """Train from the base model or from `init_from`; that starting point is also the reference."""
    objective = objective_of(cfg.objective)
    prepare(cfg)
    init_from = Path(cfg.init_from) if cfg.init_from else None
    loaded = load_model(cfg.model, Path(cfg.cache_dir), checkpoint=init_from)
    check_trainable(loaded, cfg.adapter, cfg.model)
    data = build_data(cfg, loaded, preferences=preference_settings(cfg))
    data.setup("fit")
    steps = data.steps
    assert isinstance(steps, PreferenceSteps)
    _report(steps, ("train", "val"))
    if objective.needs_reference:
        identity = model_identity(loaded.model)
        note_reference(cfg, loaded, identity)
        if cfg.objective.reference == "precomputed":
            precompute_reference(cfg, loaded, steps, identity)
    loaded = trainable(cfg, loaded)
    live = (
        LiveReference(loaded.model, loaded.adapter)
        if objective.needs_reference and cfg.objective.reference == "live"
        else None
    )
    optimizer = replace(cfg.optimizer, lr=cfg.optimizer.lr if cfg.objective.peak_lr is None else cfg.objective.peak_lr)
    module = CSOModule(loaded.model, cfg.objective, optimizer, cfg.scheduler, cfg.trainer.gradient_clip, cfg.seed, live)
    return fit(cfg, loaded, data, module)


def preference_settings(cfg: Config) -> PreferenceSettings:
    return PreferenceSettings(
        step_pairs=cfg.data.step_pairs,
        unpaired=objective_of(cfg.objective).single_replies,
        value_margin=cfg.objective.value_margin > 0,
    )


def precompute_reference(cfg: Config, loaded: LoadedModel, steps: PreferenceSteps, identity: dict[str, str]) -> None:
    """Give each split the reference log-probabilities of its replies: those of the model before training."""
    for split in steps.found.values():
        compute = partial(label_and_text_log_probs, loaded.model, split, steps.row_tokens)
        split.reference = stored_log_probs(split, identity, compute, Path(cfg.cache_dir))


def _report(steps: PreferenceSteps, splits: Sequence[str]) -> None:
    for name in splits:
        counts = steps.counted[name]
        log.info(
            "%s: %d pairs at %d turns%s", name, counts.pairs, counts.turns,
            f", {counts.shared_pairs} shared by dialogues of a tree" if counts.shared_pairs else "",
        )  # fmt: skip
        if counts.equal_pairs_dropped:
            log.warning(
                "%s: %d pairs dropped, rejected reply equal to the chosen one", name, counts.equal_pairs_dropped
            )
        if steps.settings.value_margin and counts.unjudged_pairs + counts.inverted_pairs:
            log.warning(
                "%s: %d pairs without search values and %d with the chosen value below the other left out",
                name, counts.unjudged_pairs, counts.inverted_pairs,
            )  # fmt: skip
