"""`predictions.jsonl`: what an evaluation leaves of each decision, its one writer and its one reader."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from operator import itemgetter
from pathlib import Path
from typing import Any

from esc_lab.artifacts import READ_ERRORS, write_atomic
from esc_lab.data.strategies import Inventory
from esc_lab.errors import UserError
from esc_lab.metrics.records import metrics_of_replies
from esc_lab.metrics.text import bleu_counts, copied_share

FIX = "evaluate the run again"


@dataclass(slots=True)
class Prediction:
    """What was measured for one decision, under one prompt, with one reply: a line of `predictions.jsonl`.

    Where several replies are sampled, each has a line. What belongs to the decision and not to a reply (`distribution`,
    `chosen`, `label_mass`, `log_prob`, `tokens`) stands in the line of sample 0 alone: means over all lines count it
    once.

    Attributes:
        dialogue, tree, turn: where the decision is.
        problem, emotion: of the dialogue, as the corpus names them.
        history: turns that the prompt shows; fewer than `turn` if the oldest were cut.
        gold, gold_reply: strategies and text of the corpus' own reply.
        prompted: strategy that the prompt named; None where the model chooses.
        template: prompt layout.
        sample: number of the reply among those to this prompt, from 0.
        distribution: probability of each strategy among the complete labels; empty where the model has no choice.
        chosen: the most probable of them; None where the model has no choice.
        label_mass: probability that the model starts with any complete label at all.
        log_prob, tokens: of the gold reply's text (without its label) and end-of-turn token, given the gold label; 0
            tokens where the prompt names another strategy. Where the corpus has no strategy, of one prompt that is
            drawn (see `choose_given`).
        reply, strategy: generated text and the strategy parsed from it; None where nothing was generated.
        values: of a reply to the gold strategy, the metrics of single replies by name (see `reply_metric`).
        bleu: what such a reply adds to BLEU's sums (see `bleu_counts`); else None.
        copied: share of the runs of four words of a generated reply that stand in the name and the definition of the
            strategy which its prompt names; None where it names none, and in files that are older than this field.
        raw: what the model generated, as it wrote it.
        cut_off: whether it was cut off at the token limit; None where nothing was generated, and in files that are
            older than this field.
        sampling: temperature, top_p (None where an endpoint chose it) and token limit of the generation, the inference
            mode, and of an endpoint the model as it named it.
        sra: Strategy-Relevant Attention of the reply by `<definition>/<span>`: `sra`, `control`, `relative` as in
            `SpanSRA`; of the gold reply where `evaluate.replies=gold`.
        neutral: the control in the prompt, `phrase` and `place` (before or after the strategy); None where there is no
            such phrase, and in files that are older than this field.
        unmeasured: why there is no SRA, where it was to be measured.
        judged: strategy that the classifier of replies found in the reply; None where it was not asked or found none.
        adheres: whether that is the strategy which the prompt named, or the reply itself; None where nobody judged.
    """

    dialogue: str
    tree: str
    turn: int
    problem: str
    emotion: str
    gold: list[str]
    gold_reply: str
    prompted: str | None
    template: str
    history: int = 0
    sample: int = 0
    log_prob: float = 0.0
    tokens: int = 0
    distribution: dict[str, float] = field(default_factory=dict)
    chosen: str | None = None
    label_mass: float | None = None
    reply: str | None = None
    strategy: str | None = None
    values: dict[str, float] = field(default_factory=dict)
    bleu: list[int] | None = None
    copied: float | None = None
    raw: str | None = None
    cut_off: bool | None = None
    sampling: dict[str, Any] = field(default_factory=dict)
    sra: dict[str, dict[str, float]] | None = None
    neutral: dict[str, str] | None = None
    unmeasured: str | None = None
    judged: str | None = None
    adheres: bool | None = None

    @property
    def to_gold(self) -> bool:
        """Whether the prompt is one that the gold reply answers: it names no other strategy than that reply has."""
        return self.prompted is None or not self.gold or self.prompted in self.gold

    @property
    def followed(self) -> str | None:
        """The strategy that the reply was to follow: the prompted one, or the one that it names."""
        return self.prompted or self.strategy


_ABSENT = {  # what a line of an older file leaves out; empty dictionaries are shared, and not changed in place
    entry.name: entry.default if entry.default_factory is MISSING else entry.default_factory()
    for entry in fields(Prediction)
}
_REQUIRED = {name for name, value in _ABSENT.items() if value is MISSING}
_values = itemgetter(*_ABSENT)


def most_probable(distribution: Mapping[str, float]) -> str:
    """The strategy with the largest probability, the first of several."""
    return max(distribution, key=distribution.__getitem__)


def measure_texts(predictions: Sequence[Prediction], inventory: Inventory | None = None) -> None:
    """Fill in what the metrics of text are computed from, for the generated replies to the gold strategy.

    Args:
        inventory: what prompts say of the strategies that they name, which is looked for in all replies to these.
    """
    functions = metrics_of_replies()
    for prediction in predictions:
        if inventory and prediction.reply is not None and (name := prediction.prompted):
            prediction.copied = copied_share(prediction.reply, [name, inventory.definition(name)])
        if (reply := prediction.reply) is not None and prediction.to_gold:
            gold = prediction.gold_reply
            prediction.bleu = bleu_counts(reply, gold)
            prediction.values = {name: function(reply, gold) for name, function in functions.items()}


def write_predictions(path: Path, predictions: Sequence[Prediction]) -> None:
    """Write one line for each prediction."""
    write_atomic(path, "\n".join(json.dumps(asdict(prediction), ensure_ascii=False) for prediction in predictions))


def read_predictions(path: Path) -> Iterator[Prediction]:
    """The predictions in a file, one after another. Keys that are not known are left out, optional ones may be missing.

    Raises:
        UserError: the file cannot be read or is empty, or a line is not a prediction.
    """
    count = 0
    try:
        for line in path.read_bytes().splitlines():
            yield _parse(json.loads(line.decode()))
            count += 1
    except READ_ERRORS as error:
        message = f"not a prediction: {type(error).__name__} {error}"
        raise UserError(message, where=f"{path}:{count + 1}", fix=FIX) from error
    if not count:
        raise UserError("there are no predictions", where=str(path), fix=FIX)


def _parse(row: dict[str, Any]) -> Prediction:
    try:
        prediction = Prediction(*_values(row))  # by position: by name takes twice as long
    except KeyError:  # of an older file
        if missing := _REQUIRED - row.keys():
            raise ValueError(f"without {', '.join(sorted(missing))}") from None
        prediction = Prediction(*_values(_ABSENT | row))
    if prediction.distribution and prediction.chosen is None:
        prediction.chosen = most_probable(prediction.distribution)
    return prediction
