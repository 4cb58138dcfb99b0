"""The evaluation module: which strategy a model chooses, the given reply's likelihood, what it writes, where it looks.

Strategy choice has two measures. The exact one scores every complete label, `(<strategy>)`, after the prompt; all
labels of all decisions are branches of one token tree. The other parses what the model generates; it is the only one
for prompting baselines that answer in several steps. Templates that name the strategy in the prompt leave the model
no choice, so neither is measured for them; they may name any strategy, not only the one that was given.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytorch_lightning as pl

from esc_lab.artifacts import write_atomic
from esc_lab.config import TemplateConfig
from esc_lab.data.strategies import Inventory
from esc_lab.evaluation.predictions import Prediction
from esc_lab.evaluation.prompted_replies import MEASURABLE, PromptedReplies, PromptedReply
from esc_lab.metrics import bleu_counts
from esc_lab.models.load import LoadedModel
from esc_lab.models.log_probs import reply_log_probs
from esc_lab.prompts.layouts import TEMPLATES
from esc_lab.scorers.classifier import StrategyClassifier, chosen
from esc_lab.seeds import EVALUATION_SEED, derive_seed
from esc_lab.tokens import ReplyTokens, TokenSequence, label_ids, pack_rows
from esc_lab.tokens.encode import IntArray
from esc_lab.training.datamodule import Decision


class SRAEvaluationModule(pl.LightningModule):
    """Scores decisions in `test_step`, and writes one prediction for each decision, prompt and sample.

    Args:
        loaded: model and encoder.
        inventory: the strategies.
        prompt: evaluation template and what it shows.
        replies: writes and measures replies; None = neither.
        likelihood: score strategies and given replies by their log-probabilities.
        given: measure SRA and adherence on the replies that were given; else the model writes them.
        prompted: which strategies a template names that leaves no choice: the one of the given reply (`gold`), all of
            the inventory one after another (`all`), or each with probability `prompted_share`, one at least (`random`).
        samples: replies that the model writes to each prompt.
        row_tokens: budget of one forward pass.
        replies_together: replies written in one token tree, at least one decision's.
        reply_for: (dialogue id, turn) of the decisions that get replies; None = all.
        classifier: judges whether replies follow their strategy; None = nobody does.
        seed: the run's seed.
        predictions: file to write.

    Attributes:
        predictions: one for each decision, prompt and sample.
        replied: decisions and prompts with a reply, written or given.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        inventory: Inventory,
        prompt: TemplateConfig,
        *,
        replies: PromptedReplies | None,
        predictions: Path,
        inference: str = "direct",
        likelihood: bool = True,
        given: bool = False,
        prompted: str = "gold",
        prompted_share: float = 0.25,
        samples: int = 1,
        row_tokens: int = 2048,
        replies_together: int = 16,
        reply_for: frozenset[tuple[str, int]] | None = None,
        classifier: StrategyClassifier | None = None,
        seed: int = 1,
    ) -> None:
        super().__init__()
        self.model = loaded.model
        self.encoder, self.inventory, self.template = loaded.encoder, inventory, TEMPLATES[prompt.template]
        self.replies, self.likelihood, self.given = replies, likelihood, given
        self.prompted, self.prompted_share = prompted, prompted_share
        self.samples, self.row_tokens = samples, row_tokens
        self.replies_together, self.reply_for = replies_together, reply_for
        self.classifier, self.seed, self.path = classifier, seed, predictions
        self.predictions: list[Prediction] = []
        self.replied: list[PromptedReply] = []
        self.chooses = self.template.chooses_strategy
        self.scores_labels = self.chooses and inference in MEASURABLE
        self._labels: list[IntArray] | None = None

    @property
    def measured(self) -> list[PromptedReply]:
        """The replies that SRA was measured on, in the order of their predictions."""
        return [reply for reply in self.replied if reply.sra is not None]

    def test_step(self, batch: list[Decision], batch_idx: int) -> None:
        asked = [
            [
                PromptedReply(decision, self._blank(decision, strategy, sample))
                for strategy in self._strategies(decision)
                for sample in range(self.samples if self._wants_reply(decision) else 1)
            ]
            for decision in batch
        ]
        if self.chooses and self._labels is None:
            self._labels = label_ids(self.encoder, self.inventory, batch[0].example.prompt)
        if self.likelihood:
            self._score([replies[0] for replies in asked if _leads_to_given(replies[0].prediction)])
        if self.replies is not None:
            wanted = [replies for replies in asked if self._wants_reply(replies[0].decision)]
            for together in _joined(wanted, self.replies_together):
                if self.given:
                    self.replies.read(together, self.row_tokens)
                else:
                    self.replies.write(together)
                self.replied += together
        self.predictions += [reply.prediction for replies in asked for reply in replies]

    def on_test_epoch_end(self) -> None:
        self._judge_adherence()
        for one in self.predictions:
            if one.reply is not None and one.to_gold:
                one.bleu = bleu_counts(one.reply, one.gold_reply)
        lines = [json.dumps(asdict(prediction), ensure_ascii=False) for prediction in self.predictions]
        write_atomic(self.path, "\n".join(lines))

    def _strategies(self, decision: Decision) -> list[str | None]:
        """The strategies that the prompts of a decision name, the given one first; None where the model chooses."""
        gold = decision.dialogue.turns[decision.turn].reply.strategies[0]
        if self.chooses:
            return [None]
        if self.prompted == "gold":
            return [gold]
        names = sorted(self.inventory.names, key=lambda name: name != gold)
        if self.prompted == "random":
            draw = np.random.default_rng(derive_seed(EVALUATION_SEED, "prompted", decision.dialogue.id, decision.turn))
            share = draw.random(len(names))
            names = [name for name, own in zip(names, share, strict=True) if own < self.prompted_share] or [
                names[int(share.argmin())]
            ]
        return [*names]

    def _wants_reply(self, decision: Decision) -> bool:
        return self.reply_for is None or (decision.dialogue.id, decision.turn) in self.reply_for

    def _blank(self, decision: Decision, strategy: str | None, sample: int) -> Prediction:
        dialogue, reply = decision.dialogue, decision.dialogue.turns[decision.turn].reply
        return Prediction(
            dialogue=dialogue.id,
            tree=dialogue.tree_id,
            turn=decision.turn,
            problem=dialogue.problem,
            emotion=dialogue.emotion,
            gold=list(reply.strategies),
            gold_reply=reply.text,
            prompted=strategy,
            template=self.template.name,
            history=decision.turn - decision.first_turn,
            sample=sample,
        )

    def _score(self, asked: Sequence[PromptedReply]) -> None:
        """Given replies and all labels of all decisions in as few forward passes as the budget allows."""
        if not asked:
            return
        sequences = []
        labels = (self._labels or []) if self.scores_labels else []
        for number, reply in enumerate(asked):
            ids, start, end = reply.decision.sequence.input_ids, reply.decision.start, reply.decision.end
            sequences.append(TokenSequence(ids[:end], (ReplyTokens((number, -1), start, end),)))
            for choice, label in enumerate(labels):
                key = ReplyTokens((number, choice), start, start + len(label))
                sequences.append(TokenSequence(np.concatenate([ids[:start], label]), (key,)))
        scores = np.full((len(asked), len(labels)), -np.inf)
        for row in pack_rows([sequences], self.row_tokens + 32):
            values = reply_log_probs(self.model, row).double().cpu().numpy()
            for index, keys in enumerate(row.keys):
                tokens = values[row.reply == index]
                for number, choice in keys:
                    if choice >= 0:
                        scores[number, choice] = tokens.sum()
                    else:
                        skip = self._label_length(asked[number].decision)
                        asked[number].prediction.log_prob = float(tokens[skip:].sum())
                        asked[number].prediction.tokens = len(tokens) - skip
        if labels:
            for reply, row_scores in zip(asked, scores, strict=True):
                total = np.logaddexp.reduce(row_scores)
                shares = np.exp(row_scores - total)
                reply.prediction.label_mass = float(np.exp(total))
                reply.prediction.distribution = dict(zip(self.inventory.names, map(float, shares), strict=True))

    def _label_length(self, decision: Decision) -> int:
        """Tokens of the gold reply that are its label."""
        if not self.chooses:
            return 0
        assert self._labels is not None
        gold = self.inventory.index(decision.dialogue.turns[decision.turn].reply.strategies[0])
        return len(self._labels[gold])

    def _judge_adherence(self) -> None:
        """Let the classifier judge all replies at once."""
        if self.classifier is None:
            return
        replied = [reply.prediction for reply in self.replied if reply.prediction.followed]
        texts = [(one, one.gold_reply if self.given else one.reply) for one in replied]
        asked = [(prediction, text) for prediction, text in texts if text is not None]
        found = chosen(self.classifier.predict([text for _, text in asked], row_tokens=self.row_tokens)).tolist()
        for (prediction, _), number in zip(asked, found, strict=True):
            prediction.judged = self.inventory.names[number] if number >= 0 else None
            prediction.adheres = prediction.judged == prediction.followed


def _leads_to_given(prediction: Prediction) -> bool:
    """Whether the prompt is the one that the given reply belongs to, so that its likelihood means something."""
    return prediction.prompted in (None, prediction.gold[0])


def _joined(groups: Sequence[list[PromptedReply]], size: int) -> Iterator[list[PromptedReply]]:
    """Groups joined as long as they have at most `size` replies together."""
    together: list[PromptedReply] = []
    for group in groups:
        if together and len(together) + len(group) > size:
            yield together
            together = []
        together = [*together, *group]
    if together:
        yield together
