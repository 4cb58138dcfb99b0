"""One web page for a comparison of runs: tables, figures, a browser of dialogues, how to reproduce; no network.

The page's own style and scripts are `comparison_page.css`, `comparison_page.js` and `dialogue_browser.js` beside this
module; they are written into the page after the shared ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from esc_lab.artifacts import file_fingerprint, write_atomic
from esc_lab.comparison.notes import notes_of
from esc_lab.comparison.record import record
from esc_lab.comparison.result import Comparison
from esc_lab.comparison.table import Table, table_of
from esc_lab.report.comparison_table import results_table
from esc_lab.report.dialogue_browser import browser_data, link
from esc_lab.report.inline_figures import inline_svg
from esc_lab.report.metric_meanings import meaning
from esc_lab.report.page import page, read
from esc_lab.report.reproduction import Command, behind, commands, differing, versions
from esc_lab.report.summary import summary, title_of

_OPEN = 4  # figures of a kind that are shown without being asked for
# Beginnings of the figures' file names -> heading, and what a reader has to know.
FIGURES = {
    "q_against_b": (
        "Proficiency against bias",
        "Each point is a run: higher agrees better with the supporters of the corpus (Q), further left favours fewer "
        "strategies of its own (B). Lines: 95 % intervals.",
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
    "training": ("Training", "Loss at each optimizer step; comparable only within one objective."),
}


def write_comparison_page(comparison: Comparison, figures: Sequence[Path], path: Path) -> Path:
    """Write the page; its links to search trees and heat maps are relative to where it lies.

    Args:
        comparison: what was found.
        figures: files that `esc_lab.comparison.drawings.draw` made; of a PNG the SVG beside it is taken.
        path: the HTML file.

    Raises:
        UserError: the page cannot be written, or what the runs left cannot be read.
    """
    write_atomic(path, comparison_page(comparison, figures, path.parent))
    return path


def comparison_page(comparison: Comparison, figures: Sequence[Path], directory: Path) -> str:
    """A self-contained HTML page; texts of models may hold anything, they stay text.

    Args:
        comparison, figures: as for `write_comparison_page`.
        directory: where the page is to lie.
    """
    notes = notes_of(comparison)
    table = table_of(comparison.cells, comparison.columns, comparison.estimates, notes)
    browser = browser_data(comparison, directory)
    sections = {
        "results": ("Results", results_table(comparison, table)),
        "metric": ("One metric", _METRIC),
        "strategies": ("Strategies", _STRATEGIES if comparison.strategies else ""),
        "groups": ("Problems and emotions", _GROUPS if comparison.groups else ""),
        "figures": ("Figures", _figures(figures)),
        "dialogues": ("Dialogues", _browser(browser)),
        "reproduce": ("How to reproduce", _reproduce(comparison, directory)),
    }
    shown = {name: section for name, section in sections.items() if section[1]}
    links = "".join(f'<a href="#{name}">{heading}</a>' for name, (heading, _) in shown.items())
    body = "".join(
        f'<section id="{name}" aria-labelledby="{name}-name"><h2 id="{name}-name">{heading}</h2>{content}</section>'
        for name, (heading, content) in shown.items()
    )
    lead = "".join(f"<p>{escape(sentence)}</p>" for sentence in summary(comparison, table))
    main = f'<nav aria-label="Sections">{links}</nav><main><div class="lead">{lead}</div>{_NO_SCRIPT}{body}</main>'
    return page(
        title_of(comparison),
        main,
        {"comparison": _numbers(comparison, table), "browser": browser},
        style=read("page.css", "comparison_page.css"),
        script=read("page.js", "comparison_page.js", "dialogue_browser.js"),
        facts=_facts(comparison),
    )


def _facts(comparison: Comparison) -> dict[str, str]:
    test, runs = comparison.test, [run for cell in comparison.cells for run in cell.runs]
    facts = {"Runs": f"{len(runs):,}", "Seeds": ", ".join(map(str, sorted({run.method.seed for run in runs})))}
    if test:
        facts |= {"Dialogues": f"{test.dialogues:,}", "Decisions": f"{len(test.keys):,}"}
        facts |= {"Strategies": str(len(test.strategies)), "Test set": test.identity[:8]}
    return facts


def _numbers(comparison: Comparison, table: Table) -> dict[str, Any]:
    """What the script draws: the record, with names for readers, less what the page says elsewhere."""
    found = record(comparison, [])
    labels = {cell.name: table.label(cell) for cell in comparison.cells}
    several = len(table.by_model()) > 1
    columns = [
        {**one, "meaning": meaning(column), "arrow": column.arrow}
        for one, column in zip(found["columns"], comparison.columns, strict=True)
    ]
    cells = []
    for cell in found["cells"]:
        label = f"{cell['model']} {labels[cell['name']]}" if several else labels[cell["name"]]
        cells.append({name: cell[name] for name in ("name", "metrics", "strategies")} | {"label": label})
    wanted = ("columns", "cells", "groups", "left_out", "primary")
    return {name: found[name] for name in wanted} | {"columns": columns, "cells": cells}


def _figures(paths: Sequence[Path]) -> str:
    by_kind: dict[str, list[str]] = {}
    for number, path in enumerate(paths):
        kind = next((kind for kind in FIGURES if path.stem.startswith(kind)), "")
        heading = FIGURES[kind][0] if kind else path.stem.replace("_", " ")
        drawn = inline_svg(path.with_suffix(".svg"), f"f{number}-", f"{heading}: {path.stem.replace('_', ' ')}")
        by_kind.setdefault(kind, []).append(f'<div class="figure">{drawn}</div>')
    parts = []
    for kind in sorted(by_kind, key=lambda kind: [*FIGURES, ""].index(kind)):
        heading, told = FIGURES.get(kind, ("More", ""))
        scroll = f'role="region" aria-label="{heading}" tabindex="0"'
        drawn = f'<div class="drawn" {scroll}>{"".join(by_kind[kind])}</div>'
        if len(by_kind[kind]) > _OPEN:
            drawn = f"<details><summary>{len(by_kind[kind])} figures</summary>{drawn}</details>"
        parts.append(f'<h3>{heading}</h3><p class="soft">{told}</p>{drawn}')
    return "".join(parts)


def _browser(browser: dict[str, Any] | None) -> str:
    if browser is None:
        return ""
    told = []
    if not browser["context"]:
        told.append(
            "The evaluations left no dialogues.jsonl, so what was said before each reply is not shown; "
            "evaluate again to have it."
        )
    if browser["left_out"]:
        told.append(f"Not shown here, for size: {_few(browser['left_out'])}.")
    return "".join(f'<p class="soft">{escape(text)}</p>' for text in told) + _BROWSER


def _reproduce(comparison: Comparison, directory: Path) -> str:
    found, without = commands(comparison.cells)
    parts = [f"<h3>Commands</h3>{_commands(found, directory)}"] if found else []
    if without:
        parts.append(f'<p class="soft">No command is on record of {escape(_few(without))}.</p>')
    test = comparison.test
    if test:
        parts.append(
            f"<h3>Test set</h3><p>{len(test.keys):,} decisions of {test.dialogues:,} dialogues; a hash of their ids, "
            f"turns and gold strategies is <code>{test.identity}</code>. Two evaluations with this hash are of "
            f"the very same decisions. Bootstrap and permutation test: {comparison.draws:,} draws, seed "
            f"{comparison.seed}.</p>"
        )
    heads, rows = differing(comparison.cells)
    if rows:
        parts.append("<h3>Settings that differ</h3>" + _table("Settings that differ", ["setting", *heads], rows))
    heads, rows = versions(comparison.cells)
    if rows:
        parts.append("<h3>Versions</h3>" + _table("Versions", ["", *heads], rows))
    return "".join(parts) + _trees(comparison, directory)


def _commands(commands: Sequence[Command], directory: Path) -> str:
    parts = []
    for command in commands:
        jobs = f"<details><summary>its {len(command.jobs)} jobs</summary>{_commands(command.jobs, directory)}</details>"
        place = f"{_places(command.directory, directory)}, for {_few(command.runs)}"
        parts.append(
            f'<li><div class="command"><code tabindex="0">{escape(command.line)}</code>'
            f'<button type="button" class="copy">Copy</button></div>'
            f'<p class="soft">{escape(place)}</p>{jobs if command.jobs else ""}</li>'
        )
    return f'<ol class="commands">{"".join(parts)}</ol>'


def _trees(comparison: Comparison, directory: Path) -> str:
    runs = [run for cell in comparison.cells for run in cell.runs]
    folders = dict.fromkeys(place / "trees" for run in runs for place in behind(run))
    # Each once: runs that share a search have a copy each.
    by_content = {file_fingerprint(tree): tree for folder in folders for tree in folder.glob("*.html")}
    if not by_content:
        return ""
    found = sorted(by_content.values(), key=lambda tree: tree.stem)
    links = "".join(f'<li><a href="{escape(link(one, directory))}">{escape(one.stem)}</a></li>' for one in found)
    return f'<h3>Search trees that the training data came from</h3><ul class="links">{links}</ul>'


def _table(name: str, heads: Sequence[str], rows: dict[str, list[str]]) -> str:
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in heads)
    body = "".join(
        f'<tr><th scope="row">{escape(key)}</th>{"".join(f"<td>{escape(value)}</td>" for value in values)}</tr>'
        for key, values in rows.items()
    )
    return (
        f'<div class="scroll" role="region" aria-label="{name}" tabindex="0"><table class="texts">'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _places(place: Path, directory: Path) -> str:
    """A directory as the page names it: below what it shares with the page's own, or whole."""
    whole, own = place.absolute(), directory.absolute()
    near = own.parents[min(2, len(own.parents) - 1)]
    return str(whole.relative_to(near)) if whole.is_relative_to(near) else str(whole)


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


_NO_SCRIPT = "<noscript><p>Sorting, details and dialogues need the script in this file; allow it to run.</p></noscript>"
_METRIC = """<div class="row"><label for="metric-choice">Metric</label> <select id="metric-choice"></select></div>
<p class="soft" id="metric-meaning"></p>
<div class="scroll" role="region" aria-label="One metric" tabindex="0"><table id="metric-table"></table></div>"""
_STRATEGIES = """<div class="row"><label for="strategy-choice">Strategy</label>
<select id="strategy-choice"></select></div>
<p class="soft" id="strategy-meaning"></p>
<div class="scroll" role="region" aria-label="Choice of the strategy by run" tabindex="0">
<table id="strategy-table"></table></div>
<div class="row"><label for="confusion-choice">All strategies of</label> <select id="confusion-choice"></select></div>
<p class="soft">Decisions by what the supporter in the corpus did (rows) and what the model chose (columns). A number
leads to the decisions behind it.</p>
<div class="scroll" role="region" aria-label="Gold against chosen strategies" tabindex="0">
<table id="confusion-table"></table></div>"""
_GROUPS = """<div class="row"><label for="group-kind">By</label> <select id="group-kind"></select>
<label for="group-metric">Metric</label> <select id="group-metric"></select></div>
<p class="soft" id="group-meaning"></p>
<div class="scroll" role="region" aria-label="Results by group" tabindex="0"><table id="group-table"></table></div>
<p class="soft" id="group-rest"></p>"""
_BROWSER = """<form class="filters" id="filters" role="search" aria-label="Filter the decisions">
<label>Text <input type="search" id="find" placeholder="in context and replies"></label>
<label>Run <select id="by-run"></select></label>
<label>Right strategy <select id="by-gold"></select></label>
<label>Chosen strategy <select id="by-chosen"></select></label>
<label>Outcome <select id="by-outcome"></select></label>
<label>Problem <select id="by-problem"></select></label>
<label class="check"><input type="checkbox" id="by-disagreement"> Runs disagree</label>
<label class="check"><input type="checkbox" id="by-replies"> With replies</label>
<button type="reset">Clear</button>
</form>
<p class="soft" id="browser-keys">Arrow keys or j and k: next and previous, while the focus is in this section. The
address of the page leads back to the decision that is shown.</p>
<ul id="key" aria-label="Strategies"></ul>
<div class="browser">
<div class="found"><div class="row"><p id="count" role="status"></p>
<span class="pages" role="group" aria-label="Pages of the list"><button type="button" id="page-before"
aria-label="Earlier decisions in the list">&lsaquo;</button> <button type="button" id="page-after"
aria-label="Later decisions in the list">&rsaquo;</button></span></div>
<ol id="list" aria-label="Decisions"></ol></div>
<article id="decision" aria-live="polite" aria-label="Decision"></article>
</div>"""
