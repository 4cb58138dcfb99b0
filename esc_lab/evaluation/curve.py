"""What an evaluation measures while it is under way: curves of W&B over the decisions that are done.

The last point of a curve is the result itself; those before it are of the decisions so far, in the order of the data;
of several processes, of those of the first one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from pytorch_lightning.callbacks import Callback

from esc_lab.evaluation.module import EvaluationModule
from esc_lab.evaluation.prompted_replies import PromptedReply
from esc_lab.metrics.prediction_table import FloatArray
from esc_lab.metrics.predictions import Prediction
from esc_lab.metrics.strategy_choice import CHOICES, accuracy, bias, count_margins, macro_f1
from esc_lab.scorers.classifier import StrategyClassifier, choose_strategies
from esc_lab.tracking.run import CURVE_EVERY_S, current_run, log_curve

_JUDGED = 16  # replies that the classifier judges for a point, of those that are new
_PATIENCE = 20.0  # a point comes after so many times as long as the one before it took


class ChoiceSoFar:
    """Q, B and accuracy of the predictions that were added, as `summarize` has them of all.

    Args:
        strategies: names of the inventory.
    """

    def __init__(self, strategies: Sequence[str]) -> None:
        self._numbers = {name: number for number, name in enumerate(strategies)}
        size = len(strategies)
        self._counts: dict[str, FloatArray] = {group: np.zeros((size + 1, size)) for group in CHOICES}

    def add(self, prediction: Prediction) -> None:
        """Count what a prediction chooses by its probabilities, and what it writes where the model has the choice."""
        written = prediction.reply is not None and prediction.prompted is None
        if prediction.chosen is not None:
            self._add("strategy", prediction.chosen, prediction.gold)
        if written:
            self._add("generated", prediction.strategy, prediction.gold)

    def _add(self, group: str, name: str | None, gold: Sequence[str]) -> None:
        right = gold[0] if name is None or name not in gold else name  # as in `count_choices`
        row = -1 if name is None else self._numbers[name]
        self._counts[group][row, self._numbers[right]] += 1

    def measure(self) -> dict[str, float]:
        """`strategy/Q`, `generated/accuracy`, ...: those that there are."""
        found: dict[str, float] = {}
        for group, counts in self._counts.items():
            margins = count_margins(counts)
            values = {"Q": macro_f1(margins), "B": bias(counts[:-1]), "accuracy": accuracy(margins)}
            found |= {f"{group}/{name}": float(value) for name, value in values.items() if counts.any()}
        return {name: value for name, value in found.items() if math.isfinite(value)}


class EvaluationCurve(Callback):
    """Logs a point now and then while a model that is loaded here is evaluated; does nothing where no run is logged.

    Args:
        strategies: names of the inventory.
        classifier: judges some of the new replies for each point; at the end all are judged.
    """

    def __init__(self, strategies: Sequence[str], classifier: StrategyClassifier | None = None) -> None:
        self._so_far, self._names, self._classifier = ChoiceSoFar(strategies), tuple(strategies), classifier
        self._decisions = self._counted = self._replied = 0
        self._judged: list[bool] = []
        self._started = self._next = time.monotonic()
        self._next += CURVE_EVERY_S

    def on_test_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, *_: Any) -> None:
        self._decisions += len(batch)
        now = time.monotonic()
        if current_run() and now >= self._next:
            self._log(module, self._judge(module.replied[self._replied :], module))
            self._next = time.monotonic() + max(CURVE_EVERY_S, _PATIENCE * (time.monotonic() - now))

    def on_test_end(self, trainer: Any, module: Any) -> None:
        if current_run():
            # Anew: the other processes' are among them now.
            self._so_far, self._counted = ChoiceSoFar(self._names), 0
            self._decisions = len({(each.dialogue, each.turn) for each in module.predictions})
            self._judged = [each.adheres for each in module.predictions if each.adheres is not None]
            self._log(module, self._judged)

    def _log(self, module: EvaluationModule, judged: Sequence[bool]) -> None:
        for prediction in module.predictions[self._counted :]:
            self._so_far.add(prediction)
        self._counted, self._replied = len(module.predictions), len(module.replied)
        log_curve(
            {
                "progress/iteration": self._decisions,
                "progress/decisions": self._decisions,
                "progress/replies": self._replied,
                "progress/seconds": time.monotonic() - self._started,
            }
            | {f"progress/{name}": value for name, value in self._so_far.measure().items()}
            | ({"progress/adherence": float(np.mean(judged))} if judged else {})
        )

    def _judge(self, new: Sequence[PromptedReply], module: EvaluationModule) -> Sequence[bool]:
        """Whether replies follow their strategies: of the last of the new ones, and of those that were judged before.

        The predictions keep what they have: all of them are judged together at the end.
        """
        asked = [reply.prediction for reply in new if reply.prediction.followed and _text(reply.prediction, module)]
        asked = asked[-_JUDGED:]
        if self._classifier and asked:
            texts = [_text(prediction, module) or "" for prediction in asked]
            found = choose_strategies(self._classifier.predict(texts, row_tokens=module.row_tokens)).tolist()
            pairs = zip(asked, found, strict=True)
            self._judged += [number >= 0 and self._names[number] == each.followed for each, number in pairs]
        return self._judged


def _text(prediction: Prediction, module: EvaluationModule) -> str | None:
    return prediction.gold_reply if module.reads_gold else prediction.reply
