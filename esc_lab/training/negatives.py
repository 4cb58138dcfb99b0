"""Rejected replies that a model writes itself, for dialogues whose records have none.

At each supporter turn the gold strategy and reply stand against the model's own replies under other strategies: the
most probable of these (`gold_contrast`), or random ones (`random`, its ablation). Nothing is searched and nobody judges
the replies, so this is not Chain of Strategy Optimization; "wrong" means no more than "not gold".

The model is forced to begin with the complete label, `(<strategy>)`. What it writes after that is the reply, without a
role prefix such as `supporter:`. A second label stays in it: evaluation takes one label off a reply, no more.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from esc_lab.artifacts import READ_ERRORS, cached, fingerprint, write_atomic
from esc_lab.config import DataConfig
from esc_lab.data.dialogue import Dialogue, Reply, Turn
from esc_lab.errors import UserError
from esc_lab.models.forward import evaluation_mode
from esc_lab.models.generate import Sampling, generate
from esc_lab.models.load import LoadedModel, model_identity
from esc_lab.models.log_probs import label_log_probs
from esc_lab.seeds import derive_seed
from esc_lab.terminal import track_progress
from esc_lab.tokens import Example, encode_labels
from esc_lab.tokens.encode import IntArray
from esc_lab.tokens.examples import find_reply
from esc_lab.training.steps import TurnEncoder

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
        empty_dropped, equal_dropped: replies without text, or with the text of the gold reply.
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


def write_negatives(
    loaded: LoadedModel,
    dialogues: Sequence[Dialogue],
    turns: TurnEncoder,
    data: DataConfig,
    seed: int,
    root: Path,
    parallel_replies: int = 48,
) -> tuple[list[Dialogue], NegativesReport]:
    """The dialogues with replies that the model writes under wrong strategies as their only rejected replies.

    What the model wrote is stored and read again wherever weights, prompts and settings are the same.

    Args:
        loaded: the model as training starts from it, before it gets a new (random) adapter. It is left as it was.
        turns: `row_tokens` is the budget of a prompt with label and reply: too long histories lose their oldest turns.
        data: which `negatives`, how many for each turn, how they are sampled. Random strategies follow from the seed
            and the turn alone.
        root: the cache directory.
        parallel_replies: replies that are written at once; does not change them.

    Returns:
        The dialogues, with new ids and their old `tree_id`, and what was counted.

    Raises:
        UserError: the prompt names the strategy, there are too few strategies, or a prompt exceeds the budget.
    """
    if data.negatives not in KINDS:
        raise ValueError(f"unknown kind of negatives '{data.negatives}'")
    _check(turns, data.negatives_per_turn)
    report = NegativesReport()
    groups = [turns.examples(dialogue) for dialogue in dialogues]
    first = next((example for group in groups for example in group), None)
    if first is None:
        return _replace_rejected(dialogues, {}, report), report
    labels = encode_labels(turns.encoder, turns.inventory, first.prompt)
    # A decision's labels are scored in one row, and its replies have to fit behind them.
    room = max(sum(map(len, labels)), max(map(len, labels)) + data.negatives_tokens)
    places = _places(replace(turns, row_tokens=turns.row_tokens - room, reports={}), dialogues, groups, report)
    writer = _Writer(loaded, turns, labels, data, seed)

    def build(directory: Path) -> None:
        size = max(parallel_replies // data.negatives_per_turn, 1)
        parts = [places[start : start + size] for start in range(0, len(places), size)]
        with evaluation_mode(loaded.model):
            replies = [each for part in track_progress(parts, "rejected replies") for each in writer.write(part)]
        write_atomic(directory / "replies.json", json.dumps(replies, ensure_ascii=False, indent=1))

    directory, reused = cached(root, _ARTIFACT, {**model_identity(loaded.model), **writer.inputs(places)}, build)
    if reused:
        log.info("rejected replies from %s", directory)
    file = directory / "replies.json"
    try:  # entries of older code have no checksums
        written = json.loads(file.read_text(encoding="utf-8"))
        report.not_enough_strategies = sum(data.negatives_per_turn - len(replies) for replies in written)
        by_place = {(place.dialogue, place.turn): replies for place, replies in zip(places, written, strict=True)}
        return _replace_rejected(dialogues, by_place, report), report
    except READ_ERRORS as error:
        fix = f"delete {directory}; they are then written anew"
        raise UserError(f"not the rejected replies of these turns: {error}", where=str(file), fix=fix) from error


@dataclass(frozen=True)
class _Place:
    """A supporter turn: its dialogue's id, its index, its gold strategies and the ids of its prompt."""

    dialogue: str
    turn: int
    gold: tuple[str, ...]
    prompt: IntArray


@dataclass(frozen=True)
class _Writer:
    """Chooses strategies and writes replies; `labels` are the token ids of each strategy's label."""

    loaded: LoadedModel
    turns: TurnEncoder
    labels: Sequence[IntArray]
    data: DataConfig
    seed: int

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.data.negatives_tokens, self.data.negatives_temperature)

    def inputs(self, places: Sequence[_Place]) -> dict[str, Any]:
        """Everything beside the model that the replies depend on; seed and places only where something is drawn."""
        tokens = hashlib.sha256()
        for ids in (*self.labels, *(place.prompt for place in places)):
            tokens.update(len(ids).to_bytes(8, "big") + ids.astype(">i8").tobytes())
        random = self.data.negatives == "random" or self.sampling.temperature > 0
        return {
            "tokens": tokens.hexdigest(),
            "stop": sorted(map(str, self.turns.encoder.stop_tokens)),
            "strategies": list(self.turns.inventory.names),
            "gold": fingerprint([place.gold for place in places]),
            "kind": self.data.negatives,
            "per_turn": self.data.negatives_per_turn,
            "sampling": asdict(self.sampling),
            "seed": self.seed if random else None,
            "places": fingerprint([(place.dialogue, place.turn) for place in places]) if random else None,
        }

    def write(self, places: Sequence[_Place]) -> list[list[dict[str, Any]]]:
        """For each place the strategies, the texts, and whether these were cut off at the token limit."""
        chosen = self._choose(places)
        branches = [(place, name) for place, names in zip(places, chosen, strict=True) for name in names]
        prompts = [
            np.concatenate([place.prompt, self.labels[self.turns.inventory.index(name)]]) for place, name in branches
        ]
        seeds = [derive_seed(self.seed, "rejected reply", place.dialogue, place.turn, name) for place, name in branches]
        encoder, sampling = self.turns.encoder, self.sampling
        replies = generate(self.loaded.model, prompts, encoder.stop_tokens, sampling, seeds) if prompts else ()
        entries = (
            {"strategy": name, "text": encoder.decode(ids), "truncated": len(ids) == sampling.max_new_tokens}
            for (_, name), ids in zip(branches, replies, strict=True)
        )
        return [list(islice(entries, len(names))) for names in chosen]

    def _choose(self, places: Sequence[_Place]) -> list[list[str]]:
        """The wrong strategies of each place that replies are written under."""
        wrong = [[name for name in self.turns.inventory.names if name not in place.gold] for place in places]
        if self.data.negatives == "random":
            seeds = [derive_seed(self.seed, "negatives", place.dialogue, place.turn) for place in places]
            ordered = [
                np.random.default_rng(seed).permutation(names).tolist()
                for seed, names in zip(seeds, wrong, strict=True)
            ]
        else:
            prompts = [place.prompt for place in places]
            scores = label_log_probs(self.loaded.model, prompts, self.labels, self.turns.row_tokens)
            ordered = [
                sorted(names, key=lambda name: -values[self.turns.inventory.index(name)])
                for names, values in zip(wrong, scores, strict=True)
            ]
        return [names[: self.data.negatives_per_turn] for names in ordered]


def _check(turns: TurnEncoder, per_turn: int) -> None:
    inventory = turns.inventory
    if not turns.layout.chooses_strategy:
        raise UserError(
            "the prompt names the strategy, so the model has no wrong one to choose",
            where=f"prompt.train.template={turns.prompt.template}",
            fix="use cso, or data.negatives=recorded",
        )
    if per_turn > len(inventory) - 1:
        raise UserError(
            f"the inventory '{inventory.name}' has {len(inventory)} strategies, and one or more of them are gold",
            where=f"data.negatives_per_turn={per_turn}",
            fix=f"set it to {len(inventory) - 1} or less",
        )


def _places(
    turns: TurnEncoder, dialogues: Sequence[Dialogue], groups: Sequence[Sequence[Example]], report: NegativesReport
) -> list[_Place]:
    """The supporter turns of the examples, with histories shortened as evaluation does it, under a smaller budget."""
    what = "prompts of rejected replies"
    encoded = turns.encode(what, groups)
    report.turns, report.shortened = turns.report(what).examples, turns.report(what).truncated_examples
    return [
        _Place(
            dialogue.id, reply.key.turn, find_reply(dialogue, reply.key).strategies, sequence.input_ids[: reply.start]
        )
        for dialogue, sequences in zip(dialogues, encoded, strict=True)
        for sequence in sequences
        for reply in sequence.replies
    ]


def _replace_rejected(
    dialogues: Sequence[Dialogue],
    written: Mapping[tuple[str, int], Sequence[Mapping[str, Any]]],
    report: NegativesReport,
) -> list[Dialogue]:
    """The dialogues with what was written as their only rejected replies, all of it counted."""

    def rewrite(dialogue: Dialogue, number: int, turn: Turn) -> Turn:
        replies = [_clean(entry, turn.reply, report) for entry in written.get((dialogue.id, number), ())]
        rejected = tuple(reply for reply in replies if reply is not None)
        report.replies += len(rejected)
        report.recorded_dropped += len(turn.rejected)
        return replace(turn, rejected=rejected)

    return [
        replace(dialogue, turns=tuple(rewrite(dialogue, number, turn) for number, turn in enumerate(dialogue.turns)))
        for dialogue in dialogues
    ]


def _clean(entry: Mapping[str, Any], gold: Reply, report: NegativesReport) -> Reply | None:
    """The reply as it is trained on; None if it is empty or has the words of the gold one."""
    text = _ROLE_PREFIX.sub("", entry["text"]).strip()
    report.truncated += entry["truncated"]
    report.role_prefixes_removed += text != entry["text"]
    report.empty_dropped += not text
    report.equal_dropped += text == gold.text
    return Reply(text, (entry["strategy"],)) if text and text != gold.text else None
