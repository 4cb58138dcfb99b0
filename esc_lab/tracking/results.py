"""What a finished run shows in W&B: its metrics as the summary, tables, charts, pictures and pages.

Everything is read from the files of the run directory, so a result that was reused shows what a computed one does.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esc_lab.config import Config
from esc_lab.tracking.artifacts import log_artifacts
from esc_lab.tracking.run import lenient

if TYPE_CHECKING:
    from wandb import Run

_REPLIES = 100  # rows of the table of replies
_PAGES = 3  # of search trees
_PAGE_BYTES = 10_000_000
_SRA = ("log_sra", "sham_net")  # means that have a curve over the depth


def log_results(run: Run, cfg: Config) -> None:
    """Log what the run directory holds. What W&B does not take is told, and the rest is logged."""
    directory = Path(cfg.run_dir)
    for found in (_replies, _strategies, _attention, _slopes, _comparison, _judgements, _media):
        with lenient(f"{found.__name__.strip('_')}: not logged"):
            shown = dict(found(directory))
            if shown:
                run.log(shown)
    with lenient("the metrics are not logged"):
        metrics = json.loads((directory / "metrics.json").read_text(encoding="utf-8"))
        # W&B has no place for what is not a number.
        run.summary.update({name: value for name, value in metrics.items() if math.isfinite(value)})
    with lenient("the artifacts are not logged"):
        log_artifacts(run, cfg)


def _replies(directory: Path) -> Iterator[tuple[str, Any]]:
    """The first replies of an evaluation, each with what was asked for and what was found in it."""
    path = directory / "predictions.jsonl"
    if not path.exists():
        return
    columns = ["dialogue", "turn", "problem", "gold", "gold_reply", "prompted", "strategy", "judged", "reply"]
    with path.open(encoding="utf-8") as file:
        found = islice((line for line in map(json.loads, file) if line.get("reply") is not None), _REPLIES)
        rows = [
            [one["dialogue"], one["turn"], one["problem"], ", ".join(one["gold"]), one["gold_reply"],
             one["prompted"] or "", one["strategy"] or "(none)", one["judged"] or "", one["reply"]]
            for one in found
        ]  # fmt: skip
    if rows:
        yield "replies", _table(columns, rows)


def _strategies(directory: Path) -> Iterator[tuple[str, Any]]:
    """Strategies of an evaluation (by measure of choice) or of a classifier: tables, bars, confusion matrices."""
    import wandb

    found = _json(directory / "strategies.json")
    groups = found if isinstance(found, dict) else {"classifier": {"per_strategy": found}} if found else {}
    for group, tables in groups.items():
        rows = tables["per_strategy"]
        table = _table(list(rows[0]), [list(row.values()) for row in rows])
        yield f"{group}/strategies", table
        for key, title in (("preference", "Preference"), ("f1", "F1")):
            if key in rows[0]:
                bars = _table(["strategy", key], [[row["strategy"], row[key]] for row in rows])
                title = f"{title} of each strategy ({group})"
                yield f"{group}/{key}_by_strategy", wandb.plot.bar(bars, "strategy", key, title=title)
        if "confusion" in tables:
            yield f"{group}/confusion", _confusion(tables["confusion"], f"Confusion of strategies ({group})")


def _confusion(found: dict[str, Any], title: str) -> Any:
    """A confusion matrix from counts [predicted, gold]; the last row is of predictions that name no strategy."""
    import wandb

    classes = found["classes"]
    names = [*classes, "(none)"]
    rows = [
        [gold, names[number], int(counts[position])]
        for number, counts in enumerate(found["predicted_by_gold"])
        for position, gold in enumerate(classes)
    ]
    return wandb.plot_table(
        vega_spec_name="wandb/confusion_matrix/v1",
        data_table=_table(["Actual", "Predicted", "nPredictions"], rows),
        fields={"Actual": "Actual", "Predicted": "Predicted", "nPredictions": "nPredictions"},
        string_fields={"title": title},
    )


def _attention(directory: Path) -> Iterator[tuple[str, Any]]:
    """Strategy-Relevant Attention over the depth, and of each strategy."""
    import wandb

    found = _json(directory / "sra.json")
    if not found:
        return
    by_depth = sorted((int(depth), means) for depth, means in found["by"]["depth"].items())
    depths = [depth for depth, _ in by_depth]
    for key in _SRA:
        title = f"{key} by turns before the reply ({found['measure']})"
        values = [_finite(means[key]) for _, means in by_depth]
        yield f"sra/{key}_by_depth", wandb.plot.line_series([depths], [values], [key], title=title, xname="depth")
    rows = [[name, *(_finite(means[key]) for key in (*_SRA, "n"))] for name, means in found["by"]["strategy"].items()]
    bars = _table(["strategy", *_SRA, "n"], rows)
    title = f"{_SRA[0]} by strategy ({found['measure']})"
    yield "sra/by_strategy", wandb.plot.bar(bars, "strategy", _SRA[0], title=title)


def _slopes(directory: Path) -> Iterator[tuple[str, Any]]:
    """What trainings learned of planted preferences: a row for each training."""
    found = _json(directory / "slopes.json")
    if found:
        columns = [name for name in found[0] if name != "strategies"]
        yield "slopes", _table(columns, [[row[name] for name in columns] for row in found])


def _comparison(directory: Path) -> Iterator[tuple[str, Any]]:
    """The comparison's table: a row for each model and method."""
    path = directory / "comparison.csv"
    if not path.exists():
        return
    with path.open(encoding="utf-8", newline="") as file:
        columns, *rows = csv.reader(file)
    yield "comparison", _table(columns, [[_number(cell) for cell in row] for row in rows])


def _judgements(directory: Path) -> Iterator[tuple[str, Any]]:
    """The first judgements of an LLM judge."""
    path = directory / "judgements.jsonl"
    if not path.exists():
        return
    with path.open(encoding="utf-8") as file:
        lines = [json.loads(line) for line in islice(file, _REPLIES)]
    columns = list(dict.fromkeys(name for line in lines for name in line))
    if lines:
        yield "judgements", _table(columns, [[_plain(line.get(name)) for name in columns] for line in lines])


def _media(directory: Path) -> Iterator[tuple[str, Any]]:
    """Figures and pages of the run itself, the first search trees among them; tables that it wrote in Markdown."""
    import wandb

    for path in sorted([*directory.glob("*.png"), *directory.glob("figures/*.png")]):
        yield f"figures/{path.stem}", wandb.Image(str(path))
    pages = {path.stem: path for path in sorted(directory.glob("*.html"))}
    trees = sorted(directory.glob("trees/*.html"))[:_PAGES]
    pages |= {f"tree_{number}": path for number, path in enumerate(trees, start=1)}
    for name, path in pages.items():
        if path.stat().st_size <= _PAGE_BYTES:
            yield f"pages/{name}", wandb.Html(path.read_text(encoding="utf-8"), inject=False)
    for path in sorted(directory.glob("*.md")):
        yield f"tables/{path.stem}", wandb.Html(f"<pre>{_escaped(path.read_text(encoding='utf-8'))}</pre>")


def _table(columns: list[str], rows: list[list[Any]]) -> Any:
    import wandb

    return wandb.Table(columns=[*columns], data=rows, allow_mixed_types=True)


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _number(cell: str) -> float | str | None:
    try:
        return _finite(float(cell))
    except ValueError:
        return cell or None


def _plain(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")
