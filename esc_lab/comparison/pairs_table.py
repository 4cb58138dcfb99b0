"""Win rates that a judge gave the compared runs: rows for the page and the record."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from esc_lab.comparison.judgements import Judgements
from esc_lab.comparison.runs import Cell
from esc_lab.comparison.table import markdown_table
from esc_lab.statistics.intervals import Interval


def pairs_record(cells: Sequence[Cell], judgements: Judgements | None) -> dict[str, Any] | None:
    """The judge, and a row for each run that it compared with its baseline; None without a judge."""
    if judgements is None:
        return None
    names: dict[str, str] = {}
    rows = []
    for cell in cells:
        for run in cell.runs:
            judged = judgements.of(run)
            if judged:
                names[judged.label] = cell.name + (f", seed {run.method.seed}" if len(cell.runs) > 1 else "")
            if judged and judged.rates:
                rates = {name: vars(one) for name, one in judged.rates.items()}
                row = {"run": names[judged.label], "cell": cell.name, "seed": run.method.seed, "pairs": judged.pairs}
                rows.append({**row, **rates})
    return {
        "directory": str(judgements.directory),
        "models": list(judgements.models),
        "baseline": names.get(judgements.baseline, judgements.baseline),
        "forced": list(judgements.forced),
        "pairs": rows,
    }


def pairs_markdown(cells: Sequence[Cell], judgements: Judgements | None) -> list[str]:
    """The table under its heading; nothing without pairs."""
    record = pairs_record(cells, judgements)
    if not record or not record["pairs"]:
        return []
    heads = ["run", "pairs", "win rate", "at equal length", "consistency"]
    rows = [
        [row["run"], str(row["pairs"]), *(Interval(**row[n]).text(3) for n in ("win_rate", "length_controlled")),
         f"{row['consistency']['value']:.3f}"]
        for row in record["pairs"]
    ]  # fmt: skip
    notes = (
        f"Judge: {', '.join(record['models'])}. Both orders are asked, a mismatch is a tie and counts half; at equal "
        "length after Dubois et al. 2024; consistency: share of pairs on which both orders agree. 95 % intervals over "
        "dialogues."
    )
    table = markdown_table(heads, rows)
    return [f"## Judged in pairs against {record['baseline']}\n\n{table}\n\n{notes}"]
