"""The data module of training and evaluation: dialogues in, optimizer steps and decisions out."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from esc_lab.config import Config, DataConfig, PromptConfig, TemplateConfig
from esc_lab.config.evaluate import EvaluateConfig
from esc_lab.config.training import ObjectiveConfig
from esc_lab.data.corpora import ReadReport, read_splits
from esc_lab.data.dialogue import Dialogue, Speaker
from esc_lab.data.strategies import Inventory, build_inventory
from esc_lab.errors import UserError
from esc_lab.models.devices import choose_pass_tokens, find_device
from esc_lab.models.forward import base_model
from esc_lab.models.load import LoadedModel
from esc_lab.models.sharded import cast_weights
from esc_lab.prompts import Layout, build_layout
from esc_lab.prompts.trained import check_side
from esc_lab.runs.layout import find_run
from esc_lab.runs.lineage import find_training_trees
from esc_lab.tokens import ChatEncoder, EncodeReport, Example, TokenSequence
from esc_lab.tokens.examples import build_examples
from esc_lab.training.negatives import NegativesReport, write_negatives
from esc_lab.training.preference_steps import PreferenceSteps
from esc_lab.training.reply_values import Values, value_replies
from esc_lab.training.sft import SFTSteps
from esc_lab.training.steps import StepDataModule, Steps, TurnEncoder, load_batches, without_collection

log = logging.getLogger(__name__)
_LARGEST_BATCH = 8  # times as many decisions as are answered together


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


class ESCDataModule(StepDataModule):
    """Dialogues as optimizer steps (`train`), validation batches (`val`) and decisions (of the evaluated split).

    Args:
        splits: dialogues of `train`, `val`, `test`; missing splits are empty.
        data: its `row_tokens` are the budget of one packed row and the longest sequence.
        evaluate: which decisions of which split are evaluated, and how many come together in one batch, at least.
        objective: train on preferences (CSO) in place of all replies (SFT).

    Attributes:
        reports: what encoding did, by split.
        read_report: what reading the dialogues counted.
        negatives: what was counted where the model wrote the rejected replies, by split.
        decisions: of the evaluated split, in batches.
    """

    def __init__(
        self,
        splits: Mapping[str, Sequence[Dialogue]],
        encoder: ChatEncoder,
        inventory: Inventory,
        *,
        data: DataConfig,
        prompt: PromptConfig,
        evaluate: EvaluateConfig,
        objective: ObjectiveConfig | None = None,
        seed: int = 1,
    ) -> None:
        drop = data.too_long == "drop"
        seeker = prompt.seeker if data.side == "seeker" else None
        turns = TurnEncoder(
            encoder, inventory, prompt.train, data.row_tokens, drop_too_long=drop, seeker=seeker,
            pass_tokens=data.pass_tokens or 0,
        )  # fmt: skip
        steps: Steps
        if objective is None:
            steps = SFTSteps(splits, turns, data, seed)
        else:
            steps = PreferenceSteps(splits, turns, data, objective, seed)
        super().__init__(splits, steps)
        self.encoder, self.inventory, self.pass_tokens = encoder, inventory, turns.budget
        self.evaluate, self.prompt, self.eval_split = evaluate, prompt, evaluate.split
        self.evaluated_turns = replace(turns, prompt=prompt.eval)
        self.reports: dict[str, EncodeReport] = turns.reports
        self.read_report = ReadReport()
        self.negatives: dict[str, NegativesReport] = {}
        self.decisions: list[list[Decision]] = []

    def setup(self, stage: str) -> None:
        """Encode what the stage (`fit` or `test`) needs, once.

        Raises:
            UserError: there is nothing to train on or to evaluate, or an example exceeds the budget.
        """
        super().setup(stage)
        if stage == "test" and not self.decisions:
            self.decisions = self._encode_decisions()

    def _encode_decisions(self) -> list[list[Decision]]:
        split, settings, turns = self.eval_split, self.evaluate, self.evaluated_turns
        dialogues = self.splits.get(split, ())
        examples = build_decisions(dialogues, self.inventory, turns.layout, self.prompt, settings)
        size = self._batch_size(sum(map(len, examples)))
        batches: list[list[Decision]] = []
        for dialogue, own, sequences in zip(dialogues, examples, turns.encode(split, examples), strict=True):
            by_key = {example.key: example for example in own}
            decisions = []
            for sequence in sequences:
                for reply in sequence.replies:
                    example = by_key[reply.key].from_turn(reply.first_turn, self.encoder)
                    decisions.append(Decision(dialogue, reply.key.turn, example, sequence, reply.start, reply.end))
            if batches and len(batches[-1]) < size:
                batches[-1] += decisions
            elif decisions:
                batches.append(decisions)
        return batches

    def _batch_size(self, decisions: int) -> int:
        """Decisions of a batch: where few get replies, more of them, so that replies can be written together."""
        drawn = self.evaluate.generation
        asked = min(drawn.decisions or decisions, decisions) if drawn.enabled else decisions
        return drawn.batch * min(decisions // max(asked, 1), _LARGEST_BATCH) or drawn.batch

    def test_dataloader(self) -> DataLoader[list[Decision]]:
        """This process's share of the batches."""
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        # A process without a batch takes part in what all do after theirs.
        return load_batches(share_batches(self.decisions, world)[rank] or [[]])


def share_batches(batches: Sequence[list[Decision]], world: int) -> list[list[list[Decision]]]:
    """The batches of each of several processes: whole ones in their order, about as many tokens of prompts for each."""
    tokens = [sum(decision.end for decision in batch) for batch in batches]
    shares: list[list[int]] = [[] for _ in range(world)]
    sizes = [0] * world
    for number in sorted(range(len(batches)), key=tokens.__getitem__, reverse=True):
        smallest = sizes.index(min(sizes))
        shares[smallest].append(number)
        sizes[smallest] += tokens[number]
    return [[batches[number] for number in sorted(share)] for share in shares]


def build_decisions(
    dialogues: Sequence[Dialogue], inventory: Inventory, layout: Layout, prompt: PromptConfig, settings: EvaluateConfig
) -> list[list[Example]]:
    """The decisions of each dialogue that an evaluation scores, with their prompts under a layout.

    Raises:
        UserError: there are none.
    """
    decisions = [
        build_examples(
            dialogue, inventory, prompt.eval, layout, inference=prompt.inference, score_opening=settings.score_opening,
            min_turns=settings.min_turns, history_turns=settings.history_turns,
            unlabelled=not needs_gold(settings, prompt.eval),
        )
        for dialogue in dialogues
    ]  # fmt: skip
    if not any(decisions):
        fix = "check the data and its split"
        raise UserError(f"the {settings.split} split has no decision to evaluate", fix=fix)
    return decisions


def needs_gold(settings: EvaluateConfig, prompt: TemplateConfig) -> bool:
    """Whether an evaluation asks for the strategies of the corpus; not where prompts name any of the inventory."""
    return settings.prompted == "gold" or build_layout(prompt).chooses_strategy


def load_splits(cfg: Config, inventory: Inventory) -> tuple[dict[str, list[Dialogue]], ReadReport]:
    """Dialogues of each split of the corpus, with what reading them changed in the log."""
    report = ReadReport()
    needs_labels = cfg.data.side == "supporter" and (
        cfg.stage != "evaluate" or needs_gold(cfg.evaluate, cfg.prompt.eval)
    )
    with without_collection():
        splits = read_splits(cfg.data, inventory, report, cfg.config_dirs, needs_labels=needs_labels)
    sizes = ", ".join(f"{len(dialogues)} {name}" for name, dialogues in splits.items())
    log.info("%s: %s; %s", cfg.data.name, sizes, report.line())
    return splits, report


def check_unseen(cfg: Config, dialogues: Sequence[Dialogue]) -> int:
    """Number of dialogues to be evaluated that the evaluated model, or a reward model that chooses, was trained on.

    Evaluations of the training split ask for that.

    Raises:
        UserError: there are some, and `data.overlap` does not allow them.
    """
    runs = [find_run(Path(origin)) for origin in (cfg.checkpoint, cfg.evaluate.best_of.reward) if origin]
    if cfg.evaluate.split == "train":
        return 0
    trained = {tree: run for origin in runs if origin for tree, run in find_training_trees(origin).items()}
    seen = [dialogue for dialogue in dialogues if dialogue.tree_id in trained]
    if seen and cfg.data.overlap == "error":
        first = seen[0]
        what = f"{len(seen)} of {len(dialogues)} dialogues are of trees that {trained[first.tree_id]} was trained on"
        fix = "evaluate on the split that the training left out (the same data and split), or data.overlap=allow"
        raise UserError(f"{what}, such as {first.where or first.id}", where=f"evaluate.split={cfg.evaluate.split}",
                        fix=fix)  # fmt: skip
    if seen:
        log.warning("%d of %d dialogues to be evaluated were trained on", len(seen), len(dialogues))
    return len(seen)


def build_data(
    cfg: Config, loaded: LoadedModel, objective: ObjectiveConfig | None = None, values: Values | None = None
) -> ESCDataModule:
    """The data module; reads and splits the corpus, reports what reading changed.

    Args:
        objective: train on preferences; where `data.negatives` asks for it, the model writes the rejected replies.
        values: of the replies that are trained on, in place of those of the data (see `value_replies`).
    """
    side: Speaker = "seeker" if cfg.data.side == "seeker" else "supporter"
    for key in ("checkpoint", "init_from"):
        if checkpoint := getattr(cfg, key):
            check_side(Path(checkpoint), side, f"{key}={checkpoint}")
    inventory = build_inventory(cfg.inventory)
    splits, report = load_splits(cfg, inventory)
    row_tokens = min(cfg.data.row_tokens, loaded.context_tokens)
    pass_tokens = choose_pass_tokens(cfg.data.pass_tokens, row_tokens, find_device())
    settings = replace(cfg.data, row_tokens=row_tokens, pass_tokens=pass_tokens)
    drop = settings.too_long == "drop"
    turns = TurnEncoder(loaded.encoder, inventory, cfg.prompt.train, settings.row_tokens, drop_too_long=drop)
    negatives: dict[str, NegativesReport] = {}
    if objective is not None and settings.negatives != "recorded":
        cast_weights(loaded.model, base_model(loaded.model).config.dtype)
        for split in ("train", "val"):
            splits[split], negatives[split] = write_negatives(
                loaded,
                splits.get(split, [])[: settings.negatives_dialogues],
                turns,
                settings,
                cfg.seed,
                Path(cfg.cache_dir),
            )
            counts = ", ".join(f"{value} {name.replace('_', ' ')}" for name, value in asdict(negatives[split]).items())
            log.info("%s, rejected replies by the model: %s", split, counts)
    if values:
        splits |= {split: value_replies(splits[split], values) for split in ("train", "val") if split in splits}
    data = ESCDataModule(
        splits, loaded.encoder, inventory,
        data=settings, prompt=cfg.prompt, evaluate=cfg.evaluate, objective=objective, seed=cfg.seed,
    )  # fmt: skip
    data.read_report, data.negatives = report, negatives
    return data


def data_metrics(data: ESCDataModule) -> dict[str, float]:
    """What reading and encoding counted, with what they dropped or cut, as `data/...` metrics."""
    reports: list[tuple[str, Any]] = [("", data.read_report)]
    reports += [(f"{split}_", report) for split, report in data.reports.items()]
    if isinstance(data.steps, PreferenceSteps):
        reports += [(f"{split}_", report) for split, report in data.steps.counts.items()]
    reports += [(f"{split}_negatives_", report) for split, report in data.negatives.items()]
    return {
        f"data/{prefix}{name}": float(value) for prefix, report in reports for name, value in asdict(report).items()
    }
