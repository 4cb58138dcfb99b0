"""Results of stages that runs share: what was computed once from the same inputs is not computed again.

The key of a result is a hash of the settings that affect the stage, the content of its data and models, and the code
that the stage imports. Paths, loggers and devices stay out of it. Looking a result up imports no torch.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from esc_lab.artifacts import INPUTS, READ_ERRORS, cached, file_fingerprint, replace_file, write_atomic
from esc_lab.config import TRAININGS, Config, keys
from esc_lab.config.endpoint import named_url
from esc_lab.config.files import option_files
from esc_lab.config.model import ENDPOINT
from esc_lab.config.search import ASKED, LOADED
from esc_lab.data.corpora import find_files, sample_path
from esc_lab.errors import UserError
from esc_lab.runs import layout
from esc_lab.runs.environment import first_process
from esc_lab.runs.identity import code_version, select

log = logging.getLogger(__name__)

STORED = (*ASKED, *TRAININGS, "evaluate")  # stages whose results are shared
# Files of a run directory that are its own, and not part of the result.
_OWN = (
    layout.CONFIG, layout.ENVIRONMENT, layout.LOG, layout.WANDB, str(layout.CHECKPOINT.parent), layout.REUSED, INPUTS,
    ".*",
)  # fmt: skip


# Metrics that say how much a budget has left undone.
_UNFINISHED = (
    "search/unfinished_trees", "extend/unfinished_dialogues", "cards/unfinished_cards", "converse/unfinished_talks",
)  # fmt: skip


class _Unfinished(Exception):
    """A stage that its budget has stopped: its result is not one to share."""


def run_or_reuse(cfg: Config, run: Callable[[Config], dict[str, float]], logged: str = "") -> dict[str, float]:
    """The metrics of a stage: from the store, with all its files, or from `run`, whose files go into the store.

    A process that wants a result which another one is computing waits for it. Files that an earlier run left in the
    directory do not go into the store. Where the store has no room, a run keeps its result to itself.

    Args:
        run: runs the stage in `cfg.run_dir`.
        logged: where W&B has this run, for those that reuse its result.

    Raises:
        UserError: the data cannot be read, the store cannot be written to (but for want of room), a stored result
            cannot be written into the directory, or what `run` raises.
    """
    own = Path(cfg.run_dir)
    (own / layout.REUSED).unlink(missing_ok=True)
    # Processes of torchrun would wait for a first one that has found its result.
    together = not first_process() or "TORCHELASTIC_RUN_ID" in os.environ
    if cfg.stage not in STORED or not cfg.reuse or cfg.trainer.fast_dev_run or together:
        return run(cfg)
    metrics: dict[str, float] = {}
    before = file_versions(own)
    began = False

    def build(directory: Path) -> None:
        nonlocal began
        began = True
        metrics.update(run(cfg))
        if any(map(metrics.get, _UNFINISHED)):
            raise _Unfinished
        stale = [path for path, version in file_versions(own).items() if before.get(path) == version]
        link_files(own, directory, () if cfg.stage in ASKED else stale)  # which go on with what is there
        write_atomic(directory / layout.METRICS, json.dumps(metrics))
        write_atomic(
            directory / layout.ORIGIN, json.dumps({"run": str(own.absolute())} | ({"wandb": logged} if logged else {}))
        )

    try:
        directory, stored = cached(Path(cfg.cache_dir), f"runs/{cfg.stage}", result_inputs(cfg), build)
    except _Unfinished:
        return metrics
    except (OSError, UserError) as error:
        full = getattr(error.__cause__, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
        if not metrics and (began or not full):
            raise
        log.warning("the result is not kept for other runs: %s", error)
        return metrics or run(cfg)
    if stored:
        origin = _read_origin(directory)
        log.info("%s: reused from %s%s", cfg.stage, directory, _tell_origin(origin))
        if cfg.stage in TRAININGS:
            for kind in (layout.ADAPTER, layout.MODEL):  # of an earlier run here: no checkpoint any more
                (own / kind / layout.BASE_MODEL).unlink(missing_ok=True)
        try:
            link_files(directory, own)
        except OSError as error:
            fix = "choose another place, or make room there"
            raise UserError(
                f"cannot write what is reused: {error.strerror or error}", where=str(own), fix=fix
            ) from error
        write_atomic(own / layout.REUSED, json.dumps({"from": str(directory), **origin}))
        curves = cfg.stage in TRAININGS and cfg.logger.name != "none"
        if curves and not (own / layout.CURVES).exists():
            log.warning("it has no curves: the run that computed it kept none (logger=none); reuse=false trains again")
        metrics.update(_read_metrics(directory / layout.METRICS))
    return metrics


def _read_origin(directory: Path) -> dict[str, str]:
    """What is known of the run that computed a stored result; of those of older code nothing."""
    try:
        return {str(name): str(value) for name, value in json.loads((directory / layout.ORIGIN).read_text()).items()}
    except READ_ERRORS:
        return {}


def _tell_origin(origin: Mapping[str, str]) -> str:
    if "run" not in origin:
        return ""
    return f", computed by {origin['run']}" + (f" (W&B: {origin['wandb']})" if "wandb" in origin else "")


def _read_metrics(path: Path) -> dict[str, float]:
    try:
        return {str(name): float(value) for name, value in json.loads(path.read_text(encoding="utf-8")).items()}
    except READ_ERRORS as error:
        fix = f"delete {path.parent}; the result is then computed anew"
        raise UserError("not the metrics of a result", where=str(path), fix=fix) from error


def result_inputs(cfg: Config) -> dict[str, Any]:
    """Everything that the result of a stage depends on, as JSON types: settings, content of files, and code."""
    read = [key for key in keys() if cfg.stage in key.affects.stages]
    settings = select(asdict(cfg), read)
    lists = [name for name, value in settings.items() if name.endswith("base_url") and isinstance(value, list)]
    settings |= dict.fromkeys(lists)  # see `named_url`
    files = {key.name: settings.pop(key.name) for key in read if key.path}
    data = files.pop("data.path")
    model = cfg.llm.local.model if cfg.stage in ASKED else cfg.model
    weights = {"model": model.path} if model.source == "directory" else {}
    if cfg.stage == "converse" and cfg.model.source == "directory":
        weights["supporter under test"] = cfg.model.path
    endpoints: dict[str, Any] = {}
    if settings.get(judge := f"{cfg.stage}.classifier", "auto") != "auto":
        files[judge] = settings.pop(judge)
    for role in ASKED.get(cfg.stage, ()):
        played = getattr(cfg.llm, role)
        if played.client == "openai":
            endpoints[role] = named_url(played.base_url or cfg.llm.openai.base_url)
        elif played.client in LOADED and played.model:
            weights[role] = played.model
    if cfg.stage in ("evaluate", "converse") and cfg.model.source == ENDPOINT:
        sent = {name: getattr(cfg.llm.openai, name) for name in ("seeds", "token_limit", "extra_body")}
        endpoints["model"] = {**sent, "url": named_url(cfg.llm.supporter.base_url or cfg.llm.openai.base_url)}
    if model.chat_template and Path(model.chat_template).is_file():
        files["chat template"] = model.chat_template
    # A corpus may be labelled by another inventory, which is read from its file and mapped onto the configured one.
    inventories = option_files("inventory", cfg.config_dirs)
    named = [*cfg.inventory.mappings, *([cfg.data.inventory] if cfg.data.inventory else [])]
    files |= {f"inventory {name}": str(inventories[name]) for name in named if name in inventories}
    return {
        "code": code_version(cfg.stage),
        "settings": settings,
        "data": _data_content(data),
        "files": {name: _content(Path(path)) for name, path in files.items() if path},
        "weights": {name: _listing(Path(path)) for name, path in weights.items()},
        "endpoints": endpoints,
    }


def _data_content(corpus: str | None) -> Any:
    path = Path(corpus) if corpus else sample_path()
    files, _ = find_files(path)
    parts = [part for file in files.values() for part in (sorted(file.iterdir()) if file.is_dir() else [file])]
    return {str(part.relative_to(path)): file_fingerprint(part) for part in parts}


def _content(path: Path) -> Any:
    """Fingerprints of a file, or of what a training left for later stages: weights, and what its reference was."""
    if path.is_file():
        return file_fingerprint(path)
    parts = [part for name in layout.WEIGHTS if (part := path / name).is_dir()] or [path]
    files = sorted(file for part in parts for file in part.rglob("*") if file.is_file())
    return {str(file.relative_to(path)): file_fingerprint(file) for file in files}


def _listing(path: Path) -> Any:
    """Names, sizes and times of a model's files: weights are too large to be read for a look-up."""
    return {file.name: [file.stat().st_size, file.stat().st_mtime_ns] for file in sorted(path.iterdir())}


def file_versions(directory: Path) -> dict[str, tuple[int, int, int]]:
    """What sets the versions of each file below a run directory apart."""
    files = {str(path): path.stat() for path in directory.rglob("*") if path.is_file()}
    return {path: (stat.st_ino, stat.st_size, stat.st_mtime_ns) for path, stat in files.items()}


def find_reused_stages(directory: Path) -> dict[str, bool]:
    """Of the stages whose results can be shared, whether this run reused them: its own, or by name of its steps."""
    reused = {}
    configs = [directory / layout.CONFIG, *directory.glob(f"[!.]*/{layout.CONFIG}")]
    for path in sorted(configs, key=os.path.getmtime):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        stage = next((line for line in lines if line.startswith("stage: ")), "")
        if stage.removeprefix("stage: ") in STORED:
            reused[path.parent.name] = (path.parent / layout.REUSED).exists()
    return reused


def link_files(source: Path, target: Path, without: Collection[str] = ()) -> None:
    """The files of a result also in `target`: as hard links where that is possible, else as copies."""
    own = shutil.ignore_patterns(*_OWN)

    def ignore(directory: str, names: list[str]) -> set[str]:
        return own(directory, names) | {name for name in names if os.path.join(directory, name) in without}

    shutil.copytree(source, target, ignore=ignore, copy_function=_link_file, dirs_exist_ok=True)


def _link_file(source: str, target: str) -> str:
    Path(target).unlink(missing_ok=True)
    if not source.endswith(layout.JOURNAL_SUFFIX):  # which grows in place when a search goes on
        try:
            os.link(source, target)
            return target
        except OSError:
            log.debug("%s: no hard link to %s", source, target)
    shutil.copy2(source, target)
    Path(target).chmod(0o644)
    return target


def unshare_files(directory: Path) -> None:
    """Give a run directory copies of the files that it shares with others, so that it may write into them."""
    for path in directory.rglob("*"):
        if path.is_file() and not path.is_symlink() and path.stat().st_nlink > 1:
            with replace_file(path) as copy:
                shutil.copy2(path, copy)
                copy.chmod(0o644)
