"""Addresses of endpoints and names of the variables that hold their keys: which are valid, and what may be shown."""

from __future__ import annotations

import os
import re
from typing import Any
from urllib.parse import unquote, urlsplit

from esc_lab.errors import UserError

OPENAI_URL = "https://api.openai.com/v1"


def is_variable_name(text: str) -> bool:
    """Whether a text looks like the name of an environment variable, and not like a key.

    >>> is_variable_name("OPENAI_API_KEY"), is_variable_name("sk-abc"), is_variable_name("gsk_a1b2")
    (True, False, False)
    """
    return re.fullmatch(r"[A-Z_][A-Z0-9_]{0,63}", text) is not None


def shown_url(base_url: str | None) -> str:
    """The endpoint that a client with this `base_url` asks, without a login. Raises UserError if it is no URL."""
    return split_login(base_url)[0]


def named_url(base_url: Any) -> str | None:
    """The endpoint in the identity of its client, and so in the keys of its answers, without a login.

    None for a list of URLs: which of several servers answers makes no difference, and they may come and go.
    """
    return None if isinstance(base_url, list) else shown_url(base_url)


def split_login(base_url: str | None) -> tuple[str, tuple[str, ...]]:
    """The URL as it may be shown, and user and password from it, if any.

    Args:
        base_url: None for that of `OPENAI_BASE_URL`, else OpenAI's own.

    Raises:
        UserError: it is no URL.
    """
    url = base_url or os.environ.get("OPENAI_BASE_URL") or OPENAI_URL
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        valid = False
    if not valid or parts.query or parts.fragment or not url.isascii() or " " in url:
        # It may hold a password, so it is not shown.
        raise UserError("base_url is no URL of an endpoint", fix="give it as http(s)://host:port/v1")
    login = (unquote(parts.username or ""), unquote(parts.password or "")) if "@" in parts.netloc else ()
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}", login
