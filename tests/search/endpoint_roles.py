"""What the loopback endpoint answers when it plays all roles of a search: a hash of the request, in the right form."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

TALK = "that sounds like a lot to carry and I am glad you told me about it today please go on if you want"
WORDS = TALK.split()
ROLES = {
    "Rate it from 0": "strategist",
    "Write the supporter's next message": "supporter",
    "Write the seeker's next message": "seeker",
    "Score the supporter's last message": "judge",
    "Two messages that the supporter could send next": "judge",
}


def role(body: dict[str, Any]) -> str:
    """Who is asked."""
    return next(name for asked, name in ROLES.items() if asked in body["messages"][1]["content"])


def play(body: dict[str, Any], ending: float = 0.27) -> str:
    """Content of the completion: ratings, scores, or what supporter and seeker say. Depends on the body alone.

    Args:
        ending: probability that the seeker ends the talk.
    """
    digest = hashlib.sha256(json.dumps([body["messages"], body.get("seed")], sort_keys=True).encode()).digest()
    system, asked = body["messages"][0]["content"], body["messages"][1]["content"]
    names = re.findall(r"^- (.+?): ", system, re.MULTILINE)
    playing = role(body)
    if playing == "strategist":
        return json.dumps({name: digest[index] % 11 for index, name in enumerate(names)})
    if playing == "judge" and "Two messages" in asked:
        return json.dumps({"better": "AB"[digest[0] % 2]})
    if playing == "judge":
        axes = re.findall(r"^- (.+?): ", asked, re.MULTILINE)
        return "```json\n" + json.dumps({axis: digest[index] % 5 for index, axis in enumerate(axes)}) + "\n```"
    if playing == "seeker" and digest[0] < 256 * ending:
        return "[END]"
    return " ".join(WORDS[byte % len(WORDS)] for byte in digest[1 : 3 + digest[0] % 9]).capitalize() + "."


def judging(worth: Callable[[str, str], float]) -> Callable[[dict[str, Any]], str]:
    """A judge that goes by the worth in [0, 1] of a message in its talk; of equal ones it prefers the first."""

    def reply(body: dict[str, Any]) -> str:
        talk, asked = re.fullmatch(
            r"The conversation so far:\n\n(.*?)\n\n(.*)", body["messages"][1]["content"], re.DOTALL
        ).groups()
        pair = re.match(r"Two messages that the supporter could send next:\nA: (.*)\nB: (.*)\n", asked)
        if pair:
            return json.dumps({"better": "A" if worth(talk, pair[1]) >= worth(talk, pair[2]) else "B"})
        talk, _, last = talk.rpartition("\n")
        score = 4 * worth(talk, last.partition(": ")[2])
        return json.dumps(dict.fromkeys(re.findall(r"^- (.+?): ", asked, re.MULTILINE), score))

    return reply


def name(body: dict[str, Any]) -> str:
    """A name of the request. Where the endpoint gives it as its model, journals tell which requests were answered."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:16]


def journalled(directory: Path) -> list[dict[str, Any]]:
    """The calls in all journals below a directory; a line that was cut off is none."""
    lines = [line for path in directory.glob("**/*.journal.jsonl") for line in path.read_bytes().split(b"\n")[1:-1]]
    return [json.loads(line) for line in lines]
