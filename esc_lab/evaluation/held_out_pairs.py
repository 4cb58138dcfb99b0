"""Evaluation on held-out preference pairs: which reply is more probable, and which does a trained reward prefer?"""

from __future__ import annotations

import json
import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from peft import PeftModel
from torch import Tensor

from esc_lab.artifacts import READ_ERRORS, file_fingerprint, write_atomic
from esc_lab.config import Config
from esc_lab.config.training import ObjectiveConfig
from esc_lab.errors import UserError
from esc_lab.evaluation.read_table import measure_pair
from esc_lab.metrics.prediction_table import PAIR_MEASURES
from esc_lab.models.checkpoint_files import find_checkpoint
from esc_lab.models.load import LoadedModel, load_model
from esc_lab.prompts import build_layout
from esc_lab.runs.layout import PAIRS, REFERENCE, find_run, read_config
from esc_lab.statistics.intervals import FloatArray
from esc_lab.tokens.encode import IntArray
from esc_lab.training.cso import pair_log_probs, pair_rewards
from esc_lab.training.datamodule import ESCDataModule
from esc_lab.training.objectives import objective_of
from esc_lab.training.preference_split import PreferenceSplit
from esc_lab.training.preference_steps import PreferenceSteps
from esc_lab.training.reference import LiveReference, score_replies, stored_log_probs
from esc_lab.training.reply_log_probs import TokenLogProbs, split_replies, weigh_tokens

log = logging.getLogger(__name__)


def note_reference(cfg: Config, loaded: LoadedModel, identity: dict[str, str]) -> None:
    """Leave in the run directory what the reference model of a training was, for evaluations of its result."""
    note = {
        "identity": identity,
        "dtype": cfg.model.dtype,
        "init_from": str(Path(cfg.init_from).absolute()) if cfg.init_from else None,
        "files": _fingerprints(loaded.adapter or loaded.weights),
    }
    write_atomic(Path(cfg.run_dir) / REFERENCE, json.dumps(note, indent=2))


def preference_metrics(cfg: Config, loaded: LoadedModel, data: ESCDataModule) -> dict[str, float]:
    """What the model makes of the pairs in the evaluated split.

    Returns:
        `preference/pairs`; the shares `preference/accuracy` (of pairs whose chosen reply is the more probable one,
        summed over its tokens), `accuracy_per_token` and `shorter` (see `PAIR_MEASURES`). Of a model that stage `cso`
        trained, also `preference/reward_accuracy` and `preference/margin` of its objective's rewards and, where the
        objective has a reference, `reward_accuracy_per_token` of the log-ratios to it; the reference is the one that it
        was trained with. Nothing where there are no pairs or the prompt names the strategy. pairs.jsonl in the run
        directory has a line for each pair: dialogue, turn, number of the rejected reply, and of chosen and rejected
        reply `log_probs`, `tokens` (label and end of turn included), `rewards` and `log_ratios` (null without).
    """
    if not build_layout(cfg.prompt.eval).chooses_strategy or cfg.prompt.inference != "direct":
        return {}
    name = f"{cfg.evaluate.split} pairs"
    turns, pairs = replace(data.evaluated_turns, reports={}), ObjectiveConfig()
    dialogues = {name: data.splits.get(cfg.evaluate.split, [])}
    split = PreferenceSteps(dialogues, turns, cfg.data, pairs, cfg.seed).encode_split(name)
    if not len(split.comparisons):
        return {}
    policy = score_replies(loaded.model, split, data.pass_tokens)
    first = split.first_reply[split.comparisons[:, 0]]
    chosen, rejected = first + split.comparisons[:, 1], first + split.comparisons[:, 2]
    run = find_run(Path(cfg.checkpoint)) if cfg.checkpoint else None
    rewards = ratios = None
    if run and read_config(run)["stage"] == "cso":
        rewards, ratios = _rewards(cfg, loaded, run, split, (chosen, rejected), policy, data.pass_tokens)
    sides = np.stack([chosen, rejected], axis=1)
    both = None if rewards is None else torch.stack(rewards, dim=1).double().numpy()
    rows = _list_pairs(split, split.sum_replies(policy)[sides], both, None if ratios is None else ratios[sides])
    write_atomic(Path(cfg.run_dir) / PAIRS, "\n".join(map(json.dumps, rows)))
    measures = [measure_pair(row) for row in rows]
    shares = {name: float(np.mean([measure[name] for measure in measures])) for name in PAIR_MEASURES}
    metrics = {"pairs": float(len(rows)), **{name: share for name, share in shares.items() if not math.isnan(share)}}
    if rewards is not None:
        metrics["margin"] = float((rewards[0] - rewards[1]).mean())
    return {f"preference/{key}": value for key, value in metrics.items()}


def _list_pairs(
    split: PreferenceSplit, log_probs: FloatArray, rewards: FloatArray | None, ratios: FloatArray | None
) -> list[dict[str, Any]]:
    """The lines of pairs.jsonl; `log_probs`, `rewards` and `ratios` [pairs, 2] are of chosen and rejected replies."""
    lengths = np.diff(split.first_token)
    rows = []
    for number, (turn, *sides) in enumerate(split.comparisons.tolist()):
        key = split.turns[turn].replies[sides[1]].replies[0].key
        tokens = [int(lengths[split.first_reply[turn] + side]) for side in sides]
        values = {"rewards": rewards, "log_ratios": ratios}
        rows.append(
            {"dialogue": key.dialogue, "turn": key.turn, "reply": key.alternative}
            | {"log_probs": log_probs[number].tolist(), "tokens": tokens}
            | {name: None if of is None else of[number].tolist() for name, of in values.items()}
        )
    return rows


def _rewards(
    cfg: Config,
    loaded: LoadedModel,
    run: Path,
    split: PreferenceSplit,
    pairs: tuple[IntArray, IntArray],
    policy: FloatArray,
    row_tokens: int,
) -> tuple[list[Tensor] | None, FloatArray | None]:
    """Rewards [pairs] of both sides by the objective of a training run, and log-ratios [replies] to its reference.

    None if the reference is gone; no log-ratios of an objective without one.
    """
    settings = OmegaConf.merge(OmegaConf.structured(ObjectiveConfig), read_config(run)["objective"])
    objective: ObjectiveConfig = OmegaConf.to_object(settings)  # type: ignore[assignment]
    reference = None
    if objective_of(objective).needs_reference:
        try:
            reference = _reference(cfg, loaded, run, split, row_tokens)
        except (UserError, *READ_ERRORS) as error:
            log.warning("rewards of held-out pairs left out, their reference is gone: %s", error)
            return None, None

    lengths, labels, chosen, rejected = map(torch.from_numpy, (np.diff(split.first_token), split.label_tokens, *pairs))
    tokens = TokenLogProbs(
        split_replies(torch.from_numpy(policy), lengths),
        weigh_tokens(lengths, labels, objective.strategy_weight),
        None if reference is None else split_replies(torch.from_numpy(reference), lengths),
    )
    rewards = list(pair_rewards(objective, pair_log_probs(objective, tokens, lengths, chosen, rejected)))
    return rewards, None if reference is None else split.sum_replies(policy - reference)


def _reference(cfg: Config, loaded: LoadedModel, run: Path, split: PreferenceSplit, row_tokens: int) -> FloatArray:
    """Log-probabilities [tokens] under the reference of a training run, stored ones if there are any.

    Raises:
        UserError: the model that the training started from has changed or is gone.
    """
    note = json.loads((run / REFERENCE).read_text(encoding="utf-8"))
    init_from = Path(note["init_from"]) if note["init_from"] else None

    def compute() -> FloatArray:
        adapter, weights = find_checkpoint(cfg.model, init_from)
        if _fingerprints(adapter or weights) != note["files"]:
            raise UserError("it has changed since the training that started from it", where=str(init_from))
        if weights or not isinstance(loaded.model, PeftModel):
            model = load_model(cfg.model, Path(cfg.cache_dir), checkpoint=init_from).model
            return score_replies(model, split, row_tokens)
        with LiveReference(loaded.model, adapter)() as model:
            return score_replies(model, split, row_tokens)

    other = {} if note["dtype"] == cfg.model.dtype else {"dtype": cfg.model.dtype}
    return stored_log_probs(split, {**note["identity"], **other}, compute, Path(cfg.cache_dir))


def _fingerprints(directory: Path | None) -> dict[str, str]:
    """Of the weights in an adapter/ or model/ directory."""
    files = sorted(directory.glob("*.safetensors")) if directory else []
    return {file.name: file_fingerprint(file) for file in files}
