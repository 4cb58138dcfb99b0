"""The one entry point: composes the configuration, checks it, and calls `esc_lab.stages.<stage>.run`.

Checks run on a first composition, before Hydra makes any directory and before torch is imported. A job that fails in a
multirun is recorded in the multirun's manifest and does not stop the others.

Exit status: 0 if all went well; 1 if the configuration is wrong, the run failed, or any job of a multirun failed (like
`make -k`); 2 for an option that Hydra's own parser refuses.
"""

from __future__ import annotations

import argparse
import hashlib
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
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from esc_lab import config, multirun
from esc_lab.config_checks import problems, unknown_key
from esc_lab.errors import UserError, nearest
from esc_lab.help import help_text, stage_lines
from esc_lab.stages.record import recorded
from esc_lab.stages.reuse import reused_stages

CONF = Path(__file__).parent / "conf"
_NO_STAGE = "no stage chosen: add stage=STAGE; `python run.py --help` tells more"
log = logging.getLogger("run")


def _short_hash(text: str) -> str:
    return hashlib.sha256(f"{text}{os.getpid()}".encode()).hexdigest()[:6]


def _override_name(text: str) -> str:
    """A directory name that says what was overridden; long ones end in a hash instead of a cut-off value."""
    name = re.sub(r"[^\w=.,+-]+", "_", text, flags=re.ASCII) or "defaults"
    return name if len(name) <= 150 else f"{name[:140]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


OmegaConf.register_new_resolver("short_hash", _short_hash, replace=True)
OmegaConf.register_new_resolver("override_name", _override_name, replace=True)
ConfigStore.instance().store(name="schema", node=config.schema())


def groups() -> dict[str, list[str]]:
    """Config groups of `conf/` with their options."""
    folders = sorted(path for path in CONF.iterdir() if path.is_dir() and path.name != "hydra")
    return {path.name: sorted(file.stem for file in path.glob("*.yaml")) for path in folders}


def check(words: list[str], *, multirun: bool = False) -> list[str]:
    """Compose every value that the overrides name and report what is wrong with it.

    Returns:
        The overrides of the first job, without sweeps.

    Raises:
        UserError: unknown keys or options, a wrong type, values out of range, missing values, absent paths: all that
            can be told at once.
    """
    with initialize_config_dir(str(CONF), version_base="1.3"):
        overrides = _parsed(words, "command line")
        sweeper = _sweeper(overrides)
        draws = sweeper is None or not sweeper._target_.endswith(BasicSweeper.__name__)
        if multirun:
            overrides = [*_own_sweep(sweeper, overrides), *overrides]
        judged = [(one, _sweep_problem(one, multirun, draws) or _name_problem(one)) for one in overrides]
        found = [problem for _, problem in judged if problem]
        # In a multirun, resume=auto is for all of its jobs, whichever stages they are of.
        aside = "resume=auto" if multirun else None
        runs = _single_runs([one for one, problem in judged if not problem and one.input_line != aside])
        for run in runs:
            found += [message for message in _run_problems(run) if message not in found]
    if found == [_NO_STAGE]:
        raise UserError(f"{_NO_STAGE}\n\n{stage_lines()}")
    if len(found) == 1:
        raise UserError(found[0])
    if found:
        raise UserError("\n  ".join([f"{len(found)} things are wrong:", *found]))
    return runs[0]


def _parsed(words: list[str], where: str) -> list[Override]:
    try:
        return OverridesParser.create(GlobalHydra.instance().config_loader()).parse_overrides(words)
    except HydraException as error:
        fix = "write key=value, with quotes around a value that holds spaces or special characters"
        raise UserError(_one_line(error), where=where, fix=fix) from None


def _sweeper(overrides: list[Override]) -> DictConfig | None:
    """Hydra's sweeper with its `params`, which an experiment may set; None where nothing can be composed."""
    try:
        words = [str(one.input_line) for one in overrides if not (one.is_sweep_override() or _name_problem(one))]
        return compose("config", words, return_hydra_config=True).hydra.sweeper
    except (HydraException, OmegaConfBaseException):
        return None


def _own_sweep(sweeper: DictConfig | None, overrides: list[Override]) -> list[Override]:
    """The sweep that an experiment brings along, less the keys that the command line names."""
    params = (sweeper and sweeper.get("params")) or {}
    named = {one.get_key_element() for one in overrides}
    words = [f"{key}={value}" for key, value in params.items() if key not in named]
    return _parsed(words, "hydra.sweeper.params")


def _sweep_problem(override: Override, multirun: bool, draws: bool) -> str | None:
    """What is wrong with an override that names several values; `draws`: the sweeper can draw from a range."""
    if not override.is_sweep_override():
        return None
    if not multirun:
        return f"{override.input_line} names several values. Fix: add -m for a job with each, or write [a,b] for a list"
    if str(override.key_or_group).startswith("hydra."):
        fix = "key='\"a,b\"' for a value with a comma; values to sweep over stand without hydra.sweeper.params"
        return f"{override.input_line}: Hydra's own settings are the same for all jobs. Fix: {fix}"
    if override.is_interval_sweep() and not draws:
        return f"{override.input_line}: a range to draw from. Fix: add hydra/sweeper=bayes, or name the values"
    if override.is_discrete_sweep() and not list(override.sweep_iterator()):
        return f"{override.input_line} stands for no value at all. Fix: `python run.py --help` lists what there is"
    return None


def _name_problem(override: Override) -> str | None:
    """Unknown key or group option, with the nearest valid name. Hydra's own message names no alternative."""
    key, known = override.key_or_group, groups()
    if key == "hydra" or override.is_hydra_override():
        return None
    if key not in known:
        return unknown_key(key)
    if override.is_interval_sweep():
        return f"{override.input_line}: the options of a group have no interval between them"
    if override.is_delete():
        return None
    values = override.sweep_iterator() if override.is_sweep_override() else [override.value()]
    for value in values:
        name = "null" if value is None else str(getattr(value, "text", value)).removesuffix(".yaml")
        if not isinstance(value, dict) and name not in known[key]:
            fix = f"Fix: one of {', '.join(known[key])}; `python run.py --help {key}` describes them"
            return f"{key}={name}: no such option{nearest(name, known[key]) or '.'} {fix}"
    return None


def _single_runs(overrides: list[Override]) -> list[list[str]]:
    """Override lists with each value of a sweep once (of a range its ends), the other keys at their first."""
    options: list[list[str]] = []
    for override in overrides:
        if override.is_discrete_sweep():
            values = [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]
            options.append([values[0], values[-1]] if override.is_range_sweep() else values)
        elif override.is_interval_sweep():
            ends: Any = override.value()
            options.append([f"{override.get_key_element()}={end}" for end in (ends.start, ends.end)])
        elif not override.is_sweep_override():
            options.append([str(override.input_line)])
    first = [values[0] for values in options]
    runs = [first]
    for position, values in enumerate(options):
        runs += [[*first[:position], value, *first[position + 1 :]] for value in values[1:]]
    return runs


def _run_problems(words: list[str]) -> list[str]:
    """What is wrong with one composition. Values that cannot be composed at all are told apart one by one."""
    try:
        return problems(compose("config", words))
    except (HydraException, OmegaConfBaseException) as error:
        whole = _compose_message(error)
    if whole == _NO_STAGE:
        return [whole, *_run_problems(["stage=sft", *words])]
    messages: list[str] = []
    others: list[str] = []
    for word in sorted(words, key=lambda word: not word.startswith("hydra/")):  # groups whose keys other words may name
        try:
            stage = [] if word.startswith("stage=") else ["stage=sft"]
            compose("config", [*stage, *(one for one in others if one.startswith("hydra/")), word])
            others.append(word)
        except (HydraException, OmegaConfBaseException) as error:
            messages.append(_compose_message(error))
    return messages + _run_problems(others) if messages else [whole]


def _compose_message(error: Exception) -> str:
    text = _one_line(error)
    if text.startswith("You must specify 'stage'"):
        return _NO_STAGE
    wrong = re.match(r"Could not override '(hydra\.[\w.]+)'", text)
    if wrong:
        cfg = compose("config", ["stage=sft"], return_hydra_config=True).hydra
        names = [f"hydra.{name}" for name in _names(OmegaConf.to_container(cfg))]
        hint = "" if wrong[1] in names else nearest(wrong[1], names)
        return f"{text if not hint else f'unknown config key {wrong[1]!r}{hint}'} Fix: `--cfg hydra` shows Hydra's keys"
    return f"{text}: {_one_line(error.__cause__)}" if error.__cause__ else text


def _names(tree: Any, prefix: str = "") -> list[str]:
    """Dotted names of all keys of nested dicts."""
    if not isinstance(tree, dict):
        return []
    return [name for key, value in tree.items() for name in (f"{prefix}{key}", *_names(value, f"{prefix}{key}."))]


def _one_line(error: BaseException) -> str:
    """An error's message without what Hydra and OmegaConf add for their own users, but with the key it is about."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}"
    noise = r"\^|(object_type|reference_type|provider)\b|Config search path|See https:"
    lines = [line.strip() for line in str(error).splitlines()]
    text = " ".join(line for line in lines if line and not re.match(f"{noise}|full_key", line))
    key = next((line.removeprefix("full_key: ") for line in lines if line.startswith("full_key: ")), "")
    return text if key in text else f"{key}: {text}"


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def job(cfg: DictConfig) -> float | None:
    """One job: run the stage in its run directory, write what every stage writes, return `optimize_metric`.

    A failure is logged, to run.log too; it ends a single run with status 1. In a multirun it is recorded, and the job
    returns NaN where a metric is optimised.
    """
    hydra_config = HydraConfig.get()
    started = time.time()
    result: dict[str, Any] = {}
    value = None if cfg.optimize_metric is None else math.nan
    directory, among_others = Path(hydra_config.runtime.output_dir), hydra_config.mode == RunMode.MULTIRUN
    if among_others:
        before = _done_before(cfg, hydra_config)
        if before is not None:
            return before
        _note(hydra_config, {"status": "running"})
    try:
        metrics = _run_stage(cfg, directory)
        stages = reused_stages(directory)
        status = "reused" if stages and all(stages.values()) else "done"
        result = {"status": status, "metrics": metrics, "stages": stages}
        if cfg.optimize_metric is not None:
            if cfg.optimize_metric not in metrics:
                hint = nearest(cfg.optimize_metric, metrics)
                raise UserError(f"optimize_metric={cfg.optimize_metric}: no such metric{hint}", fix=", ".join(metrics))
            value = metrics[cfg.optimize_metric]
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
            return multirun.run_apart(Path(__file__), HydraConfig.get().overrides.task, directory)
        settings.trainer.devices = "1"
    return recorded(settings)


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
        planned, common = _jobs(cfg.hydra.sweeper, words)
    if "resume=auto" in words and not any(word.startswith("hydra.sweep.dir=") for word in words):
        before = multirun.earlier(directory.parent, words)
        print(f"resume=auto: {f'going on with {before}' if before else 'no such multirun before'}", file=sys.stderr)
        directory = before or directory
    quoted = str(directory).replace("\\", "\\\\").replace("'", "\\'")
    sys.argv.append(f"hydra.sweep.dir='{quoted}'")
    if common:  # a job's directory is named by what sets it apart from the others
        names = ",".join(f"'{name}'" for name in ("output_root", "cache_dir", "resume", *common))
        sys.argv.append(f"hydra.job.config.override_dirname.exclude_keys=[{names}]")
    multirun.begin(directory, words)
    died = None
    try:
        job()
    except BrokenProcessPool as error:
        died = error
    found = multirun.jobs(directory)
    multirun.print_jobs(found, planned, cfg.optimize_metric)
    failed = sum(job.status not in multirun.DONE for job in found)
    total = max(len(found), len(planned))
    print(f"{failed} of {total} jobs failed; {directory / multirun.MANIFEST} lists them all", file=sys.stderr)
    if died:
        raise UserError("a job's process died: killed, or out of memory", fix="resume=auto runs what is missing")
    return int(failed > 0)


def _jobs(sweeper: DictConfig, words: list[str]) -> tuple[list[list[str]], list[str]]:
    """The overrides of all jobs, none where a sweeper chooses them as it goes; and the keys that they have in common.

    No key is counted as common where nothing sets jobs apart.
    """
    params = [f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()]
    parser = OverridesParser.create(GlobalHydra.instance().config_loader())
    given = [one for one in parser.parse_overrides(words) if not one.key_or_group.startswith("hydra")]
    common = [one.key_or_group for one in given if not one.is_sweep_override()]
    if not params and len(common) == len(given):
        common = []
    if not sweeper._target_.endswith(BasicSweeper.__name__):
        return [], common
    batches = BasicSweeper.split_arguments([*parser.parse_overrides(params), *given], None)
    return [words for batch in batches for words in batch], common


def _tell_own_sweep(words: list[str]) -> None:
    """Say so where an experiment would sweep over several jobs, and none of what it sweeps over is named."""
    if not any(word.lstrip("+").startswith("experiment=") for word in words):
        return
    with initialize_config_dir(str(CONF), version_base="1.3"):
        overrides = _parsed(words, "command line")
        sweeper = _sweeper(overrides)
        own = _own_sweep(sweeper, overrides)
    if sweeper and own and len(own) == len(sweeper.params):
        line = " ".join(str(one.input_line) for one in own)
        print(f"one run with the experiment's defaults; -m runs them all: {line}", file=sys.stderr)


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
        first = check(options.overrides, multirun=multirun)
        if multirun and not options.cfg:
            return _multirun(options.overrides, first)
        if not multirun and not options.cfg:
            _tell_own_sweep(first)
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
        print(f"error: {error if isinstance(error, UserError) else _one_line(error)}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
