"""Optimizer steps as training data: which examples a step holds, and how Lightning walks through the steps.

A training batch is all rows of one optimizer step. What a step holds follows from (seed, epoch) alone, so the order
survives a restart and does not depend on accumulation or the number of processes.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import islice
from typing import Any, Protocol

import numpy as np
import pytorch_lightning as pl
from torch.utils.data import DataLoader

from esc_lab.config import TemplateConfig
from esc_lab.data.dialogue import Dialogue
from esc_lab.data.strategies import Inventory
from esc_lab.prompts import Layout, build_layout
from esc_lab.tokens import ChatEncoder, EncodeReport, Example, TokenSequence, encode_examples
from esc_lab.tokens.encode import IntArray, encode_labels
from esc_lab.tokens.examples import build_examples
from esc_lab.tokens.seeker_examples import build_seeker_examples

_TOGETHER = 256  # groups that are encoded in one call of the tokenizer


@contextmanager
def without_collection() -> Iterator[None]:
    """No search for garbage while many objects are made that stay: each search would go through all of them."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@dataclass(frozen=True)
class TurnEncoder:
    """Encodes the supporter turns of dialogues under one prompt.

    Attributes:
        row_tokens: longest sequence, and budget of one packed row where `pass_tokens` is not larger.
        reports: what encoding did, by split.
        drop_too_long: leave out, and count, replies that exceed `row_tokens` even with the shortest history.
        seeker: words of the seeker's prompts, where its turns are encoded and not the supporter's.
        pass_tokens: a larger budget of one packed row.
    """

    encoder: ChatEncoder
    inventory: Inventory
    prompt: TemplateConfig
    row_tokens: int
    reports: dict[str, EncodeReport] = field(default_factory=dict)
    drop_too_long: bool = False
    seeker: Mapping[str, str] | None = None
    pass_tokens: int = 0

    @property
    def budget(self) -> int:
        """Most tokens of a packed row."""
        return max(self.row_tokens, self.pass_tokens)

    @cached_property
    def layout(self) -> Layout:
        return build_layout(self.prompt)

    def examples(self, dialogue: Dialogue, **options: Any) -> list[Example]:
        """The dialogue's supporter turns with a strategy (options as in `build_examples`), or its seeker's turns."""
        if self.seeker is not None:
            return build_seeker_examples(dialogue, self.seeker)
        return build_examples(dialogue, self.inventory, self.prompt, self.layout, **options)

    def count_label_tokens(self, example: Example) -> dict[str, int]:
        """How many of a reply's first tokens are its label, by strategy, after the prompt of an example."""
        labels = encode_labels(self.encoder, self.inventory, example.prompt)
        return dict(zip(self.inventory.names, map(len, labels), strict=True))

    def report(self, split: str) -> EncodeReport:
        return self.reports.setdefault(split, EncodeReport())

    def encode(self, split: str, groups: Iterable[Sequence[Example]]) -> list[list[TokenSequence]]:
        """The examples of each group as token sequences; shortened histories are counted and logged.

        Some groups are taken at a time: examples, with all their texts, take far more memory than their tokens.

        Raises:
            UserError: an example exceeds the budget.
        """
        report, left, sequences = self.report(split), iter(groups), list[list[TokenSequence]]()
        while some := list(islice(left, _TOGETHER)):
            sequences += encode_examples(self.encoder, some, self.row_tokens, report, drop=self.drop_too_long)
        report.warn(split)
        return sequences


class Steps(Protocol):
    """The optimizer steps of a training, and its validation batches."""

    def setup(self) -> None:
        """Encode the training and validation dialogues, once."""

    def plan_epoch(self, epoch: int) -> list[list[int]]:
        """The numbers of what each optimizer step of an epoch holds, from (seed, epoch); always as many steps."""

    def step_batch(self, numbers: Sequence[int], rank: int = 0, world: int = 1) -> Any:
        """The rows of an optimizer step on one of several processes: every `world`-th row, as many on each of them."""

    def validation(self) -> Sequence[Any]:
        """Batches of the validation split, for every process."""


def equal_parts(order: IntArray, size: int) -> list[list[int]]:
    """The numbers in parts of at most `size`, of equal size up to one: the last is no remainder with a noisy gradient.

    >>> equal_parts(np.arange(5), 4)
    [[0, 1, 2], [3, 4]]
    """
    return [part.tolist() for part in np.array_split(order, -(-len(order) // size))]


class StepDataModule(pl.LightningDataModule):
    """Optimizer steps as a Lightning data module.

    Args:
        splits: dialogues of `train`, `val`, `test`; missing splits are empty.
    """

    def __init__(self, splits: Mapping[str, Sequence[Dialogue]], steps: Steps) -> None:
        super().__init__()
        self.splits, self.steps = splits, steps

    def setup(self, stage: str) -> None:
        if stage == "fit":
            with without_collection():
                self.steps.setup()

    def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
        """Batches stay as they are; models move what they need."""
        return batch

    def train_dataloader(self) -> StepLoader:
        return StepLoader(self)

    def val_dataloader(self) -> DataLoader[Any]:
        return load_batches(self.steps.validation())


class StepLoader:
    """Optimizer steps of the trainer's current epoch, as an iterable that Lightning takes for a data loader."""

    def __init__(self, data: StepDataModule) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data.steps.plan_epoch(0))

    def __iter__(self) -> Iterator[Any]:
        trainer, steps = self.data.trainer, self.data.steps
        epoch, rank, world = (trainer.current_epoch, trainer.global_rank, trainer.world_size) if trainer else (0, 0, 1)
        # A batch is an optimizer step, so the step counter says how many of this epoch a resumed run has done.
        done = trainer.global_step - epoch * int(trainer.num_training_batches) if trainer else 0
        make, plan = partial(steps.step_batch, rank=rank, world=world), steps.plan_epoch(epoch)[done:]
        on_gpu = trainer is not None and trainer.strategy.root_device.type == "cuda"
        yield from make_ahead(make, plan) if on_gpu else map(make, plan)


def make_ahead(make: Callable[[list[int]], Any], plan: Sequence[list[int]]) -> Iterator[Any]:
    """The batches of a plan in its order, each made while the one before it is trained on."""
    with ThreadPoolExecutor(max_workers=1) as worker:
        later: Future[Any] | None = None
        for numbers in plan:
            now, later = later, worker.submit(make, numbers)
            if now is not None:
                yield now.result()
        if later is not None:
            yield later.result()


def load_batches(batches: Sequence[Any]) -> DataLoader[Any]:
    """A data loader that hands out the batches as they are."""
    return DataLoader(list(batches), batch_size=None)  # type: ignore[arg-type]
