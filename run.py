"""The one entry point: composes the configuration, checks it, and calls `esc_lab.stages.<stage>.run`.

Checks run on a first composition, before Hydra makes any directory and before torch is imported. A job that fails inside
a multirun is recorded in the multirun's manifest and does not stop the others.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

import hydra
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from esc_lab import config
from esc_lab.errors import UserError, nearest

CONF = Path(__file__).parent / "conf"
log = logging.getLogger("run")


def _short_hash(text: str) -> str:
    return hashlib.sha256(f"{text}{os.getpid()}".encode()).hexdigest()[:6]


def _override_name(text: str) -> str:
    """A directory name that says what was overridden; long ones end in a hash instead of a cut-off value."""
    name = re.sub(r"[^\w=.,+-]+", "_", text) or "defaults"
    return name if len(name) <= 150 else f"{name[:140]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


OmegaConf.register_new_resolver("short_hash", _short_hash, replace=True)
OmegaConf.register_new_resolver("override_name", _override_name, replace=True)
ConfigStore.instance().store(name="schema", node=config.Config)


def groups() -> dict[str, list[str]]:
    """Config groups of `conf/` with their options."""
    folders = sorted(path for path in CONF.iterdir() if path.is_dir() and path.name != "hydra")
    return {path.name: sorted(file.stem for file in path.glob("*.yaml")) for path in folders}


def _check_names(overrides: list[Override]) -> None:
    """Unknown keys and group options, with the nearest valid name. Hydra's own message names no alternative."""
    known = groups()
    for override in overrides:
        key = override.key_or_group
        if key.startswith("hydra") or override.is_delete():
            continue
        if key not in known:
            message = config.unknown_key(key)
            if message:
                raise UserError(message, fix="`python run.py --help <group>` lists the keys of a group")
            continue
        values = override.sweep_iterator() if override.is_sweep_override() else [override.value()]
        for value in values:
            if isinstance(value, dict):
                continue
            name = str(getattr(value, "text", value)).removesuffix(".yaml")
            if value is not None and name not in known[key]:
                raise UserError(
                    f"{key}={name}: no such option{nearest(name, known[key])}", fix=f"one of {', '.join(known[key])}"
                )


def _single_runs(overrides: list[Override]) -> list[list[str]]:
    """Override lists that show each value of a sweep once, the other swept keys at their first value."""
    swept = {
        o.input_line: [f"{_key(o)}={v}" for v in o.sweep_string_iterator()] for o in overrides if o.is_choice_sweep()
    }
    ranged = [o for o in overrides if o.is_sweep_override() and not o.is_choice_sweep()]
    fixed = [o.input_line for o in overrides if not o.is_sweep_override()]
    fixed += [f"{_key(o)}={next(iter(o.sweep_string_iterator()))}" for o in ranged if o.is_range_sweep()]
    first = [values[0] for values in swept.values()]
    runs = [fixed + first]
    for position, values in enumerate(swept.values()):
        runs += [[*fixed, *first[:position], value, *first[position + 1 :]] for value in values[1:]]
    return runs


def _key(override: Override) -> str:
    return override.input_line.split("=", 1)[0]


def check(arguments: list[str]) -> None:
    """Compose every value that the command line names and report what is wrong with it.

    Raises:
        UserError: unknown key or option, wrong type, missing value, absent path: all that can be told at once.
    """
    words = [word for word in arguments if "=" in word or word.startswith("~")]
    words = [word for word in words if not word.startswith("-")]
    try:
        overrides = OverridesParser.create().parse_overrides(words)
    except HydraException as error:
        raise UserError(str(error).splitlines()[0], where="command line") from None
    _check_names(overrides)
    found: list[str] = []
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for run in _single_runs(overrides):
            try:
                cfg = compose("config", overrides=run)
                found += [problem for problem in config.problems(cfg) if problem not in found]
            except (HydraException, OmegaConfBaseException) as error:
                raise UserError(_compose_message(error)) from None
    GlobalHydra.instance().clear()
    if found:
        raise UserError("; ".join(found), where="configuration")


def _compose_message(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if "stage" in lines[0] and "must be specified" in str(error).lower():
        return f"no stage chosen; say stage=<{'|'.join(config.STAGES)}>"
    cause = [str(error.__cause__).splitlines()[0]] if error.__cause__ else []
    return ": ".join([*lines[:1], *cause])


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def job(cfg: DictConfig) -> float | None:
    """One job: run the stage in its run directory, write what every stage writes, return `optimize_metric`."""
    hydra_config = HydraConfig.get()
    directory = Path(hydra_config.runtime.output_dir)
    multirun = hydra_config.mode == RunMode.MULTIRUN
    started = time.time()
    try:
        metrics = _run_stage(cfg, directory)
    except Exception as error:
        log.debug("stage failed", exc_info=True)
        if not isinstance(error, UserError) or hydra_config.verbose:
            log.exception("%s failed", cfg.stage)
        if not multirun:
            raise
        log.error("error: %s", error)
        _record(hydra_config, {"status": "failed", "error": str(error)[:500], "seconds": time.time() - started})
        return None
    if multirun:
        _record(hydra_config, {"status": "done", "seconds": time.time() - started})
    if cfg.optimize_metric is None:
        return None
    if cfg.optimize_metric not in metrics:
        raise UserError(f"optimize_metric={cfg.optimize_metric}: no such metric{nearest(cfg.optimize_metric, metrics)}")
    return metrics[cfg.optimize_metric]


def _run_stage(cfg: DictConfig, directory: Path) -> dict[str, float]:
    from esc_lab.artifacts import write_atomic
    from esc_lab.environment import describe_environment

    settings = config.typed(cfg)
    settings.run_dir = str(directory)
    write_atomic(directory / "config.yaml", OmegaConf.to_yaml(OmegaConf.structured(settings)))
    write_atomic(directory / "environment.json", json.dumps(describe_environment(), indent=2))
    stage = importlib.import_module(f"esc_lab.stages.{settings.stage}")
    metrics: dict[str, float] = stage.run(settings)
    write_atomic(directory / "metrics.json", json.dumps(metrics, indent=2, sort_keys=True))
    return metrics


def _record(hydra_config: Any, outcome: dict[str, Any]) -> None:
    """Append this job to the multirun's manifest: one line of JSON, written in a single call so that jobs do not mix."""
    line = {"job": hydra_config.job.num, "overrides": list(hydra_config.overrides.task), **outcome}
    path = Path(hydra_config.sweep.dir) / "manifest.jsonl"
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def main() -> int:
    arguments = sys.argv[1:]
    if {"--help", "-h"} & set(arguments):
        from esc_lab.help import help_text

        print(help_text(CONF, [word for word in arguments if not word.startswith("-")]))
        return 0
    verbose = any(word.startswith(("hydra.verbose=", "--hydra.verbose")) for word in arguments)
    try:
        if not {"--hydra-help", "--version", "--shell-completion", "-sc"} & set(arguments):
            check(arguments)
        os.environ.setdefault("HYDRA_FULL_ERROR", "1")
        job()
    except UserError as error:
        if verbose:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
