"""W&B's public API, with errors that say what to do."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from esc_lab.errors import UserError

if TYPE_CHECKING:
    from wandb import Api


def api(where: str) -> Api:
    """The API of the account that is logged in.

    Args:
        where: the setting that asks for it, for error messages.

    Raises:
        UserError: nobody is logged in, or the server does not answer.
    """
    os.environ.setdefault("WANDB_SILENT", "true")
    import wandb

    with answering(where):
        try:
            return wandb.Api(timeout=30)
        except wandb.errors.UsageError as error:
            fix = "`wandb login`, or set WANDB_API_KEY"
            raise UserError("nobody is logged in to W&B", where=where, fix=fix) from error


@contextmanager
def answering(where: str) -> Iterator[None]:
    """Failures of W&B as errors of the user: no such project, no access, no network.

    Raises:
        UserError: as said.
    """
    from wandb.errors import Error
    from wandb.sdk.lib.service.service_connection import WandbApiFailedError

    try:
        yield
    except ValueError as error:
        if not str(error).startswith("Could not find project"):
            raise
        fix = "check the name (entity/project), and `wandb sync` the offline runs first"
        raise UserError(f"W&B has no such project, or not for this account ({error})", where=where, fix=fix) from error
    except (Error, WandbApiFailedError, OSError) as error:
        fix = "look whether the server can be reached, and `wandb login` again if it refuses the key"
        raise UserError(f"W&B: {error}", where=where, fix=fix) from error
