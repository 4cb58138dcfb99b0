"""The paper's table in LaTeX."""

from __future__ import annotations

import re
from collections.abc import Mapping

from esc_lab.comparison.table import Entry, Table

_SIDE_BY_SIDE = 5  # metrics


def latex(table: Table, caption: str) -> str:
    """The table in LaTeX; needs the package booktabs. Metrics that do not fit side by side go into further tabulars."""
    tabulars = [
        _tabular(table, slice(start, start + _SIDE_BY_SIDE)) for start in range(0, len(table.columns), _SIDE_BY_SIDE)
    ]
    notes = " ".join(tex(note) for note in table.notes)
    lines = [
        "% needs \\usepackage{booktabs}",
        "\\begin{table}[t]",
        "\\centering",
        f"\\caption{{{tex(caption)}}}",
        "\\label{tab:comparison}",
        "\n\\par\\medskip\n".join(tabulars),
        "\\par\\smallskip",
        f"\\begin{{minipage}}{{\\linewidth}}\\footnotesize {notes}\\end{{minipage}}",
        "\\end{table}",
    ]
    return "\n".join(lines)


def _tabular(table: Table, part: slice) -> str:
    columns = table.columns[part]
    arrows = {True: " $\\uparrow$", False: " $\\downarrow$", None: ""}
    heads = ["", "seeds", *(tex(column.heading) + arrows[column.higher_is_better] for column in columns)]
    lines = [f"\\begin{{tabular}}{{lr{'r' * len(columns)}}}", "\\toprule", " & ".join(heads) + " \\\\"]
    for model, rows in table.by_model().items():
        lines += ["\\midrule", f"\\multicolumn{{{len(heads)}}}{{l}}{{\\textit{{{tex(model)}}}}} \\\\"]
        for cell, entries in rows:
            shown = entries[part]
            lines.append(" & ".join([f"\\quad {tex(table.label(cell))}", str(len(cell.runs)), *map(_in_latex, shown)]))
            lines[-1] += " \\\\"
            if any(entry and entry.difference for entry in shown):
                lines.append(" & ".join(["", "", *map(_difference_in_latex, shown)]) + " \\\\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}"])


def _in_latex(entry: Entry | None) -> str:
    if entry is None:
        return "--"
    value = f"\\textbf{{{entry.value}}}" if entry.best else entry.value.replace("-", "$-$")
    return f"{value} {{\\scriptsize$\\pm${entry.margin}}}" if entry.margin else value


def _difference_in_latex(entry: Entry | None) -> str:
    if entry is None or not entry.difference:
        return ""
    marks = f"^{{{entry.marks}}}" if entry.marks else ""
    return f"{{\\scriptsize${entry.difference}{marks}$}}"


_TEX: Mapping[str, str] = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": "$<$", ">": "$>$", "\u00b1": r"$\pm$", "\u2191": r"$\uparrow$", "\u2193": r"$\downarrow$",
    **{mark: f"\\{mark}" for mark in "&%$#_"},
}  # fmt: skip


def tex(text: str) -> str:
    """Plain text as LaTeX."""
    return re.sub("|".join(map(re.escape, _TEX)), lambda found: _TEX[found[0]], text)
