"""How long prompts and replies are in tokens of a model, before any of them is shortened."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from esc_lab.tokens.encode import ChatEncoder, IntArray
from esc_lab.tokens.examples import EncodeReport, Example, TokenSequence, encode_examples

_ENDLESS = 1 << 40  # no history is shortened


@dataclass(frozen=True)
class Lengths:
    """Lengths of the replies of a split.

    Attributes:
        prompts: [replies] tokens before each reply, with its whole history.
        replies: [replies] tokens of each, end of turn included.
        shortened: replies that exceed the budget with their whole history, but not with a shorter one.
        too_long: replies that exceed it with the shortest history, too.
    """

    prompts: IntArray
    replies: IntArray
    shortened: int
    too_long: int


def measure_lengths(
    encoder: ChatEncoder, groups: Sequence[Sequence[Example]], max_tokens: int
) -> tuple[Lengths, list[list[TokenSequence]]]:
    """Lengths of the examples of each group (a dialogue), and their sequences with whole histories.

    Args:
        max_tokens: the budget of a sequence (`data.row_tokens`).

    Raises:
        UserError: a message holds a special token.
    """
    sequences = encode_examples(encoder, groups, _ENDLESS, EncodeReport())
    replies = [reply for own in sequences for sequence in own for reply in sequence.replies]
    report = EncodeReport()
    over = [
        group
        for group, own in zip(groups, sequences, strict=True)
        if any(reply.end > max_tokens for sequence in own for reply in sequence.replies)
    ]
    encode_examples(encoder, over, max_tokens, report, drop=True)
    lengths = Lengths(
        np.array([reply.start for reply in replies], np.int64),
        np.array([reply.end - reply.start for reply in replies], np.int64),
        report.truncated_examples,
        report.too_long_dropped,
    )
    return lengths, sequences
