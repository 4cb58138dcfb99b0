"""Token ids in files are the same ids."""

from __future__ import annotations

import logging
import tempfile

import numpy as np

from esc_lab.tokens.mapped import map_ids


def is_mapped(array: np.ndarray) -> bool:
    while array is not None and not isinstance(array, np.memmap):
        array = getattr(array, "base", None)
    return array is not None


def test_mapped_ids_are_the_same():
    arrays = [np.arange(5), np.array([], dtype=np.int64), np.array([7, 2**40])]
    mapped = map_ids(arrays)
    assert [ids.tolist() for ids in mapped] == [ids.tolist() for ids in arrays]
    assert all(map(is_mapped, mapped))
    assert map_ids([]) == []


def test_where_nothing_can_be_written_they_stay_in_memory(monkeypatch, caplog):
    def full(*_, **__):
        raise OSError("no space left")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    caplog.set_level(logging.INFO)
    (ids,) = map_ids([np.arange(3)])
    assert ids.tolist() == [0, 1, 2]
    assert "no space left" in caplog.text
