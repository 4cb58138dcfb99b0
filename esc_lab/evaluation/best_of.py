"""Best of n: several replies to each prompt are drawn, and the one that a reward model scores highest is taken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from esc_lab.config.evaluate import BestOfConfig
from esc_lab.data.dialogue import Reply, Turn
from esc_lab.evaluation.prompted_replies import PromptedReplies, PromptedReply
from esc_lab.scorers.reward_model import RewardModel


class BestOf:
    """Writes replies as `PromptedReplies` does, but each as the best of several.

    Args:
        replies: writes them; draws as `settings` says from now on.
        reward: chooses.

    Attributes:
        count: candidates of each reply.
        chosen, candidates: scores (logits) of the chosen replies, and the mean of each one's candidates.
    """

    def __init__(self, replies: PromptedReplies, reward: RewardModel, settings: BestOfConfig) -> None:
        replies.sampling = replace(replies.sampling, temperature=settings.temperature, top_p=settings.top_p)
        self._replies, self._reward, self.count = replies, reward, settings.replies
        self.chosen: list[float] = []
        self.candidates: list[float] = []

    def write(self, asked: Sequence[PromptedReply]) -> None:
        """Fill in the best of the replies to each prompt; of equal ones the first, and empty ones only where all are.

        Candidates have seeds of their own: candidate k of sample s is drawn as sample `s * count + k`.
        """
        groups = [[self._candidate(reply, number) for number in range(self.count)] for reply in asked]
        self._replies.write([candidate for group in groups for candidate in group])
        usable = [candidate for group in groups for candidate in group if candidate.prediction.reply]
        scores = dict(zip(map(id, usable), self._score(usable), strict=True))
        for reply, group in zip(asked, groups, strict=True):
            best = max(group, key=lambda candidate: scores.get(id(candidate), -np.inf))
            reply.prediction = replace(best.prediction, sample=reply.prediction.sample)
            reply.prompt_ids, reply.reply_ids, reply.spans = best.prompt_ids, best.reply_ids, best.spans
            reply.boosted = best.boosted
            if own := [scores[id(candidate)] for candidate in group if id(candidate) in scores]:
                self.chosen.append(max(own))
                self.candidates.append(float(np.mean(own)))

    def metrics(self) -> dict[str, float]:
        """Flat, under `best_of/`; empty where nothing was written."""
        if not self.chosen:
            return {}
        chosen, candidates = float(np.mean(self.chosen)), float(np.mean(self.candidates))
        return {"best_of/score": chosen, "best_of/gain": chosen - candidates}

    def _candidate(self, reply: PromptedReply, number: int) -> PromptedReply:
        sample = reply.prediction.sample * self.count + number
        return PromptedReply(reply.decision, replace(reply.prediction, sample=sample))

    def _score(self, usable: Sequence[PromptedReply]) -> list[float]:
        talks = []
        for candidate in usable:
            decision, written = candidate.decision, candidate.prediction
            strategies = (written.followed,) if written.followed else ()
            reply = Turn("supporter", Reply(written.reply or "", strategies))
            talks.append((*decision.dialogue.turns[: decision.turn], reply))
        scores: list[float] = self._reward.score(talks).tolist() if talks else []
        return scores
