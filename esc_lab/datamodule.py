"""One Lightning data module for training and evaluation: dialogues in, packed optimizer steps and decisions out.

A training batch is all rows of one optimizer step. Which dialogues a step holds follows from (seed, epoch) alone, so
the order survives a restart and does not depend on accumulation or the number of processes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
from torch.utils.data import DataLoader

from esc_lab.config import DataConfig, TemplateConfig
from esc_lab.corpora import ReadReport, proportional_split, published_split, read_dialogues, sample_path
from esc_lab.dialogue import Dialogue, merge_turns
from esc_lab.errors import UserError
from esc_lab.prompts import TEMPLATES, Prompt, build_prompt, reply_content
from esc_lab.seeds import derive_seed
from esc_lab.strategies import Inventory
from esc_lab.tokens import ChatEncoder, EncodeReport, Example, PackedRow, TokenSequence, encode_examples, pack_rows

log = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class ReplyKey:
    """Names a supporter turn of a split: dialogue id and turn index."""

    dialogue: str
    turn: int

    def __str__(self) -> str:
        return f"dialogue {self.dialogue}, turn {self.turn + 1}"


@dataclass(frozen=True)
class StepBatch:
    """Everything that one optimizer step sees.

    Attributes:
        rows: packed rows of this process.
        weights: for each row the loss weight of each reply, [replies].
        total_weight: sum over all reply tokens of the step, over all processes, of their weight; 1 if all weigh 0.
        dialogues: ids of the step's dialogues.
    """

    rows: tuple[PackedRow, ...]
    weights: tuple[np.ndarray[Any, np.dtype[np.float32]], ...]
    total_weight: float
    dialogues: tuple[str, ...]


@dataclass(frozen=True)
class Decision:
    """A supporter turn to be predicted: its example and the token sequence that holds its prompt and gold reply.

    Where the history was too long, the example is the shortened one whose prompt the sequence holds.
    """

    dialogue: Dialogue
    turn: int
    example: Example
    sequence: TokenSequence
    start: int
    end: int


def read_splits(data: DataConfig, inventory: str, report: ReadReport) -> dict[str, list[Dialogue]]:
    """Dialogues of each split, labels mapped onto the inventory, consecutive turns merged, limits applied.

    Raises:
        UserError: files or labels are wrong, there is no mapping onto the inventory, or a published split has no such
            files.
    """
    path = Path(data.path) if data.path else sample_path()
    published = data.split == "published" or (data.split == "auto" and path.is_dir())
    read = partial(read_dialogues, format=data.format, mapping=inventory, report=report)
    if published:
        splits = {name: read(file) for name, file in published_split(path).items()}
    else:
        splits = proportional_split(read(path), dict(data.proportions), data.split_seed)
    for name, count in data.limit.items():
        if name not in SPLITS:
            raise UserError(f"no split '{name}'", where="data.limit", fix=f"one of {', '.join(SPLITS)}")
        splits[name] = splits.get(name, [])[:count]
    return {
        name: [merge_turns(dialogue, data.merge) for dialogue in dialogues]  # type: ignore[arg-type]
        for name, dialogues in splits.items()
    }


class ESCDataModule(pl.LightningDataModule):
    """Dialogues as optimizer steps (`train`), rows (`val`) and decisions (`test`).

    Args:
        splits: dialogues of `train`, `val`, `test`; missing splits are empty.
        encoder: the model's chat encoder.
        inventory: the strategies.
        train_prompt, eval_prompt: prompt template and options of each side.
        inference: prompting baseline of the evaluation prompts.
        row_tokens: budget of one packed row; also the longest sequence.
        step_dialogues: dialogues in one optimizer step.
        seed: the run's seed.
        strategy_weights: loss weight of replies by strategy; 1 for the others.
        score_opening: supporter turns before the first seeker turn are decisions too (evaluation).
        decisions_together: decisions in one evaluation batch, at least, except in the last.
        read_report: what reading the dialogues counted.
    """

    def __init__(
        self,
        splits: Mapping[str, Sequence[Dialogue]],
        encoder: ChatEncoder,
        inventory: Inventory,
        *,
        train_prompt: TemplateConfig,
        eval_prompt: TemplateConfig,
        inference: str = "direct",
        row_tokens: int = 2048,
        step_dialogues: int = 8,
        seed: int = 1,
        strategy_weights: Mapping[str, float] | None = None,
        score_opening: bool = False,
        eval_split: str = "test",
        decisions_together: int = 16,
        read_report: ReadReport | None = None,
    ) -> None:
        super().__init__()
        self.splits = splits
        self.encoder, self.inventory = encoder, inventory
        self.train_prompt, self.eval_prompt, self.inference = train_prompt, eval_prompt, inference
        self.row_tokens, self.step_dialogues, self.seed = row_tokens, step_dialogues, seed
        self.strategy_weights = dict(strategy_weights or {})
        self.score_opening, self.eval_split, self.decisions_together = score_opening, eval_split, decisions_together
        self.read_report = read_report or ReadReport()
        self.reports: dict[str, EncodeReport] = {}
        self._training: list[tuple[Dialogue, list[TokenSequence]]] = []
        self._validation: list[PackedRow] = []
        self.decisions: list[list[Decision]] = []

    def setup(self, stage: str) -> None:
        """Encode what the stage (`fit` or `test`) needs, once.

        Raises:
            UserError: there is nothing to train on or to evaluate, or an example exceeds the budget.
        """
        if stage == "fit" and not self._training:
            self._training = self.encode_split("train")
            validation = self.encode_split("val") if self.splits.get("val") else []
            self._validation = pack_rows([[s for _, sequences in validation for s in sequences]], self.row_tokens)
        if stage == "test" and not self.decisions:
            self.decisions = self._encoded_decisions()

    def encode_split(self, split: str) -> list[tuple[Dialogue, list[TokenSequence]]]:
        dialogues = list(self.splits.get(split, ()))
        examples = [self.examples(dialogue, self.train_prompt) for dialogue in dialogues]
        if not any(examples):
            raise UserError(
                f"the {split} split has no supporter turn with a strategy", fix="check the data and its split"
            )
        sequences = self._encode(split, examples)
        return [(dialogue, found) for dialogue, found in zip(dialogues, sequences, strict=True) if found]

    def _encode(self, split: str, examples: Sequence[Sequence[Example]]) -> list[list[TokenSequence]]:
        report = self.reports.setdefault(split, EncodeReport())
        sequences = encode_examples(self.encoder, examples, self.row_tokens, report)
        if report.truncated_examples:
            log.warning(
                "%s: %d of %d replies see a shortened history (%d turns dropped in all)",
                split, report.truncated_examples, report.examples, report.dropped_turns,
            )  # fmt: skip
        return sequences

    def examples(
        self, dialogue: Dialogue, settings: TemplateConfig, *, inference: str = "direct", score_opening: bool = False
    ) -> list[Example]:
        """One example for each supporter decision that has a strategy: its prompt and the reply that was given."""
        template = TEMPLATES[settings.template]
        examples = []
        for turn in dialogue.decisions(score_opening=score_opening):
            reply = dialogue.turns[turn].reply
            if not reply.strategies:
                continue
            prompt = partial(
                build_prompt,
                template,
                self.inventory,
                dialogue,
                turn,
                reply.strategies[0],
                history_labels=settings.history_labels,
                situation=settings.situation,
                inference=inference,
            )
            examples.append(
                Example(
                    prompt(),
                    reply_content(template, reply.text, reply.strategies),
                    ReplyKey(dialogue.id, turn),
                    _history_starts(dialogue, turn),
                    partial(_from, prompt),
                )
            )
        return examples

    def _encoded_decisions(self) -> list[list[Decision]]:
        dialogues = list(self.splits.get(self.eval_split, ()))
        examples = [
            self.examples(dialogue, self.eval_prompt, inference=self.inference, score_opening=self.score_opening)
            for dialogue in dialogues
        ]
        if not any(examples):
            raise UserError(
                f"the {self.eval_split} split has no decision to evaluate", fix="check the data and its split"
            )
        sequences = self._encode(self.eval_split, examples)
        groups: list[list[Decision]] = []
        for dialogue, wanted, found in zip(dialogues, examples, sequences, strict=True):
            by_key = {example.key: example for example in wanted}
            decisions = [
                Decision(
                    dialogue,
                    reply.key.turn,
                    by_key[reply.key].from_turn(reply.first_turn, self.encoder),
                    sequence,
                    reply.start,
                    reply.end,
                )
                for sequence in found
                for reply in sequence.replies
            ]
            if groups and len(groups[-1]) < self.decisions_together:
                groups[-1] += decisions
            elif decisions:
                groups.append(decisions)
        return groups

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self._training) // self.step_dialogues)

    def plan_epoch(self, epoch: int) -> list[list[int]]:
        """Training dialogues (by number) of each optimizer step of an epoch, from (seed, epoch) alone."""
        order = np.random.default_rng(derive_seed(self.seed, "epoch", epoch)).permutation(len(self._training))
        # Equal steps: the last one is not a small remainder with a noisy gradient.
        return [[int(number) for number in part] for part in np.array_split(order, self.steps_per_epoch)]

    def step_batch(self, numbers: Sequence[int], rank: int = 0, world: int = 1) -> StepBatch:
        """The packed rows of an optimizer step. Dialogues of a step share one trie: their system message is common.

        With several processes each takes every `world`-th row; one that would have none repeats a row at weight zero,
        so that all of them take part in the gradient exchange.
        """
        members = [self._training[number] for number in numbers]
        dialogues = {dialogue.id: dialogue for dialogue, _ in members}
        rows = pack_rows([[sequence for _, sequences in members for sequence in sequences]], self.row_tokens)
        weights = [self._reply_weights(row, dialogues) for row in rows]
        total = sum(float(weight[row.reply].sum()) for row, weight in zip(rows, weights, strict=True))
        mine = list(range(rank, len(rows), world))
        if not mine:
            mine, weights = [0], [np.zeros_like(weights[0])]
        return StepBatch(
            tuple(rows[number] for number in mine),
            tuple(weights[number] for number in mine),
            total or 1.0,
            tuple(dialogues),
        )

    def _reply_weights(
        self, row: PackedRow, dialogues: Mapping[str, Dialogue]
    ) -> np.ndarray[Any, np.dtype[np.float32]]:
        strategies = [dialogues[keys[0].dialogue].turns[keys[0].turn].reply.strategies[0] for keys in row.keys]
        return np.array([self.strategy_weights.get(name, 1.0) for name in strategies], dtype=np.float32)

    def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
        """Batches stay numpy arrays; models move what they need."""
        return batch

    def train_dataloader(self) -> StepLoader:
        return StepLoader(self)

    def val_dataloader(self) -> DataLoader[PackedRow]:
        return _one_by_one(self._validation)

    def test_dataloader(self) -> DataLoader[list[Decision]]:
        return _one_by_one(self.decisions)


def _one_by_one(items: list[Any]) -> DataLoader[Any]:
    """A data loader that hands out the items as they are: each is a batch already."""
    return DataLoader(items, batch_size=None, collate_fn=_as_is)  # type: ignore[arg-type]


def _as_is(item: Any) -> Any:
    return item


class StepLoader:
    """Optimizer steps of the trainer's current epoch, as an iterable that Lightning takes for a data loader."""

    def __init__(self, data: ESCDataModule) -> None:
        self.data = data

    def __len__(self) -> int:
        return self.data.steps_per_epoch

    def __iter__(self) -> Iterator[StepBatch]:
        trainer = self.data.trainer
        epoch, rank, world = (trainer.current_epoch, trainer.global_rank, trainer.world_size) if trainer else (0, 0, 1)
        for numbers in self.data.plan_epoch(epoch):
            yield self.data.step_batch(numbers, rank, world)


def _history_starts(dialogue: Dialogue, turn: int) -> tuple[int, ...]:
    """Turns after the first at which a shortened history may start: where a seeker begins to speak."""
    turns = dialogue.turns
    return tuple(
        index
        for index in range(1, turn)
        if turns[index].speaker == "seeker" and turns[index - 1].speaker == "supporter"
    )


def _from(prompt: Callable[..., Prompt], start: int) -> Prompt:
    return prompt(start=start)
