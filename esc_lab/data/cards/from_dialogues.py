"""Cards of a corpus' situations, by rule: what the corpus says of its seekers, and how much they wrote."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import fmean

from esc_lab.data.cards import Card, Traits, check_ids
from esc_lab.data.dialogue import Dialogue

# Mean words of a seeker's message below which it writes little, and from which much.
FEW_WORDS, MANY_WORDS = 8, 25


def build_cards(dialogues: Iterable[Dialogue], where: str) -> list[Card]:
    """A card of each situation, of the id of its dialogue: the first one of each tree that has one.

    Problem, emotion and its initial intensity are the corpus' own; verbosity is by the length of the seeker's messages.
    Neither opening nor what is revealed when is made up.

    Raises:
        UserError: no dialogue has a situation.
    """
    cards: dict[str, Card] = {}
    situations: set[str] = set()
    for dialogue in dialogues:
        if not dialogue.situation.strip() or dialogue.tree_id in cards or dialogue.situation in situations:
            continue
        situations.add(dialogue.situation)
        cards[dialogue.tree_id] = Card(
            dialogue.id,
            dialogue.situation.strip(),
            problem=dialogue.problem.strip(),
            emotion=dialogue.emotion.strip(),
            intensity=dialogue.survey.initial_intensity if dialogue.survey else None,
            traits=Traits(verbosity=_verbosity(dialogue)),
        )
    return check_ids([*cards.values()], where)


def _verbosity(dialogue: Dialogue) -> str:
    said = [len(turn.reply.text.split()) for turn in dialogue.turns if turn.speaker == "seeker"]
    words = fmean(said) if said else FEW_WORDS
    return "low" if words < FEW_WORDS else "high" if words >= MANY_WORDS else "medium"
