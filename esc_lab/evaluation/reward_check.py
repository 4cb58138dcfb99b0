"""How far a reward model tells given replies from foils in dialogues that it has not seen, and what would explain it.

For each kind of foil: its AUC with an interval over dialogues and that of words alone (`esc_lab.judge_check`);
what the length of a reply and its place in its dialogue reach by themselves; its AUC where both replies are about as
long; how well its probabilities are calibrated; and by strategy the share of pairs that it orders rightly.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any, NamedTuple

import numpy as np

from esc_lab.artifacts import replace_nan
from esc_lab.config.reward import RewardConfig
from esc_lab.data.dialogue import Dialogue, Reply, Turn
from esc_lab.judge_check.cases import FOREIGN, KINDS, OWN, RATED, REJECTED, JudgeCase, draw_cases
from esc_lab.judge_check.check import JudgeCheck, check_kinds, relate_to_survey
from esc_lab.scorers.comparisons import ComparisonPool
from esc_lab.scorers.reward_model import Calibration
from esc_lab.seeds import derive_seed
from esc_lab.statistics.auc import measure_auc
from esc_lab.statistics.bootstrap import ClusterSample
from esc_lab.statistics.calibration import calibration_error, fit_temperature
from esc_lab.statistics.intervals import FloatArray
from esc_lab.terminal import print_table

SIMILAR = 1.25  # times as many words at most
# What the columns of the table of controls are.
CONTROL_NOTES = (
    "given replies against: which foils, that should be found worse.",
    "length alone, place alone: the AUC of the number of words, and of how late in its dialogue it is.",
    f"equal length: the AUC of the scores where neither has over {SIMILAR:g} times the words of the other.",
    "ECE: how far the probability that it gives to a pair is from how often it is right.",
)
STRATEGY_NOTES = (
    "Below each kind of foil the share of pairs in which the given reply has the higher score (a tie: half), and how "
    "many pairs.",
)
_NAMES = {FOREIGN: "other_dialogue"}  # where a kind of the gate has another name in `reward.kinds`

Conversation = Sequence[Turn]
Scores = Callable[[Sequence[Conversation]], FloatArray]


class ScoredCase(NamedTuple):
    """A case with the scores of the given reply and of the foil."""

    case: JudgeCase
    given: float
    foil: float


@dataclass(frozen=True)
class Controls:
    """What else tells given replies from foils of a kind.

    Attributes:
        length, place: AUC of the number of words, and of how late in its dialogue a reply is given.
        similar: AUC of the scores where both replies have about as many words, and in how many contexts that is so.
        error: expected calibration error of the probability that the given reply is the better one.
    """

    length: float
    place: float
    similar: float
    similar_contexts: int
    error: float


@dataclass(frozen=True)
class RewardCheck:
    """The check of a reward model on a split.

    Attributes:
        gate: what the gate of judges makes of it.
        controls: by kind.
        strategies: a row for each strategy of given replies: kind -> share of pairs ordered rightly and their number.
    """

    gate: JudgeCheck
    controls: Mapping[str, Controls]
    strategies: Mapping[str, Mapping[str, tuple[float, int]]]

    def metrics(self) -> dict[str, float]:
        """Flat, by the names of `reward.kinds`, without what is not known."""
        metrics = {"believed": float(self.gate.believed)}
        for kind, check in self.gate.kinds.items():
            control = self.controls[kind]
            values = {
                "auc": check.value.value, "auc_low": check.value.low, "auc_high": check.value.high,
                "floor": check.floor.value, "above": check.above.value, "above_low": check.above.low,
                "contexts": float(check.contexts), "length_auc": control.length, "place_auc": control.place,
                "similar_length_auc": control.similar, "similar_length_contexts": float(control.similar_contexts),
                "ece": control.error,
            }  # fmt: skip
            metrics |= {f"{_NAMES.get(kind, kind)}/{name}": value for name, value in values.items()}
        metrics |= {f"survey/{name}": found.value for name, found in self.gate.outcomes.items()}
        return {name: value for name, value in metrics.items() if not math.isnan(value)}

    def record(self) -> dict[str, Any]:
        """In JSON types."""
        controls = {kind: vars(control) for kind, control in self.controls.items()}
        strategies = {
            strategy: {kind: {"share": share, "pairs": pairs} for kind, (share, pairs) in row.items()}
            for strategy, row in self.strategies.items()
        }
        return {"gate": self.gate.record(), "controls": replace_nan(controls), "strategies": strategies}

    def show(self, title: str) -> None:
        """Print three tables: by kind of foil, what else tells replies from them, and by strategy."""
        print_table(title, *self.gate.table(), notes=self.gate.notes(), meanings=self.gate.column_notes())
        print_table(
            "What else tells given replies from foils",
            ["given replies against", "length alone", "place alone", "equal length", "ECE"],
            [
                [KINDS[kind], f"{of.length:.2f}", f"{of.place:.2f}", f"{of.similar:.2f}", f"{of.error:.3f}"]
                for kind, of in self.controls.items()
            ],
            meanings=CONTROL_NOTES,
        )
        kinds = [*self.controls]
        print_table(
            "Pairs ordered rightly, by strategy of the given reply",
            ["strategy", *(KINDS[kind] for kind in kinds)],
            [
                [strategy, *(f"{row[kind][0]:.2f} of {row[kind][1]}" if kind in row else "-" for kind in kinds)]
                for strategy, row in self.strategies.items()
            ],
            meanings=STRATEGY_NOTES,
        )


def score_cases(
    scores: Scores,
    dialogues: Sequence[Dialogue],
    count: int,
    seed: int,
    own_replies: Sequence[Dialogue] | None = None,
    rated: Sequence[JudgeCase] = (),
) -> dict[str, list[ScoredCase]]:
    """Score given replies and foils of each kind that the dialogues have.

    Args:
        scores: of the last message of each conversation, finite.
        count: contexts of each kind at most.
        own_replies: the same dialogues with what a model wrote as their rejected replies, for the kind `own_reply`.
        rated: cases of the kind `rated`.

    Raises:
        UserError: see `draw_cases`.
    """
    cases = draw_cases(dialogues, count, seed)
    if own_replies and (written := draw_cases(own_replies, count, seed).get(REJECTED)):
        cases[OWN] = written
    if rated:
        cases[RATED] = [*rated]
    conversations = list(dict.fromkeys(talk for drawn in cases.values() for case in drawn for talk in case[:2]))
    value = dict(zip(conversations, scores(conversations).tolist(), strict=True))
    return {
        kind: [ScoredCase(case, value[case.given], value[case.foil]) for case in drawn] for kind, drawn in cases.items()
    }


def draw_rated(dialogues: Sequence[Dialogue], count: int, seed: int, tie_margin: float) -> list[JudgeCase]:
    """Pairs of replies to one history with different values, the better one first: one of a turn, at most `count`.

    Args:
        count: they are as evenly of all trees as can be.
        tie_margin: values that differ by no more are equal.
    """
    pool = ComparisonPool(dialogues, RewardConfig(kinds={RATED: 1.0}, foils=1, tie_margin=tie_margin))
    by_tree: dict[str, list[JudgeCase]] = {}
    for number in np.random.default_rng(derive_seed(seed, RATED)).permutation(len(dialogues)):
        dialogue = dialogues[number]
        for each in (each for each in pool.draw(number, seed) if not each.tie):
            history = [Turn(turn.speaker, turn.reply) for turn in dialogue.turns[: each.turn]]
            better, worse = ((*history, Turn("supporter", reply)) for reply in (each.better, each.worse))
            by_tree.setdefault(dialogue.tree_id, []).append(JudgeCase(better, worse, dialogue.tree_id))
    return [case for row in zip_longest(*by_tree.values()) for case in row if case][:count]


def score_strategies(scores: Scores, cases: Sequence[JudgeCase]) -> list[ScoredCase]:
    """The cases with the scores of their replies' strategies alone."""
    talks = [[(*talk[:-1], replace(talk[-1], reply=talk[-1].reply.without_words())) for talk in case[:2]]
             for case in cases]  # fmt: skip
    values = scores([talk for pair in talks for talk in pair]).reshape(-1, 2).tolist()
    return [ScoredCase(case, given, foil) for case, (given, foil) in zip(cases, values, strict=True)]


def center_strategies(scores: Scores, dialogues: Sequence[Dialogue], names: Sequence[str]) -> dict[str, float]:
    """The mean score of each strategy alone over all decisions of the dialogues."""
    talks = [
        (*dialogue.turns[:turn], Turn("supporter", Reply("", (name,))))
        for dialogue in dialogues for turn in dialogue.decisions() for name in names
    ]  # fmt: skip
    return dict(zip(names, scores(talks).reshape(-1, len(names)).mean(axis=0).tolist(), strict=True))


def calibrate(cases: Mapping[str, Sequence[ScoredCase]], shares: Mapping[str, float]) -> Calibration:
    """Temperature and center from the scores of validation cases; the center is between given replies and foils.

    Args:
        shares: of the kinds that it was trained on; others have no say, unless there are no cases of these.
    """
    names = {name for name, share in shares.items() if share > 0}
    names |= {REJECTED} if RATED in names - cases.keys() else set()  # what stands nearest to values that there are not
    own = [kind for kind in cases if _NAMES.get(kind, kind) in names]
    drawn = [case for kind in own or cases for case in cases[kind]]
    given, foil = np.array([[case.given, case.foil] for case in drawn], dtype=np.float64).reshape(-1, 2).T
    if not len(given):
        return Calibration()
    return Calibration(fit_temperature(given - foil), float((given.mean() + foil.mean()) / 2))


def check_reward(cases: Mapping[str, Sequence[ScoredCase]], dialogues: Sequence[Dialogue], seed: int) -> RewardCheck:
    """The check, from calibrated scores of cases of these dialogues."""
    by_tree: dict[str, dict[Conversation, float]] = defaultdict(dict)
    for kind, drawn in cases.items():
        for scored in drawn if kind != RATED else ():  # nobody gave the better one
            by_tree[scored.case.tree_id][scored.case.given] = scored.given
    survey = relate_to_survey({tree: [*values.values()] for tree, values in by_tree.items()}, dialogues, seed)
    answers = {kind: [(each.case, each.given, each.foil) for each in drawn] for kind, drawn in cases.items()}
    kinds = check_kinds(answers, measure_auc, dialogues)
    places = _places(dialogues)
    return RewardCheck(
        JudgeCheck("rubric", kinds, {}, *survey),
        {kind: _controls(cases[kind], places) for kind in kinds},
        _by_strategy(cases),
    )


def _controls(cases: Sequence[ScoredCase], places: Mapping[str, float]) -> Controls:
    words = np.array([[len(talk[-1].reply.text.split()) for talk in scored.case[:2]] for scored in cases], np.float64)
    late = np.array(
        [[places.get(talk[-1].reply.text, places.get(case.given[-1].reply.text, 0.0)) for talk in case[:2]]
         for case, _, _ in cases], np.float64,
    )  # fmt: skip
    scores = np.array([scored[1:] for scored in cases], np.float64)
    similar = (words.max(axis=1) <= SIMILAR * words.min(axis=1)).nonzero()[0]
    trees = [scored.case.tree_id for scored in cases]
    return Controls(
        _auc(words, trees),
        _auc(late, trees),
        _auc(scores[similar], [trees[number] for number in similar]),
        len(similar),
        calibration_error(scores[:, 0] - scores[:, 1]),
    )


def _auc(scores: FloatArray, trees: Sequence[str]) -> float:
    """AUC of scores [n, 2] of given reply and foil; nan without any."""
    return float(measure_auc(scores[:, 0], scores[:, 1], ClusterSample(trees, 0, 0))[0]) if len(scores) else math.nan


def _places(dialogues: Sequence[Dialogue]) -> dict[str, float]:
    """How late in its dialogue, from 0 to 1, a reply of these words is given, on average."""
    places: dict[str, list[float]] = defaultdict(list)
    for dialogue in dialogues:
        for turn in dialogue.decisions():
            for reply in (dialogue.turns[turn].reply, *dialogue.turns[turn].rejected):
                places[reply.text].append(turn / len(dialogue.turns))
    return {text: float(np.mean(found)) for text, found in places.items()}


def _by_strategy(cases: Mapping[str, Sequence[ScoredCase]]) -> dict[str, dict[str, tuple[float, int]]]:
    right: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for kind, drawn in cases.items():
        for scored in drawn:
            for strategy in scored.case.given[-1].reply.strategies[:1]:
                right[strategy][kind].append(float(np.heaviside(scored.given - scored.foil, 0.5)))
    return {
        strategy: {kind: (float(np.mean(values)), len(values)) for kind, values in row.items()}
        for strategy, row in sorted(right.items())
    }
