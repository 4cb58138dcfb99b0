"""Objects that a configuration names by `_target_`: callbacks, loggers. Only packages that are known or allowed."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from esc_lab.config.checks import target_problem
from esc_lab.errors import UserError

T = TypeVar("T")


def instantiate(section: Mapping[str, Any], kind: type[T], *, allow: Sequence[str], where: str) -> T:
    """An object of the class that `_target_` names, with the other keys as its arguments.

    Args:
        section: `_target_: package.module.Class`, and arguments.
        kind: what it has to be.
        allow: packages whose code may run, besides those that `target_problem` knows.
        where: the configuration key, for messages.

    Raises:
        UserError: no `_target_`, a package that is not allowed, no such class, arguments that it refuses, or a class
            of another kind.
    """
    if problem := target_problem(section, allow):
        raise UserError(problem, where=where)
    arguments = dict(section)
    target = arguments.pop("_target_")
    module, _, name = target.rpartition(".")
    try:
        cls = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        fix = "check the name; a module of your own has to be installed, or on PYTHONPATH"
        raise UserError(f"{target}: {error}", where=where, fix=fix) from error
    if not (isinstance(cls, type) and issubclass(cls, kind)):  # asked before any of its code runs
        raise UserError(f"{target} is no {kind.__name__}", where=where, fix=f"name a subclass of {kind.__name__}")
    try:
        return cls(**arguments)
    except (TypeError, ValueError) as error:
        raise UserError(f"{target}: {error}", where=where, fix="see the arguments of the class") from error


def instantiate_all(sections: Mapping[str, Any], kind: type[T], *, allow: Sequence[str], where: str) -> list[T]:
    """An object for each named section; see `instantiate`."""
    return [instantiate(section, kind, allow=allow, where=f"{where}.{name}") for name, section in sections.items()]
