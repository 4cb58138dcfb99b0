"""The one entry point: composes the configuration, checks it, and calls `esc_lab.stages.<stage>.run`.

Checks run on a first composition, before Hydra makes any directory and before torch is imported. A job that fails in a
multirun is recorded in the multirun's manifest and does not stop the others.

Exit status: 0 if all went well; 1 if the configuration is wrong, the run failed, or any job of a multirun failed (like
`make -k`); 2 for an option that Hydra's own parser refuses.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import re
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import hydra
from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from esc_lab import config
from esc_lab.cli.help import help_text
from esc_lab.cli.overrides import CONF, check, lacks_stage, multirun_jobs, one_line, tell_own_sweep
from esc_lab.errors import UserError, nearest
from esc_lab.runs import manifest as multirun
from esc_lab.runs.reuse import find_reused_stages
from esc_lab.stages.run_stage import run_stage

log = logging.getLogger("run")


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def job(cfg: DictConfig) -> float | None:
    """One job: run the stage in its run directory, write what every stage writes, return `optimize_metric`.

    A failure is logged, to run.log too; it ends a single run with status 1. In a multirun it is recorded, and the job
    returns None, which Optuna's sweeper takes for a failed trial; a NaN would end the study.
    """
    hydra_config = HydraConfig.get()
    started = time.time()
    result: dict[str, Any] = {}
    value = None
    directory, among_others = Path(hydra_config.runtime.output_dir), hydra_config.mode == RunMode.MULTIRUN
    if among_others:
        before = _done_before(cfg, hydra_config)
        if before is not None:
            return before
        _note(hydra_config, {"status": "running"})
    try:
        metrics = _run_stage(cfg, directory)
        stages = find_reused_stages(directory)
        status = "reused" if stages and all(stages.values()) else "done"
        result = {"status": status, "metrics": metrics, "stages": stages}
        if cfg.optimize_metric is not None:
            if cfg.optimize_metric not in metrics:
                hint = nearest(cfg.optimize_metric, metrics)
                raise UserError(f"optimize_metric={cfg.optimize_metric}: no such metric{hint}", fix=", ".join(metrics))
            value = None if math.isnan(metrics[cfg.optimize_metric]) else metrics[cfg.optimize_metric]
    except Exception as error:
        text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        log.error("error: %s", text, exc_info=not isinstance(error, UserError) or bool(hydra_config.verbose))
        if not among_others:
            raise SystemExit(1) from error
        result |= {"status": "failed", "error": text[:500]}
    if among_others:
        _note(hydra_config, {**result, "seconds": time.time() - started})
    return value


def _run_stage(cfg: DictConfig, directory: Path) -> dict[str, float]:
    settings = config.typed(cfg)
    settings.run_dir = str(directory)
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        if settings.trainer.devices not in ("auto", "1"):
            words = HydraConfig.get().overrides.task
            if settings.stage not in config.RESUMED:
                words = multirun.without_resume(words)
            return multirun.run_apart(Path(__file__), words, directory)
        settings.trainer.devices = "1"
    return run_stage(settings)


def _done_before(cfg: DictConfig, hydra_config: Any) -> float | None:
    """With `resume=auto`: what this job returned when it was done earlier in this multirun; None if it was not.

    NaN where it has no metric to optimise.
    """
    overrides = list(hydra_config.overrides.task)
    found = multirun.finished(Path(hydra_config.sweep.dir), overrides) if cfg.resume == "auto" else None
    if found is None:
        return None
    log.info("job %d: done before, in %s", hydra_config.job.num, found.directory)
    return (found.metrics or {}).get(str(cfg.optimize_metric), math.nan)


def _note(hydra_config: Any, outcome: dict[str, Any]) -> None:
    """This job in the multirun's manifest."""
    job = {
        "job": hydra_config.job.num,
        "overrides": list(hydra_config.overrides.task),
        "directory": hydra_config.runtime.output_dir,
    }
    multirun.note(Path(hydra_config.sweep.dir), job | outcome)


def _multirun(words: list[str], first: list[str]) -> int:
    """Run all jobs and tell how each ended; 1 if any of them did not come to its end.

    Args:
        words: the overrides of the multirun. With `resume=auto`, the newest multirun of the same words goes on: jobs
            that it has done are left as they are.
        first: the overrides of its first job.
    """
    # The directory is settled here, and not by Hydra, so that the manifest can be found when the jobs are done.
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", first, return_hydra_config=True)
        directory = Path(cfg.hydra.sweep.dir)
        planned, common = multirun_jobs(words)
    if "resume=auto" in words and not any(word.startswith("hydra.sweep.dir=") for word in words):
        before = multirun.earlier(directory.parent, words)
        print(f"resume=auto: {f'going on with {before}' if before else 'no such multirun before'}", file=sys.stderr)
        directory = before or directory
    sys.argv.append(multirun.path_override("hydra.sweep.dir", directory))
    if common:  # a job's directory is named by what sets it apart from the others
        names = ",".join(f"'{name}'" for name in ("output_root", "cache_dir", "resume", *common))
        sys.argv.append(f"hydra.job.config.override_dirname.exclude_keys=[{names}]")
    multirun.begin(directory, words, common)
    gave_up: Exception | None = None
    try:
        job()
    except Exception as error:  # of the launcher: a job's own are in the manifest
        gave_up = error
    found = multirun.jobs(directory)
    multirun.print_jobs(found, planned, cfg.optimize_metric)
    failed = sum(job.status not in multirun.DONE for job in found)
    total = max(len(found), len(planned))
    print(f"{failed} of {total} jobs failed; {directory / multirun.MANIFEST} lists them all", file=sys.stderr)
    fix = "resume=auto runs what is missing"
    if isinstance(gave_up, BrokenProcessPool):
        raise UserError("a job's process died: killed, or out of memory", fix=fix)
    if gave_up:
        told = UserError(f"the launcher gave up: {type(gave_up).__name__}: {one_line(gave_up)}", fix=fix)
        raise told if isinstance(gave_up, RuntimeError) else gave_up
    return int(failed > 0)


def _run(options: argparse.Namespace, unknown: list[str]) -> int:
    if options.help:
        print(help_text(CONF, options.overrides))
        return 0
    if unknown:
        raise UserError(f"unknown option {unknown[0]}", fix="see `python run.py --help` and `--hydra-help`")
    if options.config_dir:
        raise UserError("only conf/ is searched", where="--config-dir", fix="put the file into conf/")
    multirun = options.multirun or "hydra.mode=MULTIRUN" in options.overrides
    # Lightning starts further processes of a run with the configuration that the first one has checked.
    checked = options.config_path or options.config_name
    if not (checked or options.hydra_help or options.shell_completion or options.experimental_rerun):
        if multirun and options.overrides and lacks_stage(options.overrides):
            print("no stage named: every job is a pipeline (stage=pipeline)", file=sys.stderr)
            options.overrides.append("stage=pipeline")
            sys.argv.append("stage=pipeline")
        first = check(options.overrides, multirun=multirun)
        if multirun and not options.cfg:
            return _multirun(options.overrides, first)
        if not multirun and not options.cfg:
            tell_own_sweep(first)
    job()
    return 0


def main() -> int:
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    words = sys.argv[1:]
    options, unknown = get_args_parser().parse_known_intermixed_args(words)
    # Hydra's parser wants all overrides in one place.
    sys.argv[1:] = [word for word in words if word not in options.overrides] + options.overrides
    try:
        return _run(options, unknown)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except (UserError, HydraException, OmegaConfBaseException, OSError, ValueError) as error:
        if any(re.fullmatch(r"hydra\.verbose=(?!false|False).*", word) for word in options.overrides):
            raise
        print(f"error: {error if isinstance(error, UserError) else one_line(error)}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
