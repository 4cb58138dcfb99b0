"""Data, weights and results of runs as versioned artifacts of W&B, with the lineage from the search to the comparison.

An artifact is known by its content: the run that made it and the runs that use it describe it alike, so W&B sees one
version, whichever of them comes first. That holds offline too, where nothing can be looked up: `wandb sync` uploads
each version once and records who used it.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esc_lab.artifacts import file_fingerprint
from esc_lab.config import Config, DataConfig
from esc_lab.data.corpora import published_split, sample_path
from esc_lab.runs.layout import read_config, run_of
from esc_lab.runs.lineage import method_of
from esc_lab.search import ESC_PRO

if TYPE_CHECKING:
    from wandb import Artifact, Run

log = logging.getLogger(__name__)

_READ = ("search", "sft", "cso", "classifier", "evaluate")  # stages that read the corpus of `data`
_FOUND = ("train.jsonl", "dialogues.json", "pairs.json", "kto.json", "README.md")  # of esc_pro/, by the search
_RESULTS = (
    "config.yaml", "environment.json", "metrics.json", "predictions.jsonl", "strategies.json", "sra.json",
)  # fmt: skip
_TOLD = {
    "compare": ("comparison.md", "comparison.tex", "comparison.csv", "comparison.json", "runs.csv", "report.html"),
    "judge": ("judge.md", "judge.json", "judgements.jsonl"),
}


@dataclass(frozen=True)
class Described:
    """An artifact: one of the same name and the same content is the same.

    Attributes:
        kind: as in `logger.artifacts`.
        type: W&B's type.
        files: by their names in the artifact.
        metadata: facts of the artifact; they are no part of its content.
    """

    name: str
    kind: str
    type: str
    files: Mapping[str, Path]
    metadata: dict[str, Any] = field(default_factory=dict)


def log_artifacts(run: Run, cfg: Config) -> None:
    """Log what the run made, and record what it used."""
    for one in used(cfg):
        # `run.use_artifact` refuses to work offline. This is what it does online, and what `wandb sync` understands.
        run._log_artifact(_artifact(one, cfg.logger.artifacts), is_user_created=True, use_after_commit=True)
    for one in made(cfg):
        run.log_artifact(_artifact(one, cfg.logger.artifacts))


def used(cfg: Config) -> list[Described]:
    """The corpus, the weights, and the evaluations that a run reads."""
    found = [_corpus(cfg.data)] if cfg.stage in _READ else []
    classifier = cfg.evaluate.classifier if cfg.stage == "evaluate" else None
    if cfg.stage in (*_READ, "export"):
        found += [
            _weights(Path(path))
            for path in (cfg.init_from, cfg.checkpoint, classifier)
            if path and Path(path).exists()
        ]  # fmt: skip
    if cfg.stage in ("compare", "judge"):
        runs = cfg.compare.runs if cfg.stage == "compare" else cfg.judge.runs
        paths = {file.parent.resolve() for path in runs for file in Path(path).rglob("predictions.jsonl")}
        found += [_evaluation(path) for path in sorted(paths) if (path / "config.yaml").exists()]
    return found


def made(cfg: Config) -> list[Described]:
    """The ESC-Pro, the weights, the evaluation or the comparison that a run leaves."""
    directory = Path(cfg.run_dir)
    if cfg.stage == "search":
        return [_corpus(DataConfig(name="", path=str(directory / ESC_PRO)))]
    if cfg.stage in ("sft", "cso", "classifier"):
        return [_weights(directory)]
    if cfg.stage == "evaluate":
        return [_evaluation(directory)]
    if cfg.stage in _TOLD:
        files = {name: directory / name for name in _TOLD[cfg.stage] if (directory / name).exists()}
        return [Described(cfg.stage, "comparison", "comparison", files)]
    return []


def _artifact(one: Described, with_files: list[str]) -> Artifact:
    import wandb

    artifact = wandb.Artifact(_valid(one.name), type=one.type, metadata=one.metadata)
    if one.kind in with_files or one.kind in ("sample", "comparison"):
        for name, path in sorted(one.files.items()):
            # Read where it lies when it is uploaded, so nothing is copied.
            artifact.add_file(str(path), name=name, policy="immutable", skip_cache=True)
    else:
        checksums = {name: file_fingerprint(path) for name, path in sorted(one.files.items())}
        with artifact.new_file("checksums.json") as file:
            json.dump({"sha256, first 16 digits": checksums}, file, indent=1)
    return artifact


def _valid(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII).strip("-")[:128] or "unnamed"


def _corpus(data: DataConfig) -> Described:
    path = Path(data.path) if data.path else sample_path()
    for directory in (path, path.parent):
        if directory.name == ESC_PRO and (directory.parent / "config.yaml").exists():
            return _esc_pro(directory)
    files = published_split(path) if path.is_dir() else {"file": path}
    named = {file.name: file for file in files.values()}
    metadata = {"licence": data.licence, "format": data.format}
    return Described(data.name, "corpus" if data.path else "sample", "dataset", named, metadata)


def _esc_pro(directory: Path) -> Described:
    """What a search found. Its files valid and test are the corpus's own dialogues, and stay where they are."""
    config = read_config(directory.parent)
    files = {name: directory / name for name in _FOUND if (directory / name).exists()}
    metadata = {"seeds": config["data"]["name"], "search": config["mcts"]["name"], "seed": config["search"]["seed"]}
    return Described(f"esc-pro-{config['data']['name']}", "esc_pro", "dataset", files, metadata)


def _weights(path: Path) -> Described:
    """Weights that a training left in a run directory, or that are in a directory of their own."""
    run = run_of(path) or path
    for kind in ("adapter", "model", "classifier"):
        if (run / kind).is_dir():
            return Described(_trained(run), kind, "model", dict(_files(run / kind)), _facts(run))
    return Described(path.name, "model", "model", dict(_files(path)))


def _files(directory: Path) -> Iterator[tuple[str, Path]]:
    for file in sorted(directory.rglob("*")):
        if file.is_file():
            yield str(file.relative_to(directory)), file


def _trained(run: Path) -> str:
    name = method_of(run).name.removesuffix(" training")
    return f"{read_config(run)['model']['name']}-{name}"


def _facts(run: Path) -> dict[str, Any]:
    config = read_config(run)
    return {
        "stage": config["stage"],
        "model": config["model"]["name"],
        "data": config["data"]["name"],
        "seed": config["seed"],
        "template": config["prompt"]["train"]["template"],
    }


def _evaluation(run: Path) -> Described:
    config = read_config(run)
    name = f"{config['model']['name']}-{method_of(run).name}-evaluation"
    files = {file: run / file for file in _RESULTS if (run / file).exists()}
    return Described(name, "evaluation", "evaluation", files, {"data": config["data"]["name"], "seed": config["seed"]})
