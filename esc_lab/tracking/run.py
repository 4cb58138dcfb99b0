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
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from esc_lab.artifacts import READ_ERRORS
from esc_lab.config import Config
from esc_lab.errors import UserError
from esc_lab.runs.environment import first_process
from esc_lab.runs.identity import flatten
from esc_lab.runs.lineage import read_method
from esc_lab.runs.manifest import read_job_overrides

if TYPE_CHECKING:
    from wandb import Run

log = logging.getLogger(__name__)

# Curves, each over its own count of steps. They stay out of the summary, which holds the final metrics alone.
CURVES: Mapping[str, tuple[str, ...]] = {
    "trainer/global_step": ("train/*", "val/*", "epoch", "tokens_per_s", "pairs_per_s"),
    "progress/iteration": ("progress/*",),
}
CURVE_EVERY_S = 5.0  # between points of the curves under `progress/`
_WITHOUT_RUN = ("dashboard", "chat", "data", "convert")  # what people say in chats and corpora stays on the machine
_TAG_CHARACTERS = 64  # of a tag that W&B takes


_CURRENT: ContextVar[Run | None] = ContextVar("W&B run", default=None)


def current_run() -> Run | None:
    """The run of the stage that is running, if it has one."""
    return _CURRENT.get()


@contextmanager
def wandb_run(cfg: Config) -> Iterator[Run | None]:
    """The W&B run of a stage, from here to its end: marked as failed where an exception ends it.

    A stage inside another one has a run of its own in the group of the outer one.

    Yields:
        None where nothing is logged to W&B.

    Raises:
        UserError: W&B does not start.
    """
    settings = cfg.logger
    wanted = settings.name == "wandb" and settings.mode != "disabled" and cfg.stage not in _WITHOUT_RUN
    run = _start(cfg) if wanted and not cfg.trainer.fast_dev_run and first_process() else None
    token = _CURRENT.set(run)
    code = 1
    try:
        yield run
        code = 0
    finally:
        _CURRENT.reset(token)
        if run:
            with warn_on_failure("the run is not finished"):
                run.finish(exit_code=code)


@contextmanager
def warn_on_failure(message: str) -> Iterator[None]:
    """A failure of W&B is a warning and costs nothing else: the results are in the run directory by then."""
    try:
        yield
    except Exception as error:  # whatever it is, it is not worth a finished run
        log.warning("W&B: %s: %s: %s", message, type(error).__name__, error)


def log_curve(values: Mapping[str, float]) -> None:
    """A point of curves of the stage that is running; the count of steps (see `CURVES`) is among the values."""
    run = current_run()
    if run:
        with warn_on_failure("a point of a curve is lost"):
            run.log(dict(values))


def _start(cfg: Config) -> Run:
    os.environ.setdefault("WANDB_SILENT", "true")
    import wandb

    outer = _CURRENT.get()
    group, name = (outer.group or None, Path(cfg.run_dir).name) if outer else (_group(cfg), _name(cfg))
    settings = cfg.logger
    try:
        run = wandb.init(
            project=outer.project if outer else settings.project,
            entity=(outer.entity if outer else None) or settings.entity,
            mode=settings.mode,  # type: ignore[arg-type]  # checked with the configuration
            dir=cfg.run_dir,
            name=name,
            group=group,
            job_type=cfg.stage,
            tags=_tags(cfg),
            config={key: value for key, value in flatten(asdict(cfg)).items() if value != {}} | _method(cfg),
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
    return run


def _group(cfg: Config) -> str | None:
    directory = Path(cfg.run_dir)
    multirun = None if read_job_overrides(directory) is None else directory.absolute().parent.name
    group = cfg.logger.group or cfg.experiment or multirun
    return group or (directory.name if cfg.stage in ("arena", "pipeline", "sra", "planted_preference") else None)


def _name(cfg: Config) -> str:
    """What sets a job apart in its multirun; of other runs the method, or what the stage works on."""
    overrides = read_job_overrides(Path(cfg.run_dir))
    if overrides:
        return " ".join(re.sub(r"[^\s,'\"\[\]{}:=]*/", "", override) for override in overrides)  # paths by their ends
    if cfg.stage == "search":
        return f"{cfg.data.name} {cfg.mcts.name} search"
    if cfg.stage == "extend":
        return f"{cfg.data.name} continuations"
    if cfg.stage == "converse":
        return f"{cfg.model.name} talks, {cfg.cards.name} cards"
    if cfg.stage == "cards":
        return f"{cfg.data.name} cards by {cfg.cards.by}"
    if cfg.stage in ("compare", "judge", "survey"):
        return cfg.stage
    return _method(cfg).get("model_method", f"{cfg.model.name} {cfg.stage}")


def _method(cfg: Config) -> dict[str, str]:
    """How the run comes to its model, to group by: `method`, and `model_method` with the model."""
    if cfg.stage not in ("evaluate", "sft", "cso"):
        return {}
    try:
        name = read_method(Path(cfg.run_dir)).name
    except READ_ERRORS as error:
        log.debug("no method: %s", error)
        return {}
    return {"method": name, "model_method": f"{cfg.model.name} {name}"}


def _tags(cfg: Config) -> list[str]:
    """Stage, model and corpus, and what else the stage depends on."""
    tags = {
        "evaluate": [cfg.prompt.eval.template],
        "classifier": [cfg.adapter.kind],
        "reward": [kind for kind, share in cfg.reward.kinds.items() if share > 0],
        "sft": [cfg.adapter.kind, cfg.prompt.train.template],
        "cso": [cfg.adapter.kind, cfg.prompt.train.template, cfg.objective.name],
        "search": [cfg.mcts.name],
        "extend": [cfg.extend.template],
        "converse": [cfg.cards.name, cfg.prompt.eval.template],
    }.get(cfg.stage, [])
    corpus = [] if cfg.stage in ("compare", "judge", "survey") else [cfg.model.name, cfg.data.name]
    every = dict.fromkeys([cfg.stage, *corpus, *tags, *cfg.tags])
    return [tag[:_TAG_CHARACTERS] for tag in every if tag]
