"""Content-addressed results that runs share, and atomic writes.

An artifact is a directory `<root>/<kind>/<key>` whose key is a hash of everything that its content depends on. It is
built in a temporary directory under a lock and appears by a single rename, so a reader sees all of it or nothing. The
lock is the operating system's: it ends with its holder. Its files are read-only, and compared with their checksums
before they are used; an artifact that was cut short or changed is made again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from filelock import AcquireReturnProxy, FileLock, Timeout

from esc_lab.errors import UserError

log = logging.getLogger(__name__)

INPUTS = "inputs.json"  # in an artifact: what its content depends on
_CHECKSUMS = ".checksums.json"  # in an artifact: the SHA-256 of each other file
_VERIFIED: dict[Path, dict[str, tuple[int, int]]] = {}  # artifacts that this process has compared, as they were then


# What reading a broken file raises, wherever it breaks: bytes, syntax, types, names, sizes, or nesting without end.
READ_ERRORS = (
    OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError, yaml.YAMLError,
)  # fmt: skip
_MAX_VALUES, _MAX_DEPTH = 1_000_000, 100  # of a YAML file


def fingerprint(value: Any) -> str:
    """First 16 hex digits of the SHA-256 of a value of JSON types; equal values have equal fingerprints."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_fingerprint(path: Path) -> str:
    """First 16 hex digits of the SHA-256 of a file's bytes."""
    return _checksum(path)[:16]


def read_yaml(path: Path) -> Any:
    """The content of a YAML file.

    Raises:
        OSError, UnicodeDecodeError, yaml.YAMLError: it cannot be read, a mapping has a key twice, or references make it
            too large or hold itself.
    """
    try:
        text = path.read_text(encoding="utf-8")
        _check_depth(text)
        content = yaml.load(text, Loader=_Loader)
        _check_size(content)
    except RecursionError as error:
        raise yaml.YAMLError("nested too deep") from error
    return content


def _check_depth(text: str) -> None:
    """The C loader recurses without a limit of its own, and ends the process."""
    indents = (len(line) - len(line.lstrip(" -?")) for line in text.splitlines())
    if text.count("[") + text.count("{") + 2 * max(indents, default=0) < 1000:
        return
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _MAX_DEPTH:
            raise yaml.YAMLError("nested too deep")


def _check_size(content: Any) -> None:
    left, values = [(content, 0)], 0
    while left:
        value, depth = left.pop()
        values += 1
        if values > _MAX_VALUES or depth > _MAX_DEPTH:
            raise yaml.YAMLError("too large, or nested too deep; references (&, *) may make it so")
        parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        left += [(part, depth + 1) for part in parts]


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # the C one is ten times as fast
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key.value!r} twice", key.start_mark)
            seen.add(key.value if isinstance(key.value, str) else None)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


def write_atomic(path: Path, content: str | bytes, fix: str = "choose another place, or make room there") -> None:
    """Write a file so that a reader never sees half of it; text ends with a newline.

    Raises:
        UserError: the file cannot be written there; `fix` says what to do.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        temporary = Path(name)
        if isinstance(content, str):
            content = (content if content.endswith("\n") else f"{content}\n").encode()
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException as error:
        if temporary:
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise UserError(f"cannot write: {error.strerror}", where=str(path), fix=fix) from error
        raise


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Where to write a file that takes the place of `path` at the end of the block; after an error nothing is left."""
    temporary = path.with_name(f"{path.name}.part")
    try:
        yield temporary
        _sync(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def remove_files(directory: Path) -> None:
    """Remove the files of a folder that is to be written anew: other runs may share them, so none is written into."""
    for path in directory.glob("*"):
        if path.is_file():
            path.unlink()


def _sync(path: Path) -> None:
    """Have the content of a file, or the names in a directory, on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class CacheError(UserError):
    """The cache cannot be written to."""


def make_readable(directory: Path) -> None:
    """Let others than their owner read the directory and the files in it: safetensors writes for its owner alone."""
    directory.chmod(0o755)
    for path in directory.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)


def cached(root: Path, kind: str, inputs: dict[str, Any], build: Callable[[Path], None]) -> tuple[Path, bool]:
    """Directory of the artifact that `inputs` determine; `build(directory)` fills it if it is not there yet.

    Args:
        root: the cache directory.
        kind: what it is, e.g. `models`; carries the code version where that matters.
        inputs: everything the content depends on, JSON types; kept beside the content as `inputs.json`.
        build: writes the content into the (temporary) directory that it is given.

    Returns:
        The directory, and whether it was there already.

    Raises:
        CacheError: the cache cannot be written to.
        Exception: what `build` raises. Nothing of a failed build is left.
    """
    directory = root / kind / fingerprint(inputs)
    if _is_whole(directory):
        return directory, True
    with _explain_write_errors(root):
        directory.parent.mkdir(parents=True, exist_ok=True)
        lock = _acquired(FileLock(f"{directory}.lock"), kind)
    with lock:
        if _is_whole(directory):
            return directory, True
        with _explain_write_errors(root):
            # Of a builder that was killed (we hold its lock), and what is not whole.
            for stale in (*directory.parent.glob(f".{directory.name}.*"), directory):
                if stale.exists():
                    shutil.rmtree(stale)
            temporary = Path(tempfile.mkdtemp(dir=directory.parent, prefix=f".{directory.name}."))
        try:
            build(temporary)
            with _explain_write_errors(root):
                _seal(temporary, inputs)
                temporary.replace(directory)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    return directory, False


def find_cached(root: Path, kind: str, inputs: dict[str, Any]) -> Path | None:
    """Directory of the artifact that `inputs` determine, if it is there and whole."""
    directory = root / kind / fingerprint(inputs)
    return directory if _is_whole(directory) else None


@contextmanager
def _explain_write_errors(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CacheError(f"cannot write: {error.strerror}", where=str(root), fix="set cache_dir") from error


def _seal(directory: Path, inputs: dict[str, Any]) -> None:
    """Make the content of an artifact complete and read-only, and have it on the disk."""
    checksums = {name: _checksum(directory / name) for name in _versions(directory)}
    for name, value in ((INPUTS, inputs), (_CHECKSUMS, checksums)):
        (directory / name).write_text(f"{json.dumps(value, indent=2, sort_keys=True)}\n", encoding="utf-8")
    for path in directory.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(0o444)
            _sync(path)
    directory.chmod(0o755)
    _sync(directory)


def _is_whole(directory: Path) -> bool:
    """Whether there is an artifact, and its files are what they were; one of older code, without checksums, counts."""
    if not directory.exists():
        return False
    versions = _versions(directory)
    if _VERIFIED.get(directory) == versions:
        return True
    try:
        damaged = [] if (directory / INPUTS).exists() else [INPUTS]
        if (directory / _CHECKSUMS).exists():
            checksums = json.loads((directory / _CHECKSUMS).read_text(encoding="utf-8"))
            damaged += [
                name for name, sha in checksums.items() if name not in versions or _checksum(directory / name) != sha
            ]
    except READ_ERRORS:
        damaged = [_CHECKSUMS]
    if damaged:
        log.warning("%s: %s is missing or not as it was written; it is made again", directory, damaged[0])
        return False
    _VERIFIED[directory] = versions
    return True


def _versions(directory: Path) -> dict[str, tuple[int, int]]:
    """Size and time of each file of an artifact, but of those that say what it is."""
    files = (path for path in directory.rglob("*") if path.is_file() and not path.is_symlink())
    stats = {str(path.relative_to(directory)): path.stat() for path in files if path.name not in (INPUTS, _CHECKSUMS)}
    return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()}


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _acquired(lock: FileLock, kind: str) -> AcquireReturnProxy[FileLock]:
    try:
        return lock.acquire(blocking=False)
    except Timeout:
        log.info("%s: waiting for another process that is making the same", kind)
        return lock.acquire()


def replace_nan(value: Any) -> Any:
    """A value of JSON types and numpy numbers without nan and infinity, which JSON does not have: they become null."""
    if isinstance(value, Mapping):
        return {key: replace_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [replace_nan(item) for item in value]
    if hasattr(value, "item"):  # of numpy
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
