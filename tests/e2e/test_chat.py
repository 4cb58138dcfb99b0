"""Stage `chat`, whole: scripted talks in the terminal, what they leave, and how they go on."""

from __future__ import annotations

import io
import json
import signal
import sys

import pytest

from esc_lab.data.corpora import read_dialogues
from esc_lab.evaluation.arena.chat_reply import Candidate
from esc_lab.report.chat_terminal import TerminalChat
from tests.e2e.conftest import Outcome, execute

SHORT = ("stage=chat", "chat.max_new_tokens=6")
TALK = """I lost my job.
/strategy quest
/boost 1
Nobody knows.
/again
/vote right
/edit (Question) Who could you tell?
/bars
/map
/template c1
My sister, maybe.
/undo
/help
/quit
"""


@pytest.fixture
def say(monkeypatch, tmp_path):
    """`say(text, *words)` runs a chat in which a person types the text."""

    def call(text: str, *words: str) -> Outcome:
        monkeypatch.setattr(sys, "stdin", io.StringIO(text))
        return execute(tmp_path, *SHORT, *words)

    return call


def test_a_talk_in_the_terminal_and_how_it_goes_on(say):
    first = say(TALK)
    assert first.status == 0, first.errors
    for text in (
        "no counsellor", "local emergency services", "From now on: Question.", "supporter (Question)> ",
        "right (Question)> ",
        "Which is better?", "█", "most: ", "log SRA", "boost 1", "template c1_hf", "Taken back: My sister, maybe.",
        "cut off at the token limit", "preference pairs │ 2",
    ):  # fmt: skip
        assert text in first.output
    (talk,) = read_dialogues(first.path / "preferences.jsonl")
    assert [turn.reply.text for turn in talk.turns if turn.speaker == "seeker"] == ["I lost my job.", "Nobody knows."]
    assert talk.turns[-1].reply.text == "Who could you tell?"
    assert len(talk.turns[-1].rejected) == 2
    assert first.metrics["chat/turns"] == 2
    assert first.metrics["chat/edits"] == 1
    kept = first.read("chat.json")
    assert [each["verdict"] for each in kept["exchanges"]] == ["", "right"]
    for resume in ("auto", str(first.path)):
        second = say("And then?", f"resume={resume}")  # ends with the input
        assert second.status == 0, second.errors
        assert "supporter> Who could you tell?" in second.output
        assert second.metrics["chat/turns"] == 3
        again = second.read("chat.json")
        assert (again["id"], again["exchanges"][:2]) == (kept["id"], kept["exchanges"])
    other = say("", f"resume={first.path}", "inventory=cso")
    assert other.status == 1
    assert "other models or strategies" in other.errors + other.output


def test_commands_that_cannot_be_change_nothing(say):
    """A label that is no strategy is not taken for words, nor silently left out."""
    typed = ["I lost my job.", "/edit (Sigh) I hear you.", "/boost nan", "/edit (reflect) I hear you.", "/vote tie"]
    outcome = say("\n".join(typed))
    assert outcome.status == 0, outcome.errors
    for complaint in ("no strategy 'Sigh'", "'nan' is no number", "there is one reply alone"):
        assert complaint in outcome.output
    (exchange,) = outcome.read("chat.json")["exchanges"]
    assert exchange["edited"]["text"] == "I hear you."
    assert exchange["edited"]["strategies"] == ["Reflection of feelings"]


def test_a_reply_is_stopped_between_two_tokens(say, monkeypatch):
    """The message is taken back, and the talk goes on as if it had not been."""
    show = TerminalChat._continue

    def interrupt(chat: TerminalChat, shown: str, candidate: Candidate) -> str:
        if chat.session.exchanges and not candidate.is_whole and "again" in chat.session.exchanges[0].message:
            signal.raise_signal(signal.SIGINT)
        return show(chat, shown, candidate)

    monkeypatch.setattr(TerminalChat, "_continue", interrupt)
    outcome = say("Say it again.\nAnd now?\n/bars\n")
    assert outcome.status == 0, outcome.errors
    assert "[stopped; it is as it was before]" in outcome.output
    (exchange,) = outcome.read("chat.json")["exchanges"]
    assert exchange["message"] == "Say it again."


def test_two_models_side_by_side(say, trained):
    outcome = say(
        "I lost my job.\n/vote left\n/vote up\n/again\n/hug\n", f"checkpoint={trained.path}", "chat.against=base"
    )
    assert outcome.status == 0, outcome.errors
    assert "left (" in outcome.output
    assert "right (" in outcome.output
    for complaint in ("no vote 'up'", "there are two replies already", "no command /hug"):
        assert complaint in outcome.output
    (exchange,) = outcome.read("chat.json")["exchanges"]
    assert sorted(each["model"] for each in exchange["candidates"]) == [0, 1]
    better = exchange["candidates"][0]["model"] + 1
    assert outcome.metrics[f"chat/wins_{better}"] == 1
    assert outcome.output.index("Noted.") < outcome.output.index(str(trained.path)), "blind until the end"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model=endpoint", "model.path=x"], "loaded here"),
        (["chat.against=nowhere"], "chat.against=nowhere: no such run directory"),
        (["chat.templates=[cs]"], "did you mean 'cso'"),
        (["prompt.inference=cot"], "the first answer"),
        (["resume=."], "no chat.json there"),
        (["chat.cache_tokens=64", "chat.max_new_tokens=60"], "no room for a talk"),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_loaded(say, words, message):
    outcome = say("", *words)
    assert outcome.status == 1
    assert message in outcome.errors
    assert outcome.directory is None


def test_nothing_of_a_talk_goes_to_wandb(say, monkeypatch):
    import wandb

    monkeypatch.setattr(wandb, "init", lambda **_: pytest.fail("a chat is no run of W&B"))
    outcome = say("I lost my job.", "logger=wandb", "logger.mode=offline")
    assert outcome.status == 0, outcome.errors
    assert json.loads((outcome.path / "chat.json").read_text())["exchanges"]
