"""How long a comparison of 100 evaluations of 2,895 decisions takes: two models, ten methods, five seeds.

The runs are made up. Reading them, intervals and tests over dialogues and seeds, results by group, figures and tables
count; making the runs does not.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from esc_lab.comparison.result import compute_comparison
from esc_lab.config import Config
from esc_lab.config.compare import CompareConfig
from esc_lab.stages.compare import run
from tests.comparison.synthetic import predictions, write_evaluation, write_training

# Method -> stage, settings, skill.
METHODS: dict[str, tuple[str, dict[str, str], float]] = {
    "base": ("", {}, 0.1),
    "sft": ("sft", {}, 0.3),
    **{
        name: ("cso", {"objective__name": name}, skill)
        for name, skill in {
            "cso": 0.38, "dpo": 0.36, "ipo": 0.35, "hinge": 0.34, "simpo": 0.33, "orpo": 0.31, "kto": 0.32,
        }.items()
    },
    "random": ("cso", {"data__negatives": "random"}, 0.29),
}  # fmt: skip


def make_runs(root: Path, models: int, seeds: int, dialogues: int, turns: int) -> list[Path]:
    found = []
    for model in range(models):
        for method, (stage, changes, skill) in METHODS.items():
            for seed in range(1, seeds + 1):
                name = f"{method}_{model}_{seed}"
                own = {"model__name": f"model-{model + 1}", "seed": seed}
                if stage:
                    write_training(root / f"training_{name}", stage, curve=True, **own, **changes)
                    own["checkpoint"] = str(root / f"training_{name}")
                rows = predictions(skill=skill, seed=1000 * model + seed, dialogues=dialogues, turns=turns)
                found.append(write_evaluation(root / f"evaluation_{name}", rows, **own))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--keep", type=Path, help="leave runs and comparison here (runs that are there are used again)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = options.keep or Path(temporary)
        # 193 dialogues of 15 turns: 2,895 decisions, as many as the published test split of ESConv has utterances.
        runs = sorted(root.glob("evaluation_*")) or make_runs(root, options.models, options.seeds, 193, 15)
        numbers, whole = [], []
        for repeat in range(options.repeats):
            started = time.perf_counter()
            compute_comparison(runs)
            numbers.append(time.perf_counter() - started)
            shown = (
                contextlib.nullcontext() if options.keep and not repeat else contextlib.redirect_stdout(io.StringIO())
            )
            started = time.perf_counter()
            with shown:
                asked = CompareConfig([*map(str, runs)])
                run(Config(stage="compare", seed=0, run_dir=str(root / "comparison"), compare=asked))
            whole.append(time.perf_counter() - started)
    print(f"{len(runs)} runs: numbers {min(numbers):.1f} s, with tables and figures {min(whole):.1f} s")
    print(f"compare_runs: {min(whole):.1f} s (goal < 15 s)")


if __name__ == "__main__":
    main()
