"""A reward model on trees: time against one sequence for each candidate, equality of the scores, and what it learns.

Scoring: candidates of every supporter turn of a dialogue in one packed tree, against each conversation by itself, on
the embedded model with a new adapter; CPU seconds, since other processes may share the cores. Learning, with `--data
DIR` (a corpus with a published split, such as ESConv): `stage=reward` with its experiment's settings, which takes long;
with `--run DIR` a finished run of it is read instead.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path
from statistics import median

import numpy as np
import torch
from _common import load_smollm2, reward_settings

from esc_lab.config.training import AdapterConfig
from esc_lab.data.corpora import read_dialogues, sample_path
from esc_lab.data.dialogue import Turn, merge_turns
from esc_lab.prompts import load_layout
from esc_lab.scorers.conversations import take_words
from esc_lab.scorers.reward_files import new_reward
from esc_lab.scorers.reward_model import RewardModel

FASTER, EQUAL = 5.0, 1e-4
GOALS = {"other_dialogue": 0.90, "same_dialogue": 0.65}
MINUTES = 25


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--candidates", type=int, default=8, help="replies of each supporter turn")
    parser.add_argument("--runs", type=int, default=3, help="timed runs of each side, in turn")
    parser.add_argument("--data", help="directory of a corpus: train a reward model on it")
    parser.add_argument("--run", type=Path, help="run directory of a finished stage=reward")
    options = parser.parse_args()
    reached = learn(options.run, options.data)
    ratio = compare_times(options.candidates, options.runs)
    print(f"{reached}reward_tree_speedup: {ratio:.1f} (goal >= {FASTER:g}, with scores equal to {EQUAL:g} in float32)")


def compare_times(candidates: int, runs: int) -> float:
    """How many times faster the tree is; the scores of both are equal, or it ends here."""
    talks = candidate_talks(candidates)
    exact = build_reward("float32")
    few = talks[: 4 * candidates]
    gap = np.abs(exact.score(few) - np.concatenate([exact.score([talk]) for talk in few])).max()
    assert gap <= EQUAL, f"scores differ by {gap:g}"
    reward = build_reward("bfloat16")
    groups = {"tree": [talks], "each": [[talk] for talk in talks]}
    times: dict[str, list[float]] = {"tree": [], "each": []}
    for _ in range(runs):
        for side, parts in groups.items():
            started = time.process_time()
            for part in parts:
                reward.score(part)
            times[side].append(time.process_time() - started)
    ratios = [each / tree for tree, each in zip(times["tree"], times["each"], strict=True)]
    print(
        f"{len(talks)} conversations of one dialogue: tree {median(times['tree']):.1f} CPU s, "
        f"each alone {median(times['each']):.1f} CPU s, scores equal to {gap:.1e}"
    )
    return median(ratios)


def candidate_talks(candidates: int) -> list[tuple[Turn, ...]]:
    """Every supporter turn of the sample corpus' longest dialogue with its own reply and replies of other dialogues."""
    dialogues = [merge_turns(dialogue, "set") for dialogue in read_dialogues(sample_path())]
    longest = max(dialogues, key=lambda dialogue: len(dialogue.turns))
    others = islice(replies(dialogue for dialogue in dialogues if dialogue is not longest), candidates - 1)
    foils = [Turn("supporter", reply) for reply in others]
    return [(*longest.turns[:turn], reply) for turn in longest.decisions() for reply in (longest.turns[turn], *foils)]


def replies(dialogues):
    return (dialogue.turns[turn].reply for dialogue in dialogues for turn in dialogue.decisions())


def build_reward(dtype: str) -> RewardModel:
    torch.manual_seed(0)
    settings, loaded = load_smollm2(Path(".cache"), dtype)
    words = take_words(load_layout("cso").wording)
    reward = new_reward(loaded, settings, AdapterConfig(), reward_settings(), words, 2048)
    torch.nn.init.normal_(reward.head.score.weight, std=0.02)
    reward.model.eval()
    return reward


def learn(run: Path | None, data: str | None) -> str:
    """What a reward model reaches on the test split, as the beginning of the last line; prints more."""
    if run is None and data is None:
        return ""
    if run is None:
        run = Path("outputs", "reward", "benchmark")
        words = ["experiment=reward", "data=esconv", f"data.path={data}", "logger=none", f"hydra.run.dir={run}"]
        subprocess.run([sys.executable, "run.py", *words], check=True)
    metrics = json.loads((run / "metrics.json").read_text())
    parts = [f"trained in {metrics['train/seconds'] / 60:.0f} min (goal < {MINUTES})"]
    for kind, goal in GOALS.items():
        value, above = metrics[f"reward/{kind}/auc"], metrics[f"reward/{kind}/above_low"]
        parts.append(f"AUC {value:.3f} against {kind} (goal >= {goal}), lower end above words {above:+.3f} (goal > 0)")
    return f"reward_model: {', '.join(parts)}; "


if __name__ == "__main__":
    main()
