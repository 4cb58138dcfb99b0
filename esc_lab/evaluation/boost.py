"""Attention boosted in evaluations (`evaluate.boost`): on which span of a prompt, and in which layers and heads."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from esc_lab.artifacts import READ_ERRORS
from esc_lab.config.evaluate import BoostConfig
from esc_lab.errors import UserError
from esc_lab.evaluation.reply_attention import span_columns
from esc_lab.models.attention_boost import AttentionBoost, BoostedSpan
from esc_lab.models.forward import base_model
from esc_lab.runs.layout import STUDY
from esc_lab.seeds import EVALUATION_SEED, derive_seed
from esc_lab.statistics.intervals import BoolArray, FloatArray
from esc_lab.tokens import TokenSpan
from esc_lab.tokens.encode import IntArray

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PromptBoost:
    """A boost of attention on one kind of span (see `BoostConfig`) of each prompt."""

    attention: AttentionBoost
    span: str
    queries: str

    def locate(
        self, spans: Sequence[TokenSpan], strategy: str | None, prompt_tokens: int, at: tuple[str, int]
    ) -> BoostedSpan:
        """The tokens of a prompt that are boosted.

        Args:
            spans: of the prompt.
            strategy: which the prompt names.
            at: dialogue and turn, which decide where a span of the history lies, in every run alike.

        Raises:
            UserError: the prompt has no such span, or no token of it, or its neutral text ends too early.
        """
        columns, none = span_columns(spans), np.empty(0, dtype=np.int64)
        where = f"dialogue {at[0]}, turn {at[1] + 1}"
        if self.span == "history":
            keys = _draw_history(spans, len(columns.get(("name", strategy), none)), prompt_tokens, at)
        elif self.span.startswith("neutral"):
            kind = "name" if self.span == "neutral" else "instruction"
            keys = columns.get((kind, None), none)
            if 0 < len(keys) < (length := len(columns.get((kind, strategy), none))):
                what = f"evaluate.boost.span={self.span}: from its phrase on the neutral text has {len(keys)} tokens"
                fix = "a longer text 'neutral' in prompt.wording, or another span"
                raise UserError(f"{what}, and the {kind} of {strategy} has {length}", where=where, fix=fix)
        else:
            keys = columns.get((self.span, strategy), none)
        if not len(keys):
            raise UserError(
                f"the prompt has no token of evaluate.boost.span={self.span}", where=where, fix="another span"
            )
        return BoostedSpan(keys, prompt_tokens - 1 if self.queries == "reply" else int(keys.max()) + 1)


def build_boost(settings: BoostConfig, model: Any, seed: int) -> PromptBoost | None:
    """The boost that the settings ask for; None where they ask for none, so that nothing is installed.

    Args:
        seed: of the run, which random heads are drawn with.

    Raises:
        UserError: there is no such layer or head, or the study of heads cannot be read or is of another model.
    """
    if not settings.active:
        return None
    heads = _choose_heads(settings, base_model(model).config.get_text_config(), seed)
    return PromptBoost(AttentionBoost(settings.mode, settings.amount, heads), settings.span, settings.queries)


def check_other_dialogues(settings: BoostConfig, dialogues: Collection[str], *, allow: bool) -> None:
    """Whether the heads were chosen on other dialogues than these, on which what they do would be flattered.

    Args:
        dialogues: ids of those that are evaluated.
        allow: only say so in the log.

    Raises:
        UserError: they were not, or their study cannot be read.
    """
    if not (settings.active and settings.chooses):
        return
    where = f"evaluate.boost.study={settings.study}"
    known = _read_study(Path(settings.study or "")).get("dialogues")
    if known is None:
        log.warning("%s does not say which dialogues it is of: heads are best chosen on others than these", where)
    elif shared := {*dialogues} & {*known}:
        what = f"its heads were chosen on {len(shared)} of the {len(dialogues)} dialogues that attention is boosted in"
        if not allow:
            fix = "choose them on others: experiment=sra_heads evaluate.split=val; or data.overlap=allow"
            raise UserError(f"{what}, such as {min(shared)}", where=where, fix=fix)
        log.warning("%s: %s", where, what)


def _draw_history(spans: Sequence[TokenSpan], length: int, prompt_tokens: int, at: tuple[str, int]) -> IntArray:
    """A run of as many tokens of one message of the history; of fewer where no message has as many."""
    messages = [(span.start, span.end) for span in spans if span.span.kind == "history" and span.end <= prompt_tokens]
    length = min(length, max((end - start for start, end in messages), default=0))
    starts = [first for start, end in messages for first in range(start, end - length + 1)]
    draw = np.random.default_rng(derive_seed(EVALUATION_SEED, "boosted history", *at))
    return int(draw.choice(starts)) + np.arange(length) if length else np.empty(0, dtype=np.int64)


def _choose_heads(settings: BoostConfig, config: Any, seed: int) -> Tensor:
    """Bool [layers, heads]."""
    shape = (config.num_hidden_layers, config.num_attention_heads)
    allowed = np.zeros(shape, dtype=bool)
    layers = _check_numbers(settings.layers, shape[0], "layers")
    heads = _check_numbers(settings.heads, shape[1], "heads")
    allowed[np.ix_(layers, heads)] = True
    if settings.choice == "all":
        return torch.from_numpy(allowed)
    number = [settings.draw] if settings.draw > 1 else []
    luck = np.random.default_rng(derive_seed(seed, "random heads of a boost", *number)).random(shape)
    by = settings.chooses
    score = _read_scores(Path(settings.study or ""), by, shape) if by else luck
    chosen = _take(allowed & ~np.isnan(score), score, settings.count)
    if settings.choice == "random" and by:
        chosen = _draw_beside(chosen, allowed & ~chosen, luck)
    return torch.from_numpy(chosen)


def _take(usable: BoolArray, score: FloatArray, count: int) -> BoolArray:
    """The heads with the highest scores."""
    places = np.flatnonzero(usable)
    if count > len(places):
        what, fix = f"there are {len(places)} heads to choose from", f"at most {len(places)}"
        raise UserError(what, where=f"evaluate.boost.count={count}", fix=fix)
    taken = np.zeros(usable.shape, dtype=bool)
    taken.flat[places[np.argsort(-score.flat[places], kind="stable")[:count]]] = True
    return taken


def _draw_beside(chosen: BoolArray, others: BoolArray, luck: FloatArray) -> BoolArray:
    """As many of the other heads, and as many in each layer; of any layer what a layer has not got."""
    drawn = np.zeros_like(others)
    for layer, count in enumerate(np.minimum(chosen.sum(axis=1), others.sum(axis=1)).tolist()):
        drawn[layer] = _take(others[layer], luck[layer], count)
    left = int(chosen.sum()) - int(drawn.sum())
    if left > (others & ~drawn).sum():
        what = f"beside these there are only {others.sum()} heads to draw random ones from"
        raise UserError(what, where=f"evaluate.boost.count={chosen.sum()}", fix=f"at most {chosen.size // 2}")
    return drawn | _take(others & ~drawn, luck, left)


def _check_numbers(numbers: Sequence[int], count: int, name: str) -> list[int]:
    """The numbers, or all of them."""
    if wrong := [number for number in numbers if not 0 <= number < count]:
        where = f"evaluate.boost.{name}={list(numbers)}"
        raise UserError(f"the model has no {name} {wrong}", where=where, fix=f"use 0 to {count - 1}")
    return list(numbers) or list(range(count))


def _read_study(run: Path) -> dict[str, Any]:
    """`study.json` of a run, its scores as arrays."""
    path = run / STUDY
    try:
        study: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        scores = {name: study.get(name) for name in ("relation", "sra")}
        study |= {name: np.array(each, dtype=np.float64) for name, each in scores.items() if each is not None}
    except READ_ERRORS as error:
        fix = "name a run of experiment=sra_heads"
        raise UserError(f"no study of heads: {str(error).splitlines()[0]}", where=str(path), fix=fix) from error
    return study


def _read_scores(run: Path, choice: str, shape: tuple[int, int]) -> FloatArray:
    """How heads rank in a study of heads, [layers, heads]."""
    where, study = f"evaluate.boost.study={run}", _read_study(run)
    values: FloatArray | None = study.get({"adherence": "relation", "attention": "sra"}[choice])
    if values is None:
        told = "nobody judged adherence there" if "sra" in study else "it is no study of heads"
        fix = "evaluate.boost.choice=attention" if "sra" in study else "name a run of experiment=sra_heads"
        raise UserError(told, where=where, fix=fix)
    if values.shape != shape:
        sizes = " against ".join(" x ".join(map(str, size)) for size in (values.shape, shape))
        raise UserError(f"it is of another model: layers x heads {sizes}", where=where, fix="study this model")
    if not math.isfinite(np.nanmax(values, initial=-math.inf)):
        raise UserError("no head has a correlation with adherence", where=where, fix="evaluate.boost.choice=attention")
    return values
