"""Data, weights and results of runs as versioned artifacts of W&B, with the lineage from the search to the comparison.

An artifact is known by its content: the run that makes it and the runs that use it describe it alike, so W&B sees one
version, whichever of them comes first. That holds offline too, where nothing can be looked up: `wandb sync` uploads
each version once and records who used it.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esc_lab.artifacts import file_fingerprint
from esc_lab.config import TRAININGS, Config, DataConfig
from esc_lab.data.corpora import published_split, sample_path
from esc_lab.runs import layout
from esc_lab.runs.layout import find_run, read_config
from esc_lab.runs.lineage import read_method
from esc_lab.runs.reuse import STORED

if TYPE_CHECKING:
    from wandb import Artifact, Run

log = logging.getLogger(__name__)

# Files of what a search, an extension or an evaluation leaves, by the kind of the artifact.
_FILES = {
    "esc_pro": ("train.jsonl", "dialogues.json", "pairs.json", "kto.json", "README.md"),
    "continuations": ("train.jsonl", "valid.jsonl", "test.jsonl", "README.md"),
    "evaluation": (
        layout.CONFIG, layout.ENVIRONMENT, layout.METRICS, layout.PREDICTIONS, layout.STRATEGIES, layout.ATTENTION,
    ),
    "compare": (*layout.COMPARISON, layout.REPORT),
    "judge": (layout.JUDGE_TABLE, layout.JUDGE_RESULT, layout.JUDGEMENTS),
    "survey": (layout.SURVEY_TABLE, layout.SURVEY_RESULT, layout.RATINGS),
}  # fmt: skip


@dataclass(frozen=True)
class Content:
    """What an artifact holds: one of the same name and the same files is the same."""

    name: str
    kind: str  # as in `logger.artifacts`
    type: str  # W&B's
    files: Mapping[str, Path]  # by their names in the artifact
    metadata: dict[str, Any] = field(default_factory=dict)  # facts beside the files


def log_artifacts(run: Run, cfg: Config) -> None:
    """Log what the run leaves, and record what it used."""
    for content in input_artifacts(cfg):
        # `run.use_artifact` refuses to work offline. This is what it does online, and what `wandb sync` understands.
        run._log_artifact(_artifact(content, cfg.logger.artifacts), is_user_created=True, use_after_commit=True)
    for content in output_artifacts(cfg):
        run.log_artifact(_artifact(content, cfg.logger.artifacts))


def input_artifacts(cfg: Config) -> list[Content]:
    """The corpus, the weights, and the evaluations that a run reads."""
    reads = cfg.stage in STORED and (cfg.stage != "converse" or cfg.cards.source == "corpus")
    inputs = [_corpus(cfg.data)] if reads else []
    if cfg.stage in (*STORED, "export"):
        classifier = cfg.evaluate.classifier if cfg.stage == "evaluate" else None
        paths = [Path(path) for path in (cfg.init_from, cfg.checkpoint, classifier) if path]
        inputs += [_weights(path) for path in paths if path.exists()]
    if cfg.stage in ("compare", "judge", "survey"):
        runs = {"compare": cfg.compare.runs, "judge": cfg.judge.runs, "survey": cfg.survey.runs}[cfg.stage]
        places = {file.parent.resolve() for path in runs for file in Path(path).rglob(layout.PREDICTIONS)}
        inputs += [_evaluation(place) for place in sorted(places) if (place / layout.CONFIG).exists()]
    return inputs


def output_artifacts(cfg: Config) -> list[Content]:
    """The ESC-Pro, the continuations, the weights, the evaluation or the comparison that a run leaves."""
    directory = Path(cfg.run_dir)
    if cfg.stage == "search":
        return [_esc_pro(directory / layout.ESC_PRO)]
    if cfg.stage == "extend":
        return [_continuations(directory / layout.CONTINUATIONS)]
    if cfg.stage in TRAININGS:
        return [_weights(directory)]
    if cfg.stage == "evaluate":
        return [_evaluation(directory)]
    if cfg.stage in ("compare", "judge", "survey"):
        files = _present(directory, _FILES[cfg.stage])  # none of a survey that only made questionnaires
        return [Content(cfg.stage, "comparison", "comparison", files)] if files else []
    return []


def _artifact(content: Content, with_files: Iterable[str]) -> Artifact:
    import wandb

    name = re.sub(r"[^\w.-]+", "-", content.name, flags=re.ASCII).strip("-")[:128] or "unnamed"
    artifact = wandb.Artifact(name, type=content.type, metadata=content.metadata)
    if content.kind in (*with_files, "sample", "comparison"):
        for name, path in sorted(content.files.items()):
            # Read where it lies when it is uploaded, so nothing is copied.
            artifact.add_file(str(path), name=name, policy="immutable", skip_cache=True)
    else:
        checksums = {name: file_fingerprint(path) for name, path in sorted(content.files.items())}
        with artifact.new_file("checksums.json") as file:
            json.dump({"sha256, first 16 digits": checksums}, file, indent=1)
    return artifact


def _corpus(data: DataConfig) -> Content:
    path = Path(data.path) if data.path else sample_path()
    made = {layout.ESC_PRO: _esc_pro, layout.CONTINUATIONS: _continuations}
    for directory in (path, path.parent):
        if directory.name in made and (directory.parent / layout.CONFIG).exists():
            return made[directory.name](directory)
    files = published_split(path) if path.is_dir() else {"file": path}
    metadata = {"licence": data.licence, "format": data.format}
    kind = "corpus" if data.path else "sample"
    return Content(data.name, kind, "dataset", {file.name: file for file in files.values()}, metadata)


def _esc_pro(directory: Path) -> Content:
    """What a search found. Its files valid and test are the corpus's own dialogues, and stay where they are."""
    config = read_config(directory.parent)
    name, files = config["data"]["name"], _present(directory, _FILES["esc_pro"])
    metadata = {"seeds": name, "search": config["mcts"]["name"], "seed": config["search"]["seed"]}
    return Content(f"esc-pro-{name}", "esc_pro", "dataset", files, metadata)


def _continuations(directory: Path) -> Content:
    """Dialogues with the replies that an extension wrote."""
    config = read_config(directory.parent)
    name, files = config["data"]["name"], _present(directory, _FILES["continuations"])
    metadata = {"corpus": name, "template": config["extend"]["template"], "seed": config["extend"]["seed"]}
    return Content(f"continuations-{name}", "continuations", "dataset", files, metadata)


def _weights(path: Path) -> Content:
    """Weights that a training left in a run directory, or that are in a directory of their own."""
    run = find_run(path) or path
    kind = next((kind for kind in layout.WEIGHTS if (run / kind).is_dir()), None)
    folder = run / kind if kind else path
    files = {str(file.relative_to(folder)): file for file in sorted(folder.rglob("*")) if file.is_file()}
    if kind is None:
        return Content(path.name, layout.MODEL, "model", files)
    config = read_config(run)
    metadata = {
        "stage": config["stage"],
        "model": config["model"]["name"],
        "data": config["data"]["name"],
        "seed": config["seed"],
        "template": config["prompt"]["train"]["template"],
    }
    name = f"{config['model']['name']}-{read_method(run).name.removesuffix(' training')}"
    return Content(name, kind, "model", files, metadata)


def _evaluation(run: Path) -> Content:
    config = read_config(run)
    name = f"{config['model']['name']}-{read_method(run).name}-evaluation"
    metadata = {"data": config["data"]["name"], "seed": config["seed"]}
    return Content(name, "evaluation", "evaluation", _present(run, _FILES["evaluation"]), metadata)


def _present(directory: Path, names: Iterable[str]) -> dict[str, Path]:
    return {name: directory / name for name in names if (directory / name).exists()}
