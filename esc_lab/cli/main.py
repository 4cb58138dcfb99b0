"""The command `esc-lab`, or `python run.py`: composes and checks the configuration, and runs the stage or a multirun.

Checks run on a first composition, before Hydra makes any directory and before torch is imported. A job that fails in a
multirun is noted in the multirun's manifest and does not stop the others.

Exit status: 0 if all went well; 1 if the configuration is wrong, the run failed, or any job of a multirun failed (like
`make -k`); 2 for an option that Hydra's own parser refuses; 130 on Ctrl-C; 143 on SIGTERM.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import math
import os
import re
import shutil
import sys
import time
from contextlib import AbstractContextManager
from itertools import pairwise
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

import esc_lab
from esc_lab import config
from esc_lab.cli.compositions import (
    COMPOSITION_ERRORS,
    compose_config,
    explain_error,
    one_line,
    run_composed,
    use_config_dirs,
)
from esc_lab.cli.help import SCREEN, help_text
from esc_lab.cli.latest import complete_latest, name_latest_runs
from esc_lab.cli.multirun import (
    describe_jobs,
    end_with_multirun,
    in_slurm,
    in_worker,
    is_orphan,
    run_in_process,
    run_multirun,
)
from esc_lab.cli.overrides import check, hint_at_experiment_sweep, lacks_stage, translate_python_dict
from esc_lab.cli.projects import write_project
from esc_lab.cli.run_models import name_model
from esc_lab.config.files import COMMAND, CONF
from esc_lab.errors import UserError, nearest
from esc_lab.runs import manifest
from esc_lab.runs.environment import first_process
from esc_lab.runs.signals import TERMINATED, end_on_sigterm
from esc_lab.terminal import show_controls

log = logging.getLogger("run")
_CONFIG_DIR = ("--config-dir", "-cd")
_BY_SIGTERM = "ended by SIGTERM"


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def run_job(cfg: DictConfig) -> float | None:
    """One job: run the stage in its run directory, write what every stage writes, return `optimize_metric`.

    A failure is logged, to run.log too; it ends a single run with status 1. In a multirun it is noted, and the job
    returns None, which Optuna's sweeper takes for a failed trial; a NaN would end the study. So does a job that SIGTERM
    ends in a process of its own.
    """
    hydra_config = HydraConfig.get()
    with end_on_sigterm(), end_with_multirun(Path(hydra_config.sweep.dir)), _end_before_time():
        return _run_and_note(cfg, hydra_config)


def _end_before_time() -> AbstractContextManager[None]:
    if not in_slurm():
        return contextlib.nullcontext()
    from esc_lab.cli.slurm import end_before_time

    return end_before_time()


def _run_and_note(cfg: DictConfig, hydra_config: Any) -> float | None:
    from esc_lab.runs.directory import drop_refused_run  # what shows a configuration only does not need these
    from esc_lab.runs.reuse import find_reused_stages

    start = time.time()
    outcome: dict[str, Any] = {}
    value, end, text = None, None, ""
    directory, in_multirun = Path(hydra_config.runtime.output_dir), hydra_config.mode == RunMode.MULTIRUN
    if in_multirun:
        if manifest.is_stopped(Path(hydra_config.sweep.dir)) or is_orphan(hydra_config.launcher._target_):
            return None
        before = _finished_before(cfg, hydra_config)
        if before:
            # NaN where it has no metric to optimise.
            return (before.metrics or {}).get(str(cfg.optimize_metric), math.nan)
    try:
        if in_multirun:
            _note_job(hydra_config, {"status": "running"})
        metrics = _run_stage(cfg, directory)
        dry = config.is_dry_run(cfg)
        stages = {} if dry else find_reused_stages(directory)
        outcome = {"status": "reused" if stages and all(stages.values()) else "done"}
        outcome |= {"metrics": metrics, "stages": stages}
        value = _metric_to_optimize(cfg.optimize_metric, metrics)
        if dry and not in_multirun:
            drop_refused_run(directory, Path(cfg.output_root))
    except Exception as error:
        text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        log.error("error: %s", text, exc_info=not isinstance(error, UserError) or bool(hydra_config.verbose))
        if not in_multirun or not first_process():  # Slurm ends the other processes of a job with one that fails
            if isinstance(error, UserError) and not hydra_config.verbose:
                drop_refused_run(directory, Path(cfg.output_root))
            raise SystemExit(1) from error
        outcome |= {"status": "failed", "error": text[:500]}
    except (SystemExit, KeyboardInterrupt) as stop:
        end, text = stop, _BY_SIGTERM if getattr(stop, "code", None) == TERMINATED else "interrupted"
        log.error("error: %s", text)
        outcome = {"status": "failed", "error": text} | (_requeue() if in_slurm() else {})
    if in_multirun:
        _note_job(hydra_config, {**outcome, "seconds": time.time() - start})
    # A worker may have other jobs. Slurm may start this one again, so its launcher must not take this for a result.
    if end and (in_slurm() or not (in_multirun and in_worker() and text == _BY_SIGTERM)):
        raise end
    return value


def _requeue() -> dict[str, str]:
    """What became of a job whose time in Slurm is up; nothing if something else has ended it."""
    from esc_lab.cli.slurm import requeue

    reason = requeue()
    if reason is None:
        return {}
    if reason:
        return {"error": reason}
    log.info("its time is up; it is in Slurm's queue again, and goes on from what it has")
    return {"status": manifest.REQUEUED, "error": "its time was up; it goes on when Slurm starts it again"}


def _run_stage(cfg: DictConfig, directory: Path) -> dict[str, float]:
    from esc_lab.stages.run_stage import run_stage

    settings = config.typed(cfg)
    settings.run_dir = str(directory)
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        words = list(HydraConfig.get().overrides.task)
        if in_slurm():
            from esc_lab.cli.slurm import count_tasks, is_restarted, share_training

            if is_restarted() and not settings.resume and config.can_resume(settings):
                settings.resume = str(directory)
                words.append("resume=auto")
            if count_tasks() > 1:
                return run_stage(share_training(settings))
        if settings.trainer.devices not in ("auto", "1"):
            return run_in_process(words if config.can_resume(settings) else manifest.drop_resume(words), directory)
        settings.trainer.devices = "1"
    return run_stage(settings)


def _metric_to_optimize(name: str | None, metrics: dict[str, float]) -> float | None:
    if name is None or not (metrics or first_process()):  # further processes of an evaluation have none
        return None
    if name not in metrics:
        raise UserError(f"optimize_metric={name}: no such metric{nearest(name, metrics)}", fix=", ".join(metrics))
    return None if math.isnan(metrics[name]) else metrics[name]


def _finished_before(cfg: DictConfig, hydra_config: Any) -> manifest.Job | None:
    """With `resume=auto`: this job, if it was done earlier in this multirun."""
    overrides = list(hydra_config.overrides.task)
    before = manifest.find_finished_job(Path(hydra_config.sweep.dir), overrides) if cfg.resume == "auto" else None
    if before:
        log.info("job %d: done before, in %s", hydra_config.job.num, before.directory)
    return before


def _note_job(hydra_config: Any, outcome: dict[str, Any]) -> None:
    """This job in the multirun's manifest; of several processes of it, the first."""
    if not first_process():
        return
    job = {
        "job": hydra_config.job.num,
        "overrides": list(hydra_config.overrides.task),
        "directory": hydra_config.runtime.output_dir,
    }
    manifest.append_record(Path(hydra_config.sweep.dir), job | outcome)


def main() -> int:
    """Run the command line, `sys.argv`, and return its exit status."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    if "--version" in sys.argv[1:]:  # Hydra would tell its own
        print(f"esc-lab {esc_lab.__version__}")
        return 0
    options, unknown = get_args_parser().parse_known_intermixed_args()
    flags = [word for word in sys.argv[1:] if word not in options.overrides]
    try:
        if sys.argv[1:2] == ["init"]:
            print(write_project(sys.argv[2:]))
            return 0
        return _run(options, unknown, flags)
    except BrokenPipeError:  # who reads it, such as `head`, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except (UserError, *COMPOSITION_ERRORS, OSError, ValueError) as error:
        if any(re.fullmatch(r"hydra\.verbose=(?!false|False).*", word) for word in options.overrides):
            raise
        composing = isinstance(error, COMPOSITION_ERRORS)
        text = str(error) if isinstance(error, UserError) else explain_error(error) if composing else one_line(error)
        print(f"error: {show_controls(text)}", file=sys.stderr)
        return 1


def _prepare_completion(line: str) -> None:
    """Have Hydra complete the word under the cursor by a line that composes, whatever options stand on it."""
    before, _, word = line.rpartition(" ")
    words = before.split()
    with contextlib.suppress(UserError):  # nobody reads what is said here
        use_config_dirs([], next((path for flag, path in pairwise(words) if flag in _CONFIG_DIR), None))
    overrides = [each for each in words if "=" in each and not each.startswith("-")]
    if not any(each.startswith(("stage=", "experiment=")) for each in overrides):
        overrides.append("stage=sft")
    # Hydra has no answer to `?`: the shell completes names of files then.
    os.environ["COMP_LINE"] = " ".join(["esc-lab", *overrides, "?" if before.endswith(_CONFIG_DIR) else word])


def _run(options: argparse.Namespace, unknown: list[str], flags: list[str]) -> int:
    words = name_latest_runs([translate_python_dict(word) for word in options.overrides])
    words = name_model(use_config_dirs(words, options.config_dir))
    if options.shell_completion and os.environ.get("COMP_LINE"):
        if found := complete_latest(os.environ["COMP_LINE"]):
            print(("\n" if "query=fish" in words else " ").join(found))
            return 0
        _prepare_completion(os.environ["COMP_LINE"])
    if options.help:
        print(help_text(words, min(shutil.get_terminal_size((SCREEN, 0)).columns, SCREEN)))
        return 0
    if options.experimental_rerun:
        fix = "run the words in .hydra/overrides.yaml of the run again"
        raise UserError("--experimental-rerun loads a pickle, and a pickle can run any code", fix=fix)
    if unknown:
        raise UserError(f"unknown option {unknown[0]}", fix=f"see `{COMMAND} --help` and `--hydra-help`")
    multirun = options.multirun or "hydra.mode=MULTIRUN" in words
    # Lightning starts further processes of a run with the configuration that the first one has checked.
    checked = options.config_path or options.config_name
    if checked or options.hydra_help or options.shell_completion:
        first = None
    else:
        if multirun and words and lacks_stage(words):
            print("no stage named: every job is a pipeline (stage=pipeline)", file=sys.stderr)
            words.append("stage=pipeline")
        first = check(words, multirun=multirun)
    if multirun and options.cfg and first is not None:  # Hydra shows the configuration of a single run only
        print(describe_jobs(words, first, options.cfg, resolve=options.resolve))
        return 0
    if options.cfg == "job" and first is not None and not (options.package or options.resolve or options.info):
        print(OmegaConf.to_yaml(compose_config(*first).cfg), end="")  # as Hydra would, which composes it once more
        return 0
    sys.argv[1:] = [*flags, *words]  # Hydra's parser wants all overrides in one place
    if first is not None and not options.cfg:
        if multirun:
            return run_multirun(words, first, run_job)
        hint_at_experiment_sweep(first)
        if not flags and compose_config(*first).hydra.mode is None:
            run_composed(first, run_job.__wrapped__)
            return 0
    run_job()
    if options.shell_completion and "install=bash" in words:
        print("\nCOMP_WORDBREAKS=${COMP_WORDBREAKS//:}")  # or the shell would take latest:sft for two words
    return 0
