"""Values with their 95 % intervals."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

FloatArray: TypeAlias = npt.NDArray[Any]  # float64 or float32
IntArray: TypeAlias = npt.NDArray[np.intp]
BoolArray: TypeAlias = npt.NDArray[np.bool_]

LEVEL = 0.95  # of all intervals
_PERCENTILES = (2.5, 97.5)
_Z = 1.96  # of the normal distribution


@dataclass(frozen=True)
class Interval:
    """A value and the ends of its 95 % interval; nan where unknown."""

    value: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Half the distance of the ends; nan if there are none."""
        return (self.high - self.low) / 2

    @property
    def symmetric(self) -> bool:
        """Whether the value is in the middle of its interval, so that half the width says it all."""
        return math.isclose((self.low + self.high) / 2, self.value, rel_tol=1e-9, abs_tol=1e-9)

    def text(self, decimals: int, sign: str = "") -> str:
        """`0.12 [0.10, 0.14]`, without what is unknown; `-` without a value. With `sign="+"` each number has one."""
        if math.isnan(self.value):
            return "-"
        value, low, high = (f"{number:{sign}.{decimals}f}" for number in (self.value, self.low, self.high))
        return value if math.isnan(self.low) else f"{value} [{low}, {high}]"


def percentile_interval(value: float, draws: FloatArray) -> Interval:
    """A value with the middle 95 % of its bootstrap draws [n]; draws that are nan are left out."""
    known = draws[~np.isnan(draws)]
    if math.isnan(value) or not len(known):
        return Interval(float(value), math.nan, math.nan)
    low, high = np.percentile(known, _PERCENTILES)
    return Interval(float(value), float(low), float(high))


def fisher_interval(correlation: float, n: int) -> Interval:
    """A Pearson correlation of n pairs with Fisher's z interval; without ends below 4 pairs."""
    with np.errstate(divide="ignore"):  # a correlation of 1 has an infinite z
        z = np.arctanh(correlation)
    reach = _Z / math.sqrt(n - 3) if n > 3 else math.nan
    return Interval(float(correlation), float(np.tanh(z - reach)), float(np.tanh(z + reach)))
