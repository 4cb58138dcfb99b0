"""What the loopback endpoint answers in whole talks: supporters of known quality, and a seeker that reacts to them."""

from __future__ import annotations

import hashlib
import json
import random
import re
from typing import Any

KIND = "I can feel how much this weighs on you"
COLD = "That is not my concern"
WORDS = ("rain", "door", "letter", "train", "kitchen", "winter", "garden", "street", "bread", "lamp", "river", "coat")

STRATEGIES = ("Question", "Self-disclosure", "Information", "Providing Suggestions", "Reflection of feelings")


def draw_words(body: dict[str, Any], count: int = 9) -> str:
    """Words that depend on the request alone, seldom the same."""
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).digest()
    return " ".join(random.Random(digest).choices(WORDS, k=count))


def who(body: dict[str, Any]) -> str:
    """Who is asked: `intensity`, `seeker` or `supporter`."""
    asked = body["messages"][-1]["content"]
    if "how strong is the seeker's feeling" in body["messages"][1]["content"]:
        return "intensity"
    return "seeker" if "Write the seeker's next message" in asked or "cannot be used" in asked else "supporter"


def said(body: dict[str, Any]) -> list[str]:
    """The supporter's messages in the talk that a seeker is shown, the greeting apart."""
    return re.findall(r"^supporter: (.*)$", body["messages"][1]["content"], re.MULTILINE)[1:]


def feel(body: dict[str, Any]) -> float:
    """The intensity of the scripted seeker: a kind reply eases it by 0.5, a cold one makes it worse by 0.5."""
    return min(5.0, max(1.0, 4.0 + 0.5 * sum((COLD in text) - (KIND in text) for text in said(body))))


def _next_strategy(body: dict[str, Any]) -> str:
    """Each strategy in its turn, by the number of the supporter's message."""
    number = sum(message["role"] == "assistant" for message in body["messages"])
    return STRATEGIES[number % len(STRATEGIES)]


def play(body: dict[str, Any]) -> str:
    """Content of the completion; the model's name says which supporter it is."""
    playing = who(body)
    if playing == "intensity":
        return json.dumps({"intensity": feel(body)})
    if playing == "seeker":
        return "[END]" if feel(body) <= 1.5 else f"Then the {draw_words(body)} came."
    last = body["messages"][-1]["content"].splitlines()[-1]
    return {
        "kind": f"(Affirmation and Reassurance) {KIND}, with the {draw_words(body)}.",
        "thinking": f"Thought: they are sad. Reply: (Affirmation and Reassurance) {KIND}, with the {draw_words(body)}.",
        "cold": f"(Others) {COLD}, the {draw_words(body)}.",
        "parrot": f"(Restatement or Paraphrasing) {last}",
        "ending": f"(Others) Goodbye then, {draw_words(body)}. [END]",
        "asking": f"(Question) And how was the {draw_words(body)}?",
        "looping": "(Providing Suggestions) You could try to go for a walk in the park by the river.",
        "varied": f"({_next_strategy(body)}) Some {draw_words(body)} then.",
    }.get(body["model"], f"(Question) Well, the {draw_words(body)}.")
