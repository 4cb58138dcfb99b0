"""Predictions of an evaluation as arrays: what every metric is computed from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from esc_lab.statistics.intervals import BoolArray as BoolArray
from esc_lab.statistics.intervals import FloatArray as FloatArray
from esc_lab.statistics.intervals import IntArray as IntArray

Key: TypeAlias = tuple[str, int]  # dialogue id, turn
Kind: TypeAlias = tuple[str, str]  # what its rows are, and what they belong to

UNPARSABLE, NOT_ASKED = -1, -2
NO_GOLD = -1
# What is said of a preference pair: 1 where the chosen reply is the more probable one, per token too; where it is the
# shorter one, 0.5 of equal lengths; where training raised it more, by the objective's reward and per token.
PAIR_MEASURES = ("accuracy", "accuracy_per_token", "shorter", "reward_accuracy", "reward_accuracy_per_token")
# How replies were drawn, in metrics.json under generation/.
SAMPLING = ("temperature", "top_p", "max_new_tokens", "samples", "no_repeat")


@dataclass(frozen=True)
class TestSet:
    """The decisions of an evaluation, sorted by dialogue and turn.

    Attributes:
        identity: hash of the decisions' dialogue ids, turns and gold strategies.
        strategies: names of the inventory; their order gives the class indices.
        keys: dialogue id and turn of each decision.
        gold: bool [decisions, strategies], all that are right.
        first: [decisions], the gold strategy that counts where the prediction is none of them; NO_GOLD where the corpus
            has none, which evaluations do whose prompts name the strategy.
        cluster: [decisions], which tree the dialogue is from. Dialogues of one search tree share their beginnings, so
            they are drawn together; in other corpora each dialogue is a tree of its own.
        clusters, dialogues: number of each.
        turn: [decisions], turns before the reply.
        problem, emotion: [decisions], as the corpus names them.
        kind: what it consists of. Of whole talks (see `esc_lab.evaluation.arena.read_talks`) a talk takes the place of
            a decision, named by card and number, and its card that of a dialogue.
    """

    __test__ = False  # not a test, whatever its name begins with

    identity: str
    strategies: tuple[str, ...]
    keys: tuple[Key, ...]
    gold: BoolArray
    first: IntArray
    cluster: IntArray
    clusters: int
    dialogues: int
    turn: IntArray
    problem: npt.NDArray[np.str_]
    emotion: npt.NDArray[np.str_]
    kind: Kind = ("decisions", "dialogues")


@dataclass(frozen=True)
class PredictionTable:
    """What an evaluation measured, a row for each decision, prompt and sample.

    Attributes:
        test: the decisions.
        decision: [rows], which decision.
        sample: [rows], number of the reply among those to its prompt.
        prompted: [rows], the strategy that the prompt names; NOT_ASKED where the model chooses.
        chosen: [rows], the most probable strategy; NOT_ASKED where the model has no choice.
        written: [rows], the strategy of the generated reply; UNPARSABLE if it names none, NOT_ASKED without a reply or
            where the prompt names the strategy.
        distribution: [rows, strategies], probability of each strategy; nan where the model has no choice.
        values: [rows] each, nan where it was not measured: `log_prob` and `tokens` of the gold reply, `label_mass`,
            `adheres`, `cut_off`, `copied`, `own_words` (whether it adheres and copies no more than `MAX_COPIED`),
            `control` and what `span_measures` gives, `log_sra_` by each definition, `followed`, the number of the
            strategy that the reply was to follow, and `phrase`, that of the neutral phrase in its prompt; of a reply
            to the gold strategy what BLEU is summed from, `match_1` to `match_4`, `bleu_tokens` and
            `reference_tokens`, and, if texts were read, `reply_length` and each metric of single replies by its name;
            and then `repetition` of every generated reply.
        words: [2, tokens], the words of the replies to the gold strategy, as numbers, and the row of each.
        pairs: [1 + measures, pairs], cluster of each preference pair, and `PAIR_MEASURES`; nan where not known.
        sampling: how replies were drawn: what `SAMPLING` names, as far as it is known, `no_repeat` where it is not 0;
            empty without generated replies.
        unmeasured: why there is no attention, with the number of rows.
    """

    test: TestSet
    decision: IntArray
    sample: IntArray
    prompted: IntArray
    chosen: IntArray
    written: IntArray
    distribution: FloatArray
    values: Mapping[str, FloatArray]
    words: npt.NDArray[np.int32]
    pairs: FloatArray
    sampling: Mapping[str, float]
    unmeasured: Mapping[str, int]

    def column(self, name: str) -> FloatArray:
        """One of `values` [rows]; all nan if it was not read."""
        return self.values.get(name, np.full(len(self.decision), np.nan))

    def place(self, values: Mapping[Key, float]) -> FloatArray:
        """Values of decisions as a column [rows]: each in the first row of its decision, nan elsewhere."""
        column = np.full(len(self.decision), np.nan)
        decisions, first = np.unique(self.decision, return_index=True)
        column[first] = [values.get(self.test.keys[decision], np.nan) for decision in decisions]
        return column

    def sum_by_cluster(self, keep: BoolArray, *values: FloatArray) -> FloatArray:
        """Sums [k, clusters] of k arrays [kept rows] over the rows that are kept [rows]."""
        cluster = self.test.cluster[self.decision[keep]]
        return np.stack([np.bincount(cluster, value, minlength=self.test.clusters) for value in values])
