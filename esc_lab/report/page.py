"""Web pages: templates with autoescape, in one file that holds its style, its script and its data; no network."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

TEMPLATES = Path(__file__).with_name("templates")
_ENVIRONMENT = Environment(
    loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
)


def render_page(
    template: str,
    title: str,
    data: Any,
    *,
    styles: Sequence[str],
    scripts: Sequence[str],
    facts: Mapping[str, str] | None = None,
    **context: Any,
) -> str:
    """A self-contained HTML page. Titles, facts, data and context may hold any text; it stays text.

    Args:
        template: file in `templates/` that extends `page.html.jinja`.
        title: heading of the page.
        data: JSON types, for the script (`page.js` parses them).
        styles, scripts: files in `templates/`, one after another.
        facts: names and values below the heading.
        context: what the template itself names.
    """
    # Nothing in a script element is an entity, so `<` is written in JSON's own way: no text can end the element.
    block = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    block = re.sub("[\ud800-\udfff]", lambda half: f"\\u{ord(half[0]):04x}", block)  # UTF-8 has no half characters
    return _ENVIRONMENT.get_template(template).render(
        title=title, facts=facts or {}, data=Markup(block), style=_read(styles), script=_read(scripts), **context
    )


def _read(names: Sequence[str]) -> Markup:
    return Markup("".join((TEMPLATES / name).read_text(encoding="utf-8") for name in names))


def short_labels(names: Sequence[str]) -> list[str]:
    """A label of at most three characters for each name, and a number where names would share one.

    >>> short_labels(["Affirmation", "Provide Different Perspectives", "Restatement or Paraphrasing", "Affection", "!"])
    ['Af', 'PDP', 'RP', 'Af2', '?']
    """
    labels: list[str] = []
    for name in names:
        words = re.findall(r"[^\W_]+", name)
        words = [word for word in words if word not in ("and", "or", "of", "the")] or words or ["?"]
        label = words[0][:2] if len(words) == 1 else "".join(word[0].upper() for word in words[:3])
        numbered = (f"{label[:2]}{number}" for number in count(2))
        labels.append(label if label not in labels else next(text for text in numbered if text not in labels))
    return labels
