"""One Lightning data module for training and evaluation: dialogues in, packed optimizer steps and decisions out.

A training batch is all rows of one optimizer step. Which dialogues a step holds follows from (seed, epoch) alone, so
the order survives a restart and does not depend on accumulation or the number of processes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from torch.utils.data import DataLoader

from esc_lab.config import DataConfig, TemplateConfig
from esc_lab.data.corpora import (
    ReadReport,
    proportional_split,
    published_split,
    read_dialogues,
    sample_path,
    seed_fraction,
)
from esc_lab.data.dialogue import Dialogue, merge_turns
from esc_lab.data.strategies import Inventory
from esc_lab.errors import UserError
from esc_lab.tokens import ChatEncoder, EncodeReport, Example, TokenSequence, encode_split
from esc_lab.tokens.supporter_turns import build_examples
from esc_lab.training.cso_data import PreferenceBatch, PreferenceSteps
from esc_lab.training.negatives import NegativesReport
from esc_lab.training.preference_split import PreferenceSettings
from esc_lab.training.sft_data import SFTSteps, StepBatch

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Decision:
    """A supporter turn to be predicted: its example and the token sequence that holds its prompt and gold reply.

    Where the history was too long, the example is the shortened one whose prompt the sequence holds; it begins with
    turn `first_turn`.
    """

    dialogue: Dialogue
    turn: int
    example: Example
    sequence: TokenSequence
    start: int
    end: int
    first_turn: int = 0


def read_splits(
    data: DataConfig, inventory: Inventory, report: ReadReport, config_dirs: Sequence[str] = ()
) -> dict[str, list[Dialogue]]:
    """Dialogues of each split, labels mapped onto the inventory, consecutive turns merged, limits applied.

    Of the training split only the share `seed_fraction` of its trees is kept.

    Args:
        config_dirs: the user's own directories, in which the corpus' own inventory is looked up before `conf/`.

    Raises:
        UserError: files or labels are wrong, there is no mapping onto the inventory, or a published split has no such
            files.
    """
    path = Path(data.path) if data.path else sample_path()
    published = data.split == "published" or (data.split == "auto" and path.is_dir())
    read = partial(read_dialogues, format=data.format, mapping=inventory, report=report, config_dirs=config_dirs)
    if published:
        splits = {name: read(file) for name, file in published_split(path).items()}
    else:
        splits = proportional_split(read(path), dict(data.proportions), data.split_seed)
    if data.seed_fraction < 1 and "train" in splits:
        splits["train"] = seed_fraction(splits["train"], data.seed_fraction, data.split_seed)
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
        preferences: train on preferences (CSO) in place of all replies (SFT).
        score_opening: supporter turns before the first seeker turn are decisions too (evaluation).
        min_turns, history_turns: which decisions are evaluated and how much of their history is shown, as in
            `build_examples`.
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
        preferences: PreferenceSettings | None = None,
        score_opening: bool = False,
        min_turns: int = 0,
        history_turns: int | None = None,
        eval_split: str = "test",
        decisions_together: int = 16,
        read_report: ReadReport | None = None,
    ) -> None:
        super().__init__()
        self.splits = splits
        self.encoder, self.inventory = encoder, inventory
        self.train_prompt, self.eval_prompt, self.inference = train_prompt, eval_prompt, inference
        self.row_tokens = row_tokens
        self.eval_split, self.decisions_together = eval_split, decisions_together
        self._evaluated = partial(
            build_examples, inventory=inventory, settings=eval_prompt, inference=inference,
            score_opening=score_opening, min_turns=min_turns, history_turns=history_turns,
        )  # fmt: skip
        self.read_report = read_report or ReadReport()
        self.reports: dict[str, EncodeReport] = {}
        self.steps: SFTSteps | PreferenceSteps
        if preferences is None:
            self.steps = SFTSteps(
                splits, encoder, inventory, train_prompt, self.reports, row_tokens=row_tokens, seed=seed,
                step_dialogues=step_dialogues, strategy_weights=strategy_weights,
            )  # fmt: skip
        else:
            self.steps = PreferenceSteps(
                splits, encoder, inventory, train_prompt, self.reports, preferences, row_tokens=row_tokens, seed=seed
            )
        self.written: dict[str, NegativesReport] = {}  # of rejected replies that the model wrote, by split
        self.decisions: list[list[Decision]] = []

    def setup(self, stage: str) -> None:
        """Encode what the stage (`fit` or `test`) needs, once.

        Raises:
            UserError: there is nothing to train on or to evaluate, or an example exceeds the budget.
        """
        if stage == "fit":
            self.steps.setup()
        if stage == "test" and not self.decisions:
            self.decisions = self._encoded_decisions()

    def _encoded_decisions(self) -> list[list[Decision]]:
        dialogues = list(self.splits.get(self.eval_split, ()))
        examples = [self._evaluated(dialogue) for dialogue in dialogues]
        if not any(examples):
            raise UserError(
                f"the {self.eval_split} split has no decision to evaluate", fix="check the data and its split"
            )
        sequences = encode_split(self.encoder, self.eval_split, examples, self.row_tokens, self.reports)
        groups: list[list[Decision]] = []
        for dialogue, wanted, found in zip(dialogues, examples, sequences, strict=True):
            by_key = {example.key: example for example in wanted}
            decisions = []
            for sequence in found:
                for reply in sequence.replies:
                    example = by_key[reply.key].from_turn(reply.first_turn, self.encoder)
                    turn, place = reply.key.turn, (reply.start, reply.end)
                    decisions.append(Decision(dialogue, turn, example, sequence, *place, example.first_turn))
            if groups and len(groups[-1]) < self.decisions_together:
                groups[-1] += decisions
            elif decisions:
                groups.append(decisions)
        return groups

    @property
    def steps_per_epoch(self) -> int:
        return self.steps.steps_per_epoch

    def plan_epoch(self, epoch: int) -> list[list[int]]:
        """What each optimizer step of an epoch holds (numbers of dialogues or of pairs), from (seed, epoch) alone."""
        return self.steps.plan_epoch(epoch)

    def step_batch(self, numbers: Sequence[int], rank: int = 0, world: int = 1) -> StepBatch | PreferenceBatch:
        """The packed rows of an optimizer step. With several processes each takes every `world`-th row."""
        return self.steps.step_batch(numbers, rank, world)

    def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
        """Batches stay numpy arrays; models move what they need."""
        return batch

    def train_dataloader(self) -> StepLoader:
        return StepLoader(self)

    def val_dataloader(self) -> DataLoader[Any]:
        return _one_by_one(self.steps.validation)

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

    def __iter__(self) -> Iterator[StepBatch | PreferenceBatch]:
        trainer = self.data.trainer
        epoch, rank, world = (trainer.current_epoch, trainer.global_rank, trainer.world_size) if trainer else (0, 0, 1)
        # A batch is an optimizer step, so the step counter says how many of this epoch a resumed run has behind it.
        done = trainer.global_step - epoch * int(trainer.num_training_batches) if trainer else 0
        for numbers in self.data.plan_epoch(epoch)[done:]:
            yield self.data.step_batch(numbers, rank, world)
