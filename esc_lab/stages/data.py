"""Stage `data`: a look at a corpus before anything is trained on it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from esc_lab.artifacts import write_atomic
from esc_lab.config import Config
from esc_lab.data.corpora import ReadReport, read_splits, sample_path
from esc_lab.data.dialogue import Dialogue
from esc_lab.data.strategies import build_inventory
from esc_lab.models.load import load_encoder
from esc_lab.prompts import build_layout
from esc_lab.report.data_page import (
    DataLook,
    ShownPrompt,
    render_data_page,
    tabulate_labels,
    tabulate_lengths,
    tabulate_reading,
    tabulate_splits,
    tabulate_strategies,
)
from esc_lab.runs.layout import DATA_PAGE
from esc_lab.terminal import print_table
from esc_lab.tokens import ChatEncoder, Example, TokenSequence
from esc_lab.tokens.examples import build_examples
from esc_lab.tokens.lengths import Lengths, measure_lengths

log = logging.getLogger(__name__)


def run(cfg: Config) -> dict[str, float]:
    """Count, measure and show; the page goes into the run directory. What a training would refuse is counted here.

    Raises:
        UserError: the corpus cannot be read, or the model has no tokenizer that encodes it.
    """
    inventory, report = build_inventory(cfg.inventory), ReadReport()
    splits = read_splits(replace(cfg.data, unknown="drop", overlap="allow"), inventory, report, cfg.config_dirs)
    log.info("%s: %s", cfg.data.name, report.line())
    encoder = load_encoder(cfg.model, Path(cfg.cache_dir))
    layout = build_layout(cfg.prompt.train)
    lengths: dict[str, Lengths] = {}
    encoded: list[tuple[Example, TokenSequence]] = []
    for name, dialogues in splits.items():
        groups = [build_examples(dialogue, inventory, cfg.prompt.train, layout) for dialogue in dialogues]
        lengths[name], sequences = measure_lengths(encoder, groups, cfg.data.row_tokens)
        encoded += _pair_up(groups, sequences)
    tables = [
        tabulate_splits(splits, lengths),
        tabulate_reading(report),
        tabulate_labels(report, inventory, cfg.look.labels),
        tabulate_strategies(splits, inventory),
        tabulate_lengths(lengths, cfg.model.name, cfg.data.row_tokens),
    ]
    look = DataLook(_facts(cfg), tables, _show(encoder, encoded, splits, cfg.look.prompts))
    for table in look.tables:
        print_table(table.title, table.heads, table.rows, notes=table.notes, marked=table.marked)
    path = Path(cfg.run_dir) / DATA_PAGE
    write_atomic(path, render_data_page(f"The corpus {cfg.data.name}", look))
    log.info("%s (open it in a browser: the tables, and %d prompts)", path, len(look.prompts))
    if report.refusal:
        log.warning("labels that are not known: a training would stop; the note below the labels has what to paste")
    metrics = {f"data/{name}": float(value) for name, value in asdict(report).items()}
    for name, own in lengths.items():
        metrics |= {f"data/{name}/replies": float(len(own.replies))}
        metrics |= {f"data/{name}/shortened": float(own.shortened), f"data/{name}/too_long": float(own.too_long)}
        if len(own.replies):
            metrics[f"data/{name}/median_reply_tokens"] = float(np.median(own.replies))
            metrics[f"data/{name}/median_prompt_tokens"] = float(np.median(own.prompts))
    return metrics


def _facts(cfg: Config) -> dict[str, str]:
    return {
        "file": Path(cfg.data.hub or cfg.data.path or sample_path()).name,
        "strategies": cfg.inventory.name,
        "prompt": cfg.prompt.train.template,
        "model": cfg.model.name,
    }


def _pair_up(
    groups: Sequence[Sequence[Example]], sequences: Sequence[Sequence[TokenSequence]]
) -> list[tuple[Example, TokenSequence]]:
    """Each example with the sequence that holds it."""
    pairs = []
    for group, own in zip(groups, sequences, strict=True):
        holding = {reply.key: sequence for sequence in own for reply in sequence.replies}
        pairs += [(example, holding[example.key]) for example in group]
    return pairs


def _show(
    encoder: ChatEncoder,
    encoded: Sequence[tuple[Example, TokenSequence]],
    splits: Mapping[str, Sequence[Dialogue]],
    most: int,
) -> list[ShownPrompt]:
    """Prompts from all over the corpus, at even distances."""
    by_id = {dialogue.id: dialogue for dialogues in splits.values() for dialogue in dialogues}
    numbers = np.linspace(0, len(encoded) - 1, min(most, len(encoded))).round().astype(int)
    shown = []
    for example, sequence in (encoded[number] for number in numbers):
        reply = next(reply for reply in sequence.replies if reply.key == example.key)
        strategies = by_id[example.key.dialogue].turns[example.key.turn].reply.strategies
        before, said = (
            encoder.tokenizer.decode(sequence.input_ids[part])
            for part in (slice(reply.start), slice(reply.start, reply.end))
        )
        place = Path(example.place).name if example.where else example.place
        tokens = f"{reply.start} + {reply.end - reply.start} tokens"
        shown.append(ShownPrompt(place, " and ".join(strategies), tokens, before, said))
    return shown
