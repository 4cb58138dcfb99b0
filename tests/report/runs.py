"""Evaluations of made-up dialogues that leave their context too, as pages of comparisons read them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from esc_lab.comparison.result import ComparisonResult, compute_comparison
from esc_lab.data.corpora import write_dialogues
from esc_lab.data.dialogue import Dialogue, Reply, Turn
from esc_lab.data.strategies import load_inventory
from esc_lab.metrics.predictions import Prediction
from esc_lab.seeds import derive_seed
from tests.comparison.synthetic import EMOTIONS, PROBLEMS, write_evaluation, write_training

NAMES = load_inventory("esconv").names
METHODS = {"base": ("", 0.15), "sft": ("sft", 0.4), "cso": ("cso", 0.55)}


def sentence(draw: random.Random, words: int) -> str:
    """Words that are as different as words are in talk, near enough for a page's size."""
    found = [
        f"{draw.choice('bdfgklmnprst')}{draw.choice('aeiou')}{draw.randrange(400) ** 2 // 400}" for _ in range(words)
    ]
    return " ".join(found).capitalize() + "."


def made_dialogues(count: int, decisions: int, seed: int = 0) -> list[Dialogue]:
    """Dialogues in which seeker and supporter take turns."""
    draw = random.Random(derive_seed(seed, "dialogues"))
    found = []
    for number in range(count):
        turns = []
        for _ in range(decisions):
            reply = Reply(sentence(draw, 22), (draw.choice(NAMES),))
            turns += [Turn("seeker", Reply(sentence(draw, 18))), Turn("supporter", reply)]
        problem, emotion = PROBLEMS[number % len(PROBLEMS)], EMOTIONS[number % len(EMOTIONS)]
        found.append(Dialogue(tuple(turns), "esconv", "", sentence(draw, 20), emotion, problem))
    return found


def predicted(
    dialogues: Sequence[Dialogue], skill: float, seed: int, texts: Sequence[str] | None = None
) -> list[Prediction]:
    """What a model did that finds the gold strategy with probability `skill` and else prefers the first.

    Args:
        texts: what it replies with; None: new sentences.
    """
    draw = random.Random(derive_seed(seed, "predictions", skill))
    found = []
    for dialogue in dialogues:
        for turn in dialogue.decisions():
            gold = dialogue.turns[turn].reply
            scores = [draw.gammavariate(0.3, 1) for _ in NAMES]
            scores[NAMES.index(gold.strategies[0]) if draw.random() < skill else 0] += 3 * draw.random()
            shares = {name: score / sum(scores) for name, score in zip(NAMES, scores, strict=True)}
            found.append(
                Prediction(
                    dialogue=dialogue.id, tree=dialogue.tree_id, turn=turn, problem=dialogue.problem,
                    emotion=dialogue.emotion, gold=[*gold.strategies], gold_reply=gold.text, prompted=None,
                    template="cso", history=turn, log_prob=-draw.gammavariate(60, 1) * (1.5 - skill), tokens=22,
                    distribution=shares, label_mass=draw.random(),
                    reply=draw.choice(texts) if texts else sentence(draw, 22),
                    strategy=None if draw.random() < 0.1 else max(shares, key=shares.__getitem__),
                )
            )  # fmt: skip
    return found


def evaluated(
    directory: Path, dialogues: Sequence[Dialogue], rows: Sequence[Prediction], *, context: bool = True, **changes: Any
) -> Path:
    """An evaluation's run directory; without context it has no dialogues.jsonl."""
    write_evaluation(directory, rows, **changes)
    if context:
        write_dialogues(dialogues, directory / "dialogues.jsonl")
    return directory


def write_runs(
    root: Path,
    dialogues: Sequence[Dialogue],
    *,
    models: Sequence[str] = ("tiny",),
    seeds: Sequence[int] = (1,),
    texts: Sequence[str] | None = None,
) -> list[Path]:
    """Base, SFT and CSO of each model and seed, with their trainings and the commands of both."""
    found = []
    for model in models:
        for method, (stage, skill) in METHODS.items():
            for seed in seeds:
                own: dict[str, Any] = {"model__name": model, "seed": seed}
                name, command = f"{model}_{method}_{seed}", [f"model={model}", f"seed={seed}"]
                if stage:
                    training = write_training(root / f"train_{name}", stage, curve=True, **own)
                    record_command(training, [f"stage={stage}", *command, "data.limit={train: 400}"])
                    own["checkpoint"] = str(training)
                rows = predicted(dialogues, skill, derive_seed(seed, model), texts)
                found.append(evaluated(root / f"evaluate_{name}", dialogues, rows, **own))
                record_command(found[-1], ["stage=evaluate", *command, f"checkpoint={own.get('checkpoint', 'null')}"])
    return found


def record_command(directory: Path, overrides: Sequence[str]) -> None:
    (directory / ".hydra").mkdir(exist_ok=True)
    lines = "".join(f"- {override!r}\n" for override in overrides)
    (directory / ".hydra" / "overrides.yaml").write_text(lines)


def comparison_of(runs: Sequence[Path]) -> ComparisonResult:
    return compute_comparison(runs)


def with_prompts(rows: Sequence[Prediction], names: Sequence[str]) -> list[Prediction]:
    """Each decision once for each strategy that its prompt names."""
    return [
        replace(row, prompted=name, strategy=None, distribution={}, label_mass=None, reply=f"{name}: {row.reply}")
        for row in rows
        for name in names
    ]
