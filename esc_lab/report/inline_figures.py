"""Drawn figures (SVG files of `esc_lab.report.figures`) as part of a page that may be light or dark."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from html import escape
from pathlib import Path

from esc_lab.report.figures import COLOURS

_SVG, _LINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}href"
_KEPT = {f"{_SVG}{name}" for name in ("svg", "g", "defs", "clipPath", "path", "rect", "use", "text", "tspan", "image")}
# Colours of the drawing -> names of the page's; what is drawn in black takes the ink by inheritance too.
_COLOURS = {
    "#ffffff": "paper", "#222222": "ink", "#333333": "ink", "#555555": "soft", "#777777": "soft", "#e4e4e4": "grid",
    **{colour.lower(): f"c{number}" for number, colour in enumerate(COLOURS)},
}  # fmt: skip


_READABLE = 85  # pixels for 100 points of a drawing at least: the smallest text is then some 6 pixels high


def inline_svg(path: Path, prefix: str, label: str) -> str:
    """A figure as an `<svg>` element whose colours are the page's variables.

    Args:
        path: the SVG file.
        prefix: put before all its ids, which pages with several figures need.
        label: its accessible name.

    Raises:
        OSError, ElementTree.ParseError: the file cannot be read.
    """
    root = ElementTree.parse(path).getroot()
    shown = _element(root, prefix)
    box = re.sub(r"[^\d. ]", "", root.get("viewBox", "0 0 100 100"))
    width = float(box.split()[2])
    wide = f"width: {width * 4 / 3:.0f}px; min-width: {min(width * 4 / 3, _READABLE * width / 100):.0f}px"
    return f'<svg viewBox="{box}" style="{wide}" role="img" aria-label="{escape(label)}">{shown}</svg>'


def _element(parent: ElementTree.Element, prefix: str) -> str:
    """What an element holds, as HTML."""
    parts = []
    for child in parent:
        if child.tag in _KEPT:
            name = child.tag.removeprefix(_SVG)
            attributes = "".join(
                f' {key}="{escape(value)}"' for key, value in _attributes(child, prefix).items() if value
            )
            parts.append(f"<{name}{attributes}>{escape((child.text or '').strip())}{_element(child, prefix)}</{name}>")
    return "".join(parts)


def _attributes(element: ElementTree.Element, prefix: str) -> dict[str, str]:
    kept: dict[str, str] = {}
    for key, value in element.attrib.items():
        if key == "id":
            # Only what is pointed to needs an id.
            if element.tag not in (f"{_SVG}g", f"{_SVG}text"):
                kept["id"] = f"{prefix}{value}"
        elif key == _LINK:
            kept["href"] = f"#{prefix}{value[1:]}" if value.startswith("#") else value
        elif key == "style":
            kept["style"] = _style(value)
        elif not key.startswith(("{", "on")):
            kept[key] = _short(re.sub(r"url\(#", f"url(#{prefix}", value))
    return kept


def _style(text: str) -> str:
    parts = [part.strip() for part in text.split(";") if part.strip()]
    kept = [part for part in parts if not part.startswith("font-family")]  # the page's own
    return re.sub(r"#[0-9a-f]{6}\b", lambda match: _colour(match[0]), _short("; ".join(kept)), flags=re.I)


def _colour(text: str) -> str:
    name = _COLOURS.get(text.lower())
    return f"var(--{name})" if name else text


def _short(text: str) -> str:
    """Numbers with two decimals, hundredths of a point."""
    return re.sub(r"\s+", " ", re.sub(r"(\.\d\d)\d+", r"\1", text))
