"""What the seekers of a search write beside what real ones wrote: perplexity, repetition, length.

Perplexity is that of one fixed scorer, the base model of the roles that are played here, after the talk so far. A model
that repeats itself has a low one, so the shares of what was said before stand beside it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from esc_lab.config import Config
from esc_lab.config.prompt import PromptConfig, collect_seeker_words
from esc_lab.data.dialogue import Dialogue
from esc_lab.search.calls import Calls
from esc_lab.search.clients.local import LocalClient
from esc_lab.seeds import derive_seed
from esc_lab.tokens import EncodeReport, encode_examples
from esc_lab.tokens.seeker_examples import build_seeker_examples

_WORD = re.compile(r"\w+(?:['’]\w+)?")  # noqa: RUF001
_ROW_TOKENS = 2048


@dataclass(frozen=True)
class Talk:
    """A dialogue and the seeker turns of it that are measured, by their indices."""

    dialogue: Dialogue
    turns: tuple[int, ...]


@dataclass(frozen=True)
class SeekerTexts:
    """Figures of seeker turns.

    Attributes:
        turns, words: how many, and their words on average.
        repeated: share of their 4-grams of words that either side had said before in the talk.
        distinct: distinct-2, the share of bigrams of a talk's turns that differ from each other, mean over talks.
        perplexity: exp of the mean negative log-likelihood of a token; None where no model is loaded.
    """

    turns: int
    words: float
    repeated: float
    distinct: float
    perplexity: float | None = None

    def metrics(self, name: str) -> dict[str, float]:
        """Flat, under `search/seeker/<name>/`."""
        return {f"search/seeker/{name}/{key}": float(value) for key, value in vars(self).items() if value is not None}

    def row(self, name: str) -> tuple[str, ...]:
        """Its row of the table, below `HEADS`."""
        perplexity = "-" if self.perplexity is None else f"{self.perplexity:.1f}"
        return name, str(self.turns), perplexity, f"{self.repeated:.1%}", f"{self.distinct:.2f}", f"{self.words:.1f}"


HEADS = ("seeker turns", "count", "perplexity", "4-grams said before", "distinct-2", "words a turn")
NOTES = (
    "seeker turns: searched = what the search's seeker wrote; real = of people, in dialogues that were no seeds.",
    "perplexity: how surprised the untrained model is by them, per token; far below that of real ones: platitudes.",
    "4-grams said before: share of runs of four words that were said before in the same talk; much: it goes round.",
    "distinct-2: different pairs of words, as a share of all; the fewer, the more alike the turns are.",
    "words a turn: the mean.",
)


def compare_seekers(
    cfg: Config, calls: Calls, dialogues: Sequence[Dialogue], splits: Mapping[str, Sequence[Dialogue]]
) -> dict[str, SeekerTexts]:
    """Figures of the seeker turns that a search wrote, `searched`, and of held-out ones, `real`; without those that
    there are none of.

    Args:
        calls: of the search, which is over.
        dialogues: what it made.
        splits: of the seeds' corpus; the first other than the seeds' is held out.
    """
    count, seed = cfg.search.seeker_check, cfg.search.seed
    scorer = next((client for client in calls.clients.values() if isinstance(client, LocalClient)), None)
    words = collect_seeker_words(PromptConfig(), {})  # always the same, whatever the roles' words
    others = (splits[name] for name in ("val", "test", "train") if name != cfg.search.split and splits.get(name))
    talks = {"searched": map(find_search_turns, dialogues), "real": map(find_real_turns, next(others, ()))}
    measured = {name: measure_texts(draw_talks(own, count, seed), scorer, words) for name, own in talks.items()}
    return {name: figures for name, figures in measured.items() if figures}


def find_search_turns(dialogue: Dialogue) -> Talk:
    """The seeker turns of a dialogue of a search that are the search's and not the seed's."""
    seed, turns = set(dialogue.meta["search"]["seed_turns"]), dialogue.turns
    found = [
        index
        for index in range(1, len(turns))
        if turns[index].speaker == "seeker" and turns[index - 1].reply.visits is not None and index - 1 not in seed
    ]
    return Talk(dialogue, tuple(found))


def find_real_turns(dialogue: Dialogue) -> Talk:
    """The seeker turns of a dialogue that answer a supporter, consecutive ones as one with the first."""
    sides = [turn.speaker for turn in dialogue.turns]
    found = [i for i in range(1, len(sides)) if (sides[i - 1], sides[i]) == ("supporter", "seeker")]
    return Talk(dialogue, tuple(found))


def draw_talks(talks: Iterable[Talk], count: int, seed: int) -> list[Talk]:
    """Talks in an order that is drawn, until they have `count` turns; a turn that several share is in the first."""
    known: set[tuple[object, ...]] = set()
    order = sorted(talks, key=lambda talk: derive_seed(seed, "seeker texts", talk.dialogue.id))
    drawn: list[Talk] = []
    for talk in order:
        if sum(len(other.turns) for other in drawn) >= count:
            break
        places = {turn: _place(talk.dialogue, turn) for turn in talk.turns}
        new = tuple(turn for turn, place in places.items() if place not in known)
        known.update(places.values())
        drawn += [Talk(talk.dialogue, new)] if new else []
    return drawn


def measure_texts(talks: Sequence[Talk], scorer: LocalClient | None, words: Mapping[str, str]) -> SeekerTexts | None:
    """The figures of talks; None where there is no turn.

    Args:
        scorer: a closed client, whose base model is asked; None for no perplexity.
        words: of the seeker's prompts, in which it is asked.
    """
    turns = [turn.reply.text for talk in talks for turn in (talk.dialogue.turns[index] for index in talk.turns)]
    if not turns:
        return None
    repeated = [_repeated(talk) for talk in talks]
    grams = sum(total for _, total in repeated)
    return SeekerTexts(
        len(turns),
        fmean(len(_WORD.findall(text)) for text in turns),
        sum(known for known, _ in repeated) / grams if grams else 0.0,
        fmean(map(_distinct, talks)),
        _perplexity(talks, scorer, words) if scorer else None,
    )


def _place(dialogue: Dialogue, turn: int) -> tuple[object, ...]:
    return (dialogue.tree_id, *(other.reply.text for other in dialogue.turns[: turn + 1]))


def _grams(text: str, size: int) -> list[tuple[str, ...]]:
    words = _WORD.findall(text.lower())
    return [tuple(words[start : start + size]) for start in range(len(words) - size + 1)]


def _repeated(talk: Talk) -> tuple[int, int]:
    """Of the 4-grams of a talk's turns how many were said before, and how many there are."""
    said: set[tuple[str, ...]] = set()
    known = total = 0
    for index, turn in enumerate(talk.dialogue.turns):
        for gram in _grams(turn.reply.text, 4):
            if index in talk.turns:
                total += 1
                known += gram in said
            said.add(gram)
    return known, total


def _distinct(talk: Talk) -> float:
    pairs = [pair for index in talk.turns for pair in _grams(talk.dialogue.turns[index].reply.text, 2)]
    return len(set(pairs)) / len(pairs) if pairs else 1.0


def _perplexity(talks: Sequence[Talk], scorer: LocalClient, words: Mapping[str, str]) -> float:
    groups = [build_seeker_examples(talk.dialogue, words, ends=False) for talk in talks]
    budget = min(_ROW_TOKENS, scorer.context_tokens)
    encoded = encode_examples(scorer.encoder, groups, budget, EncodeReport(), drop=True)
    asked = {(talk.dialogue.id, turn) for talk in talks for turn in talk.turns}
    sequences = [sequence for of_talk in encoded for sequence in of_talk]
    scores = [tokens for key, tokens in scorer.score(sequences, budget) if (key.dialogue, key.turn) in asked]
    return math.exp(-float(np.concatenate(scores).mean())) if scores else math.nan
