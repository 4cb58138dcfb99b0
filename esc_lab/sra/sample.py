"""Replies with the attention that they paid to their strategy, as a sample of dialogues."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from esc_lab.artifacts import READ_ERRORS
from esc_lab.errors import UserError
from esc_lab.metrics.attention import span_measures
from esc_lab.metrics.predictions import Prediction, read_predictions
from esc_lab.runs.layout import PREDICTIONS
from esc_lab.statistics.bootstrap import ClusterSample
from esc_lab.statistics.intervals import FloatArray, IntArray

Measure = Literal["sra", "log_sra", "sham_net", "log_relative"]
MEASURES: tuple[Measure, ...] = ("sra", "log_sra", "sham_net", "log_relative")


@dataclass(frozen=True)
class MeasuredReply:
    """A reply with the attention that it paid to its strategy.

    Attributes:
        run: what it is compared by: a template, a checkpoint, a length of history.
        turn: number of turns before the reply.
        strategy: the one that it was to follow.
        sra: attention per token of the strategy span, above 0.
        control: the same of a neutral span, above 0; nan if there is none.
        relative: sra times the number of visible keys, above 0; 1 is uniform attention.
        adheres: whether it follows the strategy; None if nobody judged it.
        sample: its number among several replies to one prompt.
        phrase, place: the neutral phrase of its prompt, and whether that stands before or after the strategy; empty
            where there is none or it is not known.

    Raises:
        ValueError: an attention is zero or negative, or sra or relative is nan: they have no logarithm.
    """

    run: str
    dialogue: str
    turn: int
    strategy: str
    sra: float
    control: float
    relative: float
    adheres: bool | None
    sample: int = 0
    phrase: str = ""
    place: str = ""

    def __post_init__(self) -> None:
        if not (self.sra > 0 and self.relative > 0) or self.control <= 0:
            raise ValueError(
                f"attention of dialogue {self.dialogue}, turn {self.turn} in {self.run} must be above 0: "
                f"sra {self.sra}, control {self.control}, relative {self.relative}"
            )


class ReplySample(ClusterSample):
    """Measured replies as columns; whole dialogues are drawn, in every run alike.

    Args:
        replies: one or more.
        draws, seed: of the bootstrap.

    Attributes:
        runs: labels of the runs, in order of first appearance.
        run: [n], index into `runs`.
        values: see `measure_columns`.

    Raises:
        ValueError: there are no replies.
    """

    def __init__(self, replies: Sequence[MeasuredReply], draws: int = 1000, seed: int = 0) -> None:
        if not replies:
            raise ValueError("there are no replies to analyse")
        super().__init__([reply.dialogue for reply in replies], draws, seed)
        self.replies, self.draws, self.seed = replies, draws, seed
        self.runs, self.run = number_labels([reply.run for reply in replies])
        self.values = measure_columns(replies)


def read_measured_replies(directory: Path, run: str, measure: str) -> list[MeasuredReply]:
    """The replies of an evaluation that SRA was measured on.

    Args:
        run: what they are compared by.
        measure: definition and span, e.g. `paper/name`.

    Raises:
        UserError: there are none, or the predictions cannot be read.
    """
    replies = []
    for number, prediction in enumerate(read_predictions(directory / PREDICTIONS), start=1):
        if prediction.sra:
            try:
                replies.append(_measured_reply(prediction, run, prediction.sra[measure]))
            except READ_ERRORS as error:
                where, what = f"{directory / PREDICTIONS}:{number}", f"{type(error).__name__} {error}"
                raise UserError(f"not a measured reply: {what}", where=where, fix="evaluate the run again") from error
    if not replies:
        fix = "see sra/skipped_... in its metrics.json; raise evaluate.generation.decisions"
        raise UserError("no reply could be measured", where=str(directory), fix=fix)
    return replies


def _measured_reply(prediction: Prediction, run: str, measured: Mapping[str, float]) -> MeasuredReply:
    neutral = prediction.neutral or {"phrase": "", "place": ""}
    return MeasuredReply(
        run=run, dialogue=prediction.dialogue, turn=prediction.turn, strategy=str(prediction.followed),
        **measured,
        adheres=prediction.adheres, sample=prediction.sample, phrase=neutral["phrase"], place=neutral["place"],
    )  # fmt: skip


def measure_columns(replies: Sequence[MeasuredReply]) -> dict[str, FloatArray]:
    """Each measure, and `adherence` (0 or 1), as [n]; nan where there is no control or no judgement."""
    sra, control, relative = np.array([(reply.sra, reply.control, reply.relative) for reply in replies]).T
    adherence = np.array([math.nan if reply.adheres is None else float(reply.adheres) for reply in replies])
    return {**span_measures(sra, control, relative), "adherence": adherence}


def number_labels(labels: Sequence[str]) -> tuple[list[str], IntArray]:
    """The distinct labels, in order of first appearance, and the index [n] of each label among them."""
    place = {label: number for number, label in enumerate(dict.fromkeys(labels))}
    return list(place), np.array([place[label] for label in labels], dtype=np.intp)
