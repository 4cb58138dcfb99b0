"""Evaluations of the sample corpus as stage `evaluate` leaves them, with made-up replies, and judges of these."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from esc_lab.data.corpora import read_dialogues, sample_path, write_dialogues
from esc_lab.data.dialogue import Dialogue, merge_turns
from esc_lab.judging.inputs import build_history
from esc_lab.metrics.predictions import Prediction
from esc_lab.search.role_prompts import transcript
from tests.comparison.synthetic import write_evaluation

INVENTORY = "esconv"


def sample(count: int = 8) -> list[Dialogue]:
    return [merge_turns(dialogue, "set") for dialogue in read_dialogues(sample_path())[:count]]


def decisions(dialogues: Sequence[Dialogue]) -> list[tuple[Dialogue, int]]:
    """Those whose reply has a strategy; all where none has."""
    every = [(d, turn) for d in dialogues for turn in d.decisions()]
    return [(d, turn) for d, turn in every if d.turns[turn].reply.strategies] or every


def evaluation(
    directory: Path,
    reply: Callable[[int, Dialogue, int], str],
    dialogues: Sequence[Dialogue] | None = None,
    *,
    keep: bool = True,
    prompted: Sequence[str | None] = (None,),
    **changes: Any,
) -> Path:
    """An evaluation with a reply to each decision, by its number; `keep` writes the dialogues too.

    With several that are `prompted` a reply to each, where "good" is followed by what was prompted.
    """
    dialogues = sample() if dialogues is None else dialogues
    rows = [
        Prediction(
            dialogue=dialogue.id, tree=dialogue.tree_id, turn=turn, problem=dialogue.problem, emotion=dialogue.emotion,
            gold=list(dialogue.turns[turn].reply.strategies), gold_reply=dialogue.turns[turn].reply.text, prompted=name,
            template="cso", reply=reply(number, dialogue, turn).replace("good", f"good {name}" if name else "good"),
            strategy=None if name else "Question", raw="raw",
            sampling={"temperature": 0.0, "top_p": 1.0, "max_new_tokens": 40},
        )
        for number, (dialogue, turn) in enumerate(decisions(dialogues))
        for name in prompted
    ]  # fmt: skip
    write_evaluation(directory, rows, **changes)
    if keep:
        write_dialogues(dialogues, directory / "dialogues.jsonl")
    return directory


def knowing(dialogues: Sequence[Dialogue]) -> Callable[[str, str], float]:
    """The worth of a message to somebody who knows the given replies: 1, of foreign ones 0, of others as they say."""
    given = {
        transcript(build_history(d, turn), labels=True): " ".join(d.turns[turn].reply.text.split())
        for d in dialogues
        for turn in d.decisions()
    }
    texts = set(given.values())

    def worth(talk: str, message: str) -> float:
        if message in texts:
            return float(given.get(talk) == message)
        return 0.75 if "good" in message else 0.5

    return worth
