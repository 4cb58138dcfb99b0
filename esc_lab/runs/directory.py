"""A run directory while a stage runs in it: one process at a time, and what it keeps of a run that was finished."""

from __future__ import annotations

import errno
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from esc_lab.artifacts import write_atomic
from esc_lab.errors import UserError
from esc_lab.runs.environment import first_process
from esc_lab.runs.layout import CHECKPOINT, CONFIG, ENVIRONMENT, LOG, METRICS, REUSED, WANDB
from esc_lab.runs.reuse import file_versions, unshare_files

log = logging.getLogger(__name__)

_LOCK = ".lock"  # stays when the run ends: where it is removed, two processes may hold locks of two files of this name
_SHELL = (CONFIG, ENVIRONMENT, METRICS, REUSED)  # what is written anew before a stage leaves anything of its own


@contextmanager
def own_directory(directory: Path) -> Iterator[None]:
    """The directory is this process's (and that of those it starts) in this block; its files are shared with no other.

    Raises:
        UserError: another process is running in it, or it cannot be written to.
    """
    if not first_process():
        yield
        return
    lock = FileLock(directory / _LOCK)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock.acquire(blocking=False)
        unshare_files(directory)
    except Timeout as error:
        fix = "wait for its end, or choose another hydra.run.dir"
        raise UserError("another process is running in it", where=str(directory), fix=fix) from error
    except NotImplementedError:  # by the file system
        log.warning("%s: its file system has no locks, so a second process in it would not be noticed", directory)
    except OSError as error:
        fix = "choose another place, or make room there"
        raise UserError(f"cannot write: {error.strerror}", where=str(directory), fix=fix) from error
    try:
        yield
    finally:
        lock.release()


def is_owned(directory: Path) -> bool:
    """Whether a process is running in the directory."""
    if not (directory / _LOCK).exists():
        return False
    lock = FileLock(directory / _LOCK)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return True
    except (OSError, NotImplementedError):  # it cannot be known
        return False
    lock.release()
    return False


@contextmanager
def keep_finished_run(directory: Path) -> Iterator[None]:
    """If this block fails before it has left a file, a run that was finished in the directory stays as it was."""
    kept = {name: (directory / name).read_bytes() for name in _SHELL if (directory / name).is_file()}
    before = _own_files(directory)
    try:
        yield
    except BaseException:
        if METRICS in kept and _own_files(directory) == before:
            for name in _SHELL:
                if name in kept:
                    write_atomic(directory / name, kept[name])
                else:
                    (directory / name).unlink(missing_ok=True)
        raise


def _own_files(directory: Path) -> dict[str, tuple[int, int, int]]:
    """Versions of what a stage leaves."""
    other = (*_SHELL, LOG, WANDB, CHECKPOINT.parent.name)
    versions = file_versions(directory)
    parts = {path: Path(path).relative_to(directory).parts[0] for path in versions}
    return {path: versions[path] for path, part in parts.items() if part not in other and not part.startswith(".")}


def drop_refused_run(directory: Path, root: Path) -> None:
    """Remove the directory of a run that was refused before it left anything, and what is empty then below `root`.

    W&B's record of it, which holds its settings and the error, is not among what it left.
    """
    shell = {*_SHELL, LOG, WANDB, _LOCK, ".hydra"} - {METRICS}
    alone = first_process() and directory.is_dir() and not is_owned(directory)
    if not alone or {path.name for path in directory.iterdir()} - shell:
        return
    shutil.rmtree(directory)
    for parent in directory.absolute().parents:
        if not parent.is_relative_to(root.absolute()) or any(parent.iterdir()):
            break
        parent.rmdir()


@contextmanager
def explain_full_disk(directory: Path) -> Iterator[None]:
    """An error of any library that comes from a full disk is one that a user can mend.

    Raises:
        UserError: no room is left, in this directory or where the error says.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or any(words in str(error) for words in ("No space left on device", "Disk quota exceeded")):
            where = str(getattr(error, "filename", None) or directory)
            raise UserError(
                "no space left on the disk", where=where, fix="make room there, and run it again"
            ) from error
        raise
