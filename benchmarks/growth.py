"""How time and memory grow with the corpus: reading, encoding, planning, training, evaluation and comparison.

Corpora of 1,000, 4,000 and 16,000 dialogues, each the sample corpus again and again, its words in another order in
every copy; a tiny random model. Each point is a process of its own. Training is a fixed number of steps, so its time
should not grow at all. Printed of each stage: CPU seconds, memory (the process' own at the end of the stage), and how
the time for a dialogue grows from the smallest corpus to the largest: 1 is linear.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))  # made-up evaluations are the tests'

from hydra import compose, initialize_config_dir
from rich.console import Console
from rich.table import Table

from esc_lab.cli.compositions import CONF
from esc_lab.config import Config, typed
from esc_lab.data.corpora import sample_path

GOAL_GIB = 1.0  # of what a stage needs beyond the smallest corpus' need
Point = dict[str, dict[str, float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dialogues", type=int, nargs="+", default=[1000, 4000, 16000])
    parser.add_argument("--parts", nargs="+", default=[*PARTS], choices=[*PARTS])
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--corpus", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        print(json.dumps(PARTS[options.part](options.corpus)))
        return
    points: dict[str, list[Point]] = {part: [] for part in options.parts}
    with tempfile.TemporaryDirectory() as folder:
        for count in options.dialogues:
            corpus = write_corpus(Path(folder) / f"{count}.jsonl", count)
            for part in options.parts:
                points[part].append(run_alone(part, corpus))
                print(f"{count} dialogues, {part}: {points[part][-1]}", file=sys.stderr, flush=True)
    show(options.dialogues, points)


def show(counts: list[int], points: dict[str, list[Point]]) -> None:
    """A table of all points, and how they grow."""
    table = Table("part", "stage", *(f"{count:,}: s" for count in counts), *(f"{count:,}: GiB" for count in counts))
    times = counts[-1] / counts[0]
    for part, found in points.items():
        for stage in found[0]:
            seconds, memory = ([point[stage][name] for point in found] for name in ("seconds", "gib"))
            table.add_row(part, stage, *(f"{one:.2f}" for one in seconds), *(f"{one:.2f}" for one in memory))
    Console(width=140).print(table)
    for part, found in points.items():
        for stage in found[0]:
            first, last = found[0][stage], found[-1][stage]
            growth = last["seconds"] / max(first["seconds"], 0.05) / times
            print(f"growth_{part}_{stage}: {growth:.2f} times the time a dialogue (goal <= 1.2)")
        added = max(found[-1][stage]["gib"] for stage in found[-1]) - max(found[0][stage]["gib"] for stage in found[0])
        print(f"growth_memory_{part}: {added:.2f} GiB more for {times:.0f} times the dialogues (goal <= {GOAL_GIB:g})")


def run_alone(part: str, corpus: Path) -> Point:
    command = [sys.executable, __file__, "--part", part, "--corpus", str(corpus)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{part}: {done.stderr[-4000:]}")
    found: Point = json.loads(done.stdout.splitlines()[-1])
    return found


def write_corpus(path: Path, count: int) -> Path:
    """Dialogues of the sample corpus, every copy in words of another order, with two rejected replies a turn."""
    records = [json.loads(line) for line in sample_path().read_text(encoding="utf-8").splitlines()]
    draw = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            record = json.loads(json.dumps(records[number % len(records)]))
            record["tree_id"] = f"growth-{number}"
            record["situation"] = f"{record.get('situation', '')} ({number})"
            for turn in record["turns"]:
                words = turn["text"].split()
                draw.shuffle(words)
                turn["text"] = " ".join(words)
                if turn["speaker"] == "supporter" and turn.get("strategies"):
                    others = [{**turn, "text": f"{turn['text']} {word}"} for word in words[:2]]
                    turn["rejected"] = [{key: other[key] for key in ("text", "strategies")} for other in others]
            file.write(json.dumps(record) + "\n")
    return path


# --- one point, in a process of its own


@contextmanager
def noted(point: Point, stage: str) -> Iterator[None]:
    """CPU seconds of a stage, and this process' own memory at its end; mapped files are the system's."""
    started = time.process_time()
    yield
    with Path("/proc/self/status").open(encoding="utf-8") as status:
        gib = int(next(line for line in status if line.startswith("RssAnon")).split()[1]) / 2**20
    point[stage] = {"seconds": time.process_time() - started, "gib": gib}


def configured(corpus: Path, *words: str) -> Config:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        own = (
            "model=tiny_llama", "data=jsonl", f"data.path={corpus}", "data.limit={}", "logger=none",
            "data.proportions={train: 0.9, val: 0.02, test: 0.08}", *words,
        )  # fmt: skip
        return replace(typed(compose("config", [*own])), run_dir=str(corpus.parent))


def train_part(corpus: Path, words: tuple[str, ...], preferences: bool) -> Point:
    import pytorch_lightning as pl

    from esc_lab.models.load import add_adapter, load_model
    from esc_lab.training.cso import CSOModule
    from esc_lab.training.datamodule import build_data
    from esc_lab.training.reference import score_replies
    from esc_lab.training.sft import SFTModule

    cfg, point = configured(corpus, *words), {}
    with noted(point, "start"):
        loaded = load_model(cfg.model, Path(cfg.cache_dir))
    with noted(point, "reading"):
        data = build_data(cfg, loaded, cfg.objective if preferences else None)
    with noted(point, "encoding"):
        data.setup("fit")
    with noted(point, "planning"):
        plan = data.steps.plan_epoch(0)
        for numbers in plan[:200]:
            data.steps.step_batch(numbers)
    if preferences:
        split: Any = data.steps.preferences["val"]
        with noted(point, "reference"):
            split.reference = score_replies(loaded.model, split, data.pass_tokens)
    clip = (cfg.trainer.gradient_clip, cfg.seed)
    loaded = add_adapter(loaded, cfg.adapter, cfg.model)
    loaded.model.train()
    module: Any = (
        CSOModule(loaded.model, replace(cfg.objective, name="simpo"), cfg.optimizer, cfg.scheduler, *clip)
        if preferences
        else SFTModule(loaded.model, cfg.optimizer, cfg.scheduler, *clip)
    )
    trainer = pl.Trainer(
        max_steps=10, max_epochs=-1, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0, use_distributed_sampler=False,
        default_root_dir=str(corpus.parent),
    )  # fmt: skip
    with noted(point, "10_steps"):
        trainer.fit(module, datamodule=data)
    return point


def evaluate_part(corpus: Path) -> Point:
    import pytorch_lightning as pl

    from esc_lab.data.strategies import build_inventory
    from esc_lab.evaluation.module import EvaluationModule
    from esc_lab.evaluation.read_table import read_table
    from esc_lab.evaluation.summary import summarize
    from esc_lab.metrics.predictions import write_predictions
    from esc_lab.models.load import load_model
    from esc_lab.training.datamodule import build_data

    cfg, point = configured(corpus, "stage=evaluate", "evaluate.generation.enabled=false"), {}
    inventory = build_inventory(cfg.inventory)
    with noted(point, "start"):
        loaded = load_model(cfg.model, Path(cfg.cache_dir))
    with noted(point, "reading"):
        data = build_data(cfg, loaded)
    with noted(point, "encoding"):
        data.setup("test")
    module = EvaluationModule(loaded, inventory, cfg.prompt, cfg.evaluate, seed=1, row_tokens=data.pass_tokens)
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=str(corpus.parent),
    )  # fmt: skip
    with noted(point, "scoring"):
        trainer.test(module, datamodule=data, verbose=False)
    with noted(point, "summary"):
        write_predictions(path := corpus.parent / "predictions.jsonl", module.predictions)
        summarize(read_table(path, inventory.names, sra="paper/name", texts=True))
    return point


def compare_part(corpus: Path) -> Point:
    """Two evaluations of a twelfth of the dialogues, as many as the test split has above."""
    from esc_lab.comparison.result import compute_comparison
    from tests.comparison.synthetic import predictions, write_evaluation

    with corpus.open(encoding="utf-8") as file:
        dialogues, point = sum(1 for _ in file) // 12, {}
    with noted(point, "making"):
        runs = [
            write_evaluation(
                corpus.parent / f"{corpus.stem}_{seed}",
                predictions(skill=0.2 * seed, seed=seed, dialogues=dialogues, turns=7),
                seed=seed,
            )
            for seed in (1, 2)
        ]
    with noted(point, "comparing"):
        compute_comparison(runs)
    return point


PARTS: dict[str, Callable[[Path], Point]] = {
    "sft": partial(train_part, words=("stage=sft",), preferences=False),
    "cso": partial(train_part, words=("stage=cso", "objective=simpo"), preferences=True),
    "evaluate": evaluate_part,
    "compare": compare_part,
}


if __name__ == "__main__":
    main()
