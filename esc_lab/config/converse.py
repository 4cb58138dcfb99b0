"""Settings of stages `cards` and `converse`: the seekers' cards, and whole talks with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from esc_lab.config.data import SPLITS
from esc_lab.config.item import COUNT, FROM_ZERO, LOOKS, item, results

SHIPPED_CARDS = ("default", "crisis")  # sets of cards that come with esc-lab


@dataclass
class CardsConfig:
    name: str = item("default", "short name, used in run names", affects=LOOKS)
    source: str = item(
        "default",
        "where the seekers' cards come from: a set that ships with esc-lab, a file, or the situations of a corpus "
        "(data), by rule",
        choices=(*SHIPPED_CARDS, "file", "corpus"),
        affects=results("converse"),
    )
    path: str | None = item(None, "source=file: cards in YAML, or ESC-Eval's in JSON", path=True,
                           affects=results("converse"))  # fmt: skip
    split: str = item("test", "source=corpus: split whose situations become cards", choices=SPLITS)
    only: list[str] = item([], "ids of the cards that are used; [] = all")
    limit: int | None = item(None, "use the first so many of them; null = all", within=COUNT)
    by: str = item(
        "rule",
        "stage=cards: who makes them; rule: what the corpus says and nothing else; model: that of llm.seeker, from "
        "whole dialogues",
        choices=("rule", "model"),
        affects=results("cards"),
    )
    seed: int = item(1, "by=model: seed of what it writes", within=(0, 2**32 - 1), affects=results("cards"))
    wording: dict[str, Any] = item(
        {}, "by=model: what it is asked, with {slots} (conf/stage/cards.yaml)", affects=results("cards")
    )


@dataclass
class ConverseConfig:
    seed: int = item(
        1, "seed of the talks, apart from the run's seed so that talks are paired across supporters",
        within=(0, 2**32 - 1),
    )  # fmt: skip
    talks: int = item(1, "talks with each card, each with a seed of its own", within=COUNT)
    min_turns: int = item(
        0, "supporter turns before which the seeker does not end a talk; small models end it at once", within=FROM_ZERO
    )
    max_turns: int = item(10, "supporter turns at which a talk is over in any case", within=COUNT)
    strategies: list[str] = item(
        [],
        "strategies of the supporter's turns, in order and then again from the first: one is forced throughout; [] = "
        "the supporter chooses, where its prompts let it",
    )
    intensity: bool = item(True, "ask the seeker's model after each turn how strong the emotion is, from 1 to 5")
    success: float = item(
        2.0, "a talk succeeds when the emotion's intensity is not above this after a turn", within=(1, 5)
    )
    wording: dict[str, Any] = item({}, "how cards are told to the seeker, with {slots} (group persona)")
