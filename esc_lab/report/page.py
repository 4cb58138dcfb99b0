"""What all web pages share: one file that holds its style, its script and its data, no network, no library.

`page.css` and `page.js` beside this module are for the pages' own styles and scripts to build on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from html import escape
from itertools import count
from pathlib import Path
from typing import Any


def page(title: str, main: str, data: Any, *, style: str, script: str, facts: Mapping[str, str] | None = None) -> str:
    """A self-contained HTML page. Titles, facts and data may hold any text; it stays text.

    Args:
        title: heading of the page.
        main: the page's body below its heading, as HTML.
        data: JSON types, for the script (`page.js` parses them).
        style, script: CSS and JavaScript, without closing tags of their own.
        facts: names and values below the heading.
    """
    # Nothing in a script element is an entity, so `<` is written in JSON's own way: no text can end the element.
    block = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    block = re.sub("[\ud800-\udfff]", lambda half: f"\\u{ord(half[0]):04x}", block)  # UTF-8 has no half characters
    items = [f"<div><dt>{escape(name)}</dt><dd>{escape(text)}</dd></div>" for name, text in (facts or {}).items()]
    shown = {"title": escape(title), "main": main, "data": block, "style": style, "script": script}
    shown["facts"] = f'<dl class="facts">{"".join(items)}</dl>' if items else ""
    # In one pass: what is filled in is never taken for another place to fill.
    return re.sub(r"\[\[(title|facts|main|data|style|script)\]\]", lambda place: shown[place[1]], _PAGE)


def read(*names: str) -> str:
    """The text of styles or scripts beside this module, one after another."""
    return "".join(Path(__file__).with_name(name).read_text(encoding="utf-8") for name in names)


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
        labels.append(label if label not in labels else next(other for other in numbered if other not in labels))
    return labels


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>[[title]]</title>
<style>[[style]]</style>
</head>
<body>
<header>
<h1>[[title]]</h1>
[[facts]]
</header>
[[main]]
<script type="application/json" id="data">[[data]]</script>
<script>[[script]]</script>
</body>
</html>
"""
