"""Run directories as evaluations and trainings leave them, with made-up predictions."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from esc_lab.data.strategies import Inventory, load_inventory
from esc_lab.evaluation.read_table import read_table
from esc_lab.evaluation.summary import summarize
from esc_lab.metrics.attention import DEFINITIONS
from esc_lab.metrics.predictions import Prediction, write_predictions
from esc_lab.seeds import derive_seed
from tests.conftest import INVENTORIES

PROBLEMS = ("job crisis", "breakup with partner", "ongoing depression", "academic pressure")
EMOTIONS = ("anxiety", "sadness", "anger")
WORDS = ("I", "hear", "you", "that", "sounds", "hard", "what", "would", "help", "now", "it's", "okay")


def predictions(
    *,
    skill: float,
    seed: int,
    dialogues: int = 12,
    turns: int = 6,
    inventory: Inventory = INVENTORIES["esconv"],
    replies: bool = False,
    samples: int = 1,
    favourite: int = 0,
) -> list[Prediction]:
    """Predictions of a model that is right with probability `skill` and else prefers one strategy.

    The decisions depend on `dialogues`, `turns` and the inventory alone, what was predicted on `seed` too.
    """
    made = np.random.default_rng(derive_seed(0, "decisions"))
    drawn = np.random.default_rng(derive_seed(seed, "predictions", skill, favourite))
    names = inventory.names
    found = []
    for dialogue in range(dialogues):
        for turn in range(turns):
            gold = made.choice(len(names), size=made.integers(1, 3), replace=False).tolist()
            words = made.choice(WORDS, size=8).tolist()
            scores = drawn.gamma(0.3, size=len(names))
            scores[gold[0] if drawn.random() < skill else favourite] += 2 * drawn.random()
            share = scores / scores.sum()
            one = Prediction(
                dialogue=f"d{dialogue:04d}", tree=f"d{dialogue:04d}", turn=2 * turn + 1,
                problem=PROBLEMS[dialogue % len(PROBLEMS)], emotion=EMOTIONS[dialogue % len(EMOTIONS)],
                gold=[names[number] for number in gold], gold_reply=" ".join(words), prompted=None, template="cso",
                log_prob=-float(drawn.gamma(20)) * (1.5 - skill), tokens=len(words),
                distribution=dict(zip(names, share.tolist(), strict=True)), label_mass=float(drawn.random()),
            )  # fmt: skip
            found.append(one)
            if replies:
                _write(one, drawn, names, words)
            for sample in range(1, samples):
                found.append(replace(one, sample=sample, tokens=0, log_prob=0.0, distribution={}, label_mass=None))
                _write(found[-1], drawn, names, words)
    return found


def _write(one: Prediction, drawn: np.random.Generator, names: Sequence[str], words: Sequence[str]) -> None:
    kept = drawn.random(len(words)) < 0.6
    written = [word for word, keep in zip(words, kept, strict=True) if keep]
    one.reply = " ".join(written)
    one.bleu = [_matched(written, words, length) for length in range(1, 5)] + [len(written), len(words)]
    one.sampling = {"temperature": 0.0, "top_p": 1.0, "max_new_tokens": 40, "inference": "direct"}
    one.strategy = None if drawn.random() < 0.2 else str(drawn.choice(names))
    one.sra = {"paper/name": {name: float(np.exp(drawn.normal(-6))) for name in ("sra", "control", "relative")}}
    one.sra |= {f"{definition}/name": {"sra": 2 * one.sra["paper/name"]["sra"]} for definition in DEFINITIONS[1:]}
    one.adheres = bool(drawn.random() < 0.5)
    one.copied = round(len(written) / len(words), 1) / 2


def _matched(reply: Sequence[str], reference: Sequence[str], length: int) -> int:
    """N-grams of a reply that are in its reference, each as often as there at most (words without punctuation)."""
    both = (Counter(zip(*(text[start:] for start in range(length)), strict=False)) for text in (reply, reference))
    return (next(both) & next(both)).total()


def settings(stage: str, **changes: Any) -> dict[str, Any]:
    """A configuration with what comparisons read; `changes` are by dotted name with `__` for the dots."""
    config: dict[str, Any] = {
        "stage": stage, "seed": 1, "checkpoint": None, "init_from": None,
        "model": {"name": "tiny", "dtype": "float32"},
        "adapter": {"kind": "lora", "r": 16},
        "data": {"name": "sample", "path": None, "negatives": "recorded", "limit": {}},
        "inventory": {"name": "esconv"},
        "prompt": {"train": {"template": "cso"}, "eval": {"template": "cso"}, "inference": "direct"},
        "objective": {"name": "cso", "beta": 0.1},
        "optimizer": {"lr": 0.001}, "scheduler": {"name": "cosine"}, "trainer": {"max_epochs": 1},
        "mcts": {"c": 1.0}, "search": {"seeds": 8}, "llm": {"name": "local"},
        "evaluate": {
            "history_turns": None, "replies": "generated", "classifier": None,
            "sra": {"definition": "paper", "span": "name"},
            "generation": {"temperature": 0.0, "top_p": 1.0, "max_new_tokens": 40, "decisions": None, "samples": 1},
        },
    }  # fmt: skip
    for name, value in changes.items():
        *groups, last = name.split("__")
        at = config
        for group in groups:
            at = at[group]
        at[last] = value
    return config


def write_run(
    directory: Path, config: Mapping[str, Any], metrics: Mapping[str, float], rows: Sequence[Prediction] = ()
) -> Path:
    """A run directory; without rows it has no predictions.jsonl."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.yaml").write_text(yaml.safe_dump(dict(config), sort_keys=False))
    (directory / "metrics.json").write_text(json.dumps(dict(metrics)))
    (directory / "environment.json").write_text(json.dumps({"git_commit": "0" * 12}))
    if rows:
        write_predictions(directory / "predictions.jsonl", rows)
    return directory


def write_evaluation(directory: Path, rows: Sequence[Prediction], **changes: Any) -> Path:
    """An evaluation with the metrics of its rows."""
    config = settings("evaluate", **changes)
    return write_run(directory, config, summary(rows, directory, config["inventory"]["name"])[0], rows)


def summary(
    rows: Sequence[Prediction], directory: Path, inventory: str = "esconv"
) -> tuple[dict[str, float], dict[str, Any]]:
    """Metrics and strategy tables of rows, by way of a file in a directory."""
    path = directory / "predictions.jsonl"
    write_predictions(path, rows)
    return summarize(read_table(path, load_inventory(inventory).names, sra="paper/name", texts=True))


def write_training(directory: Path, stage: str, *, curve: bool = False, **changes: Any) -> Path:
    """A training with its loss at every step if there is to be a curve."""
    write_run(directory, settings(stage, **changes), {"val/loss": 2.5, "train/seconds": 1.0})
    if curve:
        seed = changes.get("seed", 1)
        noise = np.random.default_rng(derive_seed(seed, "curve", stage)).normal(scale=0.05, size=60)
        lines = ["epoch,step,train/loss,val/loss"]
        for step, wobble in enumerate(noise):
            validated = f"{1 + 2 * 0.95**step}" if step % 20 == 19 else ""
            lines.append(f"0,{step},{1 + 1.8 * 0.95**step + wobble},{validated}")
        (directory / "metrics.csv").write_text("\n".join(lines) + "\n")
    return directory
