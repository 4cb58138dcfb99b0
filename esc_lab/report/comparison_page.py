"""One web page for a comparison of runs: tables, figures, a browser of dialogues, how to reproduce."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from markupsafe import Markup

from esc_lab.artifacts import file_fingerprint, write_atomic
from esc_lab.comparison.groups import MIN_DECISIONS
from esc_lab.comparison.record import build_record
from esc_lab.comparison.result import ComparisonResult
from esc_lab.comparison.table import Table, build_table
from esc_lab.errors import list_names
from esc_lab.report.bundle import write_bundle
from esc_lab.report.comparison_results import summary, table_context, title_of
from esc_lab.report.dialogue_browser import browser_data, link, linked_pages
from esc_lab.report.figures import COLOURS
from esc_lab.report.page import render_page
from esc_lab.report.reproduction import Command, commands, differing, name_trees, tree_pages, versions
from esc_lab.report.talk_browser import talks_data

MAX_OPEN_FIGURES = 4  # of a kind, shown without being asked for
# Beginnings of the figures' file names -> heading, and what a reader has to know.
FIGURES = {
    "q_against_b": (
        "Proficiency against bias",
        "Each point is a run: higher agrees better with the supporters of the corpus (Q), further left favours fewer "
        "strategies of its own (B). Lines: 95 % intervals; that of B is about less than its value, an upper one.",
    ),
    "preference": (
        "Preference for each strategy",
        "Above 1 a strategy is chosen wrongly more often than it is missed, below 1 less often. Lines: 95 % intervals.",
    ),
    "confusion": (
        "Which strategies are taken for which",
        "A row is what the supporter in the corpus did, a column what the model chose; each row adds up to 100 %. "
        "The diagonal is agreement.",
    ),
    "depth": (
        "Early and late in the dialogue",
        "The metric among decisions with about as many turns before the reply. Bands: 95 % intervals.",
    ),
    "dose": (
        "Attention boosted",
        "The metric over what was added to the logits of attention on a span of the prompt, or the share of attention "
        "that it got. A line is a span; compare that of the strategy with that of the neutral phrase. Bands: 95 % "
        "intervals.",
    ),
    "intensity": (
        "How strong the emotion is",
        "Mean intensity after the seeker's first message (0) and after each turn of the supporter, as the seeker's "
        "model says, over the talks that have come so far: those that end drop out, and markers shrink. Bands: 95 % "
        "intervals over cards.",
    ),
    "training": ("Training", "Loss at each optimizer step; comparable only within one objective."),
}
_SVG, _LINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}href"
_KEPT = {f"{_SVG}{name}" for name in ("svg", "g", "defs", "clipPath", "path", "rect", "use", "text", "tspan", "image")}
# Colours of the drawing -> names of the page's; what is drawn in black takes the ink by inheritance too.
_COLOURS = {
    "#ffffff": "paper", "#222222": "ink", "#333333": "ink", "#555555": "soft", "#777777": "soft", "#e4e4e4": "grid",
    **{colour.lower(): f"c{number}" for number, colour in enumerate(COLOURS)},
}  # fmt: skip
_READABLE = 85  # pixels for 100 points of a drawing at least: the smallest text is then some 6 pixels high


def write_comparison_page(
    comparison: ComparisonResult, figures: Sequence[Path], path: Path, bundle: Path | None = None
) -> Path:
    """Write the page, self-contained but for relative links to search trees and heat maps.

    Args:
        figures: files that `draw_comparison` drew; of a PNG the SVG beside it is taken.
        path: the HTML file. Texts of models in it may hold anything, they stay text.
        bundle: a ZIP file to be written too, of the page and the pages that it links, for readers elsewhere.

    Raises:
        UserError: the page cannot be written, or what the runs left cannot be read.
    """
    directory = path.parent
    table = build_table(comparison)
    browser = browser_data(comparison, directory)
    of_talks = next((part for part in comparison.parts if part.talks), None)
    talks = talks_data(of_talks, directory) if of_talks else None
    beside = [(part, build_table(part)) for part in comparison.parts[1:]]
    sections = {
        "results": ("Results", True),
        "talk-results": ("Results of talks", bool(beside)),
        "metric": ("One metric", True),
        "strategies": ("Strategies", bool(comparison.strategies)),
        "groups": (
            "Problems and emotions",
            comparison.test is not None and bool(comparison.groups or not comparison.talks),
        ),
        "figures": ("Figures", bool(figures)),
        "people": ("People asked", comparison.survey is not None),
        "dialogues": ("Dialogues", browser is not None),
        "talks": ("Talks", talks is not None),
        "reproduce": ("How to reproduce", True),
    }
    reproduction = _reproduction(comparison, directory)
    of_talks_too = ["talk_browser.js"] if talks else []
    page = render_page(
        "comparison.html.jinja",
        title_of(comparison),
        {"comparison": _numbers(comparison, table), "browser": browser, "talks": talks},
        styles=["page.css", "comparison_page.css", *(["talk_browser.css"] if talks else [])],
        scripts=["page.js", "comparison_page.js", "dialogue_browser.js", *of_talks_too, "wide_tables.js"],
        facts=_facts(comparison),
        sections={name: heading for name, (heading, shown) in sections.items() if shown},
        summary=summary(comparison, table),
        table=table_context(comparison, table),
        talk_tables=[{**table_context(*part), "summary": summary(*part)} for part in beside],
        figure_kinds=_figure_kinds(figures),
        max_open_figures=MAX_OPEN_FIGURES,
        browser_notes=_browser_notes(browser),
        talk_notes=_left_out(talks),
        reproduction=reproduction,
        test=comparison.test,
        survey=comparison.survey,
    )
    write_atomic(path, page)
    if bundle:
        linked = [address for address, _ in reproduction["trees"]] + (linked_pages(browser) if browser else [])
        folders = [run["journals"] for run in talks["runs"]] if talks else []  # of journals: no pages
        for folder in filter(None, folders):
            page = page.replace(f'"journals":"{folder}"', '"journals":null')
        write_bundle(page, path, linked, bundle)
    return path


def _facts(comparison: ComparisonResult) -> dict[str, str]:
    test, runs = comparison.test, comparison.runs
    facts = {"Runs": f"{len(runs):,}", "Seeds": ", ".join(map(str, sorted({run.method.seed for run in runs})))}
    if test:
        rows, units = (name.capitalize() for name in test.kind)
        facts |= {units: f"{test.dialogues:,}", rows: f"{len(test.keys):,}"}
        facts |= {"Strategies": str(len(test.strategies)), "Test set": test.identity[:8]}
    if chance := comparison.chance:
        guess = f"Q {chance['chance/prior_Q']:.3f}, accuracy {chance['chance/prior_accuracy']:.3f}"
        facts["Blind guesses from the gold shares"] = guess
    return facts


def _numbers(comparison: ComparisonResult, table: Table) -> dict[str, Any]:
    """What the script draws: the record, with names for readers, less what the page says elsewhere."""
    record = build_record(comparison, [], [])
    labels = {cell.name: table.label(cell) for cell in comparison.cells}
    several = len(table.by_model()) > 1
    columns = [
        {**values, "meaning": column.explanation, "arrow": column.arrow}
        for values, column in zip(record["columns"], comparison.columns, strict=True)
    ]
    cells = []
    for cell in record["cells"]:
        label = f"{cell['model']} {labels[cell['name']]}" if several else labels[cell["name"]]
        cells.append({name: cell[name] for name in ("name", "metrics", "strategies")} | {"label": label})
    wanted = ("columns", "cells", "groups", "left_out", "primary")
    return {name: record[name] for name in wanted} | {"columns": columns, "cells": cells, "least": MIN_DECISIONS}


def _figure_kinds(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Headings, meanings and drawings (SVG) of the figures of each kind, in the order of `FIGURES`."""
    by_kind: dict[str, list[Markup]] = {}
    for number, path in enumerate(paths):
        kind = next((kind for kind in FIGURES if path.stem.startswith(kind)), "")
        heading = FIGURES[kind][0] if kind else path.stem.replace("_", " ")
        label = f"{heading}: {path.stem.replace('_', ' ')}"
        by_kind.setdefault(kind, []).append(Markup(inline_svg(path.with_suffix(".svg"), f"f{number}-", label)))
    kinds = sorted(by_kind, key=lambda kind: [*FIGURES, ""].index(kind))
    texts = {kind: FIGURES.get(kind, ("More", "")) for kind in kinds}
    return [{"heading": texts[kind][0], "meaning": texts[kind][1], "figures": by_kind[kind]} for kind in kinds]


def _browser_notes(browser: dict[str, Any] | None) -> list[str]:
    notes = []
    if browser and not browser["context"]:
        notes.append(
            "The evaluations left no dialogues.jsonl, so what was said before each reply is not shown; "
            "evaluate again to have it."
        )
    return [*notes, *_left_out(browser)]


def _left_out(shown: dict[str, Any] | None) -> list[str]:
    """A sentence on the runs that are too many to be shown."""
    return [f"Not shown here, for size: {list_names(shown['left_out'], 6)}."] if shown and shown["left_out"] else []


def _reproduction(comparison: ComparisonResult, directory: Path) -> dict[str, Any]:
    """Commands, settings that differ, versions, and links to the pages of search trees."""
    lines, without = commands(comparison.cells)
    # Each once: runs that share a search have a copy each.
    by_content = {file_fingerprint(tree): tree for tree in tree_pages(comparison.runs)}
    heads, rows = differing(comparison.cells)
    version_heads, version_rows = versions(comparison.cells)
    return {
        "commands": [_command_context(command, directory) for command in lines],
        "without": list_names(without, 6),
        "tables": {
            "Settings that differ": (["setting", *heads], rows),
            "Versions": (["", *version_heads], version_rows),
        },
        "trees": [(link(tree, directory), name) for name, tree in name_trees(by_content.values()).items()],
    }


def _command_context(command: Command, directory: Path) -> dict[str, Any]:
    return {
        "line": command.line,
        "place": f"{_place(command.directory, directory)}, for {list_names(command.runs, 6)}",
        "jobs": [_command_context(job, directory) for job in command.jobs],
    }


def _place(place: Path, directory: Path) -> str:
    """A directory as the page names it: below what it shares with the page's own, or whole."""
    whole, own = place.absolute(), directory.absolute()
    near = own.parents[min(2, len(own.parents) - 1)]
    return str(whole.relative_to(near)) if whole.is_relative_to(near) else str(whole)


def inline_svg(path: Path, prefix: str, label: str) -> str:
    """A drawn figure (SVG) as an element whose colours are the page's variables, in the light and in the dark.

    Args:
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
            kept = _attributes(child, prefix).items()
            attributes = "".join(f' {key}="{escape(value)}"' for key, value in kept if value)
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
    def name_colour(match: re.Match[str]) -> str:
        name = _COLOURS.get(match[0].lower())
        return f"var(--{name})" if name else match[0]

    parts = [part.strip() for part in text.split(";") if part.strip()]
    kept = "; ".join(part for part in parts if not part.startswith("font-family"))  # the page's own
    return re.sub(r"#[0-9a-f]{6}\b", name_colour, _short(kept), flags=re.I)


def _short(text: str) -> str:
    """Numbers with two decimals, hundredths of a point."""
    return re.sub(r"\s+", " ", re.sub(r"(\.\d\d)\d+", r"\1", text))
