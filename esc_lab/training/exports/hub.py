"""Directories pushed to the Hugging Face hub: private unless asked, and into no repository that was there unasked.

The token is looked up where the hub's own tools look for it. It goes into requests alone: what the hub says is shown
without it, and addresses of uploads, which are signed, stay out of the log.
"""

from __future__ import annotations

import logging
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import CommitOperationAdd, HfApi, get_token
from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError is the HTTP client's
    HfHubHTTPError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.utils.tqdm import disable_progress_bars

from esc_lab.config.export import ExportConfig
from esc_lab.errors import UserError

log = logging.getLogger(__name__)

Kind = Literal["model", "dataset"]
_CHATTY = ("httpx", "httpx2")  # loggers of the hub's HTTP client, which tell every address


@dataclass(frozen=True)
class Repository:
    """A repository of the hub that may be pushed to."""

    name: str  # owner/name
    kind: Kind
    public: bool  # asked for, where it has to be made
    update: bool  # whether it is there already
    token: str = field(repr=False)


def check_repository(settings: ExportConfig, kind: Kind) -> Repository:
    """The repository that `export.push` names, once the hub says that it can be pushed to. Nothing is made there.

    Raises:
        UserError: there is no token, or one that may not write there; the repository exists and `export.update` does
            not allow it, or everybody could see it and `export.public` does not; or the hub cannot be reached.
    """
    name = str(settings.push)
    where = f"export.push={name}"
    with _explain(where):
        token = get_token()
    if not token:
        fix = "`hf auth login`, or export HF_TOKEN with a token that may write (https://huggingface.co/settings/tokens)"
        raise UserError("there is no token of the Hugging Face hub", where=where, fix=fix)
    api = HfApi(token=token)
    with _explain(where, token):
        _check_owner(api.whoami(), name.partition("/")[0], where)
        try:
            info = api.repo_info(name, repo_type=kind)
        except RepositoryNotFoundError:
            return Repository(name, kind, settings.public, update=False, token=token)
    if not settings.update:
        fix = "choose another name, or add export.update=true to push another commit to it"
        raise UserError(f"the hub has this {kind} repository already", where=where, fix=fix)
    if not info.private and not settings.public:
        fix = "export.public=true if that is meant, or another name"
        raise UserError("the repository is public: everybody would see what is pushed", where=where, fix=fix)
    return Repository(name, kind, settings.public, update=True, token=token)


def push_directory(repository: Repository, directory: Path) -> str:
    """Push all files of a directory as one commit; the repository is made if it is not there. Gives its address.

    Raises:
        UserError: the hub refuses it or cannot be reached. The directory stays as it is.
    """
    api, name = HfApi(token=repository.token), repository.name
    where, kept = f"export.push={name}", f"; {directory} is written and stays"
    if not sys.stderr.isatty():
        disable_progress_bars()
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    operations = [CommitOperationAdd(str(path.relative_to(directory)), path) for path in files]
    if not repository.update:
        with _explain(where, repository.token, kept):
            api.create_repo(name, repo_type=repository.kind, private=not repository.public)
        kept += ", and the repository is made: the next time with export.update=true"
    with _explain(where, repository.token, kept):
        done = api.create_commit(name, operations, commit_message="Written by esc-lab", repo_type=repository.kind)
    seen = "everybody can see it" if repository.public else "only its owner can see it"
    log.info("pushed %d files to %s (%s)", len(files), done.repo_url, seen)
    return str(done.repo_url)


def _check_owner(user: dict[str, Any], owner: str, where: str) -> None:
    """Whether a token may write to repositories of an owner, as far as the hub tells."""
    names = [str(user.get("name")), *(str(group.get("name")) for group in user.get("orgs") or ())]
    if owner.casefold() not in map(str.casefold, names):
        fix = f"use one of {', '.join(names)}, or a token of {owner}"
        raise UserError(f"the token is no member's of {owner}", where=where, fix=fix)
    role = ((user.get("auth") or {}).get("accessToken") or {}).get("role")
    if role == "read":
        fix = "make one that may write (https://huggingface.co/settings/tokens)"
        raise UserError("the token may only read", where=where, fix=fix)


@contextmanager
def _explain(where: str, token: str = "", kept: str = "") -> Iterator[None]:
    """What goes wrong at the hub as one line that never holds the token.

    Args:
        kept: what the fix says of files that were written.
    """
    levels = {name: logging.getLogger(name).level for name in _CHATTY}
    for name in levels:
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings(record=True) as told:
            yield
        for warning in told:
            log.warning("%s: %s", where, _hide(str(warning.message), token))
    except UserError:
        raise
    except (OSError, RuntimeError, ValueError, HTTPError) as error:
        # An upload that failed comes as a RuntimeError. Not chained: a trace would show what was sent.
        failure = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
        what, fix = _describe_failure(failure, token)
        raise UserError(what, where=where, fix=fix + kept) from None
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _describe_failure(error: BaseException, token: str) -> tuple[str, str]:
    """What went wrong, and what to do about it."""
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE keeps the hub out of reach", "unset HF_HUB_OFFLINE, or leave export.push out"
    if isinstance(error, HfHubHTTPError):
        status, said = error.response.status_code, _hide(error.server_message or "", token)
        known = status if status in _REFUSALS else 404 if isinstance(error, RepositoryNotFoundError) else None
        what, fix = _REFUSALS.get(known, ("the hub refuses it", "push again later, or mend what the hub says"))
        return f"{what} ({status}{f': {said}' if said else ''})", fix
    if isinstance(error, ValueError):
        return f"the hub refuses it: {_hide(str(error), token)}", "mend that"
    return f"the hub cannot be reached: {_hide(str(error), token)}", "check the network and HF_ENDPOINT, and push again"


# By status: what an answer means, and what to do about it.
_REFUSALS: dict[int | None, tuple[str, str]] = {
    401: ("the hub does not know the token", "`hf auth login` again, or export another HF_TOKEN"),
    403: ("the token may not write there", "use a token that may write to repositories of this owner"),
    404: ("the hub does not find it", "check OWNER/NAME, and whether the token may see it"),
    409: ("the hub has this repository already", "choose another name, or add export.update=true"),
    429: ("the hub wants fewer requests", "wait a while and push again"),
}


def _hide(text: str, token: str) -> str:
    """What the hub says, in one line, without the token and without what signs an address."""
    shown = text.replace(token, "***") if token else text
    return " ".join(re.sub(r"\?[^\s'\"]+", "?...", shown).split())[:300]
