"""Stage `planted_preference`: does CSO learn what its pairs say? Trainings on preferences with a known answer."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from esc_lab.artifacts import write_atomic
from esc_lab.config import Config
from esc_lab.data.corpora import read_dialogues, sample_path, write_dialogues
from esc_lab.data.dialogue import Dialogue
from esc_lab.data.planted import (
    ORDERS,
    FloatArray,
    MessagePool,
    collect_messages,
    draw_dialogues,
    draw_utilities,
)
from esc_lab.data.strategies import build_inventory
from esc_lab.models.load import load_model
from esc_lab.models.log_probs import label_log_probs
from esc_lab.runs.layout import DIALOGUES, SLOPES
from esc_lab.stages.run_stage import run_substage
from esc_lab.statistics.utility_slope import Slope, fit_pairs_slope, fit_slope
from esc_lab.terminal import print_table
from esc_lab.tokens import encode_labels
from esc_lab.training.steps import TurnEncoder
from esc_lab.training.trainer import prepare

log = logging.getLogger(__name__)


def run(cfg: Config) -> dict[str, float]:
    """Train on each order of the pairs with each seed; slopes.json and the runs of the trainings are left behind."""
    prepare(cfg)
    root, inventory = Path(cfg.run_dir), build_inventory(cfg.inventory)
    training, held_out = _split_messages()
    slopes: dict[str, list[Slope]] = {order: [] for order in ORDERS}
    of_pairs: dict[str, list[float]] = {order: [] for order in ORDERS}
    records = []
    for seed in range(cfg.seed, cfg.seed + cfg.planted.seeds):
        utilities = draw_utilities(inventory, seed)
        turns = draw_dialogues(inventory, utilities, cfg.planted.held_out, held_out, seed, "shuffled")
        before = _label_log_probs(cfg, Path(cfg.init_from) if cfg.init_from else None, turns)
        for order in ORDERS:
            directory = root / f"{order}_{seed}"
            dialogues = draw_dialogues(inventory, utilities, cfg.planted.pairs, training, seed, order)
            run_substage(_training(cfg, dialogues, seed, directory), directory)
            log_ratios = _label_log_probs(cfg, directory, turns) - before
            slope, pairs = fit_slope(log_ratios, utilities), fit_pairs_slope(dialogues, inventory, utilities)
            slopes[order].append(slope)
            of_pairs[order].append(pairs)
            learned = (log_ratios - log_ratios.mean(axis=1, keepdims=True)).mean(axis=0)
            strategies = {
                name: {"utility": float(utility), "log_ratio": float(value)}
                for name, utility, value in zip(inventory.names, utilities, learned, strict=True)
            }
            records.append({"order": order, "seed": seed, **asdict(slope), "pairs": pairs, "strategies": strategies})
            log.info("%s, seed %d: slope %.3f (standard error %.3f)", order, seed, slope.slope, slope.error)
    write_atomic(root / SLOPES, json.dumps(records, indent=1))
    metrics = _metrics(slopes, of_pairs, cfg.objective.beta)
    _print(slopes, metrics, cfg)
    return metrics


def _split_messages() -> tuple[MessagePool, MessagePool]:
    """Messages for the training, and those of other dialogues for the held-out turns."""
    dialogues = read_dialogues(sample_path())
    cut = 2 * len(dialogues) // 3
    return collect_messages(dialogues[:cut]), collect_messages(dialogues[cut:])


def _training(cfg: Config, dialogues: Sequence[Dialogue], seed: int, directory: Path) -> Config:
    """A run of stage `cso` on the dialogues, all of them for training."""
    path = directory / DIALOGUES
    directory.mkdir(parents=True, exist_ok=True)
    write_dialogues(dialogues, path, "jsonl")
    data = replace(
        cfg.data, name=directory.name, path=str(path), format="jsonl", split="proportion",
        proportions={"train": 1.0, "val": 0.0, "test": 0.0}, negatives="recorded", limit={}, seed_fraction=1.0,
    )  # fmt: skip
    return replace(cfg, stage="cso", seed=seed, data=data)


def _label_log_probs(cfg: Config, checkpoint: Path | None, dialogues: Sequence[Dialogue]) -> FloatArray:
    """Log-probability [turns, K] of each label at the supporter turns, under the base model or a checkpoint of it."""
    loaded = load_model(cfg.model, Path(cfg.cache_dir), checkpoint=checkpoint)
    row_tokens = min(cfg.data.row_tokens, loaded.context_tokens)
    turns = TurnEncoder(loaded.encoder, build_inventory(cfg.inventory), cfg.prompt.train, row_tokens)
    groups = [turns.examples(dialogue) for dialogue in dialogues]
    labels = encode_labels(turns.encoder, turns.inventory, groups[0][0].prompt)
    encoded = replace(turns, row_tokens=row_tokens - sum(map(len, labels))).encode("held-out turns", groups)
    prompts = [
        sequence.input_ids[: reply.start] for group in encoded for sequence in group for reply in sequence.replies
    ]
    return label_log_probs(loaded.model.eval(), prompts, labels, row_tokens)


def _metrics(
    slopes: Mapping[str, Sequence[Slope]], of_pairs: Mapping[str, Sequence[float]], beta: float
) -> dict[str, float]:
    """Means and deviations over seeds; at the optimum of the training `slope_times_beta` would be `pairs_slope`."""
    metrics = {}
    for order, of_order in slopes.items():
        values = np.array([each.slope for each in of_order])
        metrics[f"{order}/slope"] = float(values.mean())
        metrics[f"{order}/slope_deviation"] = float(values.std(ddof=1)) if len(values) > 1 else 0.0
        metrics[f"{order}/slope_times_beta"] = float(values.mean() * beta)
        metrics[f"{order}/pairs_slope"] = float(np.mean(of_pairs[order]))
        metrics[f"{order}/correlation"] = float(np.mean([each.correlation for each in of_order]))
    return metrics


NOTES = (
    "A slope says how much more the policy prefers a strategy than the reference does (difference of log-ratios) for "
    "each unit of planted utility; ± its standard error. Mean: over seeds; x beta: times beta, which is comparable "
    "with the slope in the pairs that it was trained on. Correlation: of log-ratios with utilities.",
)


def _print(slopes: Mapping[str, Sequence[Slope]], metrics: Mapping[str, float], cfg: Config) -> None:
    settings = cfg.planted
    names = {"slope": "mean", "slope_times_beta": "x beta", "pairs_slope": "in the pairs", "correlation": "correlation"}
    print_table(
        f"{cfg.model.name}: slope of log-ratios to the reference over planted utilities",
        ["pairs", *(f"seed {cfg.seed + number}" for number in range(settings.seeds)), *names.values()],
        [
            [
                order,
                *(f"{each.slope:+.2f} ± {each.error:.2f}" for each in of_order),
                *(f"{metrics[f'{order}/{name}']:+.2f}" for name in names),
            ]
            for order, of_order in slopes.items()
        ],
        notes=NOTES,
        caption=f"{settings.pairs} pairs, {settings.held_out} held-out turns, beta {cfg.objective.beta:g}; "
        "the optimum on these pairs has slope x beta as in the pairs",
    )
