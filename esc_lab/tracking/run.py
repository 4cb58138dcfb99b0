"""A run of W&B for every run of a stage: what it is called, where it belongs, and when it starts and ends.

Imports neither torch nor Lightning, and wandb only where a run starts: a stage whose result is reused has one too.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser

from esc_lab.artifacts import read_yaml
from esc_lab.config import Config
from esc_lab.environment import first_process
from esc_lab.errors import UserError
from esc_lab.runs.lineage import method_of

if TYPE_CHECKING:
    from wandb import Run

log = logging.getLogger(__name__)

# Curves, each over its own count of steps. They stay out of the summary, which holds the final metrics alone.
CURVES: Mapping[str, tuple[str, ...]] = {
    "trainer/global_step": ("train/*", "val/*", "epoch", "tokens_per_s", "pairs_per_s"),
    "progress/iteration": ("progress/*",),
}
_TRAINED = ("sft", "cso", "classifier")
_TAG = 64  # characters of a tag that W&B takes


@dataclass(frozen=True)
class _Open:
    run: Run
    group: str | None
    name: str


_CURRENT: ContextVar[_Open | None] = ContextVar("W&B run", default=None)


def current() -> Run | None:
    """The run of the stage that is running, if it has one."""
    opened = _CURRENT.get()
    return opened.run if opened else None


@contextmanager
def started(cfg: Config) -> Iterator[Run | None]:
    """The W&B run of a stage, from here to its end: marked as failed where an exception ends it.

    A stage inside another one has a run of its own in the group of the outer one.

    Yields:
        None where nothing is logged to W&B.

    Raises:
        UserError: W&B does not start.
    """
    settings = cfg.logger
    wanted = settings.name == "wandb" and settings.mode != "disabled" and cfg.stage != "dashboard"
    opened = _start(cfg) if wanted and not cfg.trainer.fast_dev_run and first_process() else None
    token = _CURRENT.set(opened)
    code = 1
    try:
        yield opened.run if opened else None
        code = 0
    finally:
        _CURRENT.reset(token)
        if opened:
            with lenient("the run is not finished"):
                opened.run.finish(exit_code=code)


@contextmanager
def lenient(what: str) -> Iterator[None]:
    """A failure of W&B is told and costs nothing else: the results are in the run directory by then."""
    try:
        yield
    except Exception as error:  # whatever it is, it is not worth a finished run
        log.warning("W&B: %s: %s: %s", what, type(error).__name__, error)


def curve(values: Mapping[str, float]) -> None:
    """A point of curves of the stage that is running; the count of steps (see `CURVES`) is among the values."""
    run = current()
    if run:
        with lenient("a point of a curve is lost"):
            run.log(dict(values))


def _start(cfg: Config) -> _Open:
    os.environ.setdefault("WANDB_SILENT", "true")
    import wandb

    outer = _CURRENT.get()
    group, name = _place(cfg, outer)
    settings = cfg.logger
    try:
        run = wandb.init(
            project=outer.run.project if outer else settings.project,
            entity=(outer.run.entity if outer else None) or settings.entity,
            mode=settings.mode,  # type: ignore[arg-type]  # checked with the configuration
            dir=cfg.run_dir,
            name=name,
            group=group,
            job_type=cfg.stage,
            tags=_tags(cfg),
            config=flat(asdict(cfg)) | _method(cfg),
            reinit="create_new",
            # Reading the list of packages takes .1 s; those of the outer run are those of its stages.
            settings=wandb.Settings(silent=True, console="off", x_save_requirements=outer is None),
        )
    except wandb.errors.Error as error:
        fix = "`wandb login`, or logger.mode=offline"
        raise UserError(f"W&B does not start: {error}", where=f"logger.mode={settings.mode}", fix=fix) from error
    # The variables of `wandb agent` name this run. The stages inside it are no runs of the sweep.
    shared = wandb.setup()
    shared.settings.sweep_id = shared.settings.run_id = None
    shared._sweep_config = None
    for steps, curves in CURVES.items():
        run.define_metric(steps, summary="none", hidden=True)
        for pattern in curves:
            run.define_metric(pattern, step_metric=steps, summary="none")
    return _Open(run, group, name)


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by their dotted names, as overrides and sweeps write them: {"model.name": ...}."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def _place(cfg: Config, outer: _Open | None) -> tuple[str | None, str]:
    """Group and name."""
    directory = Path(cfg.run_dir)
    if outer:
        return outer.group, directory.name
    multirun, varied = _multirun(directory)
    group = cfg.logger.group or cfg.experiment or multirun
    if group is None and cfg.stage in ("pipeline", "sra", "planted_preference"):
        group = directory.name
    return group, varied or _name(cfg)


def _multirun(directory: Path) -> tuple[str | None, str]:
    """Name of the multirun that a run directory belongs to, and the job's overrides that vary in it.

    Hydra leaves both in the directories before a job starts.
    """
    own = directory / ".hydra" / "hydra.yaml"
    if not own.exists():
        return None, ""
    hydra = read_yaml(own)["hydra"]
    if hydra["mode"] != "MULTIRUN":
        return None, ""
    sweep = Path(hydra["sweep"]["dir"])
    keys = set((hydra["sweeper"] or {}).get("params") or {})
    if (sweep / "multirun.yaml").exists():
        words = read_yaml(sweep / "multirun.yaml")["hydra"]["overrides"]["task"]
        keys |= {one.get_key_element() for one in _parsed(words) if one.is_sweep_override()}
    chosen = [one for one in _parsed(hydra["overrides"]["task"]) if one.get_key_element() in keys]
    parts = [f"{one.get_key_element()}={_without_path(one.get_value_element_as_str())}" for one in chosen]
    return sweep.name, " ".join(parts)


def _parsed(words: list[str]) -> Any:
    return OverridesParser.create().parse_overrides(words)


def _without_path(value: str) -> str:
    return re.sub(r"[^\s,'\"\[\]{}:]*/", "", value)


def _name(cfg: Config) -> str:
    if cfg.stage == "search":
        return f"{cfg.data.name} {cfg.mcts.name} search"
    if cfg.stage in ("compare", "judge"):
        return cfg.stage
    return _method(cfg).get("model_method", f"{cfg.model.name} {cfg.stage}")


def _method(cfg: Config) -> dict[str, str]:
    """How the run comes to its model, to group by: `method`, and `model_method` with the model."""
    if cfg.stage not in ("evaluate", "sft", "cso"):
        return {}
    try:
        name = method_of(Path(cfg.run_dir)).name
    except (OSError, ValueError, KeyError, yaml.YAMLError) as error:
        log.debug("no method: %s", error)
        return {}
    return {"method": name, "model_method": f"{cfg.model.name} {name}"}


def _tags(cfg: Config) -> list[str]:
    """Stage, model and corpus, and what else the stage depends on."""
    tags = [cfg.stage]
    if cfg.stage not in ("compare", "judge"):
        tags += [cfg.model.name, cfg.data.name]
    if cfg.stage == "evaluate":
        tags.append(cfg.prompt.eval.template)
    if cfg.stage in _TRAINED:
        tags.append(cfg.adapter.kind)
    if cfg.stage in ("sft", "cso"):
        tags.append(cfg.prompt.train.template)
    if cfg.stage == "cso":
        tags.append(cfg.objective.name)
    if cfg.stage == "search":
        tags.append(cfg.mcts.name)
    return [tag[:_TAG] for tag in dict.fromkeys([*tags, *cfg.tags]) if tag]
