"""What an evaluation leaves of each decision: the lines of `predictions.jsonl`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Prediction:
    """What was measured for one decision, under one prompt, with one reply: a line of `predictions.jsonl`.

    Where several replies are sampled, each has a line. What belongs to the decision and not to a reply (`distribution`,
    `label_mass`, `log_prob`, `tokens`) stands in the line of sample 0 alone: means over all lines count it once.

    Attributes:
        dialogue, tree, turn: where the decision is.
        history: turns that the prompt shows; fewer than `turn` if the oldest were cut.
        gold: strategies of the reply that was given.
        prompted: strategy that the prompt named; None where the model chooses.
        sample: number of the reply among those to this prompt, from 0.
        distribution: probability of each strategy among the complete labels; empty where the model has no choice.
        label_mass: probability that the model starts with any complete label at all.
        log_prob, tokens: of the gold reply's text (without its label) and end-of-turn token, given the gold label; 0
            tokens where the prompt names another strategy.
        reply, strategy: generated text and the strategy parsed from it; None where nothing was generated.
        bleu: what the reply adds to BLEU's sums (see `bleu_counts`); None without a reply to the gold strategy.
        raw: what the model generated, as it wrote it.
        sampling: temperature, top_p and token limit of the generation, and the inference mode.
        sra: Strategy-Relevant Attention of the reply by `<definition>/<span>`: `sra`, `control`, `relative` as in
            `SpanSRA`; of the gold reply where `evaluate.replies=gold`.
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
    label_mass: float | None = None
    reply: str | None = None
    strategy: str | None = None
    bleu: list[int] | None = None
    raw: str | None = None
    sampling: dict[str, Any] = field(default_factory=dict)
    sra: dict[str, dict[str, float]] | None = None
    unmeasured: str | None = None
    judged: str | None = None
    adheres: bool | None = None

    @property
    def to_gold(self) -> bool:
        """Whether the prompt is one that the given reply answers: it names no other strategy."""
        return self.prompted is None or self.prompted in self.gold

    @property
    def followed(self) -> str | None:
        """The strategy that the reply was to follow: the prompted one, or the one that it names."""
        return self.prompted or self.strategy
