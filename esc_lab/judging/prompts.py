"""Which words a judge of replies is asked with."""

from __future__ import annotations

from collections.abc import Sequence

from esc_lab.artifacts import fingerprint
from esc_lab.data.dialogue import Reply, Turn
from esc_lab.data.strategies import Inventory
from esc_lab.search import role_prompts
from esc_lab.search.role_prompts import Axis


def judge_fingerprint(inventory: Inventory, axes: Sequence[Axis]) -> str:
    """Hash of all words of the judge's prompts, on a fixed talk."""
    history = (Turn("seeker", Reply("First.")), Turn("supporter", Reply("Second.", inventory.names[:1])))
    asked = [
        text
        for form in (False, True)
        for text in (
            role_prompts.judge_request(axes, json=form),
            role_prompts.prefer_request(axes, "Third.", "Fourth.", json=form),
        )
    ]
    messages = role_prompts.support_messages(inventory, history, "\n".join(asked))
    return fingerprint([message.content for message in messages])
