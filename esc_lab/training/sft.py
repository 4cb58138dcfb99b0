"""Supervised fine-tuning on all turns of a side of a dialogue in one pass: optimizer steps, and their loss."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from esc_lab.config import DataConfig
from esc_lab.data.dialogue import Dialogue
from esc_lab.errors import UserError
from esc_lab.models.devices import move
from esc_lab.models.log_probs import reply_log_probs
from esc_lab.seeds import derive_seed
from esc_lab.tokens import PackedRow, TokenSequence, pack_rows
from esc_lab.tokens.encode import IntArray
from esc_lab.tokens.examples import ReplyKey, find_reply
from esc_lab.training.module import TrainingModule
from esc_lab.training.steps import TurnEncoder, equal_parts


@dataclass(frozen=True)
class SFTBatch:
    """Everything that one optimizer step sees.

    Attributes:
        rows: packed rows of this process.
        weights: for each row the loss weight of each token of its replies, [N]: the sum over the turns that it stands
            for.
        total_weight: sum over all reply tokens of the step, over all processes, of their weight; 1 if all weigh 0.
        dialogues: ids of the step's dialogues.
    """

    rows: tuple[PackedRow, ...]
    weights: tuple[npt.NDArray[np.float32], ...]
    total_weight: float
    dialogues: tuple[str, ...]


class SFTSteps:
    """Dialogues as optimizer steps and validation rows."""

    def __init__(
        self, splits: Mapping[str, Sequence[Dialogue]], turns: TurnEncoder, data: DataConfig, seed: int
    ) -> None:
        self.splits, self.turns, self.data, self.seed = splits, turns, data, seed
        self._training: list[tuple[Dialogue, list[TokenSequence]]] = []
        self._validation: list[PackedRow] = []
        self._label_tokens: dict[str, int] = {}

    def setup(self) -> None:
        """Raises UserError if there is nothing to train on, an example exceeds the budget, or no reply has a label."""
        if self._training:
            return
        self._training = self.encode_split("train")
        if self.data.label_weight != 1 and self.turns.seeker is None:  # whose turns have no label
            self._label_tokens = self._count_label_tokens()
        validation = self.encode_split("val") if self.splits.get("val") else []
        self._validation = pack_rows([[s for _, sequences in validation for s in sequences]], self.turns.budget)

    def encode_split(self, split: str) -> list[tuple[Dialogue, list[TokenSequence]]]:
        """Dialogues of a split with their sequences, those without anything to train on left out."""
        dialogues = list(self.splits.get(split, ()))
        last = self.data.loss == "last_reply"
        report = self.turns.report(split)
        before = report.examples
        encoded = self.turns.encode(split, (self.turns.examples(dialogue, last=last) for dialogue in dialogues))
        if report.examples == before:
            what = "supporter turn with a strategy" if self.turns.seeker is None else "seeker turn"
            what = "dialogue that ends with the supporter (data.loss=last_reply)" if last else what
            message = f"the {split} split has no {what}"
            raise UserError(message, fix="check the data and its split")
        if not any(encoded):
            message = f"every reply of the {split} split exceeds the budget (data.too_long=drop)"
            raise UserError(message, fix="raise data.row_tokens")
        return [(dialogue, sequences) for dialogue, sequences in zip(dialogues, encoded, strict=True) if sequences]

    def _count_label_tokens(self) -> dict[str, int]:
        if not self.turns.layout.chooses_strategy:
            what, fix = "prompts name the strategy: replies have no label", "leave it out, or choose another template"
            raise UserError(what, where=f"data.label_weight={self.data.label_weight}", fix=fix)
        return self.turns.count_label_tokens(self.turns.examples(self._training[0][0])[0])

    def plan_epoch(self, epoch: int) -> list[list[int]]:
        rng = np.random.default_rng(derive_seed(self.seed, "epoch", epoch))
        order = rng.permutation(len(self._training))
        if self.data.balance_strategies:
            names = [dialogue.turns[-1].reply.strategies[:1] for dialogue, _ in self._training]
            order = rng.permutation(draw_balanced(names, self.data.balance_strategies, rng))
        return equal_parts(order, self.data.step_dialogues)

    def step_batch(self, numbers: Sequence[int], rank: int = 0, world: int = 1) -> SFTBatch:
        # Dialogues of a step share one trie: their system message is common.
        members = [self._training[number] for number in numbers]
        dialogues = {dialogue.id: dialogue for dialogue, _ in members}
        rows = pack_rows([[s for _, sequences in members for s in sequences]], self.turns.budget)
        weights = [self._token_weights(row, dialogues) for row in rows]
        total = sum(float(weight.sum()) for weight in weights)
        mine = list(zip(rows, weights, strict=True))[rank::world]
        if len(mine) < -(-len(rows) // world):  # all processes make as many passes, to gather weights and gradients
            shortest = min(range(len(rows)), key=lambda number: len(rows[number]))
            mine.append((rows[shortest], np.zeros_like(weights[shortest])))
        own_rows, own_weights = zip(*mine, strict=True)
        return SFTBatch(own_rows, own_weights, total or 1.0, tuple(dialogues))

    def validation(self) -> list[PackedRow]:
        return self._validation

    def _token_weights(self, row: PackedRow, dialogues: Mapping[str, Dialogue]) -> npt.NDArray[np.float32]:
        # A reply that several dialogues share counts for each of them, as it does where they are in other steps.
        weights = [sum(self._turn_weight(dialogues[key.dialogue], key) for key in keys) for keys in row.keys]
        tokens = np.array(weights, dtype=np.float32)[row.reply]
        if self._label_tokens:
            # Equal tokens have equal labels, so any of a reply's keys tells its own.
            replies = [find_reply(dialogues[keys[0].dialogue], keys[0]) for keys in row.keys]
            labels = [self._label_tokens[reply.strategies[0]] if reply.strategies else 0 for reply in replies]
            place = np.arange(len(row.reply)) - np.searchsorted(row.reply, row.reply)  # within its reply
            tokens[place < np.array(labels)[row.reply]] *= self.data.label_weight
        return tokens

    def _turn_weight(self, dialogue: Dialogue, key: ReplyKey) -> float:
        if self.turns.seeker is not None:
            return 1.0
        strategies = find_reply(dialogue, key).strategies  # none where the prompt names none
        return self.data.strategy_weights.get(strategies[0], 1.0) if strategies else 1.0


def draw_balanced(classes: Sequence[Hashable], most: int, rng: np.random.Generator) -> IntArray:
    """Indices of as many members as there are, of each class as many as of the others: int64 [members].

    None is drawn more than `most` times, so small classes have `most` times their size, if that is less. Within a
    class none is drawn once more than another.
    """
    members: dict[Hashable, list[int]] = {}
    for number, name in enumerate(classes):
        members.setdefault(name, []).append(number)
    drawn: list[IntArray] = []
    left = len(classes)
    for classes_left, own in zip(range(len(members), 0, -1), sorted(members.values(), key=len), strict=True):
        count = min(-(-left // classes_left), most * len(own))
        left -= count
        whole, rest = divmod(count, len(own))
        drawn += [np.array(own)] * whole + [rng.permutation(own)[:rest]]
    return np.concatenate(drawn)


class SFTModule(TrainingModule):
    """Minimises the mean negative log-likelihood of the reply tokens of each optimizer step.

    With weights w of strategies and of their labels (`data.strategy_weights`, `data.label_weight`) the loss is
    `-sum_t w_t log p(t) / sum_t w_t` over the step's reply tokens t, each as often as there are dialogues with it.
    Logged: `train/loss`, `train/lr`, `tokens_per_s` (unique tokens of the packed rows), and `val/loss` over all
    validation tokens, unweighted.
    """

    def training_step(self, batch: SFTBatch, batch_idx: int) -> None:
        tokens = sum(len(row) for row in batch.rows)
        loss = self.optimize(self._losses(batch), len(batch.rows), tokens, batch.dialogues)
        self.log("train/loss", loss, prog_bar=True, reduce_fx="sum", sync_dist=True)

    def _losses(self, batch: SFTBatch) -> Iterator[Tensor]:
        for row, weights in zip(batch.rows, batch.weights, strict=True):
            log_probs = reply_log_probs(self.model, row)
            yield -(move(weights, log_probs.device) * log_probs).sum() / batch.total_weight

    def on_validation_epoch_start(self) -> None:
        self._loss_sum, self._tokens = torch.zeros((), dtype=torch.float64, device=self.device), 0

    def validation_step(self, row: PackedRow, batch_idx: int) -> None:
        dialogues = np.array([len(keys) for keys in row.keys])[row.reply]
        log_probs = reply_log_probs(self.model, row)
        self._loss_sum -= (move(dialogues, log_probs.device) * log_probs).sum().double()
        self._tokens += int(dialogues.sum())

    def on_validation_epoch_end(self) -> None:
        # Every process sees all validation rows: the data loader is a plain list.
        self.log("val/loss", float(self._loss_sum) / self._tokens, prog_bar=True, sync_dist=True)
