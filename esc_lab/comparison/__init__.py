"""Runs side by side: tables with intervals and tests, figures, results by group of dialogues."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from esc_lab.comparison.output import compare
    from esc_lab.comparison.result import Comparison, compared

__all__ = ["Comparison", "compare", "compared"]

_HOMES = {"Comparison": "result", "compare": "output", "compared": "result"}


def __getattr__(name: str) -> Any:
    # On demand: who wants a method's name alone need not wait a second for the figures.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
