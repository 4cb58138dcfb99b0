"""Offline runs of W&B, read back: the records of a `.wandb` file (LevelDB's log format with protobuf in it)."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import ArtifactRecord, Record

from tests.conftest import HANGS_S

_HEADER, _BLOCK, _PIECE = 7, 32768, 7  # bytes: of the file, of a block, of what precedes a piece of a record


@dataclass
class OfflineRun:
    """What an offline run holds; `summary` without W&B's own underscored entries."""

    name: str = ""
    group: str = ""
    job_type: str = ""
    project: str = ""
    sweep: str = ""
    tags: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    artifacts: list[ArtifactRecord] = field(default_factory=list)
    charts: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    exit_code: int | None = None
    path: Path = Path()

    def table(self, key: str) -> dict[str, Any]:
        """Columns and data of a table or of a chart's table."""
        return json.loads((self.path.parent / "files" / self.summary[key]["path"]).read_text())


def read_offline_run(directory: Path) -> OfflineRun:
    """The finished run in an `offline-run-...` directory. W&B's own process writes the end a moment after `finish`."""
    (path,) = directory.glob("run-*.wandb")
    end = time.monotonic() + HANGS_S
    while time.monotonic() < end:
        found = list(records(path))
        if any(record.WhichOneof("record_type") == "exit" for record in found):
            break
        time.sleep(0.01)
    run = OfflineRun(path=path)
    for record in found:
        kind = record.WhichOneof("record_type")
        if kind == "run":
            sent = record.run
            run.name, run.group, run.job_type = sent.display_name, sent.run_group, sent.job_type
            run.project, run.sweep, run.tags = sent.project, sent.sweep_id, list(sent.tags)
            run.config |= _values(sent.config.update)
        elif kind == "config":
            _merge(run.config, _values(record.config.update))
        elif kind == "summary":
            _merge(run.summary, _values(record.summary.update))
        elif kind == "history":
            run.history.append(_values(record.history.item))
        elif kind == "artifact":
            run.artifacts.append(record.artifact)
        elif kind == "files":
            run.files += [item.path for item in record.files.files]
        elif kind == "exit":
            run.exit_code = record.exit.exit_code
    run.summary = {name: value for name, value in run.summary.items() if not name.startswith("_")}
    run.charts = sorted(run.config.pop("_wandb", {}).get("visualize", {}))
    return run


def records(path: Path) -> Iterator[Record]:
    data, offset, pieces = path.read_bytes(), _HEADER, b""
    while offset + _PIECE <= len(data):
        left = _BLOCK - offset % _BLOCK
        if left < _PIECE:
            offset += left
            continue
        length, kind = int.from_bytes(data[offset + 4 : offset + 6], "little"), data[offset + 6]
        offset += _PIECE
        if offset + length > len(data):  # it is still being written
            return
        pieces = (b"" if kind in (1, 2) else pieces) + data[offset : offset + length]  # 1 whole, 2 first, 3, 4 last
        offset += length
        if kind in (1, 4):
            yield Record.FromString(pieces)


def _values(items: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for item in items:
        *path, last = item.nested_key or [item.key]
        place = found
        for name in path:
            place = place.setdefault(name, {})
        place[last] = json.loads(item.value_json)
    return found


def _merge(target: dict[str, Any], update: dict[str, Any]) -> None:
    for name, value in update.items():
        if isinstance(value, dict) and isinstance(target.get(name), dict):
            _merge(target[name], value)
        else:
            target[name] = value
