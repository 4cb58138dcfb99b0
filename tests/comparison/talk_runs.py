"""Run directories as stage `converse` leaves them, with made-up talks."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from esc_lab.data.corpora import write_dialogues
from esc_lab.data.dialogue import Dialogue, Reply, Turn
from esc_lab.evaluation.arena.measures import describe_talks, measure_talks
from esc_lab.seeds import derive_seed
from tests.comparison.synthetic import settings, write_run
from tests.conftest import INVENTORIES

NAMES = INVENTORIES["esconv"].names
SUCCESS, MAX_TURNS = 2.0, 10
CARDS = (
    ("night_nurse", "burnout", "numbness", "You used to cry in the car after hard shifts. For weeks you feel nothing."),
    ("closed_bakery", "job loss", "sadness", "The bakery where you worked for thirty-three years closed last Friday."),
    ("exam_again", "academic pressure", "anxiety", "You failed the exam twice. The third time is the last."),
    ("moved_for_love", "breakup with partner", "anger", "You gave up your flat for somebody who left after a month."),
    ("mother_forgets", "care of a parent", "guilt", "Your mother asks the same question ten times an hour."),
    ("not_a_person", "ongoing depression", "hopelessness", "You are sure that a program cannot help you, and say so."),
)  # fmt: skip
SAID = (
    "I keep going over it, and every time I end up in the same place.",
    "Maybe. I do not know who I would tell, to be honest.",
    "It was quiet at home today. I noticed that I had not eaten.",
    "That is a kind thing to say, thank you.",
    "I could try that on Sunday, before the others are up.",
)
REPLIES = (
    "That sounds exhausting. What weighs on you most at the moment?",
    "It makes sense that you feel like this after all that has happened, and it says how much you cared.",
    "So it is less the day itself than what comes after it. Did I get that right?",
    "You have held out for a long time. That took strength, even if it does not feel like it.",
    "Perhaps a short walk before work, with nothing to do in it, could be a place to begin.",
)


def made_talk(
    card: int, number: int, *, eases: float, turns: int, seed: int, chat: Sequence[str] = REPLIES
) -> Dialogue:
    """A talk whose supporter lowers the intensity by `eases` at each turn, about; the seeker's start is its card's."""
    start = random.Random(derive_seed(0, "seeker", card, number))
    draw = random.Random(derive_seed(seed, "talk", card, number))
    name, problem, emotion, situation = CARDS[card % len(CARDS)]
    name += f"_{card // len(CARDS)}" if card >= len(CARDS) else ""
    feels = 3 + 2 * start.random()
    intensity: list[float | None] = [round(feels, 3)]
    said = [Turn("supporter", Reply("Hello, I am here to listen.")), Turn("seeker", Reply(start.choice(SAID)))]
    for turn in range(1, turns + 1):
        said.append(Turn("supporter", Reply(draw.choice(chat), (draw.choice(NAMES[:5]),))))
        feels = min(5.0, max(1.0, feels - eases + draw.gauss(0, 0.25)))
        intensity.append(round(feels, 3))
        if turn < turns:
            said.append(Turn("seeker", Reply(draw.choice(SAID))))
    ends = "max_turns" if turns == MAX_TURNS else "seeker"
    meta = {"card": name, "talk": number, "ends": ends, "intensity": intensity}
    meta |= {"hard": "testing"} if name.startswith("not_a_person") else {}
    about = {"situation": situation, "emotion": emotion, "problem": problem}
    return Dialogue(tuple(said), "esconv", tree_id=f"{name}-{number}", meta=meta, **about)


def made_talks(
    *, eases: float, seed: int, cards: int = len(CARDS), talks: int = 1, turns: tuple[int, int] = (3, MAX_TURNS)
) -> list[Dialogue]:
    """Talks with each card, of as many turns as are drawn."""
    draw = random.Random(derive_seed(seed, "turns"))
    return [
        made_talk(card, number, eases=eases, turns=draw.randint(*turns), seed=seed)
        for card in range(cards)
        for number in range(talks)
    ]


def write_talks(
    directory: Path, talks: Sequence[Dialogue], *, seeker: Mapping[str, Any] | None = None, success: float = SUCCESS,
    journals: bool = True, **changes: Any,
) -> Path:  # fmt: skip
    """A run of stage `converse`; `seeker` is what its journals say beside the card, `changes` are of its settings."""
    measures = {"success": success, "max_turns": MAX_TURNS}
    metrics = {f"converse/{name}": value for name, value in measure_talks(talks, **measures).items()}
    config = settings("converse", **changes)
    config["llm"] = {"supporter": {"client": "local", "model": None}, "openai": {"model": None}} | changes.get(
        "llm", {}
    )
    config["converse"] = {"strategies": [], "success": success} | changes.get("converse", {})
    write_run(directory, config, metrics | {"converse/seconds": 1.0})
    write_dialogues(talks, directory / "talks.jsonl")
    (directory / "measures.json").write_text(json.dumps(describe_talks(talks, **measures)))
    for talk in talks if journals else ():
        header = {"card": {"id": talk.meta["card"], "situation": talk.situation}, "talk": talk.meta["talk"], "seed": 1}
        header |= {"schedule": config["converse"]["strategies"], "max_turns": MAX_TURNS}
        roles = {"seeker": {"temperature": 0.7}, "supporter": {"client": {"model": str(directory)}}}
        path = directory / "talks" / f"{talk.tree_id}.journal.jsonl"
        path.parent.mkdir(exist_ok=True)
        config_line = {"format": "esc-lab-journal/1", "config": {**header, "roles": roles, **(seeker or {})}}
        path.write_text(f"{json.dumps(config_line)}\n")
    return directory
