"""The data card says what it was told, and nothing else."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import yaml

from esc_lab.search.data_card import Provenance, RoleSource, data_card
from esc_lab.search.judge_check import JudgeCheck
from esc_lab.search.preferences import PreferenceRule
from esc_lab.search.statistics import SearchStatistics

STATISTICS = SearchStatistics(
    trees=101,
    trees_without_dialogues=3,
    iterations=10_507,
    ended_leaves=611,
    dialogues=423,
    turns_per_dialogue=14.7,
    preferred_found=2_998,
    preferred_seed=807,
    preferred_alone=41,
    rejected=8_157,
    pairs=8_219,
    pairs_unjudged=77,
    pairs_inverted=928,
    gap_quartiles=(0.111, 0.222, 0.333),
    depth_mean=7.9,
    depth_max=19,
    chosen_strategies={"Affirmation": 1_200, "Share Information": 2_605},
    rejected_strategies={"Affirmation": 4_157, "Share Information": 4_000},
)
MADE = Provenance(
    roles={
        "supporter": RoleSource("openai", ["gpt|x", "gpt|y"], {"temperature": 0.7, "max_tokens": 256}, "terms of use"),
        "judge": RoleSource("local", ["SmolLM2"], {}, ""),
    },
    first_call="2026-11-03",
    last_call="2026-11-05",
    prompts="0f3a9b",
    search={"policy": "puct", "c": 1.25},
    rule=PreferenceRule(),
    limits=[(0.5, 0.5)] * 101,
    inventory="cso",
    seeds="ExTES",
    seeds_licence="",
    code="0.1.0",
    failures={"judge/missing": 13, "supporter/unusable": 29},
)
CHECK = JudgeCheck(0.812, 0.745, 0.871, 98, 52)
# Constants of the house: the interval's level, and the AUC below which a judge is not trusted.
CONSTANTS = "95 0.6 SmolLM2"
NUMBER = re.compile(r"\d+(?:\.\d+)?")


def split(card: str) -> tuple[dict[str, Any], str]:
    _, head, body = card.split("---\n", 2)
    return yaml.safe_load(head), body


def test_head() -> None:
    head, _ = split(data_card("My: data", STATISTICS, MADE, CHECK, language="no", licence="cc-by-nc-4.0"))
    assert head == {
        "pretty_name": "My: data",
        "license": "cc-by-nc-4.0",
        "language": ["no"],
        "task_categories": ["text-generation"],
        "size_categories": ["n<1K"],
        "tags": ["emotional-support", "preference", "synthetic"],
    }


@pytest.mark.parametrize(
    ("dialogues", "name"),
    [(999, "n<1K"), (1_000, "1K<n<10K"), (99_999, "10K<n<100K"), (100_000, "100K<n<1M"), (2_000_000, "n>1M")],
)
def test_size(dialogues: int, name: str) -> None:
    head, _ = split(data_card("x", replace(STATISTICS, dialogues=dialogues), MADE))
    assert head["size_categories"] == [name]


def test_what_is_not_known_is_not_guessed() -> None:
    made = replace(MADE, first_call="", last_call="", roles={"judge": RoleSource("local", [])}, failures={})
    head, body = split(data_card("x", STATISTICS, made, licence="not stated"))
    assert head["license"] == "unknown"
    assert "language" not in head
    assert "Licence of this data set: not stated" in body
    assert "their licence: not stated" in body
    assert "Language: not stated" in body
    assert "| judge | local | not stated | not stated | not stated |" in body
    assert "First call: not stated; last call: not stated" in body
    assert "The judge was not checked" in body


def test_contents() -> None:
    _, body = split(data_card("Pairs", STATISTICS, MADE, CHECK, language="en"))
    for line in (
        "# Pairs",
        "| judge | local | SmolLM2 | not stated | not stated |",
        "| supporter | openai | gpt\\|x, gpt\\|y | max_tokens 256, temperature 0.7 | terms of use |",
        "- First call: 2026-11-03; last call: 2026-11-05",
        "- Hash of the prompts: `0f3a9b`",
        "- Code: esc-lab 0.1.0",
        "| c | 1.25 |",
        "| judge/missing | 13 |",
        "| pairs | 8219 |",
        "| Share Information | 2605 | 4000 |",
    ):
        assert line in body.splitlines()
    assert "AUC of 0.812 (95% interval 0.745 to 0.871; 98 contexts of 52 dialogues)" in body
    assert "mean value Q is at least 0.5" in body
    assert "Not for people in crisis." in body
    assert "hardly tells" not in body
    assert "limit over trees" not in body


def test_doubtful_judge() -> None:
    assert "below 0.6: the judge hardly tells" in data_card("x", STATISTICS, MADE, replace(CHECK, auc=0.55))


def test_quantiles() -> None:
    rule = PreferenceRule("max_n", "quantile", 0.75, 2, 0.25, lower=True)
    limits = [(0.5, None), (None, None), (0.25, -0.125), (0.75, None)]
    card = data_card("x", STATISTICS, replace(MADE, rule=rule, limits=limits))
    assert "| preferred, at least | 0.250 | 0.500 | 0.750 | 1 |" in card
    assert "| rejected, at most | -0.125 | -0.125 | -0.125 | 3 |" in card
    assert "number of visits N is at least the 0.75 quantile" in card
    assert "lower than what was judged" in card
    card = data_card("x", STATISTICS, replace(MADE, rule=rule, limits=[(None, None)]))
    assert "| preferred, at least | - | - | - | 1 |" in card


def test_every_number_comes_from_the_arguments() -> None:
    _, body = split(data_card("x", STATISTICS, MADE, replace(CHECK, auc=0.55)))
    told = f"{STATISTICS} {STATISTICS.preferred} {MADE} {CHECK} 0.55 {CONSTANTS}"
    known = {float(number) for number in NUMBER.findall(told)}
    assert {float(number) for number in NUMBER.findall(body)} <= known


def test_order_of_mappings_does_not_matter() -> None:
    def turned(mapping: Any) -> Any:
        return dict(reversed(mapping.items()))

    roles = {role: replace(source, sampling=turned(source.sampling)) for role, source in MADE.roles.items()}
    other = replace(MADE, roles=turned(roles), search=turned(MADE.search), failures=turned(MADE.failures))
    assert data_card("x", STATISTICS, other, CHECK) == data_card("x", STATISTICS, MADE, CHECK)
