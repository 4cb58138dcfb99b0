"""SIGTERM inside one process: where Python drops exceptions, and where the signal has to wait."""

from __future__ import annotations

import os
import signal
import time

import pytest

from esc_lab.runs.signals import TERMINATED, end_on_sigterm, hold_sigterm, sigterm_waits


class Destructor:
    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)  # the signal is heard here at the latest


def test_sigterm_in_a_destructor_is_not_lost():
    ends = []

    def run() -> None:
        with end_on_sigterm(lambda: ends.append(1)):
            value = Destructor()
            del value
            time.sleep(60)

    with pytest.raises(SystemExit) as stop:
        run()
    assert stop.value.code == TERMINATED
    assert ends


def test_other_dropped_errors_go_where_they_went(monkeypatch):
    seen = []
    monkeypatch.setattr("sys.unraisablehook", lambda dropped: seen.append(dropped.exc_type))

    class Broken:
        def __del__(self) -> None:
            raise ValueError

    with end_on_sigterm():
        value = Broken()
        del value
    assert seen == [ValueError]


def test_a_second_sigterm_does_nothing():
    def run() -> None:
        with end_on_sigterm():
            try:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(60)
            finally:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.01)

    with pytest.raises(SystemExit) as stop:
        run()
    assert stop.value.code == TERMINATED


def test_sigterm_waits_for_the_end_of_what_holds_it():
    steps = []

    def run() -> None:
        with end_on_sigterm(), hold_sigterm():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)
            steps.append(sigterm_waits())

    with pytest.raises(SystemExit):
        run()
    assert steps == [True]
