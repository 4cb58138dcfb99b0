"""Tasks in several processes: in order, and as if they were done here."""

from __future__ import annotations

import os
from functools import partial

import pytest

from esc_lab.comparison.parallel import parallel_map


@pytest.fixture(autouse=True)
def _two_processes(monkeypatch) -> None:
    """On a machine with one core too."""
    monkeypatch.setattr("joblib._parallel_backends.cpu_count", lambda: 2)


def test_results_are_in_the_order_of_the_tasks():
    assert parallel_map([partial(divmod, number, 5) for number in range(20)]) == [divmod(n, 5) for n in range(20)]


def test_many_tasks_have_processes_and_few_do_not():
    assert os.getpid() not in parallel_map([os.getpid] * 8)
    assert parallel_map([os.getpid] * 7) == [os.getpid()] * 7


def test_what_a_task_raises_is_raised():
    with pytest.raises(ZeroDivisionError):
        parallel_map([partial(divmod, 1, number) for number in range(8)])
