"""The data card says what its arguments say, and nothing else."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import asdict, replace
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from esc_lab.config import Config
from esc_lab.config.search import PreferenceConfig
from esc_lab.judge_check.check import ClaimCheck, JudgeCheck, KindCheck
from esc_lab.search.calls import Calls
from esc_lab.search.esc_pro import render_data_card
from esc_lab.search.preferences import Preferences
from esc_lab.search.session import SearchResult
from esc_lab.search.statistics import SearchStatistics
from esc_lab.search.tree import Node, Tree
from esc_lab.statistics.intervals import Interval

STATISTICS = SearchStatistics(
    trees=101,
    trees_without_dialogues=3,
    iterations=10_507,
    ended_leaves=611,
    dialogues=423,
    turns_per_dialogue=14.7,
    preferred=3_805,
    preferred_found=2_998,
    preferred_seed=807,
    preferred_alone=41,
    rejected=8_157,
    pairs=8_219,
    pairs_unjudged=77,
    pairs_inverted=928,
    gap_quartile_1=0.111,
    gap_quartile_2=0.222,
    gap_quartile_3=0.333,
    depth_mean=7.9,
    depth_max=19,
    chosen_strategies={"Affirmation": 1_200, "Share Information": 2_605},
    rejected_strategies={"Affirmation": 4_157, "Share Information": 4_000},
)
NEXT = KindCheck(Interval(0.6, 0.53, 0.67), Interval(0.45, 0.4, 0.5), Interval(0.1, 0.03, 0.17), 91, 51)
CHECK = JudgeCheck(
    "rubric",
    {
        "foreign": KindCheck(Interval(0.81, 0.74, 0.87), Interval(0.7, 0.65, 0.75), Interval(0.11, 0.03, 0.19), 98, 52),
        "same_dialogue": NEXT,
    },
    {"supporter": ClaimCheck(Interval(0.93, 0.86, 0.99), Interval(1.45, 1.31, 1.59), 97)},
    {"relief": Interval(0.21, 0.01, 0.41)},
    surveys=47,
)
DOUBTFUL = replace(CHECK, kinds={**CHECK.kinds, "same_dialogue": replace(NEXT, above=Interval(0.1, -0.06, 0.26))})
# Constants of the house: the interval's level, and the AUC below which a judge is not believed.
CONSTANTS = "95 0.6 SmolLM2"
NUMBER = re.compile(r"\d+(?:\.\d+)?")


def config() -> Config:
    cfg = Config()
    cfg.data.name, cfg.inventory.name = "ExTES", "cso"
    cfg.mcts.c = 1.25
    for role in ("strategist", "supporter", "seeker"):
        getattr(cfg.llm, role).client = "openai"
    cfg.llm.supporter.temperature, cfg.llm.supporter.licence = 0.7, "terms of use"
    return cfg


def result(check: JudgeCheck | None = CHECK, **models: list[str]) -> SearchResult:
    """Of a search whose roles were played by these models; without any, nothing was called."""
    journal: Any = SimpleNamespace(first="2026-11-03T10", last="2026-11-05T10", models=models)
    calls = Calls(dict.fromkeys(("strategist", "supporter", "seeker", "judge"), SimpleNamespace()), 1)  # type: ignore
    calls.journals = [journal] if models else []
    counts = Counter({"judge/missing": 13, "supporter/unusable": 29})
    tree = Tree((), [Node(-1), Node(0, "Affirmation", lost=True)])
    return SearchResult([], [tree], 2, None, check, calls, counts, "0f3a9b", 17.0)


def card(
    cfg: Config | None = None,
    found: SearchResult | None = None,
    statistics: SearchStatistics = STATISTICS,
    limits: list[tuple[float | None, float | None]] | None = None,
) -> str:
    preferences = [Preferences((), {}, *pair) for pair in limits or [(0.5, 0.5)]]
    found = found or result(supporter=["gpt|x", "gpt|y"], judge=["SmolLM2"])
    return render_data_card(cfg or config(), found, preferences, statistics, "0.1.0", {})


def split(text: str) -> tuple[dict[str, Any], str]:
    _, head, body = text.split("---\n", 2)
    return yaml.safe_load(head), body


@pytest.mark.parametrize("name", ["My: data", 'no "quotes"'])
def test_head(name: str) -> None:
    cfg = config()
    cfg.data.name = name
    assert split(card(cfg))[0] == {
        "pretty_name": f"ESC-Pro from {name}",
        "license": "unknown",
        "task_categories": ["text-generation"],
        "size_categories": ["n<1K"],
        "tags": ["emotional-support", "preference", "synthetic"],
    }


@pytest.mark.parametrize(
    ("dialogues", "name"),
    [(999, "n<1K"), (1_000, "1K<n<10K"), (99_999, "10K<n<100K"), (100_000, "100K<n<1M"), (2_000_000, "n>1M")],
)
def test_size(dialogues: int, name: str) -> None:
    head, _ = split(card(statistics=replace(STATISTICS, dialogues=dialogues)))
    assert head["size_categories"] == [name]


def test_what_is_not_known_is_not_guessed() -> None:
    head, body = split(card(found=result(None)))
    assert head["license"] == "unknown"
    assert "language" not in head
    assert "Licence of this data set: not stated" in body
    assert "their licence: not stated" in body
    assert "Language: not stated" in body
    assert "| judge | local | not stated | max_tokens 256, temperature 1.0, top_p 1.0 | not stated |" in body
    assert "First call: not stated; last call: not stated" in body
    assert "The judge was not checked" in body


def test_licence_of_a_model_that_is_loaded_here() -> None:
    cfg = config()
    cfg.llm.local.model.licence = "apache-2.0"
    assert "temperature 1.0, top_p 1.0 | apache-2.0 |" in card(cfg)
    cfg.llm.judge.model = "another/model"
    assert "apache-2.0" not in card(cfg)


def test_contents() -> None:
    _, body = split(card())
    for line in (
        "# ESC-Pro from ExTES",
        "| judge | local | SmolLM2 | max_tokens 256, temperature 1.0, top_p 1.0 | not stated |",
        "| supporter | openai | gpt\\|x, gpt\\|y | max_tokens 256, temperature 0.7, top_p 1.0 | terms of use |",
        "- First call: 2026-11-03; last call: 2026-11-05",
        "- Hash of the prompts: `0f3a9b`",
        "- Code: esc-lab 0.1.0",
        "| c | 1.25 |",
        "| judge/missing | 13 |",
        "| decisions without texts | 1 |",
        "| unfinished trees | 2 |",
        "| pairs | 8219 |",
        "| Share Information | 2605 | 4000 |",
    ):
        assert line in body.splitlines()
    foreign = "0.81 [0.74, 0.87] | 0.70 [0.65, 0.75] | +0.11 [+0.03, +0.19] | 98 | 52"
    assert f"| replies of other dialogues | {foreign} |" in body
    assert "| the next reply of the same dialogue | 0.60 [0.53, 0.67] | " in body
    assert (
        "- A good rating written into the reply raises its score in 0.93 [0.86, 0.99] of 97 contexts, by +1.45" in body
    )
    assert "survey over 47 dialogues: drop of the emotion's intensity 0.21 [0.01, 0.41]." in body
    assert "- Believed." in body.splitlines()
    assert "mean value Q is at least 0.5, and if it has 2 or more visits." in body
    assert "Not for people in crisis." in body
    assert "say little" not in body
    assert "limit over trees" not in body
    assert "\n\n\n" not in body
    assert not re.search(r"[^ |]  ", body)


def test_doubtful_judge() -> None:
    body = card(found=result(DOUBTFUL))
    assert (
        "- NOT believed, not above what words alone tell: against the next reply of the same dialogue +0.10 [-0.06"
        in body
    )
    assert "**Its values say little about good replies, and so do the preferences in these data.**" in body


def test_quantiles() -> None:
    cfg = config()
    rule = PreferenceConfig("max_n", "quantile", preferred_min=0.75, rejected_max=0.25, lower=True)
    cfg.mcts.preferences = rule
    text = card(cfg, limits=[(0.5, None), (None, None), (0.25, -0.125), (0.75, None)])
    assert "| preferred, at least | 0.250 | 0.500 | 0.750 | 1 |" in text
    assert "| rejected, at most | -0.125 | -0.125 | -0.125 | 3 |" in text
    assert "A leaf where the conversation ended is preferred if its number of visits N is at least" in text
    assert "at least the 0.75 quantile of the ended leaves that" in text
    assert "number of visits N is at most the 0.25 quantile of its tree's judged decisions, which" in text
    assert "lower than what was judged" in text
    assert "| preferred, at least | - | - | - | 1 |" in card(cfg, limits=[(None, None)])
    rule.ended = False
    assert "A leaf is preferred if its number of visits N is at least the 0.75 quantile of the leaves" in card(cfg)


def test_every_number_comes_from_the_arguments() -> None:
    cfg, found = config(), result(DOUBTFUL, supporter=["m"])
    _, body = split(card(cfg, found))
    given = f"{STATISTICS} {asdict(cfg.mcts)} {cfg.llm} {found} 0.1.0 1 2026-11-03 2026-11-05 {CONSTANTS}"
    known = {float(number) for number in NUMBER.findall(given)}
    assert {float(number) for number in NUMBER.findall(body)} <= known


def test_order_of_mappings_does_not_matter() -> None:
    found = result(supporter=["m"])
    turned = replace(found, counts=Counter(dict(reversed(found.counts.items()))))
    turned.calls.clients = dict(reversed(found.calls.clients.items()))
    assert card(found=turned) == card(found=result(supporter=["m"]))
