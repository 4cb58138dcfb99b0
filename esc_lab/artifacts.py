"""Content-addressed results that runs share, and atomic writes.

An artifact is a directory `<root>/<kind>/<key>` whose key is a hash of everything that its content depends on. It is
built in a temporary directory under a lock and appears by a single rename, so a reader sees all of it or nothing. The
lock is the operating system's: it ends with its holder.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from filelock import AcquireReturnProxy, FileLock, Timeout

from esc_lab.errors import UserError

log = logging.getLogger(__name__)

INPUTS = "inputs.json"  # in an artifact: what its content depends on


def fingerprint(value: Any) -> str:
    """First 16 hex digits of the SHA-256 of a value of JSON types; equal values have equal fingerprints."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_fingerprint(path: Path) -> str:
    """First 16 hex digits of the SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def read_yaml(path: Path) -> Any:
    """The content of a YAML file.

    Raises:
        OSError, UnicodeDecodeError, yaml.YAMLError: it cannot be read, or a mapping has a key twice.
    """
    return yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # the C one is ten times as fast
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key.value!r} twice", key.start_mark)
            seen.add(key.value if isinstance(key.value, str) else None)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader never sees half of it; text ends with a newline.

    Raises:
        UserError: the file cannot be written there.
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
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException as error:
        if temporary:
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            fix = "choose another place, or make room there"
            raise UserError(f"cannot write: {error.strerror}", where=str(path), fix=fix) from error
        raise


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
        UserError: the cache cannot be written to, or what `build` raises; nothing of a failed build is left.
    """
    directory = root / kind / fingerprint(inputs)
    if directory.exists():
        return directory, True
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        lock = _acquired(FileLock(f"{directory}.lock"), kind)
    except OSError as error:
        raise UserError(f"cannot write: {error.strerror}", where=str(root), fix="set cache_dir") from error
    with lock:
        if directory.exists():
            return directory, True
        for stale in directory.parent.glob(f".{directory.name}.*"):  # of a builder that was killed: we hold its lock
            shutil.rmtree(stale)
        temporary = Path(tempfile.mkdtemp(dir=directory.parent, prefix=f".{directory.name}."))
        try:
            build(temporary)
            write_atomic(temporary / INPUTS, json.dumps(inputs, indent=2, sort_keys=True))
            temporary.chmod(0o755)
            temporary.replace(directory)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    return directory, False


def _acquired(lock: FileLock, kind: str) -> AcquireReturnProxy[FileLock]:
    try:
        return lock.acquire(blocking=False)
    except Timeout:
        log.info("%s: waiting for another process that is making the same", kind)
        return lock.acquire()
