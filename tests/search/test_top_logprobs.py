"""Alternatives to the first tokens of a completion: what of them is read, kept and told apart."""

from __future__ import annotations

import json
from typing import Any

import pytest

from esc_lab.prompts import Message
from esc_lab.search.clients.completions import read_completion
from esc_lab.search.requests import Answer, Request


def body(logprobs: Any) -> bytes:
    return json.dumps({"choices": [{"message": {"content": "(A) b"}, "logprobs": logprobs}]}).encode()


def token(text: Any, value: Any, *others: tuple[str, float]) -> dict[str, Any]:
    top = [{"token": other, "logprob": share} for other, share in others]
    return {"token": text, "logprob": value, **({"top_logprobs": top} if others else {})}


def test_the_written_token_comes_first_and_once():
    content = [token("(", -0.5, ("(", -0.5), ("I", -1)), token("A", -2, ("B", 0.25))]
    answer = read_completion(body({"content": content}), 0, 0)
    assert answer.top_logprobs == ((("(", -0.5), ("I", -1.0)), (("A", -2.0), ("B", 0.0)))
    assert Answer.from_json(json.loads(json.dumps(answer.to_json()))) == answer


@pytest.mark.parametrize("logprobs", [None, {}, {"content": None}, {"content": []}, {"content": [token("(", -1)]}])
def test_what_is_not_served_is_nothing_and_leaves_no_trace(logprobs):
    answer = read_completion(body(logprobs), 0, 0)
    assert answer.text == "(A) b"
    assert answer.top_logprobs == ()
    assert "top_logprobs" not in answer.to_json()


@pytest.mark.parametrize(
    "content", ["no list", [1], [token(None, -1, ("a", -1))], [token("a", "nan")], [token("a", None)], [{"token": "a"}]]
)
def test_what_is_no_log_probability_is_malformed(content):
    with pytest.raises(ValueError):  # noqa: PT011  the client counts any
        read_completion(body({"content": content}), 0, 0)


def test_a_long_answer_is_kept_by_its_beginning_and_without_half_pairs():
    content = [token("\ud83d" * 300, float("-inf"), *[(f"t{n}", -n) for n in range(90)])] * 40
    (first, *_), *rest = read_completion(body({"content": content}), 0, 0).top_logprobs
    assert first == ("?" * 200, -1e4)
    assert len(rest) == 15
    assert {len(row) for row in rest} == {21}


def test_keys_of_requests_that_ask_for_none_are_those_of_before():
    asked = Request("supporter", (Message("user", "Hi"),))
    assert asked.key({}) == Request("supporter", asked.messages, top_logprobs=0).key({})
    assert asked.key({}) != Request("supporter", asked.messages, top_logprobs=20).key({})
