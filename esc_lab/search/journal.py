"""The journal of a tree: an append-only file of every finished call, from which an interrupted search goes on.

The first line names the configuration, each other one a call: its key, what it was for, and the raw answer, or that
its conversation exceeds the context of the model. A line is
written as soon as the call is finished, so it outlives the process; `sync` makes it outlive the machine. Since the
search asks for the same calls again, in any order, reading the answers back is all that resuming takes.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from esc_lab.artifacts import READ_ERRORS
from esc_lab.config import Config
from esc_lab.config.search import RoleConfig, StrategistConfig
from esc_lab.errors import UserError, list_names
from esc_lab.runs.identity import flatten
from esc_lab.runs.layout import JOURNAL_SUFFIX, rename_keys
from esc_lab.search.requests import Answer, Client, Request

log = logging.getLogger(__name__)
FORMAT = "esc-lab-journal/1"
TOO_LONG = "too_long"  # stands in the place of an answer
MAKE_ROOM = "make room or choose another place; resume=<run directory> goes on from here"
_BEGINNING = f'{{"format": "{FORMAT}"'.encode()


class Journal:
    """Opens a journal, or begins it.

    Args:
        config: JSON types; what the calls depend on beside their own content. A journal of another one is refused.

    Attributes:
        answers: by key, those that were there and those that were added.
        cached: keys of those that cost nothing: from the request cache, or another tree's call at the same time.
        too_long: by key, what was said of conversations that exceed the context of the model.
        models: by role, the models as their clients named them.
        first, last: when the first and the last call were finished (ISO 8601, UTC); empty without calls.

    Raises:
        UserError: the file is no journal or one of another configuration, or it cannot be written to.
    """

    def __init__(self, path: Path, config: Mapping[str, Any]) -> None:
        self.path, self.config = path, dict(config)
        self.answers: dict[str, Answer] = {}
        self.cached: set[str] = set()
        self.too_long: dict[str, str] = {}
        self.models: dict[str, set[str]] = {}
        self.first = self.last = ""
        self._unsynced = False
        with self._open(begin=True):
            pass
        self._read()

    def add(self, key: str, request: Request, answer: Answer, *, cached: bool = False) -> None:
        """Write a finished call. The first answer to a key stands: another one is left out.

        Raises:
            UserError: it cannot be written; nothing of it is left in the file.
        """
        if key in self.answers:
            return
        now = _now()
        record = {"key": key, "role": request.role, "sample": request.sample, "at": now, "cached": cached}
        self._write({**record, "answer": answer.to_json()})
        self._note(key, now, request.role, answer, cached)

    def add_too_long(self, key: str, request: Request, said: str) -> None:
        """Write that a conversation exceeds the context of the model. Raises what `add` raises."""
        if key not in self.too_long:
            self._write({"key": key, "role": request.role, "sample": request.sample, "at": _now(), TOO_LONG: said})
            self.too_long[key] = said

    def sync(self) -> None:
        """Have what was written so far outlive a crash of the machine. May be called from another thread."""
        if self._unsynced:
            self._unsynced = False
            with self._open() as file:
                os.fsync(file)

    def release(self) -> None:
        """Let go of the answers: they are in the file, and nobody asks for them any more."""
        self.sync()
        self.answers, self.cached, self.too_long = {}, set(), {}

    def recall(self) -> None:
        """Have the answers again that were let go of."""
        self._read()

    @contextmanager
    def _open(self, *, begin: bool = False) -> Iterator[int]:
        """The file, for one thing to do: there may be more journals than a process may have open files."""
        try:
            if begin:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            try:
                yield file
            finally:
                os.close(file)
        except OSError as error:
            raise UserError(f"cannot write: {error.strerror}", where=str(self.path), fix=MAKE_ROOM) from error

    def _note(self, key: str, at: str, role: str, answer: Answer, cached: bool) -> None:
        if self.answers.setdefault(key, answer) is not answer:
            return
        self.models.setdefault(role, set()).add(answer.model)
        if cached:
            self.cached.add(key)
        self.first = self.first or at
        self.last = at

    def _write(self, record: Mapping[str, Any]) -> None:
        line = f"{json.dumps(record, ensure_ascii=False)}\n".encode()
        with self._open() as file:
            end = os.fstat(file).st_size
            try:
                while line:  # a disk that becomes full takes what fits, and refuses the rest
                    line = line[os.write(file, line) :]
            except OSError:
                with suppress(OSError):
                    os.ftruncate(file, end)
                raise
        self._unsynced = True

    def _read(self) -> None:
        with self.path.open("rb") as file:
            lines = file.read().split(b"\n")
        whole, torn = lines[:-1], lines[-1]
        if whole:
            self._check_header(self._record(whole[0], 1))
        elif not torn.startswith(_BEGINNING[: len(torn)]):
            raise self._foreign_error()
        if torn:  # the process ended while it was writing this line
            os.truncate(self.path, sum(len(line) + 1 for line in whole))
        if not whole:
            self._write({"format": FORMAT, "config": self.config})
            self.sync()
            return
        for number, line in enumerate(whole[1:], start=2):
            record = self._record(line, number)
            try:
                if TOO_LONG in record:
                    self.too_long[record["key"]] = str(record[TOO_LONG])
                    continue
                answer = Answer.from_json(record["answer"])
                self._note(record["key"], record["at"], record["role"], answer, record["cached"])
            except READ_ERRORS as error:
                raise self._damaged_error(number) from error

    def _check_header(self, header: Mapping[str, Any]) -> None:
        if header.get("format") != FORMAT or not isinstance(header.get("config"), dict):
            raise self._foreign_error()
        old, new = journal_settings(header["config"]), journal_settings(self.config)
        differing = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
        if differing:
            changes = [f"{name} was {_short(old.get(name))}, is {_short(new.get(name))}" for name in differing]
            what = f"the journal is of another configuration: {list_names(changes, 5, '; ')}"
            fix = "set it back, or start anew without resume= (a replay: with the settings of what is replayed)"
            raise UserError(what, where=str(self.path), fix=fix)

    def _record(self, line: bytes, number: int) -> Mapping[str, Any]:
        with suppress(*READ_ERRORS):
            record = json.loads(line)
            if isinstance(record, dict):
                return record
        raise self._damaged_error(number)

    def _foreign_error(self) -> UserError:
        return UserError("not a journal of this version", where=str(self.path), fix="use another run directory")

    def _damaged_error(self, number: int) -> UserError:
        fix = "take the line out if it is damaged; its call is then made again"
        return UserError("not a line of a journal", where=f"{self.path}:{number}", fix=fix)


def describe_role(role: RoleConfig, client: Client) -> dict[str, Any]:
    """All that a role's answers depend on beside its prompts, for journals."""
    sampling = {"temperature": role.temperature, "top_p": role.top_p, "max_tokens": role.max_tokens}
    sampling |= {"no_repeat": role.no_repeat} if role.no_repeat else {}  # journals of older versions know of none
    if isinstance(role, StrategistConfig) and "asked" in client.identity:
        sampling["min_prior"] = role.min_prior
    return {**sampling, "attempts": role.attempts, "scores": client.scores, "client": dict(client.identity)}


def read_journal_config(path: Path) -> Any:
    """The configuration that a journal names in its first line; None if it has none. Raises OSError."""
    with path.open("rb") as file:
        line = file.readline()
    try:
        return json.loads(line)["config"]
    except READ_ERRORS:
        return None


def journal_settings(config: Any) -> dict[str, Any]:
    """Dotted names and values of a configuration, by the names of today, as JSON types: tuples come back as lists.

    Older journals name `in_flight`, on which no answer depends.
    """
    if not isinstance(config, Mapping):
        return {}
    config = json.loads(json.dumps(config))
    if isinstance(config.get("search"), dict):
        rename_keys({"mcts": config["search"]})
        config["search"].pop("in_flight", None)
    return flatten(config)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def take_over_journals(cfg: Config, directory: Path, configs: Mapping[str, Mapping[str, Any]]) -> None:
    """Copy journals of the run that `cfg.resume` names, with the files beside them whose names begin like theirs.

    Args:
        directory: where this run has its journals.
        configs: name of each journal, without ending -> its configuration.

    Raises:
        UserError: a journal is of another configuration; nothing is copied then.
    """
    if not cfg.resume:
        return
    place = directory.relative_to(cfg.run_dir)
    if cfg.resume == "auto":
        source = _furthest(Path(cfg.output_root), place, configs)
    else:  # the run, or the pipeline that it is a step of
        steps = ("", cfg.stage, Path(cfg.run_dir).name)
        places = [Path(cfg.resume, step, place) for step in steps]
        source = next((path for path in places if any(path.glob(f"*{JOURNAL_SUFFIX}"))), None)
    if source is None:
        log.info("resume=%s: no %s of this configuration there; starting anew", cfg.resume, cfg.stage)
        return
    log.info("resume=%s: going on from %s", cfg.resume, source)
    if source.resolve() == directory.resolve():
        return
    names = {name for name in configs if (source / f"{name}{JOURNAL_SUFFIX}").exists()}
    for name in sorted(names):
        Journal(source / f"{name}{JOURNAL_SUFFIX}", configs[name])
    directory.mkdir(parents=True, exist_ok=True)
    for file in source.iterdir():  # once: there may be thousands of journals
        if file.is_file() and file.name.partition(".")[0] in names:
            shutil.copy2(file, directory)


def _furthest(root: Path, place: Path, configs: Mapping[str, Mapping[str, Any]]) -> Path | None:
    """The directory below `root`, at this place of its run, that has most in journals of these configurations."""
    settings = {f"{name}{JOURNAL_SUFFIX}": journal_settings(config) for name, config in configs.items()}
    sizes: Counter[Path] = Counter()
    for path in root.glob(str(Path("**", place, f"*{JOURNAL_SUFFIX}"))):
        if path.name in settings and journal_settings(read_journal_config(path)) == settings[path.name]:
            sizes[path.parent] += path.stat().st_size
    return max(sizes, key=lambda directory: sizes[directory], default=None)
