"""How a client reads a reward model: which tokens of a talk it computes, and what a state says about the reply."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np
import torch

from esc_lab.artifacts import fingerprint
from esc_lab.data.dialogue import Reply, Turn
from esc_lab.errors import UserError
from esc_lab.prompts import Message
from esc_lab.scorers.conversations import Candidate, ConversationEncoder
from esc_lab.scorers.reward_model import Calibration, RewardHead
from esc_lab.search.requests import TooLongError
from esc_lab.statistics.intervals import FloatArray
from esc_lab.tokens.encode import IntArray


class ReplyToRead(NamedTuple):
    """A reply as a model reads it.

    Attributes:
        talk: tokens of the talk up to the end of turn of its last message, the reply.
        scored: how many of them are the reply's.
        alone: tokens of the reply without the talk; None where its likelihood is not asked for.
    """

    talk: IntArray
    scored: int
    alone: IntArray | None


@dataclass(frozen=True)
class RewardReader:
    """The parts of a `RewardModel` beside its base model and its adapter."""

    head: RewardHead
    conversations: ConversationEncoder
    calibration: Calibration

    def __post_init__(self) -> None:
        self.head.cpu().double()

    def fingerprint(self) -> str:
        """What scores depend on beside base model and adapter."""
        read = self.conversations
        words = [dict(read.words), read.strategy_text, read.history_tokens, read.reply_tokens]
        weights = {name: tensor.flatten().tolist() for name, tensor in self.head.state_dict().items()}
        return fingerprint([words, weights, asdict(self.calibration)])

    def encode(self, messages: Sequence[Message]) -> ReplyToRead:
        """The reply that a talk ends with, as `RewardPrompts` shows it.

        Raises:
            TooLongError: the messages before the reply leave no room for it.
        """
        turns = [Turn("seeker" if each.role == "user" else "supporter", Reply(each.content)) for each in messages]
        *history, last = turns
        try:
            (talk,) = self.conversations.encode(history, [Candidate(len(history), last.reply, 0)])
            alone = self.conversations.encode((), [Candidate(0, last.reply, 0)]) if self.head.ratio is not None else ()
        except UserError as error:
            raise TooLongError(error.message, where=error.where, fix=error.fix) from error
        (reply,) = talk.replies
        return ReplyToRead(talk.input_ids, reply.end - reply.start, alone[0].input_ids if alone else None)

    def read(self, state: FloatArray, given: FloatArray | None = None, before: FloatArray | None = None) -> FloatArray:
        """Log-probabilities that the reply beats a middling one and that it does not.

        Args:
            state: of its end of turn.
            given, before: log-probabilities [tokens] of its tokens after the talk, and without it by the base model.
        """
        with torch.no_grad():
            raw = self.head(torch.from_numpy(state)[None])
            if self.head.ratio is not None:
                assert given is not None
                assert before is not None
                raw = raw + self.head.ratio * float(given.sum() - before.sum()) / len(given) ** 0.5
            logit = self.calibration.apply(raw.numpy())[0]
        return np.asarray(-np.logaddexp(0.0, np.array([-logit, logit])))
