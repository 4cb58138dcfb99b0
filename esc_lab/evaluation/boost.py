"""Attention boosted in evaluations (`evaluate.boost`): on which span of a prompt, and in which layers and heads."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
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
from esc_lab.statistics.intervals import FloatArray
from esc_lab.tokens import TokenSpan
from esc_lab.tokens.encode import IntArray


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
            UserError: the prompt has no such span, or no token of it.
        """
        columns, none = span_columns(spans), np.empty(0, dtype=np.int64)
        if self.span == "history":
            keys = _draw_history(spans, len(columns.get(("name", strategy), none)), prompt_tokens, at)
        elif self.span.startswith("neutral"):
            keys = columns.get(("name" if self.span == "neutral" else "instruction", None), none)
        else:
            keys = columns.get((self.span, strategy), none)
        if not len(keys):
            where = f"dialogue {at[0]}, turn {at[1] + 1}"
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
    if settings.choice == "random":
        score = np.random.default_rng(derive_seed(seed, "random heads of a boost")).random(shape)
    else:
        score = _read_scores(Path(settings.study or ""), settings.choice, shape)
    usable = np.flatnonzero(allowed & ~np.isnan(score))
    if settings.count > len(usable):
        what, fix = f"there are {len(usable)} heads to choose from", f"at most {len(usable)}"
        raise UserError(what, where=f"evaluate.boost.count={settings.count}", fix=fix)
    chosen = np.zeros(shape, dtype=bool)
    chosen.flat[usable[np.argsort(-score.flat[usable], kind="stable")[: settings.count]]] = True
    return torch.from_numpy(chosen)


def _check_numbers(numbers: Sequence[int], count: int, name: str) -> list[int]:
    """The numbers, or all of them."""
    if wrong := [number for number in numbers if not 0 <= number < count]:
        where = f"evaluate.boost.{name}={list(numbers)}"
        raise UserError(f"the model has no {name} {wrong}", where=where, fix=f"use 0 to {count - 1}")
    return list(numbers) or list(range(count))


def _read_scores(run: Path, choice: str, shape: tuple[int, int]) -> FloatArray:
    """How heads rank in a study of heads, [layers, heads]."""
    path, name = run / STUDY, {"adherence": "relation", "attention": "sra"}[choice]
    where = f"evaluate.boost.study={run}"
    try:
        study = json.loads(path.read_text(encoding="utf-8"))
        scores = study.get(name)
        values = None if scores is None else np.array(scores, dtype=np.float64)
    except READ_ERRORS as error:
        fix = "name a run of experiment=sra_heads"
        raise UserError(f"no study of heads: {str(error).splitlines()[0]}", where=str(path), fix=fix) from error
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
