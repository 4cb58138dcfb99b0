"""The overrides of a command line: each value that they name is composed and checked, and multiruns are expanded.

Checks run on compositions of their own, before Hydra makes any directory and before torch is imported.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Sequence
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.types import Override

from esc_lab.cli.compositions import (
    COMPOSITION_ERRORS,
    NO_STAGE,
    Composition,
    compose_config,
    explain_error,
    groups,
    option_problem,
    parse_overrides,
    quote,
    use_config_dirs,
)
from esc_lab.cli.help import SCREEN, break_lines, stage_lines
from esc_lab.config.checks import problems, unknown_key
from esc_lab.config.files import COMMAND
from esc_lab.errors import UserError


def translate_python_dict(word: str) -> str:
    """`key={'a': 1}`, as agents of W&B sweeps send nested values, in Hydra's own notation; any other word as it is."""
    key, _, value = word.partition("=")
    try:
        tree = ast.literal_eval(value) if value.startswith("{") else None
    except (ValueError, SyntaxError):
        return word
    return f"{key}={_hydra_value(tree)}" if isinstance(tree, dict) else word


def _hydra_value(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_hydra_value(part)}" for key, part in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_hydra_value, value)) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return quote(value) if isinstance(value, str) else str(value)


def lacks_stage(words: Sequence[str]) -> bool:
    """Whether neither the overrides nor the experiment among them say which stage to run."""
    overrides = parse_overrides(words)
    if any(override.key_or_group == "stage" for override in overrides):
        return False
    try:
        compose_config(*(override.input_line or "" for override in overrides if override.key_or_group == "experiment"))
    except COMPOSITION_ERRORS as error:
        return explain_error(error) == NO_STAGE
    return False


def check(words: Sequence[str], *, multirun: bool = False) -> list[str]:
    """Compose every value that the overrides name and report what is wrong with it.

    Returns:
        The overrides of the first job, without sweeps.

    Raises:
        UserError: unknown keys or options, a wrong type, values out of range, missing values, absent paths: all that
            can be told at once.
    """
    compose_config.cache_clear()
    overrides = parse_overrides(use_config_dirs(words))
    fixed = _compose_fixed(overrides)
    draws = fixed is None or not fixed.hydra.sweeper._target_.endswith(BasicSweeper.__name__)
    if multirun:
        overrides = [*_experiment_sweep(fixed, overrides), *overrides]
    wrong = {id(word): _sweep_problem(word, multirun, draws) or _name_problem(word) for word in overrides}
    messages = [message for message in wrong.values() if message]
    if multirun and draws and fixed and not fixed.cfg.optimize_metric:
        messages.append("hydra/sweeper: nothing to look for. Fix: optimize_metric=NAME, as metrics.json has it")
    # In a multirun, resume=auto is for all of its jobs, whichever stages they are of.
    jobs = _single_jobs(
        [each for each in overrides if not wrong[id(each)] and not (multirun and each.input_line == "resume=auto")]
    )
    for job in jobs:
        messages += [message for message in _job_problems(job) if message not in messages]
    if len(messages) > 1 and any(override.key_or_group == "stage" for override in overrides):
        messages = [message for message in messages if message != NO_STAGE]  # one was chosen, and is among the wrong
    if messages == [NO_STAGE]:
        raise UserError(f"{NO_STAGE}\n\n{break_lines(stage_lines(), SCREEN)}")
    if messages:
        head = [f"{len(messages)} things are wrong:"] if len(messages) > 1 else []
        raise UserError("\n  ".join([*head, *messages]))
    return jobs[0]


def _compose_fixed(overrides: Sequence[Override]) -> Composition | None:
    """The configuration less what is swept over; None where that cannot be composed."""
    fixed = [override for override in overrides if not (override.is_sweep_override() or _name_problem(override))]
    try:
        return compose_config(*(str(override.input_line) for override in fixed))
    except COMPOSITION_ERRORS:
        return None


def _experiment_sweep(fixed: Composition | None, overrides: Sequence[Override]) -> list[Override]:
    """The sweep that an experiment brings along (hydra.sweeper.params), less the keys that the command line names."""
    named = {override.get_key_element() for override in overrides}
    params = fixed.hydra.sweeper.params if fixed else {}
    words = [f"{key}={value}" for key, value in params.items() if key not in named]
    return parse_overrides(words, "hydra.sweeper.params")


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
        return f"{override.input_line} stands for no value at all. Fix: `{COMMAND} --help` lists what there is"
    return None


def _name_problem(override: Override) -> str | None:
    """Unknown key or group option, with the nearest valid name. Hydra's own message names no alternative."""
    key = override.key_or_group
    if key == "hydra" or override.is_hydra_override():
        return None
    if key == "run_dir":
        return f"{override.input_line}: each run has its own. Fix: hydra.run.dir=DIR, or output_root=DIR for all runs"
    if key not in groups():
        return unknown_key(key)
    if override.is_interval_sweep():
        return f"{override.input_line}: the options of a group have no interval between them"
    if override.is_delete():
        return None
    for value in override.sweep_iterator() if override.is_sweep_override() else [override.value()]:
        name = "null" if value is None else str(getattr(value, "text", value)).removesuffix(".yaml")
        message = None if isinstance(value, dict) else option_problem(key, name)
        if message:
            return message
    return None


def _single_jobs(overrides: Sequence[Override]) -> list[list[str]]:
    """Override lists with each value of a sweep once (of a range its ends), the other keys at their first."""
    values_of_each: list[list[str]] = []
    for override in overrides:
        if override.is_discrete_sweep():
            values = [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]
            values_of_each.append([values[0], values[-1]] if override.is_range_sweep() else values)
        elif override.is_interval_sweep():
            ends: Any = override.value()
            values_of_each.append([f"{override.get_key_element()}={end}" for end in (ends.start, ends.end)])
        elif not override.is_sweep_override():
            values_of_each.append([str(override.input_line)])
    first = [values[0] for values in values_of_each]
    jobs = [first]
    for position, values in enumerate(values_of_each):
        jobs += [[*first[:position], value, *first[position + 1 :]] for value in values[1:]]
    return jobs


def _job_problems(words: Sequence[str]) -> list[str]:
    """What is wrong with one composition. Values that cannot be composed are named each by itself."""
    from esc_lab.cli.option_checks import option_problems  # who asks for help does not need it

    try:
        cfg = compose_config(*words).cfg
        return problems(cfg) + option_problems(cfg)
    except COMPOSITION_ERRORS as error:
        whole = explain_error(error)
    if whole == NO_STAGE:
        return [whole, *_job_problems(["stage=sft", *words])]
    messages: list[str] = []
    right: list[str] = []
    for word in sorted(words, key=lambda word: not word.startswith("hydra/")):  # groups whose keys other words may name
        stage = [] if word.startswith("stage=") else ["stage=sft"]
        try:
            compose_config(*stage, *(other for other in right if other.startswith("hydra/")), word)
            right.append(word)
        except COMPOSITION_ERRORS as error:
            messages.append(explain_error(error))
    return messages + _job_problems(right) if messages else [whole]


def expand_multirun(words: Sequence[str]) -> tuple[list[list[str]], list[str]]:
    """The jobs that the words of a multirun stand for.

    Returns:
        The overrides of each job, none where a sweeper chooses them as it goes; and the keys that all jobs have in
        common, none where nothing sets jobs apart.
    """
    overrides = parse_overrides(words)
    fixed = _compose_fixed(overrides)
    own = _experiment_sweep(fixed, [])
    given = [override for override in overrides if not str(override.key_or_group).startswith("hydra")]
    common = [str(override.key_or_group) for override in given if not override.is_sweep_override()]
    if not own and len(common) == len(given):
        common = []
    if fixed is None or not fixed.hydra.sweeper._target_.endswith(BasicSweeper.__name__):
        return [], common
    batches = BasicSweeper.split_arguments([*own, *given], None)
    return [job for batch in batches for job in batch], common


def hint_at_experiment_sweep(words: Sequence[str]) -> None:
    """Say so where an experiment would sweep over several jobs, and none of what it sweeps over is named."""
    if not any(word.lstrip("+").startswith("experiment=") for word in words):
        return
    overrides = parse_overrides(words)
    fixed = _compose_fixed(overrides)
    sweep = _experiment_sweep(fixed, overrides)
    if fixed and sweep and len(sweep) == len(fixed.hydra.sweeper.params):
        line = " ".join(str(override.input_line) for override in sweep)
        print(f"one run with the experiment's defaults; -m runs them all: {line}", file=sys.stderr)
