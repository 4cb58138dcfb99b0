"""What the words of a command line stand for: checked compositions of the configuration, and the jobs of a multirun.

Checks run on compositions of their own, before Hydra makes any directory and before torch is imported.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from esc_lab import config
from esc_lab.cli.help import stage_lines
from esc_lab.cli.option_checks import option_problems
from esc_lab.config.checks import problems, unknown_key
from esc_lab.errors import UserError, nearest

CONF = Path(__file__).parents[2] / "conf"
_NO_STAGE = "no stage chosen: add stage=STAGE; `python run.py --help` tells more"


def _short_hash(text: str) -> str:
    return hashlib.sha256(f"{text}{os.getpid()}".encode()).hexdigest()[:6]


def override_name(text: str) -> str:
    """A directory name that says what was overridden; long ones end in a hash instead of a cut-off value."""
    name = re.sub(r"[^\w=.+-]+", "_", text, flags=re.ASCII) or "defaults"
    return name if len(name) <= 150 else f"{name[:140]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


OmegaConf.register_new_resolver("short_hash", _short_hash, replace=True)
OmegaConf.register_new_resolver("override_name", override_name, replace=True)
ConfigStore.instance().store(name="schema", node=config.schema())


def groups() -> dict[str, list[str]]:
    """Config groups of `conf/` with their options."""
    folders = sorted(path for path in CONF.iterdir() if path.is_dir() and path.name != "hydra")
    return {path.name: sorted(file.stem for file in path.glob("*.yaml")) for path in folders}


def lacks_stage(words: list[str]) -> bool:
    """Whether neither the overrides nor the experiment among them say which stage to run."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        overrides = _parsed(words, "command line")
        chosen = [str(one.input_line) for one in overrides if one.key_or_group in ("stage", "experiment")]
        if any(one.key_or_group == "stage" for one in overrides):
            return False
        try:
            compose("config", chosen)
        except (HydraException, OmegaConfBaseException) as error:
            return _compose_message(error) == _NO_STAGE
        return False


def check(words: list[str], *, multirun: bool = False) -> list[str]:
    """Compose every value that the overrides name and report what is wrong with it.

    Returns:
        The overrides of the first job, without sweeps.

    Raises:
        UserError: unknown keys or options, a wrong type, values out of range, missing values, absent paths: all that
            can be told at once.
    """
    _composed.cache_clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        overrides = _parsed(words, "command line")
        fixed = _fixed(overrides)
        draws = fixed is None or not fixed.hydra.sweeper._target_.endswith(BasicSweeper.__name__)
        aimed = not draws or fixed is None or fixed.cfg.optimize_metric or not multirun
        if multirun:
            overrides = [*_own_sweep(fixed, overrides), *overrides]
        judged = [(one, _sweep_problem(one, multirun, draws) or _name_problem(one)) for one in overrides]
        found = [problem for _, problem in judged if problem]
        found += (
            [] if aimed else ["hydra/sweeper: nothing to look for. Fix: optimize_metric=NAME, as metrics.json has it"]
        )
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
        raise UserError(one_line(error), where=where, fix=fix) from None


class _Composed(NamedTuple):
    cfg: DictConfig
    hydra: DictConfig


@lru_cache(maxsize=8)  # a command's checks ask for the same ones again
def _composed(*words: str) -> _Composed:
    """The configuration, to be read only. Raises HydraException or OmegaConfBaseException."""
    cfg = compose("config", list(words), return_hydra_config=True)
    with open_dict(cfg):
        return _Composed(hydra=cfg.pop("hydra"), cfg=cfg)


def _fixed(overrides: list[Override]) -> _Composed | None:
    """The configuration less what is swept over; None where that cannot be composed."""
    try:
        words = [str(one.input_line) for one in overrides if not (one.is_sweep_override() or _name_problem(one))]
        return _composed(*words)
    except (HydraException, OmegaConfBaseException):
        return None


def _own_sweep(fixed: _Composed | None, overrides: list[Override]) -> list[Override]:
    """The sweep that an experiment brings along (hydra.sweeper.params), less the keys that the command line names."""
    named = {one.get_key_element() for one in overrides}
    params = fixed.hydra.sweeper.params if fixed else {}
    return _parsed([f"{key}={value}" for key, value in params.items() if key not in named], "hydra.sweeper.params")


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
        cfg = _composed(*words).cfg
        return problems(cfg) + option_problems(cfg)
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
    text = one_line(error)
    if text.startswith("You must specify 'stage'"):
        return _NO_STAGE
    wrong = re.match(r"Could not override '(hydra\.[\w.]+)'", text)
    if wrong:
        cfg = compose("config", ["stage=sft"], return_hydra_config=True).hydra
        names = [f"hydra.{name}" for name in _names(OmegaConf.to_container(cfg))]
        hint = "" if wrong[1] in names else nearest(wrong[1], names)
        return f"{text if not hint else f'unknown config key {wrong[1]!r}{hint}'} Fix: `--cfg hydra` shows Hydra's keys"
    return f"{text}: {one_line(error.__cause__)}" if error.__cause__ else text


def _names(tree: Any, prefix: str = "") -> list[str]:
    """Dotted names of all keys of nested dicts."""
    if not isinstance(tree, dict):
        return []
    return [name for key, value in tree.items() for name in (f"{prefix}{key}", *_names(value, f"{prefix}{key}."))]


def one_line(error: BaseException) -> str:
    """An error's message without what Hydra and OmegaConf add for their own users, but with the key it is about."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}"
    noise = r"\^|(object_type|reference_type|provider)\b|Config search path|See https:"
    lines = [line.strip() for line in str(error).splitlines()]
    text = " ".join(line for line in lines if line and not re.match(f"{noise}|full_key", line))
    key = next((line.removeprefix("full_key: ") for line in lines if line.startswith("full_key: ")), "")
    return text if key in text else f"{key}: {text}"


def multirun_jobs(words: list[str]) -> tuple[list[list[str]], list[str]]:
    """The jobs that the words of a multirun stand for.

    Returns:
        The overrides of each job, none where a sweeper chooses them as it goes; and the keys that all jobs have in
        common, none where nothing sets jobs apart.
    """
    overrides = _parsed(words, "command line")
    fixed = _fixed(overrides)
    params = fixed.hydra.sweeper.params if fixed else {}
    own = _parsed([f"{key}={value}" for key, value in params.items()], "hydra.sweeper.params")
    given = [one for one in overrides if not str(one.key_or_group).startswith("hydra")]
    common = [str(one.key_or_group) for one in given if not one.is_sweep_override()]
    if not own and len(common) == len(given):
        common = []
    if fixed is None or not fixed.hydra.sweeper._target_.endswith(BasicSweeper.__name__):
        return [], common
    batches = BasicSweeper.split_arguments([*own, *given], None)
    return [words for batch in batches for words in batch], common


def tell_own_sweep(words: list[str]) -> None:
    """Say so where an experiment would sweep over several jobs, and none of what it sweeps over is named."""
    if not any(word.lstrip("+").startswith("experiment=") for word in words):
        return
    with initialize_config_dir(str(CONF), version_base="1.3"):
        overrides = _parsed(words, "command line")
        fixed = _fixed(overrides)
        own = _own_sweep(fixed, overrides)
    if fixed and own and len(own) == len(fixed.hydra.sweeper.params):
        line = " ".join(str(one.input_line) for one in own)
        print(f"one run with the experiment's defaults; -m runs them all: {line}", file=sys.stderr)
