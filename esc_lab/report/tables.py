"""Tables for the terminal, Markdown and CSV."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from yaml import YAMLError  # type: ignore[import-untyped]

from esc_lab.artifacts import write_atomic
from esc_lab.config import training_run
from esc_lab.errors import UserError

# Columns of the comparison: metric, heading, decimals, and whether more is better (None = neither).
COLUMNS: tuple[tuple[str, str, int, bool | None], ...] = (
    ("strategy/Q", "Q", 3, True),
    ("strategy/Q_W", "Q_W", 3, True),
    ("strategy/B", "B", 3, False),
    ("strategy/accuracy", "acc", 3, True),
    ("strategy/classes_predicted", "classes", 0, None),
    ("strategy/n", "n", 0, None),
    ("generated/Q", "Q gen", 3, True),
    ("generated/unparsable", "unpars.", 3, False),
    ("generated/agreement", "agree", 3, None),
    ("text/rouge_l", "ROUGE-L", 3, True),
    ("text/bleu_2", "BLEU-2", 3, True),
    ("text/distinct_2", "dist-2", 3, None),
    ("text/perplexity", "ppl", 2, False),
    ("sra/log_sra", "log SRA", 2, None),
    ("sra/sham_net", "net SRA", 2, None),
    ("adherence/accuracy", "adher.", 3, True),
    ("preference/accuracy", "pref.", 3, True),
    ("preference/reward_accuracy", "reward", 3, True),
    ("val/loss", "val loss", 4, False),
)


# How replies were drawn, in metrics.json under generation/.
SAMPLING = ("temperature", "top_p", "max_new_tokens", "samples")


@dataclass(frozen=True)
class Run:
    """Name and metrics of a finished run."""

    name: str
    metrics: dict[str, float]


def read_run(directory: Path) -> Run:
    """A run from its directory. Its name is the model's, with the method and the prompt layout.

    Raises:
        UserError: the directory holds no finished run, or one without metrics that are compared.
    """
    fix = "name run directories of stage=evaluate or of a training stage"
    try:
        metrics = json.loads((directory / "metrics.json").read_text(encoding="utf-8"))
        name = _name(directory)
    except (OSError, ValueError, YAMLError, OmegaConfBaseException) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"no finished run: {reason}", where=str(directory), fix=fix) from error
    if not isinstance(metrics, dict) or not any(key in metrics for key, *_ in COLUMNS):
        raise UserError("none of its metrics can be compared", where=str(directory), fix=fix)
    return Run(name, metrics)


def _name(directory: Path) -> str:
    config = OmegaConf.load(directory / "config.yaml")
    if config.stage != "evaluate":
        return f"{config.model.name} {str(config.stage).upper()} training ({config.prompt.train.template})"
    method = _method(Path(config.checkpoint)) if config.checkpoint else "base"
    extra = "" if config.prompt.inference == "direct" else f" {config.prompt.inference}"
    return f"{config.model.name} {method}{extra} ({config.prompt.eval.template})"


def _method(checkpoint: Path) -> str:
    """The stage that trained a checkpoint."""
    trained = training_run(checkpoint)
    return str(trained[1].stage).upper() if trained else checkpoint.name


def compare_runs(runs: Sequence[Run]) -> dict[str, dict[str, float]]:
    """Metrics by run name; equal names are numbered."""
    table: dict[str, dict[str, float]] = {}
    for run in runs:
        name = run.name
        number = 2
        while name in table:
            name, number = f"{run.name} #{number}", number + 1
        table[name] = run.metrics
    return table


def write_comparison(table: Mapping[str, Mapping[str, float]], directory: Path) -> None:
    """comparison.md and comparison.csv in the directory, and the same table on the terminal."""
    columns = [column for column in COLUMNS if any(column[0] in row for row in table.values())]
    cells = {name: [_cell(row.get(key), decimals) for key, _, decimals, _ in columns] for name, row in table.items()}
    best = _best(table, columns)
    terminal = Table(title="comparison", caption="bold: best of the column; Q, Q_W, B from exact label probabilities")
    terminal.add_column("run", overflow="fold")
    for _, heading, _, _ in columns:
        terminal.add_column(heading, justify="right", no_wrap=True)
    lines = [["run", *(heading for _, heading, _, _ in columns)], ["---", *("---:" for _ in columns)]]
    for name, values in cells.items():
        marked = [f"**{v}**" if (name, i) in best else v for i, v in enumerate(values)]
        lines.append([name.replace("|", "\\|"), *marked])
        terminal.add_row(escape(name), *(f"[bold]{v}[/]" if (name, i) in best else v for i, v in enumerate(values)))
    write_atomic(directory / "comparison.md", "\n".join(f"| {' | '.join(line)} |" for line in lines))
    write_atomic(directory / "comparison.csv", _csv(table))
    console().print(terminal)


def _best(
    table: Mapping[str, Mapping[str, float]], columns: Sequence[tuple[str, str, int, bool | None]]
) -> set[tuple[str, int]]:
    best = set()
    for index, (key, _, decimals, more) in enumerate(columns):
        values = {n: round(row[key], decimals) for n, row in table.items() if not math.isnan(row.get(key, math.nan))}
        if more is None or len(set(values.values())) < 2:
            continue
        top = max(values.values()) if more else min(values.values())
        best |= {(name, index) for name, value in values.items() if value == top}
    return best


def _csv(table: Mapping[str, Mapping[str, float]]) -> str:
    """All metrics, not only those of the printed columns: a row for each run."""
    names = sorted({metric for row in table.values() for metric in row})
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["run", *names])
    for run, row in table.items():
        writer.writerow([run, *(row.get(name, "") for name in names)])
    return buffer.getvalue()


def _cell(value: float | None, decimals: int) -> str:
    return "-" if value is None else f"{value:.{decimals}f}"


def print_strategies(
    title: str, rows: Sequence[Mapping[str, float | str]], metrics: Mapping[str, float], group: str
) -> None:
    """Per-strategy precision, recall, F1 and preference, with n, classes predicted and the guard in the caption."""
    guard = "guard acted" if metrics[f"{group}/B_guard"] else "no guard"
    caption = (
        f"Q {metrics[f'{group}/Q']:.3f}  Q_W {metrics[f'{group}/Q_W']:.3f}  B {metrics[f'{group}/B']:.3f} ({guard})  "
        f"n {metrics[f'{group}/n']:.0f}  classes predicted {metrics[f'{group}/classes_predicted']:.0f}  "
        f"unparsable {metrics[f'{group}/unparsable']:.1%}"
    )
    if group == "generated":
        caption += "\n" + "  ".join(f"{name} {metrics[f'generation/{name}']:g}" for name in SAMPLING)
    table = Table(title=escape(title), caption=caption)
    table.add_column("strategy")
    for heading in ("precision", "recall", "F1", "gold", "predicted", "preference"):
        table.add_column(heading, justify="right")
    for row in rows:
        scores = [f"{row[key]:.3f}" for key in ("precision", "recall", "f1")]
        counts = [f"{row[key]:.0f}" for key in ("support", "predicted")]
        table.add_row(str(row["strategy"]), *scores, *counts, f"{row['preference']:.2f}")
    console().print(table)


def console() -> Console:
    """Standard output; as wide as a table needs where it is not a terminal, so that logs are not cut."""
    found = Console()
    return found if found.is_terminal else Console(width=160)
