"""Data cards in Markdown: the template, who wrote the data, and tables whose cells show texts of others as they are."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from esc_lab.config import Config
from esc_lab.config.search import LOADED
from esc_lab.terminal import escape_markdown

NOT_STATED = "not stated"


def render_card(template: str, **values: Any) -> str:
    """A template of `templates/` with its values; `json` and `table` are functions in it."""
    # Markdown, so nothing is escaped as HTML; what models and endpoints say stands in tables, which `_table` escapes.
    loader = PackageLoader("esc_lab.search")
    environment = Environment(loader=loader, undefined=StrictUndefined, keep_trailing_newline=True)
    return environment.get_template(template).render(json=json.dumps, table=_table, **values)


def describe_player(cfg: Config, role: str, models: Sequence[str]) -> tuple[str, ...]:
    """Who played a role: client, models as they were named, sampling, licence of the model."""
    played = getattr(cfg.llm, role)
    settings = {name: getattr(played, name) for name in ("max_tokens", "temperature", "top_p")}
    sampling = ", ".join(f"{name} {'not sent' if value is None else value}" for name, value in settings.items())
    local = cfg.llm.local.model.licence if played.client in LOADED and played.model is None else None
    return (
        role,
        played.client,
        ", ".join(models) or NOT_STATED,
        sampling,
        played.licence or local or NOT_STATED,
    )


def _table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    cells = [[escape_markdown(str(value)) for value in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)
