"""Tokens of strategy labels as they stand at the start of a reply."""

from __future__ import annotations

import numpy as np

from esc_lab.data.strategies import Inventory
from esc_lab.errors import UserError
from esc_lab.prompts.layouts import Message, Prompt, Span, label_text
from esc_lab.tokens.encode import ChatEncoder, IntArray


def label_ids(encoder: ChatEncoder, inventory: Inventory, prompt: Prompt) -> list[IntArray]:
    """Token ids of each complete label, `(<strategy>)`, in the order of the inventory, after a prompt.

    Raises:
        UserError: a label's tokens depend on the text after it, so its probability cannot be read off a prefix.
    """
    messages = encoder.adapt(prompt).messages
    chats = []
    for name in inventory.names:
        label = label_text(name)
        span = Span("name", len(messages), 0, len(label), name)
        chats += [([*messages, Message("assistant", text)], [span]) for text in (label, f"{label} I see.")]
    encoded = encoder.encode_many(chats)
    labels = []
    for name, alone, followed in zip(inventory.names, encoded[::2], encoded[1::2], strict=True):
        start, _ = alone.replies[len(messages)]
        ids = alone.input_ids[start : alone.spans[0].end]
        if not np.array_equal(ids, followed.input_ids[start : followed.spans[0].end]):
            raise UserError(f"the tokens of the label '({name})' change with the text after it", where="tokenizer")
        labels.append(ids)
    return labels
