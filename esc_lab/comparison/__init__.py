"""Runs side by side: tables with intervals and tests, figures, results by group of dialogues."""

from esc_lab.comparison.output import compare
from esc_lab.comparison.result import Comparison, compared

__all__ = ["Comparison", "compare", "compared"]
