"""Evaluation of supporter decisions: the strategy that the model chooses, the gold reply's likelihood, what it writes.

Strategy choice has two measures. The exact one scores every complete label, `(<strategy>)`, after the prompt; all
labels of all decisions are branches of one token tree. The other parses what the model generates; it is the only one
for prompting baselines that answer in several steps. Templates that name the strategy in the prompt leave the model
no choice, so neither is measured for them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from esc_lab.artifacts import write_atomic
from esc_lab.datamodule import Decision
from esc_lab.metrics import (
    Diversity,
    PreferenceBias,
    ReplyPerplexity,
    StrategyProficiency,
    TextOverlap,
    resolve_gold,
)
from esc_lab.models.generate import Sampling, generate
from esc_lab.models.load import LoadedModel
from esc_lab.models.log_probs import reply_log_probs
from esc_lab.prompts import INFERENCE, Message, Prompt, Template, parse_reply
from esc_lab.seeds import derive_seed
from esc_lab.strategies import Inventory
from esc_lab.tokens import ReplyTokens, TokenSequence, label_ids, pack_rows
from esc_lab.tokens.encode import IntArray

GENERATED = "generated"


@dataclass
class Prediction:
    """What was measured for one decision: a line of `predictions.jsonl`.

    Attributes:
        dialogue, tree, turn: where the decision is.
        gold: strategies of the reply that was given.
        prompted: strategy that the prompt named; None where the model chooses.
        distribution: probability of each strategy among the complete labels; empty where the model has no choice.
        label_mass: probability that the model starts with any complete label at all.
        log_prob, tokens: of the gold reply's text (without its label) and end-of-turn token, given the gold label.
        reply, strategy: generated text and the strategy parsed from it; None where nothing was generated.
        raw: what the model generated, as it wrote it.
        sampling: temperature, top_p and token limit of the generation, and the inference mode.
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
    log_prob: float = 0.0
    tokens: int = 0
    distribution: dict[str, float] = field(default_factory=dict)
    label_mass: float | None = None
    reply: str | None = None
    strategy: str | None = None
    raw: str | None = None
    sampling: dict[str, Any] = field(default_factory=dict)


class EvaluationModule(pl.LightningModule):
    """Scores decisions in `test_step` and writes one prediction for each.

    Args:
        loaded: model and encoder.
        inventory: the strategies.
        template: evaluation template.
        inference: prompting baseline.
        row_tokens: budget of one forward pass.
        sampling: how replies are drawn; None = no generation.
        generate_for: (dialogue id, turn) of the decisions to generate for; None = all.
        seed: the run's seed.
        predictions: file to write.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        inventory: Inventory,
        template: Template,
        *,
        inference: str,
        row_tokens: int,
        sampling: Sampling | None,
        generate_for: frozenset[tuple[str, int]] | None,
        seed: int,
        predictions: Path,
    ) -> None:
        super().__init__()
        self.model = loaded.model
        self.encoder, self.inventory, self.template = loaded.encoder, inventory, template
        self.inference, self.row_tokens = inference, row_tokens
        self.sampling, self.generate_for, self.seed = sampling, generate_for, seed
        self.path = predictions
        self.predictions: list[Prediction] = []
        self.chooses = template.chooses_strategy
        self.scores_labels = self.chooses and inference in ("direct", "with_example")
        self._labels: list[IntArray] | None = None

    def test_step(self, batch: list[Decision], batch_idx: int) -> None:
        predictions = [self._blank(decision) for decision in batch]
        if self.chooses and self._labels is None:
            self._labels = label_ids(self.encoder, self.inventory, batch[0].example.prompt)
        self._score(batch, predictions)
        if self.sampling is not None:
            self._write_replies(batch, predictions)
        self.predictions += predictions

    def on_test_epoch_end(self) -> None:
        lines = [json.dumps(asdict(prediction), ensure_ascii=False) for prediction in self.predictions]
        write_atomic(self.path, "\n".join(lines))

    def _blank(self, decision: Decision) -> Prediction:
        dialogue, reply = decision.dialogue, decision.dialogue.turns[decision.turn].reply
        return Prediction(
            dialogue=dialogue.id,
            tree=dialogue.tree_id,
            turn=decision.turn,
            problem=dialogue.problem,
            emotion=dialogue.emotion,
            gold=list(reply.strategies),
            gold_reply=reply.text,
            prompted=None if self.chooses else reply.strategies[0],
            template=self.template.name,
        )

    def _score(self, batch: list[Decision], predictions: list[Prediction]) -> None:
        """Gold replies and all labels of all decisions in as few forward passes as the budget allows."""
        sequences = [
            TokenSequence(
                decision.sequence.input_ids[: decision.end], (ReplyTokens((n, -1), decision.start, decision.end),)
            )
            for n, decision in enumerate(batch)
        ]
        labels = self._labels or []
        for number, decision in enumerate(batch if self.scores_labels else []):
            prompt = decision.sequence.input_ids[: decision.start]
            for choice, label in enumerate(labels):
                reply = ReplyTokens((number, choice), len(prompt), len(prompt) + len(label))
                sequences.append(TokenSequence(np.concatenate([prompt, label]), (reply,)))
        scores = np.full((len(batch), len(labels)), -np.inf)
        for row in pack_rows([sequences], self.row_tokens + 32):
            values = reply_log_probs(self.model, row).double().cpu().numpy()
            for index, keys in enumerate(row.keys):
                tokens = values[row.reply == index]
                for number, choice in keys:
                    if choice >= 0:
                        scores[number, choice] = tokens.sum()
                    else:
                        skip = self._label_length(batch[number])
                        predictions[number].log_prob = float(tokens[skip:].sum())
                        predictions[number].tokens = len(tokens) - skip
        if self.scores_labels:
            for prediction, row_scores in zip(predictions, scores, strict=True):
                total = np.logaddexp.reduce(row_scores)
                shares = np.exp(row_scores - total)
                prediction.label_mass = float(np.exp(total))
                prediction.distribution = dict(zip(self.inventory.names, map(float, shares), strict=True))

    def _label_length(self, decision: Decision) -> int:
        """Tokens of the gold reply that are its label."""
        if not self.chooses:
            return 0
        assert self._labels is not None
        gold = self.inventory.index(decision.dialogue.turns[decision.turn].reply.strategies[0])
        return len(self._labels[gold])

    def _write_replies(self, batch: list[Decision], predictions: list[Prediction]) -> None:
        wanted = [
            n
            for n, decision in enumerate(batch)
            if self.generate_for is None or (decision.dialogue.id, decision.turn) in self.generate_for
        ]
        if not wanted:
            return
        texts = self._generate([batch[number] for number in wanted])
        assert self.sampling is not None
        for number, text in zip(wanted, texts, strict=True):
            prediction = predictions[number]
            prediction.raw = text
            prediction.strategy, prediction.reply = parse_reply(text, self.inventory, self.inference)
            prediction.sampling = {**asdict(self.sampling), "inference": self.inference}

    def _generate(self, decisions: Sequence[Decision]) -> list[str]:
        """The last answer to each decision's prompt, after the follow-ups of the inference mode."""
        assert self.sampling is not None
        prompts = [decision.sequence.input_ids[: decision.start] for decision in decisions]
        chats = [self.encoder.adapt(decision.example.prompt) for decision in decisions]
        texts: list[str] = []
        for number, follow_up in enumerate([None, *INFERENCE[self.inference].follow_ups]):
            if follow_up is not None:
                chats = [_continued(chat, text, follow_up) for chat, text in zip(chats, texts, strict=True)]
                prompts = [self.encoder.encode_prompt(chat).input_ids for chat in chats]
            seeds = [
                derive_seed(self.seed, "generation", decision.dialogue.id, decision.turn, number)
                for decision in decisions
            ]
            stop = frozenset({self.encoder.end_of_turn, self.encoder.tokenizer.eos_token_id})
            replies = generate(self.model, prompts, stop, self.sampling, seeds)
            texts = [self.encoder.decode(ids) for ids in replies]
        return texts


def _continued(chat: Prompt, answer: str, request: str) -> Prompt:
    return Prompt((*chat.messages, Message("assistant", answer or "..."), Message("user", request)), chat.spans)


def summarize(predictions: Sequence[Prediction], inventory: Inventory) -> tuple[dict[str, float], dict[str, Any]]:
    """Metrics of a set of predictions, and per-strategy tables.

    Returns:
        Flat metrics. `strategy/...` from the exact distribution, `generated/...` from parsed generations, `text/...` of
        generated replies against the gold ones; a group is absent where nothing was measured.
        For each measure of strategy choice, a table: rows of strategy, precision, recall, F1, support, predicted and
        preference, and the confusion matrix [predicted, gold] with unparsable predictions as last row.
    """
    metrics: dict[str, float] = {"decisions": float(len(predictions))}
    tables: dict[str, Any] = {}
    perplexity = ReplyPerplexity()
    perplexity.update(
        torch.tensor([prediction.log_prob for prediction in predictions], dtype=torch.float64),
        torch.tensor([prediction.tokens for prediction in predictions]),
    )
    metrics["text/perplexity"] = float(perplexity.compute()["reply_perplexity"])
    scored = [prediction for prediction in predictions if prediction.distribution]
    if scored:
        chosen = [max(p.distribution, key=lambda name: p.distribution[name]) for p in scored]
        _choice("strategy", scored, chosen, inventory, metrics, tables)
        metrics["strategy/label_mass"] = float(np.mean([prediction.label_mass for prediction in scored]))
    written = [prediction for prediction in predictions if prediction.reply is not None]
    if written:
        if written[0].prompted is None:
            _choice(GENERATED, written, [p.strategy for p in written], inventory, metrics, tables)
        metrics |= _text_metrics(written)
    return metrics, tables


def _choice(
    group: str,
    predictions: Sequence[Prediction],
    chosen: Sequence[str | None],
    inventory: Inventory,
    metrics: dict[str, float],
    tables: dict[str, Any],
) -> None:
    preds = torch.tensor([-1 if name is None else inventory.index(name) for name in chosen])
    gold = resolve_gold(preds, [[inventory.index(name) for name in p.gold] for p in predictions])
    proficiency, bias = StrategyProficiency(inventory.names), PreferenceBias(inventory.names)
    proficiency.update(preds, gold)
    bias.update(preds, gold)
    values, biases = proficiency.compute(), bias.compute()
    metrics[f"{group}/Q"] = float(values["macro_f1"])
    metrics[f"{group}/Q_inventory"] = float(values["macro_f1_inventory"])
    metrics[f"{group}/Q_W"] = float(values["weighted_f1"])
    metrics[f"{group}/B"] = float(biases["bias"])
    metrics[f"{group}/B_guard"] = float(biases["guard"])
    for name in ("accuracy", "n", "classes_predicted", "classes_gold", "unparsable"):
        metrics[f"{group}/{name}"] = float(values[name])
    tables[group] = _table(proficiency, bias, inventory)


def _table(proficiency: StrategyProficiency, bias: PreferenceBias, inventory: Inventory) -> dict[str, Any]:
    per_class: dict[str, Tensor] = proficiency.per_class()
    counts = proficiency.counts()
    rows = [
        {
            "strategy": name,
            **{key: float(values[index]) for key, values in per_class.items()},
            "predicted": float(counts[index].sum()),
            "preference": float(bias.preference[index]),
        }
        for index, name in enumerate(inventory.names)
    ]
    return {"per_strategy": rows, "confusion": {"predicted_by_gold": counts.tolist(), "classes": [*inventory.names]}}


def _text_metrics(predictions: Sequence[Prediction]) -> dict[str, float]:
    replies = [prediction.reply or "" for prediction in predictions]
    overlap, diversity = TextOverlap(), Diversity()
    overlap.update(replies, [prediction.gold_reply for prediction in predictions])
    diversity.update(replies)
    values = {**overlap.compute(), **diversity.compute()}
    return {f"text/{name}": float(value) for name, value in values.items()}
