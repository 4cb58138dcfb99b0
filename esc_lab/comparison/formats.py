"""The paper's table as Markdown, on the terminal, and in LaTeX."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence

from rich.console import Console
from rich.table import Table as RichTable

from esc_lab.comparison.estimates import Difference
from esc_lab.comparison.table import Entry, Table
from esc_lab.metrics.metric import Metric
from esc_lab.statistics.intervals import Interval
from esc_lab.terminal import escape, escape_markdown, show_controls

# --- Markdown


def format_markdown(table: Table) -> str:
    """The table with its notes, a second one with the differences to the baseline, and the details."""
    rows = [
        [f"{cell.name}{table.mark(cell)}", str(len(cell.runs)), *map(_in_markdown, entries)]
        for cell, entries in table.rows
    ]
    parts = [markdown_table(["run", "seeds", *table.headings], rows), _bullets(table.notes)]
    differences = table.differences()
    compared = [number for number in range(len(table.columns)) if any(row[number] for _, row in differences)]
    if compared:
        rows = [
            [
                f"{cell.name}{table.mark(cell)}",
                next(difference.baseline for difference in row if difference),
                *(_difference_in_markdown(row[number], table.columns[number]) for number in compared),
            ]
            for cell, row in differences
        ]
        heads = ["run", "minus", *(table.headings[number] for number in compared)]
        parts.append(f"## Differences\n\n{markdown_table(heads, rows, texts=2)}")
    if table.gains:
        parts.append(f"## What was gained\n\n{escape_markdown(table.gains[0])}\n\n{_bullets(table.gains[1:])}")
    if table.details:
        parts.append(f"## Details\n\n{_bullets(table.details)}")
    return "\n\n".join(parts)


def _bullets(notes: Sequence[str]) -> str:
    return "\n".join(f"- {escape_markdown(note)}" for note in notes)


def markdown_table(heads: Sequence[str], rows: Sequence[Sequence[str]], texts: int = 1) -> str:
    """A Markdown table whose first columns (`texts`) are plain text and whose others are numbers, in Markdown."""
    lines = [
        heads,
        ["---"] * texts + ["---:"] * (len(heads) - texts),
        *([*map(escape_markdown, row[:texts]), *(field.replace("|", "\\|") for field in row[texts:])] for row in rows),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _in_markdown(entry: Entry | None) -> str:
    if entry is None:
        return "-"
    value = f"**{entry.value}**" if entry.best else entry.value
    return f"{value} {entry.margin}".rstrip()


def _difference_in_markdown(difference: Difference | None, column: Metric) -> str:
    if difference is None:
        return "-"
    value, *ends = difference.interval.text(column.decimals, "+").split(" ", 1)
    text = " ".join([f"{value}{_escape_stars(difference.marks)}", *ends])
    return text if math.isnan(difference.corrected) else f"{text} p {format_p(difference.corrected)}"


def format_p(p: float) -> str:
    """`= 0.012`, or `< 0.001`."""
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"


def format_difference(difference: Interval, decimals: int, p: float) -> str:
    """`+0.12 [+0.01, +0.23] p = 0.031`; without interval and p where there are none."""
    return difference.text(decimals, "+") + ("" if math.isnan(p) else f" p {format_p(p)}")


def _escape_stars(text: str) -> str:
    return text.replace("*", "\\*")


# --- terminal


def print_table(table: Table, console: Console, name: str = "comparison") -> None:
    """The table on a terminal, with its name. Metrics that do not fit side by side go into further tables below."""
    names = [*(f"  {table.label(cell)}" for cell, _ in table.rows), *table.by_model()]
    first = min(max(map(len, names)), max(24, console.width // 3))
    widths = [
        max(map(len, [heading, *(line for _, row in table.rows for line in _lines(row[number]))]))
        for number, heading in enumerate(table.headings)
    ]
    parts = list(_split_columns(widths, console.width - (first + 3) - (5 + 3) - 1))
    for number, part in enumerate(parts, 1):
        title = name if len(parts) == 1 else f"{name}, part {number} of {len(parts)}"
        console.print(_terminal_table(table, part, title, first))
    console.print("- seeds: runs of a row, alike but for their seed", highlight=False, style="dim")
    for column, heading in zip(table.columns, table.headings, strict=True):
        console.print(f"- {heading}: {column.gist}", highlight=False, markup=False, style="dim")
    for note in table.notes:
        console.print(f"- {show_controls(note)}", highlight=False, markup=False, style="dim")
    if table.details:
        console.print("- How intervals, tests and verdicts came about: comparison.md", highlight=False, style="dim")


def print_gains(table: Table, console: Console) -> None:
    """The sentences on what was gained, the last words of a comparison."""
    for number, sentence in enumerate(table.gains):
        console.print(f"{'- ' if number else ''}{show_controls(sentence)}", highlight=False, markup=False)


def _split_columns(widths: Sequence[int], room: int) -> Iterator[slice]:
    """Runs of columns that fit into the room, each with its 3 characters of border."""
    start, width_of_part = 0, 0
    for number, width in enumerate(widths):
        if number > start and width_of_part + width + 3 > room:
            yield slice(start, number)
            start, width_of_part = number, 0
        width_of_part += width + 3
    yield slice(start, len(widths))


def _lines(entry: Entry | None) -> tuple[str, ...]:
    """The lines of an entry, without markup."""
    if entry is None:
        return ("-",)
    return f"{entry.value} {_narrow(entry.margin)}".rstrip(), entry.difference + entry.marks


def _narrow(margin: str) -> str:
    return margin.replace("\u00b1 ", "\u00b1")


def _terminal_table(table: Table, part: slice, title: str, first: int) -> RichTable:
    drawn = RichTable(title=title)
    drawn.add_column("run", overflow="fold", width=first)
    drawn.add_column("seeds", justify="right", no_wrap=True)
    for heading in table.headings[part]:
        drawn.add_column(heading, justify="right", no_wrap=True)
    for model, rows in table.by_model().items():
        drawn.add_section()
        drawn.add_row(f"[italic]{escape(model)}[/]")
        for cell, entries in rows:
            texts = [_in_terminal(entry) for entry in entries[part]]
            drawn.add_row(f"  {escape(table.label(cell))}", str(len(cell.runs)), *texts)
    return drawn


def _in_terminal(entry: Entry | None) -> str:
    if entry is None:
        return "-"
    value = f"[bold]{entry.value}[/]" if entry.best else entry.value
    margin = f" [dim]{escape(_narrow(entry.margin))}[/]" if entry.margin else ""
    return f"{value}{margin}" + (f"\n{entry.difference}{entry.marks}" if entry.difference else "")


# --- LaTeX

_SIDE_BY_SIDE = 5  # metrics of a tabular


def format_latex(table: Table, caption: str, label: str = "tab:comparison") -> str:
    """The table in LaTeX; needs the package booktabs. Metrics that do not fit side by side go into further tabulars."""
    tabulars = [
        _tabular(table, slice(start, start + _SIDE_BY_SIDE)) for start in range(0, len(table.columns), _SIDE_BY_SIDE)
    ]
    notes = " ".join(escape_latex(note) for note in table.notes)
    lines = [
        "% needs \\usepackage{booktabs}",
        "\\begin{table}[t]",
        "\\centering",
        f"\\caption{{{escape_latex(caption)}}}",
        f"\\label{{{label}}}",
        "\n\\par\\medskip\n".join(tabulars),
        "\\par\\smallskip",
        f"\\begin{{minipage}}{{\\linewidth}}\\footnotesize {notes}\\end{{minipage}}",
        "\\end{table}",
    ]
    return "\n".join(lines)


def _tabular(table: Table, part: slice) -> str:
    heads = ["", "seeds", *map(escape_latex, table.headings[part])]
    lines = [f"\\begin{{tabular}}{{lr{'r' * (len(heads) - 2)}}}", "\\toprule", " & ".join(heads) + " \\\\"]
    for model, rows in table.by_model().items():
        lines += ["\\midrule", f"\\multicolumn{{{len(heads)}}}{{l}}{{\\textit{{{escape_latex(model)}}}}} \\\\"]
        for cell, entries in rows:
            shown = entries[part]
            fields = [f"\\quad {escape_latex(table.label(cell))}", str(len(cell.runs)), *map(_in_latex, shown)]
            lines.append(" & ".join(fields) + " \\\\")
            if any(entry and entry.difference for entry in shown):
                lines.append(" & ".join(["", "", *map(_difference_in_latex, shown)]) + " \\\\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}"])


def _in_latex(entry: Entry | None) -> str:
    if entry is None:
        return "--"
    value = escape_latex(entry.value)
    value = f"\\textbf{{{value}}}" if entry.best else value.replace("-", "$-$")
    margin = escape_latex(entry.margin).replace("\\pm$ ", "\\pm$").replace("-", "$-$")
    return f"{value} {{\\scriptsize{margin}}}" if margin else value


def _difference_in_latex(entry: Entry | None) -> str:
    if entry is None or not entry.difference:
        return ""
    marks = f"^{{{entry.marks}}}" if entry.marks else ""
    return f"{{\\scriptsize${entry.difference}{marks}$}}"


_TEX: Mapping[str, str] = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": "$<$", ">": "$>$", "\u00b1": r"$\pm$", "\u2020": r"$^\dagger$",
    "\u2021": r"$^\ddagger$", "\u2191": r"$\uparrow$", "\u2193": r"$\downarrow$",
    **{mark: f"\\{mark}" for mark in "&%$#_"},
}  # fmt: skip


def escape_latex(text: str) -> str:
    """Plain text as LaTeX."""
    return re.sub("|".join(map(re.escape, _TEX)), lambda match: _TEX[match[0]], text)
