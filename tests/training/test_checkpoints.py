"""A checkpoint that cannot be written leaves nothing, whoever notices that the disk is full."""

from __future__ import annotations

import errno
import os

import pytest
import torch

from esc_lab.errors import UserError
from esc_lab.training.checkpoints import AtomicCheckpointIO


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "No space left on device"),
        (
            RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0\n(more)"),
            "is the disk full?",
        ),
    ],
)
def test_a_full_disk_is_told_and_keeps_the_checkpoint_before(tmp_path, monkeypatch, error, said):
    def save(value, file):
        file.write(b"half of it")
        raise error

    (tmp_path / "last.ckpt").write_text("before")
    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(UserError, match="cannot write the checkpoint") as told:
        AtomicCheckpointIO().save_checkpoint({}, tmp_path / "last.ckpt")
    assert said in str(told.value)
    assert len(str(told.value).splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]
    assert (tmp_path / "last.ckpt").read_text() == "before"
