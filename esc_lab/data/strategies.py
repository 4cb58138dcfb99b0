"""Support strategies: the inventories of the field, their definitions, and the normalisation of labels.

Inventories: `esconv` (8; Liu et al. 2021), `cso` (8; the CSO paper's search strategies), `extes` (16; the ExTES corpus)
and `extes_sra` (15; the classes of the SRA paper). Definitions are this project's own wording.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from esc_lab.errors import nearest


@dataclass(frozen=True)
class Strategy:
    """A support strategy: the label that models read and write, and what it means."""

    name: str
    definition: str


@dataclass(frozen=True)
class Inventory:
    """An ordered set of strategies. The order fixes class indices everywhere (metrics, distributions, tables)."""

    name: str
    strategies: tuple[Strategy, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(strategy.name for strategy in self.strategies)

    def __len__(self) -> int:
        return len(self.strategies)

    def index(self, name: str) -> int:
        """Class index of a canonical name. Raises ValueError if it is not in the inventory."""
        return self.names.index(name)

    def definition(self, name: str) -> str:
        return self.strategies[self.index(name)].definition


_QUESTION = "Ask the seeker, openly or about one detail, to tell more about the problem or what it does to them."
_PERSPECTIVES = "Offer another way to look at the situation that the seeker may not have considered."
_REFRAME = "Help turn a harsh or hopeless thought into one that is kinder and closer to the facts."
_INFORMATION = "Give facts, explanations or sources that bear on the seeker's problem."
_PLANNING = "Work out the next steps together with the seeker, leaving the choices to them."
_VALIDATION = "Show that the seeker's feelings make sense given what has happened to them."
_AFFIRM = "Name the seeker's strengths, efforts or worth, and encourage them."
_NO_JUDGMENT = "Stay open and neutral: neither blame the seeker nor criticise what they did or feel."
_EMPATHETIC = "Say in your own words that you understand what the seeker goes through and that you are with them."

_ESCONV = (
    Strategy("Question", _QUESTION),
    Strategy("Restatement or Paraphrasing", "Give back briefly, in other words, what the seeker has told you."),
    Strategy("Reflection of feelings", "Put into words what the seeker seems to feel."),
    Strategy("Self-disclosure", "Share a similar experience or feeling of your own to show that you understand."),
    Strategy(
        "Affirmation and Reassurance", "Point to the seeker's strengths and give honest comfort and encouragement."
    ),
    Strategy("Providing Suggestions", "Propose something that the seeker could do, without telling them what to do."),
    Strategy("Information", _INFORMATION),
    Strategy("Others", "Greet, thank, make small talk, or support in a way that the other strategies do not cover."),
)

_CSO = (
    Strategy("Emotional Validation", _VALIDATION),
    Strategy("Affirmation", _AFFIRM),
    Strategy("Collaborative Planning", _PLANNING),
    Strategy("Empathetic Statements", _EMPATHETIC),
    Strategy("Avoid Judgment and Criticism", _NO_JUDGMENT),
    Strategy("Provide Different Perspectives", _PERSPECTIVES),
    Strategy("Reframe Negative Thoughts", _REFRAME),
    Strategy("Share Information", _INFORMATION),
)

_EXTES_COMMON = (
    Strategy("Affirmation", _AFFIRM),
    Strategy("Avoid Judgment and Criticism", _NO_JUDGMENT),
    Strategy("Clarification", "Ask what the seeker means, so that nothing important stays vague."),
    Strategy("Collaborative Planning", _PLANNING),
    Strategy("Emotional Validation", _VALIDATION),
    Strategy("Normalize Experiences", "Tell the seeker that many people react the same way in such a situation."),
    Strategy("Offer Hope", "Express grounded confidence that things can get better."),
    Strategy(
        "Promote Self-Care Practices", "Encourage the seeker to look after body and mind: rest, food, movement, joy."
    ),
    Strategy("Provide Different Perspectives", _PERSPECTIVES),
    Strategy(
        "Reflective Statements",
        "Mirror back the core of what the seeker said or feels, so they can hear it themselves.",
    ),
    Strategy("Reframe Negative Thoughts", _REFRAME),
    Strategy("Share Information", _INFORMATION),
    Strategy("Stress Management", "Offer a way to lower tension, such as breathing, grounding or pacing the day."),
    Strategy("Suggest Options", "Lay out several things the seeker could do and let them weigh these."),
)

INVENTORIES: Mapping[str, Inventory] = {
    "esconv": Inventory("esconv", _ESCONV),
    "cso": Inventory("cso", _CSO),
    "extes": Inventory(
        "extes",
        (
            *_EXTES_COMMON,
            Strategy("Empathetic Statements", _EMPATHETIC),
            Strategy("Others", "Greet, thank or say something that the other strategies do not cover."),
        ),
    ),
    "extes_sra": Inventory(
        "extes_sra",
        (*_EXTES_COMMON, Strategy("Chit Chat", "Make light conversation that keeps the contact easy and warm.")),
    ),
}

# Spellings found in corpora and in model output, per inventory: normalised spelling -> canonical name.
_SPELLINGS: Mapping[str, Mapping[str, str]] = {
    "esconv": {
        "questions": "Question",
        "restatement": "Restatement or Paraphrasing",
        "paraphrasing": "Restatement or Paraphrasing",
        "restatement and paraphrasing": "Restatement or Paraphrasing",
        "reflection of feeling": "Reflection of feelings",
        "reflections of feelings": "Reflection of feelings",
        "self disclosures": "Self-disclosure",
        "affirmation": "Affirmation and Reassurance",
        "reassurance": "Affirmation and Reassurance",
        "providing suggestions or information": "Providing Suggestions",
        "providing suggestion": "Providing Suggestions",
        "provide suggestions": "Providing Suggestions",
        "suggestions": "Providing Suggestions",
        "providing information": "Information",
        "other": "Others",
    },
    "cso": {},
    "extes": {"other": "Others", "normalise experiences": "Normalize Experiences"},
    "extes_sra": {"chitchat": "Chit Chat", "normalise experiences": "Normalize Experiences"},
}
# Spellings of the ExTES family of labels, valid in every inventory that has the canonical name.
_EXTES_SPELLINGS: Mapping[str, str] = {
    "affirmations": "Affirmation",
    "avoid judgement and criticism": "Avoid Judgment and Criticism",
    "avoid judgment": "Avoid Judgment and Criticism",
    "clarifications": "Clarification",
    "emotional validations": "Emotional Validation",
    "empathetic statement": "Empathetic Statements",
    "empathic statements": "Empathetic Statements",
    "normalizing experiences": "Normalize Experiences",
    "promote self care": "Promote Self-Care Practices",
    "self care practices": "Promote Self-Care Practices",
    "provide different perspective": "Provide Different Perspectives",
    "reflective statement": "Reflective Statements",
    "reframing negative thoughts": "Reframe Negative Thoughts",
    "reframe negative thought": "Reframe Negative Thoughts",
    "sharing information": "Share Information",
    "stress managements": "Stress Management",
    "suggest option": "Suggest Options",
    "validation": "Emotional Validation",
    # The corpus' own list of strategies has an abbreviation behind every name.
    "affirmation aff": "Affirmation",
    "avoid judgment and criticism ajc": "Avoid Judgment and Criticism",
    "clarification cla": "Clarification",
    "collaborative planning cp": "Collaborative Planning",
    "emotional validation ev": "Emotional Validation",
    "empathetic statements es": "Empathetic Statements",
    "normalize experiences ne": "Normalize Experiences",
    "offer hope oh": "Offer Hope",
    "others oth": "Others",
    "promote self care practices psp": "Promote Self-Care Practices",
    "provide different perspectives pdp": "Provide Different Perspectives",
    "reflective statements rs": "Reflective Statements",
    "reframe negative thoughts rnt": "Reframe Negative Thoughts",
    "share information si": "Share Information",
    "stress management sm": "Stress Management",
    "suggest options so": "Suggest Options",
}

# One inventory read as another. A label without a counterpart maps to None: the turn stays, unlabelled and counted.
MAPPINGS: Mapping[tuple[str, str], Mapping[str, str | None]] = {
    ("extes", "cso"): {
        "Affirmation": "Affirmation",
        "Avoid Judgment and Criticism": "Avoid Judgment and Criticism",
        "Clarification": "Empathetic Statements",
        "Collaborative Planning": "Collaborative Planning",
        "Emotional Validation": "Emotional Validation",
        "Empathetic Statements": "Empathetic Statements",
        "Normalize Experiences": "Emotional Validation",
        "Offer Hope": "Affirmation",
        "Promote Self-Care Practices": "Collaborative Planning",
        "Provide Different Perspectives": "Provide Different Perspectives",
        "Reflective Statements": "Empathetic Statements",
        "Reframe Negative Thoughts": "Reframe Negative Thoughts",
        "Share Information": "Share Information",
        "Stress Management": "Share Information",
        "Suggest Options": "Collaborative Planning",
        "Others": None,
    },
    ("extes", "extes_sra"): {
        **{strategy.name: strategy.name for strategy in _EXTES_COMMON},
        "Empathetic Statements": "Emotional Validation",
        "Others": "Chit Chat",
    },
    ("cso", "extes"): {strategy.name: strategy.name for strategy in _CSO},
}


def _fold(label: str) -> str:
    """Lower case, `&` as `and`, punctuation and runs of blanks as one blank."""
    return re.sub(r"[^a-z0-9]+", " ", label.lower().replace("&", " and ")).strip()


class UnknownStrategyError(ValueError):
    """A label that the inventory does not know; the message names the nearest one that it does."""


def normalize_label(label: str, inventory: Inventory) -> str:
    """Canonical name of a label as corpora and models spell it: case, hyphens, known variants, brackets.

    Raises:
        UnknownStrategyError: the label is not in the inventory under any known spelling.
    """
    folded = _fold(label)
    by_fold = {_fold(name): name for name in inventory.names}
    extes = {spelling: name for spelling, name in _EXTES_SPELLINGS.items() if name in inventory.names}
    known = {**extes, **_SPELLINGS.get(inventory.name, {}), **by_fold}
    if folded not in known:
        hint = nearest(label, inventory.names) or f"; known: {', '.join(inventory.names)}"
        raise UnknownStrategyError(f"unknown strategy '{label}' in inventory '{inventory.name}'{hint}")
    return known[folded]


def map_label(name: str, mapping: Mapping[str, str | None]) -> str | None:
    """Name under another inventory; None where the mapping says that there is no counterpart.

    Raises:
        UnknownStrategyError: the mapping does not mention the name.
    """
    if name not in mapping:
        raise UnknownStrategyError(f"no mapping for strategy '{name}'{nearest(name, mapping)}")
    return mapping[name]
