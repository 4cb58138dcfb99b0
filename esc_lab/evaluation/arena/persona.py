"""How a card is told to the model that plays the seeker, and how that is asked for the intensity of its emotion.

The words are data: `conf/persona/*.yaml`, and files like them in the user's own directories.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import product
from typing import TYPE_CHECKING, Any

from esc_lab.config.files import read_option
from esc_lab.data.cards import LEVELS, STRONGEST, Card, Traits
from esc_lab.data.dialogue import Turn
from esc_lab.errors import UserError
from esc_lab.prompts import Message, SeekerProfile, check_wording
from esc_lab.search.role_answers import UnusableError, parse_numbers

if TYPE_CHECKING:  # it brings numpy, which the check of a configuration does not need
    from esc_lab.search.roles import Roles

# Slots of each text (see `check_wording`).
SLOTS = {
    "greeting": "",
    "person": "person",
    "strength": "intensity",
    "behaviour": "behaviour",
    "reveal_when": "when text",
    "reveal_now": "text",
    **{f"{trait.name}_{level}": "" for trait, level in product(fields(Traits), LEVELS)},
    "intensity": "emotion",
    "intensity_form": "",
    "intensity_json": "",
    "emotion": "",
}
_INTENSITY = "intensity"


@dataclass(frozen=True)
class PersonaWords:
    """The words in which cards are told."""

    wording: Mapping[str, str]

    @property
    def greeting(self) -> str:
        """The supporter's first message in every talk."""
        return self.wording["greeting"].strip()

    def profile(self, card: Card, message: int) -> SeekerProfile:
        """What the seeker knows of itself when it writes its message of this number, from 1."""
        notes = [self._text("person", person=card.person)] if card.person else []
        notes += [self._text("strength", intensity=card.intensity)] if card.intensity else []
        notes += [self._text(f"{trait}_{level}") for trait, level in asdict(card.traits).items()]
        notes += [self._text("behaviour", behaviour=card.behaviour)] if card.behaviour else []
        for reveal in card.reveals:
            if isinstance(reveal.when, str):
                notes.append(self._text("reveal_when", when=reveal.when, text=reveal.text))
        # Those that come with time are last: what was said before them stays the beginning of the prompt.
        for reveal in card.reveals:
            if isinstance(reveal.when, int) and reveal.when <= message:
                notes.append(self._text("reveal_now", text=reveal.text))
        return SeekerProfile(card.situation, card.emotion, card.problem, tuple(filter(None, notes)))

    def ask_intensity(self, emotion: str, *, json: bool) -> str:
        """The question for the intensity of the seeker's emotion, which may be empty where it is not known."""
        form = self._text("intensity_json" if json else "intensity_form")
        return f"{self._text(_INTENSITY, emotion=emotion or self.wording['emotion'])} {form}"

    def _text(self, name: str, /, **slots: object) -> str:
        return self.wording[name].format(**slots).strip()


def build_words(wording: Mapping[str, Any]) -> PersonaWords:
    """The words of a configuration; where it has none, those of `conf/persona/default.yaml`.

    Raises:
        UserError: a text is missing or wrong.
    """
    words = PersonaWords(
        check_wording(wording or read_option("persona", "default")["wording"], SLOTS, "converse.wording")
    )
    if not words.greeting:
        raise UserError("'greeting' is empty", where="converse.wording", fix="write what the supporter says first")
    return words


async def rate_intensity(roles: Roles, words: PersonaWords, card: Card, history: Sequence[Turn]) -> float | None:
    """The intensity of the seeker's emotion after this talk, 1 to 5, by the model that plays it; None: it says not."""
    asked = words.ask_intensity(card.emotion, json="seeker" not in roles.scoring)
    return await ask_intensity(roles, "seeker", roles.prompts.seeker_messages(roles.seeker, history, asked))


async def ask_intensity(roles: Roles, role: str, messages: tuple[Message, ...]) -> float | None:
    """The intensity, by the model of a role that is asked for it in these messages.

    The expected value over the probabilities of the five numbers where its client scores, else what it writes.
    """
    request = replace(roles.request(role, messages), temperature=0.0)
    values = await roles.numbers(request, (_INTENSITY,), STRONGEST, _parse_intensity, least=1)
    return values[_INTENSITY] if values else None


def _parse_intensity(text: str) -> dict[str, float]:
    values, wrong = parse_numbers(text, STRONGEST)
    named = {name.strip().lower(): value for name, value in values.items()}
    if named.get(_INTENSITY, 0) < 1:
        why = next(iter(wrong.values()), f"there is no intensity from 1 to {STRONGEST} in it")
        raise UnusableError(why)
    return {_INTENSITY: named[_INTENSITY]}
