"""A reward model: a scalar head on a base model with an adapter, which scores a reply in its dialogue.

The score is read from the final hidden state at the reply's end-of-turn token in the packed token tree: all candidate
replies of a turn, and all turns of a dialogue, cost one pass. Scores are logits: by the model of Bradley and Terry
(1952) the probability that the first of two replies is the better one is the logistic of their difference, and that of
one reply's score the probability that it beats a middling one.

A head with `ratio` also asks how much likelier the dialogue makes the reply: its log-likelihood ratio, pointwise mutual
information, which a language model knows before it has seen a single comparison.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from esc_lab.data.dialogue import Reply, Turn
from esc_lab.models.devices import find_device, move
from esc_lab.models.forward import base_model, evaluation_mode, tree_hidden_states
from esc_lab.models.log_probs import score_rows, token_log_probs
from esc_lab.scorers.conversations import Candidate, ConversationEncoder, ConversationReport
from esc_lab.statistics.intervals import FloatArray
from esc_lab.tokens import PackedRow, TokenSequence
from esc_lab.tokens.packing import pack_rows

_RATIO = 0.5  # of a new head


class RewardHead(nn.Module):
    """Hidden state to score, in float32; and `tie`, the logarithm of Davidson's parameter of ties (`pair_loss`).

    The states are brought to unit root mean square first, so that a learning rate means the same for every model.

    Args:
        likelihood: it has `ratio` too, the weight of a reply's log-likelihood ratio.
    """

    def __init__(self, hidden: int, *, likelihood: bool = False) -> None:
        super().__init__()
        self.ratio = nn.Parameter(torch.tensor(_RATIO)) if likelihood else None
        self.score = nn.Linear(hidden, 1)
        nn.init.zeros_(self.score.weight)
        nn.init.zeros_(self.score.bias)
        self.tie = nn.Parameter(torch.zeros(()))

    def forward(self, states: Tensor) -> Tensor:
        """Scores [N] of states [N, hidden]."""
        states = states.to(self.score.weight.dtype)
        scores: Tensor = self.score(nn.functional.rms_norm(states, states.shape[-1:]))[:, 0]
        return scores


@dataclass(frozen=True)
class Calibration:
    """Scores are raw ones less `center`, over `temperature`."""

    temperature: float = 1.0
    center: float = 0.0

    def apply(self, scores: FloatArray) -> FloatArray:
        """Raw scores as logits."""
        return np.asarray((scores - self.center) / self.temperature)


@dataclass(frozen=True)
class RewardModel:
    """A base model with an adapter, the head, and how conversations are read.

    Attributes:
        name: of its base model.
        row_tokens: budget of a packed row.
        calibration: what makes its scores logits, from validation data.
        strategy_share: of a reply's score that is of its strategy alone, without words.
        strategy_centers: strategy -> its mean score alone in validation contexts, which is taken off.
    """

    model: Any
    head: RewardHead
    conversations: ConversationEncoder
    name: str
    row_tokens: int
    calibration: Calibration = Calibration()
    strategy_share: float = 0.0
    strategy_centers: Mapping[str, float] = field(default_factory=dict)

    def raw_scores(self, row: PackedRow, alone: Mapping[Any, float]) -> Tensor:
        """Scores [replies], before calibration, of the replies of a packed row.

        Args:
            alone: what `score_alone` finds for the keys of its replies.
        """
        states = tree_hidden_states(self.model, row.input_ids, row.position_ids, row.leave)
        scores: Tensor = self.head(states[move(row.end, states.device)])
        if self.head.ratio is None:
            return scores
        values = token_log_probs(base_model(self.model), states, row.query, row.target)
        given = scores.new_zeros(len(scores)).index_add(0, move(row.reply, states.device), values.to(scores.dtype))
        before = move(np.array([alone[keys[0]] for keys in row.keys]), states.device)
        root = move(np.sqrt(np.bincount(row.reply)), states.device)
        ratio: Tensor = self.head.ratio * ((given - before) / root).to(scores.dtype)
        return scores + ratio

    def pack_alone(self, replies: Mapping[Any, Reply]) -> tuple[PackedRow, ...]:
        """Rows of the replies, by key, without any dialogue before them; none if their likelihood is not asked for."""
        if self.head.ratio is None:
            return ()
        encoder = replace(self.conversations, report=ConversationReport())
        sequences = encoder.encode((), [Candidate(0, reply, key) for key, reply in replies.items()])
        return tuple(pack_rows([sequences], self.row_tokens))

    def score_alone(self, rows: Sequence[PackedRow]) -> dict[Any, float]:
        """Key -> log p(reply) by the base model without adapter, of rows of `pack_alone`; no gradient."""
        if not rows:
            return {}
        with evaluation_mode(self.model), self.model.disable_adapter():
            return {key: float(tokens.sum()) for key, tokens in score_rows(self.model, rows)}

    def to_device(self) -> None:
        """Move model and head to CUDA if there is any: a training leaves them on the CPU."""
        device = find_device()
        self.model.to(device)
        self.head.to(device)

    @torch.no_grad()
    def score(self, conversations: Sequence[Sequence[Turn]]) -> FloatArray:
        """Calibrated scores [N], float64, of the last message of each conversation, which is the supporter's.

        What the conversations share is computed once. With a `strategy_share` w the probability that a reply beats a
        middling one is 1 - w times that of the reply and w times that of its strategy alone, and the score its logit;
        a reply without a strategy is scored as without a share. Strategies alone are compared with their own mean
        (`strategy_centers`), so that none has a high value everywhere.

        Raises:
            ValueError: a conversation is empty or ends with the seeker.
            UserError: a message holds a special token, or leaves no room for a reply.
        """
        if any(not talk or talk[-1].speaker != "supporter" for talk in conversations):
            raise ValueError("a conversation has to end with a reply of the supporter")
        if self.strategy_share:
            return self._score_with_strategies([*map(tuple, conversations)])
        trees: dict[str, list[TokenSequence]] = {}
        numbered = sorted(enumerate(conversations), key=lambda item: _history_key(item[1]))
        for _, group in groupby(numbered, key=lambda item: _history_key(item[1])):
            members = list(group)
            turns = tuple(members[0][1][:-1])
            candidates = [Candidate(len(turns), talk[-1].reply, number) for number, talk in members]
            first = turns[0].reply.text if turns else ""
            trees.setdefault(first, []).extend(self.conversations.encode(turns, candidates))
        scores = np.full(len(conversations), np.nan)
        alone = self.score_alone(self.pack_alone({number: talk[-1].reply for number, talk in numbered}))
        with evaluation_mode(self.model):
            for row in pack_rows([*trees.values()], self.row_tokens):
                values = self.raw_scores(row, alone).double().cpu().numpy()
                for value, keys in zip(values, row.keys, strict=True):
                    scores[list(keys)] = value
        return self.calibration.apply(scores)

    def _score_with_strategies(self, talks: Sequence[tuple[Turn, ...]]) -> FloatArray:
        alone = {
            number: (*talk[:-1], replace(talk[-1], reply=talk[-1].reply.without_words()))
            for number, talk in enumerate(talks) if talk[-1].reply.strategies
        }  # fmt: skip
        scores = replace(self, strategy_share=0.0).score([*talks, *alone.values()])
        whole, share = scores[: len(talks)], self.strategy_share
        fits = whole.copy()
        centers = [self.strategy_centers.get(talks[number][-1].reply.strategies[0], 0.0) for number in alone]
        fits[[*alone]] = scores[len(talks) :] - np.array(centers)
        with np.errstate(divide="ignore"):  # a share of 1
            words, strategy = np.log1p(-share), np.log(share)
        better, worse = (
            np.logaddexp(words - np.logaddexp(0, -sign * whole), strategy - np.logaddexp(0, -sign * fits))
            for sign in (1, -1)
        )
        return np.asarray(better - worse)

    def value(self, conversations: Sequence[Sequence[Turn]]) -> FloatArray:
        """What a search's judge makes of these scores: 4 times the logistic, less 3, in [-3, 1]. Raises as `score`."""
        return np.asarray(4 * np.exp(-np.logaddexp(0.0, -self.score(conversations))) - 3)


def _history_key(conversation: Sequence[Turn]) -> tuple[tuple[str, str, str], ...]:
    """What of the turns before the last one can be read."""
    return tuple((turn.speaker, turn.reply.text, " ".join(turn.reply.strategies[:1])) for turn in conversation[:-1])
