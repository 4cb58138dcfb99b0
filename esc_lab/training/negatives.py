"""Rejected replies that a model writes itself, for dialogues whose records have none.

At each supporter turn the given strategy and reply stand against the model's own replies under strategies that were
not given: the most probable of these (`gold_contrast`), or random ones (`random`, its ablation). Nothing is searched
and nobody judges the replies, so this is not Chain of Strategy Optimization; "wrong" means no more than "not given".

The model is forced to begin with the complete label, `(<strategy>)`. What it writes after that is the reply, without a
role prefix such as `supporter:`. A second label stays in it: evaluation takes one label off a reply, no more.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from esc_lab.artifacts import cached, fingerprint, write_atomic
from esc_lab.config import TemplateConfig
from esc_lab.data.dialogue import Dialogue, Reply
from esc_lab.data.strategies import Inventory
from esc_lab.errors import UserError
from esc_lab.models.generate import Sampling, generate
from esc_lab.models.load import LoadedModel
from esc_lab.models.log_probs import label_log_probs
from esc_lab.prompts import build_layout
from esc_lab.seeds import derive_seed
from esc_lab.terminal import track_progress
from esc_lab.tokens import (
    ChatEncoder,
    EncodeReport,
    Example,
    encode_examples,
    encode_labels,
)
from esc_lab.tokens.encode import IntArray
from esc_lab.tokens.supporter_turns import build_examples
from esc_lab.training.reference import model_identity

log = logging.getLogger(__name__)

KINDS = ("gold_contrast", "random")
_ARTIFACT = "negatives_v1"
_ROLE_PREFIX = re.compile(r"\A\s*(assistant|supporter)\s*:\s*", re.IGNORECASE)


@dataclass
class NegativesReport:
    """Counts of what was written, and of what was dropped or changed.

    Attributes:
        turns: supporter turns that have a strategy.
        shortened: turns whose prompt lost its oldest messages.
        replies: rejected replies that the turns have now.
        truncated: replies that reached the token limit, dropped ones among them.
        empty_dropped, equal_dropped: replies without text, or with the text of the given reply.
        not_enough_strategies: replies that were not written since a turn with several strategies leaves too few others.
        role_prefixes_removed: replies that began with a role prefix.
        recorded_dropped: rejected replies of the records, which the written ones replace.
    """

    turns: int = 0
    shortened: int = 0
    replies: int = 0
    truncated: int = 0
    empty_dropped: int = 0
    equal_dropped: int = 0
    not_enough_strategies: int = 0
    role_prefixes_removed: int = 0
    recorded_dropped: int = 0


def with_negatives(
    loaded: LoadedModel,
    inventory: Inventory,
    dialogues: Sequence[Dialogue],
    prompt: TemplateConfig,
    *,
    kind: str,
    per_turn: int,
    sampling: Sampling,
    seed: int,
    row_tokens: int,
    root: Path,
    replies_together: int = 48,
) -> tuple[list[Dialogue], NegativesReport]:
    """The dialogues with replies that the model writes under wrong strategies as their only rejected replies.

    What the model wrote is stored and read again wherever weights, prompts and settings are the same.

    Args:
        loaded: the model as training starts from it, before it gets a new (random) adapter. It is left as it was.
        kind: `gold_contrast` or `random`; random strategies follow from the seed and the turn alone.
        per_turn: replies for each supporter turn that has a strategy.
        seed: the run's seed.
        row_tokens: budget of a prompt with label and reply; histories that are too long lose their oldest turns.
        root: the cache directory.
        replies_together: replies that are written at once; does not change them.

    Returns:
        The dialogues, with new ids and their old `tree_id`, and what was counted.

    Raises:
        UserError: the prompt names the strategy, there are too few strategies, or a prompt exceeds the budget.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown kind of negatives '{kind}'")
    _check(prompt, per_turn, inventory)
    report = NegativesReport()
    groups = [build_examples(dialogue, inventory, prompt) for dialogue in dialogues]
    first = next((example for group in groups for example in group), None)
    if first is None:
        return _with_replies(dialogues, {}, report), report
    labels = encode_labels(loaded.encoder, inventory, first.prompt)
    # A decision's labels are scored in one row, and its replies have to fit behind them.
    room = max(sum(map(len, labels)), max(map(len, labels)) + sampling.max_new_tokens)
    places = _places(loaded.encoder, dialogues, groups, row_tokens - room, report)
    writer = _Writer(loaded, inventory, labels, kind, per_turn, sampling, seed, row_tokens)

    def build(directory: Path) -> None:
        size = max(replies_together // per_turn, 1)
        parts = [places[start : start + size] for start in range(0, len(places), size)]
        with _evaluating(loaded.model):
            found = [replies for part in track_progress(parts, "rejected replies") for replies in writer.write(part)]
        write_atomic(directory / "replies.json", json.dumps(found, ensure_ascii=False, indent=1))

    directory, found = cached(root, _ARTIFACT, {**model_identity(loaded.model), **writer.inputs(places)}, build)
    if found:
        log.info("rejected replies from %s", directory)
    written = json.loads((directory / "replies.json").read_text(encoding="utf-8"))
    report.not_enough_strategies = sum(per_turn - len(replies) for replies in written)
    by_place = {(place.dialogue, place.turn): replies for place, replies in zip(places, written, strict=True)}
    return _with_replies(dialogues, by_place, report), report


@dataclass(frozen=True)
class _Place:
    """A supporter turn: its dialogue's id, its index, the strategies given there and the ids of its prompt."""

    dialogue: str
    turn: int
    gold: tuple[str, ...]
    prompt: IntArray


@dataclass(frozen=True)
class _Writer:
    """Chooses strategies and writes replies; `labels` are the token ids of each strategy's label."""

    loaded: LoadedModel
    inventory: Inventory
    labels: Sequence[IntArray]
    kind: str
    per_turn: int
    sampling: Sampling
    seed: int
    row_tokens: int

    @property
    def stop(self) -> frozenset[int]:
        encoder = self.loaded.encoder
        return frozenset({encoder.end_of_turn, encoder.tokenizer.eos_token_id})

    def inputs(self, places: Sequence[_Place]) -> dict[str, Any]:
        """Everything beside the model that the replies depend on; seed and places only where something is drawn."""
        tokens = hashlib.sha256()
        for ids in (*self.labels, *(place.prompt for place in places)):
            tokens.update(len(ids).to_bytes(8, "big") + ids.astype(">i8").tobytes())
        drawn = self.kind == "random" or self.sampling.temperature > 0
        return {
            "tokens": tokens.hexdigest(),
            "stop": sorted(map(str, self.stop)),
            "strategies": list(self.inventory.names),
            "gold": fingerprint([place.gold for place in places]),
            "kind": self.kind,
            "per_turn": self.per_turn,
            "sampling": asdict(self.sampling),
            "seed": self.seed if drawn else None,
            "places": fingerprint([(place.dialogue, place.turn) for place in places]) if drawn else None,
        }

    def write(self, places: Sequence[_Place]) -> list[list[dict[str, Any]]]:
        """For each place the strategies, the texts, and whether these were cut off at the token limit."""
        chosen = self._random(places) if self.kind == "random" else self._most_probable(places)
        branches = [(place, name) for place, names in zip(places, chosen, strict=True) for name in names]
        prompts = [np.concatenate([place.prompt, self.labels[self.inventory.index(name)]]) for place, name in branches]
        seeds = [derive_seed(self.seed, "rejected reply", place.dialogue, place.turn, name) for place, name in branches]
        replies = iter(generate(self.loaded.model, prompts, self.stop, self.sampling, seeds) if prompts else ())
        return [[self._entry(name, next(replies)) for name in names] for names in chosen]

    def _entry(self, strategy: str, ids: Sequence[int]) -> dict[str, Any]:
        text = self.loaded.encoder.decode(ids)
        return {"strategy": strategy, "text": text, "truncated": len(ids) == self.sampling.max_new_tokens}

    def _wrong(self, place: _Place) -> list[str]:
        return [name for name in self.inventory.names if name not in place.gold]

    def _random(self, places: Sequence[_Place]) -> list[list[str]]:
        chosen = []
        for place in places:
            draw = np.random.default_rng(derive_seed(self.seed, "negatives", place.dialogue, place.turn))
            chosen.append(draw.permutation(self._wrong(place)).tolist()[: self.per_turn])
        return chosen

    def _most_probable(self, places: Sequence[_Place]) -> list[list[str]]:
        scores = label_log_probs(self.loaded.model, [place.prompt for place in places], self.labels, self.row_tokens)
        chosen = []
        for place, values in zip(places, scores, strict=True):
            by_name = dict(zip(self.inventory.names, values, strict=True))
            chosen.append(sorted(self._wrong(place), key=by_name.__getitem__, reverse=True)[: self.per_turn])
        return chosen


def _check(prompt: TemplateConfig, per_turn: int, inventory: Inventory) -> None:
    if not build_layout(prompt).chooses_strategy:
        raise UserError(
            "the prompt names the strategy, so the model has no wrong one to choose",
            where=f"prompt.train.template={prompt.template}",
            fix="use cso, or data.negatives=recorded",
        )
    if per_turn > len(inventory) - 1:
        raise UserError(
            f"the inventory '{inventory.name}' has {len(inventory)} strategies, and one or more of them are given",
            where=f"data.negatives_per_turn={per_turn}",
            fix=f"set it to {len(inventory) - 1} or less",
        )


def _places(
    encoder: ChatEncoder,
    dialogues: Sequence[Dialogue],
    groups: Sequence[Sequence[Example]],
    prompt_tokens: int,
    report: NegativesReport,
) -> list[_Place]:
    """The supporter turns of the examples, with histories shortened as evaluation does it, under a smaller budget."""
    encoded = EncodeReport()
    sequences = encode_examples(encoder, groups, prompt_tokens, encoded)
    encoded.warn("prompts of rejected replies")
    report.turns, report.shortened = encoded.examples, encoded.truncated_examples
    places = []
    for dialogue, found in zip(dialogues, sequences, strict=True):
        for sequence in found:
            for reply in sequence.replies:
                gold = dialogue.turns[reply.key.turn].reply.strategies
                places.append(_Place(dialogue.id, reply.key.turn, gold, sequence.input_ids[: reply.start]))
    return places


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """The model without dropout and gradients, afterwards as it was."""
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(training)


def _with_replies(
    dialogues: Sequence[Dialogue],
    written: Mapping[tuple[str, int], Sequence[Mapping[str, Any]]],
    report: NegativesReport,
) -> list[Dialogue]:
    """The dialogues with what was written as their only rejected replies, all of it counted."""
    result = []
    for dialogue in dialogues:
        turns = []
        for number, turn in enumerate(dialogue.turns):
            found = [_cleaned(entry, turn.reply, report) for entry in written.get((dialogue.id, number), ())]
            rejected = tuple(reply for reply in found if reply is not None)
            report.replies += len(rejected)
            report.recorded_dropped += len(turn.rejected)
            turns.append(replace(turn, rejected=rejected))
        result.append(replace(dialogue, turns=tuple(turns)))
    return result


def _cleaned(entry: Mapping[str, Any], given: Reply, report: NegativesReport) -> Reply | None:
    """The reply as it is trained on; None if it is empty or has the words of the given one."""
    text = _ROLE_PREFIX.sub("", entry["text"]).strip()
    report.truncated += entry["truncated"]
    report.role_prefixes_removed += text != entry["text"]
    report.empty_dropped += not text
    report.equal_dropped += text == given.text
    return Reply(text, (entry["strategy"],)) if text and text != given.text else None
