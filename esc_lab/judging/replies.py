"""The replies of an evaluation, by decision, and which decisions are judged."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from esc_lab.data.dialogue import Dialogue, Reply, Turn
from esc_lab.errors import UserError
from esc_lab.evaluation.predictions import read_predictions
from esc_lab.metrics.prediction_table import Key
from esc_lab.seeds import derive_seed

NOTHING = "(no message)"


@dataclass(frozen=True)
class WrittenReply:
    """What a run wrote at a decision.

    Attributes:
        text: as it was written, stripped; may be empty.
        strategy: the one that it was to follow or that it names; None if it names none.
        gold_reply: the corpus' own reply there.
        tree: of the dialogue.
        sampling: how it was drawn.
    """

    text: str
    strategy: str | None
    gold_reply: str
    tree: str
    sampling: Mapping[str, Any]

    @property
    def turn(self) -> Turn:
        """As the judge sees it."""
        return Turn("supporter", Reply(self.text or NOTHING, (self.strategy,) if self.strategy else ()))


def read_replies(path: Path) -> dict[Key, WrittenReply]:
    """The replies in a `predictions.jsonl`: of several samples the first, of several prompts the gold strategy's.

    Raises:
        UserError: a line is not a prediction.
    """
    replies: dict[Key, WrittenReply] = {}
    for p in read_predictions(path):
        if p.reply is not None and p.sample == 0 and p.to_gold:
            reply = WrittenReply(p.reply.strip(), p.followed, p.gold_reply, p.tree, p.sampling)
            replies.setdefault((p.dialogue, p.turn), reply)
    return replies


def draw_decisions(keys: Iterable[Key], count: int | None, seed: int) -> list[Key]:
    """The decisions to judge, sorted: all, or `count` of them. A larger count has those of a smaller one among its."""
    order = sorted(keys, key=lambda key: (derive_seed(seed, "decisions to judge", *key), key))
    return sorted(order[:count])


def build_history(dialogue: Dialogue, turn: int) -> tuple[Turn, ...]:
    """The turns before a reply, as the judge sees them: without rejected replies and an opening by the supporter."""
    turns = [Turn(before.speaker, before.reply) for before in dialogue.turns[:turn]]
    first = next((number for number, before in enumerate(turns) if before.speaker == "seeker"), 0)
    return tuple(turns[first:])


def check_context(dialogues: Mapping[str, Dialogue], replies: Mapping[Key, WrittenReply], where: str) -> None:
    """Whether the dialogues are those that the replies were written in.

    Raises:
        UserError: a dialogue is missing, or has another reply at a decision.
    """
    wrong = [key for key, reply in replies.items() if _gold_reply(dialogues.get(key[0]), key[1]) != reply.gold_reply]
    if wrong:
        fix = "evaluate again, which keeps the dialogues beside the predictions; or put the corpus back where it was"
        message = f"the dialogues of {len(wrong)} of {len(replies)} replies are not those that were evaluated"
        raise UserError(message, where=where, fix=fix)


def _gold_reply(dialogue: Dialogue | None, turn: int) -> str | None:
    turns: Sequence[Turn] = dialogue.turns if dialogue else ()
    return turns[turn].reply.text if turn < len(turns) else None
