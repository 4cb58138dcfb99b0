"""Stage `cards`, whole: by rule, by an endpoint on the loopback interface and by a tiny model."""

from __future__ import annotations

import json
from typing import Any

import pytest

from esc_lab.data.cards import LEVELS, read_cards
from esc_lab.data.cards.from_dialogues import build_cards
from esc_lab.data.corpora import read_dialogues, sample_path
from tests.e2e.test_bad_input import complaint
from tests.evaluation.talk_roles import draw_words
from tests.search.endpoint import Endpoint
from tests.search.endpoint_roles import journalled

STAGE = ("stage=cards", "cards.split=train", "data.limit={train: 4, val: 2, test: 2}", "search.cache=false")


def write_card(body: dict[str, Any]) -> str:
    words = draw_words(body)
    traits = dict.fromkeys(
        ("resistance", "disclosure", "engagement", "verbosity", "volatility"), LEVELS[len(words) % 3]
    )
    texts = {"person": "a carpenter", "problem": "x", "emotion": "y", "opening": f"Well, the {words}."}
    reveals = [{"when": 3, "text": f"You saw the {words}."}]
    return json.dumps({**texts, "situation": f"You have the {words}.", "behaviour": "You wait.", "intensity": 3,
                       "reveals": reveals, **traits})  # fmt: skip


def by_model(url: str, *others: str) -> tuple[str, ...]:
    own = ("cards.by=model", "llm=openai", "llm.openai.model=writer", f"llm.openai.base_url={url}")
    return (*STAGE, *own, *others)


def test_by_rule(command):
    """No model is loaded; stage converse takes what it leaves."""
    outcome = command(*STAGE)
    assert outcome.status == 0, outcome.errors
    cards = read_cards(outcome.path / "cards.yaml")
    known = {card.situation: card for card in build_cards(read_dialogues(sample_path()), "here")}
    assert cards == [known[card.situation] for card in cards]
    assert outcome.metrics == {"cards/cards": len(cards)} == {"cards/cards": 4}


def test_by_a_model_at_an_endpoint(command):
    server = Endpoint(write_card, faults=lambda number, body: "malformed_json" if not number else None)
    with server.running() as url:
        outcome = command(*by_model(url))
        assert outcome.status == 0, outcome.errors
        again = command(*by_model(url, f"resume={outcome.path}"))
        asked = len(server.requests)
    replayed = command(*STAGE, "cards.by=model", "llm=replay", f"llm.strategist.recording={outcome.path}")
    assert asked == len(journalled(outcome.path)) == 5  # four cards, one of them twice, and nothing again
    assert outcome.metrics["cards/cards"] == 4
    assert outcome.metrics["cards/seeker/unusable"] == 1
    text = (outcome.path / "cards.yaml").read_bytes()
    assert [(other.path / "cards.yaml").read_bytes() for other in (again, replayed)] == [text, text]
    known = build_cards(read_dialogues(sample_path()), "here")
    for card in read_cards(outcome.path / "cards.yaml"):
        (rule,) = [rule for rule in known if rule.id == card.id]
        assert (card.problem, card.emotion, card.traits.verbosity) == (
            rule.problem, rule.emotion, rule.traits.verbosity,
        )  # fmt: skip
        assert (card.person, card.intensity, len(card.reveals)) == ("a carpenter", 3, 1)
        assert card.opening.startswith("Well, the ")
    shown = server.requests[0].body
    assert shown["response_format"]["json_schema"]["schema"]["properties"]["intensity"]["maximum"] == 5
    assert any(rule.situation in shown["messages"][1]["content"] for rule in known)
    talks = command("stage=converse", "cards=file", f"cards.path={outcome.path}/cards.yaml", "cards.limit=1",
                    "model@llm.local.model=tiny_llama", "converse.max_turns=1", "search.cache=false",
                    "llm.supporter.max_tokens=4", "llm.seeker.max_tokens=4")  # fmt: skip
    assert talks.status == 0, talks.errors
    (talk,) = read_dialogues(talks.path / "talks.jsonl")
    assert talk.turns[1].reply.text.startswith("Well, the ")


def test_a_spent_budget_leaves_whole_cards(command):
    with (server := Endpoint(write_card)).running() as url:
        few = command(*by_model(url, "search.budget.calls=3", "search.concurrency=1"))
        assert few.status == 0, few.errors
        assert (few.metrics["cards/cards"], few.metrics["cards/unfinished_cards"]) == (3, 1)
        again = command(*by_model(url, f"resume={few.path}"))
        assert again.metrics["cards/cards"] == len(server.requests) == 4
        assert "the budget of 0 calls is spent" in complaint(command(*by_model(url, "search.budget.calls=0")), "cards")


def test_a_model_that_writes_no_card(command):
    """A tiny local model, in lines; what cannot be used is counted in the message."""
    outcome = command(*STAGE, "cards.by=model", "model@llm.local.model=tiny_llama", "llm.seeker.max_tokens=8",
                      "cards.limit=1", "llm.seeker.attempts=2")  # fmt: skip
    assert "cards.by=model: no answer is a card: 2 seeker/cut_off, 1 seeker/missing, 2 seeker/unusable" in complaint(
        outcome, "cards"
    )


@pytest.mark.parametrize(
    ("others", "message"),
    [
        (["cards=default"], "cards.source=default: stage=cards makes cards of a corpus. Fix: cards=corpus"),
        (["cards.by=magic"], "cards.by=magic"),
        (["cards.by=model", "llm.seeker.checkpoint=tests"], "a trained seeker writes what a seeker says, and no card"),
        (["cards.by=model", "llm=openai"], "llm.openai.model: no name of a model for seeker"),
        (["cards.wording.lines=x"], "'lines' lacks the slot {levels}"),
        (["cards.only=[x]"], "cards.only: there is no card 'x'"),
        (["resume=absent"], "no cards/*.journal.jsonl there"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_users_do_wrong(command, others, message):
    assert message in complaint(command(*STAGE, *others))
