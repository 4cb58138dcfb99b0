"""Map in parallel: work that Python does itself, in several processes where there is enough of it."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")

_MIN_TASKS = 8  # fewer are done before further processes have started


def parallel_map(tasks: Sequence[Callable[[], T]]) -> list[T]:
    """Results of tasks, in their order; what a task raises is raised.

    A process that is itself one of several, such as a job of a parallel multirun, does them alone.
    """
    if len(tasks) < _MIN_TASKS or multiprocessing.parent_process() is not None:
        return [task() for task in tasks]
    from joblib import Parallel, delayed  # type: ignore[import-untyped]

    return list(Parallel(n_jobs=-1)(delayed(task)() for task in tasks))
