"""Recorded answers instead of a model. A journal of the search is such a recording."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from esc_lab.artifacts import READ_ERRORS
from esc_lab.config import Config
from esc_lab.config.search import ROLES
from esc_lab.errors import UserError
from esc_lab.runs.layout import CARDS, JOURNAL_SUFFIX, TALKS
from esc_lab.search.journal import TOO_LONG, read_journal_config
from esc_lab.search.requests import Answer, Request, TooLongError

_SAMPLING = ("temperature", "top_p", "max_tokens", "attempts", "no_repeat", "min_prior")


def build_client(cfg: Config, role: str, shared: dict[str, Any]) -> ReplayClient:
    """The client of a role whose recording is a journal of a search, or a run directory of whole talks or of cards."""
    recording = Path(getattr(cfg.llm, role).recording or "")
    try:
        recorded = read_journal_config(find_recordings(recording)[0])["roles"][role]
        return ReplayClient(recording, identity=recorded["client"], scores=recorded["scores"])
    except (OSError, LookupError, TypeError) as error:
        fix = "name a trees/*.journal.jsonl of a search, or a run directory of stage=converse or stage=cards"
        raise UserError("no journal of a search", where=f"llm.{role}.recording={recording}", fix=fix) from error


def take_sampling(cfg: Config) -> Config:
    """The configuration with the sampling of the recordings in the roles that they play, so that they are asked alike.

    A recording that cannot be read changes nothing here; `build_client` says what is wrong with it.
    """
    roles: dict[str, Any] = {}
    for name in ROLES:
        played = getattr(cfg.llm, name)
        if played.client == "replay":
            with suppress(OSError, LookupError, TypeError):
                recorded = read_journal_config(find_recordings(Path(played.recording or ""))[0])["roles"][name]
                roles[name] = replace(played, **{key: recorded[key] for key in _SAMPLING if key in recorded})
    return replace(cfg, llm=replace(cfg.llm, **roles))


def find_recordings(recording: Path) -> list[Path]:
    """The journals that a recording consists of: itself, or those of a run directory: of its talks, cards or judge."""
    if not recording.is_dir():
        return [recording]
    return sorted(path for place in (TALKS, CARDS, "") for path in (recording / place).glob(f"*{JOURNAL_SUFFIX}"))


class ReplayClient:
    """A client that answers with the recorded answers of another client.

    Args:
        recording: run directory of whole talks or of cards, or JSONL file with `{"key": ..., "answer": {...}}` in its
            lines, keys as of `Request.key`; `too_long` in place of `answer` is a TooLongError again. Lines without
            `key` are passed over, and so is a last line that was cut off.
        identity, scores: those of the recorded client.

    Raises:
        UserError: the file cannot be read, a line is broken, or a key has two different answers.
    """

    retries: Mapping[str, int] = {}

    def __init__(self, recording: Path, *, identity: Mapping[str, Any], scores: bool) -> None:
        self.identity, self.scores, self._recording = identity, scores, recording
        self._answers: dict[str, Answer] = {}
        self._too_long: dict[str, str] = {}
        for path in find_recordings(recording):
            # What two talks asked for is the same only where the same model answered it: each has its own journal.
            self._answers = _read(path, self._too_long) | self._answers

    async def answer(self, request: Request) -> Answer:
        key = request.key(self.identity)
        answer = self._answers.get(key)
        if answer is None and key in self._too_long:
            raise TooLongError(self._too_long[key], where=str(self._recording))
        if answer is None:
            start = " ".join(request.messages[-1].content.split())[:80]
            what = f"no recorded answer for this request of the {request.role}; its last message begins: {start!r}"
            fix = "use the model, prompts, sampling and seed of the recording, or record anew"
            raise UserError(what, where=str(self._recording), fix=fix)
        return answer

    async def close(self) -> None:
        """Nothing to let go of."""


def _read(path: Path, too_long: dict[str, str]) -> dict[str, Answer]:
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        fix = "check the path of the recording"
        raise UserError(f"cannot be read: {error.strerror}", where=str(path), fix=fix) from error
    answers: dict[str, Answer] = {}
    for number, line in enumerate(lines, start=1):
        where, last = f"{path}:{number}", number == len(lines)
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            if "key" not in record:
                continue
            if TOO_LONG in record:
                too_long[record["key"]] = str(record[TOO_LONG])
                continue
            key, answer = record["key"], Answer.from_json(record["answer"])
        except READ_ERRORS as error:
            if last and isinstance(error, ValueError):
                continue  # the writer was stopped within this line
            problem = f"broken record: {type(error).__name__} {error}"
            raise UserError(problem, where=where, fix="remove the line, or record anew") from error
        if answers.setdefault(key, answer) != answer:
            raise UserError(f"another answer to key {key} than before", where=where, fix="replay one recording at once")
    return answers
