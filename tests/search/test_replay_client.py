"""Recorded answers come back for the same requests, and for no others."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict, replace

import pytest

from esc_lab.errors import UserError
from esc_lab.prompts import Message
from esc_lab.search.clients.replay import ReplayClient
from esc_lab.search.requests import Answer, Question, Request, TooLongError

IDENTITY = {"kind": "openai", "model": "gpt-test"}
REQUEST = Request("seeker", (Message("system", "You seek help."), Message("user", "What is\nwrong? " + "a" * 200)))
RATED = Request("strategist", (Message("user", "Rate."),), (Question("Affirmation", "Rating: ", ("0", "1")),))
ANSWERS = {
    REQUEST.key(IDENTITY): Answer(text="All of it. ☹", model="gpt-test-0613", prompt_tokens=9, cost=0.001),
    RATED.key(IDENTITY): Answer(log_probs=((-0.25, -1.5),)),
}


def journal(path, *lines: str):
    path.write_text("".join(lines), encoding="utf-8")
    return path


def lines() -> list[str]:
    return [
        json.dumps({"kind": "call", "key": key, "answer": asdict(answer)}) + "\n" for key, answer in ANSWERS.items()
    ]


def answered(client: ReplayClient, request: Request) -> Answer:
    return asyncio.run(client.answer(request))


def test_from_a_journal_with_other_lines_and_a_torn_one(tmp_path):
    torn = lines()[0][:-9]
    path = journal(tmp_path / "tree.jsonl", '{"settings": {}}\n', *lines(), "\n", lines()[1], torn)
    client = ReplayClient(path, identity=IDENTITY, scores=True)
    assert answered(client, REQUEST) == ANSWERS[REQUEST.key(IDENTITY)]
    assert answered(client, RATED) == ANSWERS[RATED.key(IDENTITY)]
    assert client.identity == IDENTITY
    assert client.scores
    asyncio.run(client.close())


@pytest.mark.parametrize("change", [{"seed": 1}, {"sample": 1}, {"temperature": 0.5}, {"role": "supporter"}])
def test_unknown_request(tmp_path, change):
    client = ReplayClient(journal(tmp_path / "tree.jsonl", *lines()), identity=IDENTITY, scores=False)
    request = replace(REQUEST, **change)
    with pytest.raises(UserError, match=f"{request.role}; its last message begins: 'What is wrong\\? aaa") as caught:
        answered(client, request)
    assert len(str(caught.value)) < 350 + len(str(tmp_path))


def test_recording_of_another_client(tmp_path):
    path = journal(tmp_path / "tree.jsonl", *lines())
    with pytest.raises(UserError, match="no recorded answer"):
        answered(ReplayClient(path, identity={**IDENTITY, "model": "other"}, scores=False), REQUEST)


@pytest.mark.parametrize(
    "broken",
    [
        '{"key": "a"\n',
        '{"key": "a"}\n',
        '{"key": "a", "answer": {"text": 1}}\n',
        "3\n",
        '{"key": "a", "answer": null}\n',
    ],
)
def test_broken_line(tmp_path, broken):
    path = journal(tmp_path / "tree.jsonl", lines()[0], broken, lines()[1])
    with pytest.raises(UserError, match=r"tree\.jsonl:2: broken record"):
        ReplayClient(path, identity=IDENTITY, scores=False)


def test_a_conversation_that_was_too_long_is_too_long_again_unless_it_was_answered_later(tmp_path):
    refusal = [json.dumps({"key": key, "too_long": "9 tokens of 8"}) + "\n" for key in ANSWERS]
    client = ReplayClient(journal(tmp_path / "tree.jsonl", *refusal, lines()[0]), identity=IDENTITY, scores=True)
    assert answered(client, REQUEST) == ANSWERS[REQUEST.key(IDENTITY)]
    with pytest.raises(TooLongError, match="9 tokens of 8"):
        answered(client, RATED)


def test_two_answers_to_one_request(tmp_path):
    other = lines()[0].replace("All of it", "Nothing")
    with pytest.raises(UserError, match=r"tree\.jsonl:3: another answer"):
        ReplayClient(journal(tmp_path / "tree.jsonl", *lines(), other), identity=IDENTITY, scores=False)


def test_no_such_file(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        ReplayClient(tmp_path / "none.jsonl", identity=IDENTITY, scores=False)
