"""Replies as a model writes them: `(<strategy>) <text>` where it chooses the strategy, else the text alone."""

from __future__ import annotations

import re
from collections.abc import Sequence

from esc_lab.data.strategies import MAX_NAME, Inventory, UnknownStrategyError, normalize_label
from esc_lab.prompts.layouts import Layout


def reply_content(layout: Layout, text: str, strategies: Sequence[str]) -> str:
    """What the model is to write. A reply without a strategy is its text alone; of several the first is named."""
    return f"{label_text(strategies[0])} {text}" if layout.chooses_strategy and strategies else text


def label_text(strategy: str) -> str:
    """The label as models write it: the complete label whose probability is the strategy's."""
    return f"({strategy})"


def parse_reply(content: str, inventory: Inventory, reply_marker: str | None = None) -> tuple[str | None, str]:
    """Strategy and text of what a model wrote; with a marker, of what follows it.

    The strategy is None where there is no leading label or it is not in the inventory under any known spelling. The
    text is without the label and without a role prefix such as `supporter:`.
    """
    if reply_marker:
        content = content.rpartition(reply_marker)[2]
    text = re.sub(r"^\s*(assistant|supporter)\s*:\s*", "", content, flags=re.IGNORECASE).strip()
    match = re.match(rf"[(\[]([^()\[\]\n]{{1,{MAX_NAME}}})[)\]]:?\s*", text)
    if match is None:
        return None, text
    try:
        return normalize_label(match.group(1), inventory), text[match.end() :].strip()
    except UnknownStrategyError:
        return None, text[match.end() :].strip()
