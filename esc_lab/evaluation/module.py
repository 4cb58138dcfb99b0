"""The evaluation module: which strategy a model chooses, how likely gold replies are, what it writes, where it looks.

Strategy choice has two measures. The exact one scores every complete label, `(<strategy>)`, after the prompt; all
labels of all decisions are branches of one token tree. The other parses what the model generates; it is the only one
for prompting baselines that answer in several steps. Templates that name the strategy in the prompt leave the model
no choice, so neither is measured for them; they may name any strategy, not only the gold one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch.distributed as dist

from esc_lab.config.evaluate import EvaluateConfig
from esc_lab.config.prompt import PromptConfig
from esc_lab.data.strategies import Inventory
from esc_lab.errors import UserError
from esc_lab.evaluation.adherence import judge_adherence
from esc_lab.evaluation.best_of import BestOf
from esc_lab.evaluation.decisions import choose_given, list_predictions
from esc_lab.evaluation.prompted_replies import PromptedReplies, PromptedReply
from esc_lab.metrics.prediction_table import FloatArray
from esc_lab.metrics.predictions import Prediction, measure_texts, most_probable
from esc_lab.models.attention_boost import AttentionBoost, BoostedSpan, mark
from esc_lab.models.load import LoadedModel
from esc_lab.models.log_probs import join_reply, score_rows
from esc_lab.prompts import build_layout
from esc_lab.scorers.classifier import StrategyClassifier
from esc_lab.scorers.reward_model import RewardModel
from esc_lab.tokens import encode_labels, pack_rows
from esc_lab.tokens.encode import IntArray
from esc_lab.training.datamodule import Decision
from esc_lab.training.processes import gather_objects, stop_together


class EvaluationModule(pl.LightningModule):
    """Scores decisions in `test_step`, and leaves one prediction for each decision, prompt and sample.

    Several processes share the decisions; at the end each of them has all predictions, in the order of one process.

    Args:
        prompt: evaluation template, what it shows, and the prompting baseline.
        row_tokens: budget of one forward pass.
        reply_for: (dialogue id, turn) of the decisions that get replies; None = all.
        classifier: judges whether replies follow their strategy; None = nobody does.

    Attributes:
        replied: decisions and prompts with a reply, written or gold.
        best_of: writes the replies where a reward model chooses them (`choose_by`).
    """

    def __init__(
        self,
        loaded: LoadedModel,
        inventory: Inventory,
        prompt: PromptConfig,
        settings: EvaluateConfig,
        *,
        seed: int,
        row_tokens: int = 2048,
        reply_for: frozenset[tuple[str, int]] | None = None,
        classifier: StrategyClassifier | None = None,
    ) -> None:
        super().__init__()
        self.model = loaded.model
        self.encoder, self.inventory, self.settings = loaded.encoder, inventory, settings
        self.template = build_layout(prompt.eval)
        self.replies = PromptedReplies(loaded, inventory, prompt, settings, seed)
        self.reads_gold = settings.replies == "gold"
        self.row_tokens, self.reply_for, self.classifier = row_tokens, reply_for, classifier
        self.predictions: list[Prediction] = []
        self.replied: list[PromptedReply] = []
        self.chooses = self.template.chooses_strategy
        self.scores_labels = self.chooses and self.template.baseline(prompt.inference).answers_once
        self.best_of: BestOf | None = None
        self._labels: list[IntArray] = []
        self._error: UserError | None = None  # which ends all processes when they meet
        # All processes load the same weights: Lightning need not send them round.
        tensors = chain(self.named_parameters(), self.named_buffers())
        self._ddp_params_and_buffers_to_ignore = [name for name, _ in tensors]

    def choose_by(self, reward: RewardModel) -> None:
        """Have a reward model choose each reply among several (`prompt.inference=best_of_n`)."""
        self.best_of = BestOf(self.replies, reward, self.settings.best_of)

    @property
    def measured(self) -> list[PromptedReply]:
        """The replies that SRA was measured on, in the order of their predictions."""
        return [reply for reply in self.replied if reply.sra is not None]

    def test_step(self, batch: list[Decision], batch_idx: int) -> None:
        if not batch or self._error:
            return
        try:
            self._measure(batch)
        except UserError as error:
            if not dist.is_initialized():
                raise
            self._error = error

    def _measure(self, batch: list[Decision]) -> None:
        asked = [
            [
                PromptedReply(decision, prediction)
                for prediction in list_predictions(
                    decision.dialogue, decision.example, self.template, self.inventory, self.settings,
                    replies=self._wants_reply(decision),
                )
            ]
            for decision in batch
        ]  # fmt: skip
        if self.chooses and not self._labels:
            self._labels = encode_labels(self.encoder, self.inventory, batch[0].example.prompt)
        if self.settings.likelihood:
            self._score([*filter(None, map(self._choose_given, asked))])
        if self.reads_gold or self.settings.generation.enabled:
            wanted = [replies for replies in asked if self._wants_reply(replies[0].decision)]
            writer = self.best_of or self.replies
            for together in _join(wanted, self.settings.generation.batch // writer.count or 1):
                if self.reads_gold:
                    self.replies.read_gold(together, self.row_tokens)
                else:
                    writer.write(together)
                self.replied += together
        self.predictions += [reply.prediction for replies in asked for reply in replies]

    def on_test_epoch_end(self) -> None:
        if self.classifier is not None:
            replied = [reply.prediction for reply in self.replied]
            judge_adherence(replied, self.classifier, self.inventory, gold=self.reads_gold, row_tokens=self.row_tokens)
        measure_texts(self.predictions, self.inventory)
        self._gather()

    def _gather(self) -> None:
        """What all processes have measured, in the order of the decisions.

        Raises:
            UserError: what one of them has met.
        """
        best = self.best_of
        scores = [best.chosen, best.candidates] if best else []
        parts = gather_objects((self._error, self.predictions, self.replied, *scores))
        errors, *measured = zip(*parts, strict=True)
        if error := next(filter(None, errors), None):
            stop_together(self.trainer, error)
        if len(parts) == 1:
            return
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        place = {(each.dialogue.id, each.turn): number for number, each in enumerate(chain(*data.decisions))}
        predictions, replied, *scores = (list(chain(*lists)) for lists in measured)
        self.predictions = sorted(predictions, key=lambda each: place[each.dialogue, each.turn])
        self.replied = sorted(replied, key=lambda each: place[each.decision.dialogue.id, each.decision.turn])
        if best:
            best.chosen, best.candidates = scores

    def _wants_reply(self, decision: Decision) -> bool:
        return self.reply_for is None or (decision.dialogue.id, decision.turn) in self.reply_for

    def _choose_given(self, replies: Sequence[PromptedReply]) -> PromptedReply | None:
        """Whose prompt the given reply of a decision is scored after; None where none of them is one for it.

        A turn without a strategy of the inventory counts where it gets replies: each is a prompt of its own to encode.
        """
        chosen = choose_given([reply.prediction for reply in replies])
        reply = next((reply for reply in replies if reply.prediction is chosen), None)
        if reply is None or self.chooses or reply.prediction.gold:
            return reply
        return self.replies.add_given(reply) if self._wants_reply(reply.decision) else None

    def _score(self, asked: Sequence[PromptedReply]) -> None:
        """How likely the gold replies and all labels are.

        Raises:
            UserError: a log-probability is no number up to 0.
        """
        labels = self._labels if self.scores_labels else []
        decisions, spans = [reply.decision for reply in asked], [self._boosted_of_gold(reply) for reply in asked]
        boost = self.replies.attention_boost
        replies, choices = score_replies(self.model, decisions, labels, self.row_tokens, boost, spans)
        for reply, tokens, scores in zip(asked, replies, choices, strict=True):
            prediction = reply.prediction
            # The label of the gold reply is no part of its text.
            skip = len(self._labels[self.inventory.index(prediction.gold[0])]) if self.chooses else 0
            prediction.tokens, prediction.log_prob = len(tokens) - skip, float(tokens[skip:].sum())
            if not prediction.log_prob <= 1e-3 * len(tokens):  # rounding can lift it a little above 0
                message = f"the gold reply has log-probability {prediction.log_prob}: no number up to 0"
                fix = "the model has diverged: evaluate another checkpoint"
                raise UserError(message, where=f"dialogue {prediction.dialogue}, turn {prediction.turn}", fix=fix)
            if labels:
                total = np.logaddexp.reduce(scores)
                shares = map(float, np.exp(scores - total))
                prediction.label_mass = float(np.exp(total))
                prediction.distribution = dict(zip(self.inventory.names, shares, strict=True))
                prediction.chosen = most_probable(prediction.distribution)

    def _boosted_of_gold(self, reply: PromptedReply) -> BoostedSpan | None:
        """What is boosted of the sequence that holds a decision's gold reply."""
        decision = reply.decision
        spans = [span for one in decision.sequence.replies if one.key.turn == decision.turn for span in one.spans]
        return self.replies.locate_boosted(reply, spans, decision.start)


def score_replies(
    model: Any,
    decisions: Sequence[Decision],
    labels: Sequence[IntArray],
    row_tokens: int,
    boost: AttentionBoost | None,
    spans: Sequence[BoostedSpan | None],
) -> tuple[list[FloatArray], FloatArray]:
    """Log-probabilities of gold replies and labels, in as few forward passes as the budget of tokens allows.

    Args:
        labels: token ids of complete labels.
        boost: of attention.
        spans: what is boosted of the sequence of each decision.

    Returns:
        Of the tokens of each decision's gold reply [tokens], its label included; of each label [decisions, labels].
    """
    sequences = []
    marked = mark([decision.sequence.input_ids for decision in decisions], spans)
    for number, (decision, ids) in enumerate(zip(decisions, marked, strict=True)):
        replies = enumerate([*labels, ids[decision.start : decision.end]])
        sequences += [join_reply(ids[: decision.start], reply, (number, choice)) for choice, reply in replies]
    gold: list[FloatArray] = [np.empty(0)] * len(decisions)
    choices = np.full((len(decisions), len(labels)), -np.inf)
    for (number, choice), tokens in score_rows(model, pack_rows([sequences], row_tokens + 32), boost):
        if choice == len(labels):
            gold[number] = tokens
        else:
            choices[number, choice] = tokens.sum()
    return gold, choices


def _join(groups: Sequence[list[PromptedReply]], size: int) -> Iterator[list[PromptedReply]]:
    """Groups joined as long as they have at most `size` replies together."""
    together: list[PromptedReply] = []
    for group in groups:
        if together and len(together) + len(group) > size:
            yield together
            together = []
        together = [*together, *group]
    if together:
        yield together
