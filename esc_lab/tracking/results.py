"""What a finished run shows in W&B: its metrics as the summary, tables, charts, pictures and pages.

Everything is read from the files of the run directory, so a result that was reused shows what a computed one does.
"""

from __future__ import annotations

import csv
import html
import json
import math
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from esc_lab.config import Config
from esc_lab.metrics.predictions import read_predictions
from esc_lab.runs import layout
from esc_lab.tracking.artifacts import log_artifacts
from esc_lab.tracking.links import LINK_COLUMNS, list_links
from esc_lab.tracking.run import warn_on_failure

if TYPE_CHECKING:
    from wandb import Run

_ROWS = 100  # of a table of replies or judgements
_PAGES = 3  # of search trees
_PAGE_BYTES = 10_000_000
_REPLY_COLUMNS = (
    "dialogue", "turn", "problem", "gold", "gold_reply", "prompted", "strategy", "judged", "cut_off", "reply",
)  # fmt: skip
_SRA = ("log_sra", "sham_net")  # means that have a curve over the depth

Charts = Iterator[tuple[str, Any]]  # name in W&B -> table, chart or page


def log_results(run: Run, cfg: Config) -> None:
    """Log what the run directory holds. What W&B does not take is a warning, and the rest is logged.

    Of a result that was reused the run says whose it is, and has the curves of its training too.
    """
    directory = Path(cfg.run_dir)
    with warn_on_failure("curves of the run that was reused are not logged"):
        _tell_reuse(run, directory)
    for charts in (_replies, _strategies, _attention, _adherence, _margins, _intensity, _tables, _media):
        with warn_on_failure(f"{charts.__name__.strip('_')}: not logged"):
            found = dict(charts(directory))
            if found:
                run.log(found)
    with warn_on_failure("links to the runs are not logged"):
        links = list_links(cfg, run.settings.app_url, run.entity or None)
        if links:
            run.log({"runs": _table(LINK_COLUMNS, links)})
    with warn_on_failure("the metrics are not logged"):
        metrics = json.loads((directory / layout.METRICS).read_text(encoding="utf-8"))
        # W&B has no place for what is not a number.
        run.summary.update({name: value for name, value in metrics.items() if math.isfinite(value)})
    with warn_on_failure("the artifacts are not logged"):
        log_artifacts(run, cfg)


def _tell_reuse(run: Run, directory: Path) -> None:
    reused = _read_json(directory / layout.REUSED)
    if not reused:
        return
    config: Any = run.config
    config.update({f"reused/{name}": value for name, value in reused.items()})
    for row in _read_rows(directory / layout.CURVES):
        point = {name: value for name, value in row.items() if name != "step" and value is not None}
        run.log({"trainer/global_step": row["step"], **point})


def _replies(directory: Path) -> Charts:
    """The first replies of an evaluation, each with what was asked for and what was found in it."""
    path = directory / layout.PREDICTIONS
    written = (p for p in read_predictions(path) if p.reply is not None) if path.exists() else ()
    rows = []
    for prediction in islice(written, _ROWS):
        shown = {name: getattr(prediction, name) for name in _REPLY_COLUMNS}
        shown |= {"gold": ", ".join(prediction.gold), "strategy": prediction.strategy or "(none)"}
        rows.append(["" if value is None else value for value in shown.values()])
    if rows:
        yield "replies", _table(_REPLY_COLUMNS, rows)


def _strategies(directory: Path) -> Charts:
    """Strategies of an evaluation (by measure of choice) or of a classifier: tables, bars, confusion matrices."""
    import wandb

    content = _read_json(directory / layout.STRATEGIES)
    of_classifier = {"classifier": {"per_strategy": content}} if content else {}
    for group, tables in (content if isinstance(content, dict) else of_classifier).items():
        rows = tables["per_strategy"]
        yield f"{group}/strategies", _table(list(rows[0]), [list(row.values()) for row in rows])
        for key, title in (("preference", "Preference"), ("f1", "F1")):
            if key in rows[0]:
                bars = _table(["strategy", key], [[row["strategy"], row[key]] for row in rows])
                title = f"{title} of each strategy ({group})"
                yield f"{group}/{key}_by_strategy", wandb.plot.bar(bars, "strategy", key, title=title)
        if "confusion" in tables:
            yield f"{group}/confusion", _confusion(tables["confusion"], f"Confusion of strategies ({group})")


def _confusion(matrix: dict[str, Any], title: str) -> Any:
    """A confusion matrix from counts [predicted, gold]; the last row is of predictions that name no strategy."""
    import wandb

    classes = matrix["classes"]
    rows = [
        [gold, predicted, int(count)]
        for predicted, counts in zip([*classes, "(none)"], matrix["predicted_by_gold"], strict=False)
        for gold, count in zip(classes, counts, strict=True)
    ]
    columns = ["Actual", "Predicted", "nPredictions"]
    return wandb.plot_table(
        vega_spec_name="wandb/confusion_matrix/v1",
        data_table=_table(columns, rows),
        fields={name: name for name in columns},
        string_fields={"title": title},
    )


def _attention(directory: Path) -> Charts:
    """Strategy-Relevant Attention over the depth, and of each strategy."""
    import wandb

    content = _read_json(directory / layout.ATTENTION)
    if not content:
        return
    by_depth = sorted((int(depth), means) for depth, means in content["by"]["depth"].items())
    depths = [depth for depth, _ in by_depth]
    for key in _SRA:
        title = f"{key} by turns before the reply ({content['measure']})"
        values = [_finite(means[key]) for _, means in by_depth]
        yield f"sra/{key}_by_depth", wandb.plot.line_series([depths], [values], [key], title=title, xname="depth")
    columns = (*_SRA, "n")
    rows = [[name, *(_finite(means[key]) for key in columns)] for name, means in content["by"]["strategy"].items()]
    title = f"{_SRA[0]} by strategy ({content['measure']})"
    yield "sra/by_strategy", wandb.plot.bar(_table(["strategy", *columns], rows), "strategy", _SRA[0], title=title)


def _adherence(directory: Path) -> Charts:
    """Whether replies follow their strategies, over the depth; attention on the strategy where they do and do not."""
    import wandb

    path = directory / layout.PREDICTIONS
    judged = [p for p in read_predictions(path) if p.adheres is not None] if path.exists() else []
    if not judged:
        return
    by_depth: dict[int, list[float]] = {}
    for prediction in judged:
        by_depth.setdefault(prediction.turn, []).append(float(prediction.adheres or 0))
    depths, shares = sorted(by_depth), [fmean(by_depth[depth]) for depth in sorted(by_depth)]
    title = "Share of replies that follow their strategy, by turns before the reply"
    yield "adherence/by_depth", wandb.plot.line_series([depths], [shares], ["adherence"], title=title, xname="depth")
    measure = (_read_json(directory / layout.ATTENTION) or {}).get("measure")
    rows = []
    for name, adheres in (("follows its strategy", True), ("does not", False)):
        spans = [p.sra[measure]["sra"] for p in judged if p.adheres is adheres and p.sra and measure in p.sra]
        if logs := [math.log(value) for value in spans if value > 0]:
            rows.append([name, fmean(logs), len(logs)])
    if rows:
        title = f"{_SRA[0]} of replies by whether they follow their strategy ({measure})"
        bars = _table(["reply", _SRA[0], "n"], rows)
        yield "sra/by_adherence", wandb.plot.bar(bars, "reply", _SRA[0], title=title)


def _margins(directory: Path) -> Charts:
    """By how much a held-out pair's preferred reply is the more probable one, and by how much training raised that."""
    import wandb

    pairs = [*_read_rows(directory / layout.PAIRS)]
    titles = {
        "log_probs": "Log-probability of the preferred reply less that of the rejected one",
        "rewards": "Reward of the preferred reply less that of the rejected one",
    }
    for key, title in titles.items():
        margins = [[chosen - rejected] for chosen, rejected in (pair[key] for pair in pairs if pair[key])]
        if margins:
            yield f"preference/{key}", wandb.plot.histogram(_table(["margin"], margins), "margin", title=title)


def _intensity(directory: Path) -> Charts:
    """Mean intensity of the seekers' emotion over the turns of talks."""
    import wandb

    path = directory / layout.TALK_MEASURES
    rows = (_read_json(path) or {}).get("intensity", [])
    if rows:
        turns, means = [row[0] for row in rows], [row[1] for row in rows]
        title = "Intensity of the emotion after each turn of the supporter"
        yield "talks/intensity", wandb.plot.line_series([turns], [means], ["intensity"], title=title, xname="turn")


def _tables(directory: Path) -> Charts:
    """Planted preferences (a row for each training), the first judgements, the comparison (a row for each cell)."""
    files = {"slopes": layout.SLOPES, "judgements": layout.JUDGEMENTS, "comparison": layout.COMPARISON_CSV}
    for name, file in files.items():
        rows = list(islice(_read_rows(directory / file), _ROWS if file == layout.JUDGEMENTS else None))
        columns = list(dict.fromkeys(column for row in rows for column in row))
        if rows:
            yield name, _table(columns, [[_plain(row.get(column)) for column in columns] for row in rows])


def _media(directory: Path) -> Charts:
    """Figures and pages of the run itself, the first search trees among them; tables that it wrote in Markdown."""
    import wandb

    for path in sorted([*directory.glob("*.png"), *directory.glob(f"{layout.FIGURES}/*.png")]):
        yield f"figures/{path.stem}", wandb.Image(str(path))
    pages = {path.stem: path for path in sorted(directory.glob("*.html"))}
    trees = sorted((directory / layout.TREES).glob("*.html"))[:_PAGES]
    pages |= {f"tree_{number}": path for number, path in enumerate(trees, start=1)}
    for name, path in pages.items():
        if path.stat().st_size <= _PAGE_BYTES:
            yield f"pages/{name}", wandb.Html(path.read_text(encoding="utf-8"), inject=False)
    for path in sorted(directory.glob("*.md")):
        text = html.escape(path.read_text(encoding="utf-8"), quote=False)
        yield f"tables/{path.stem}", wandb.Html(f"<pre>{text}</pre>")


def _table(columns: Iterable[str], rows: list[list[Any]]) -> Any:
    import wandb

    return wandb.Table(columns=[*columns], data=rows, allow_mixed_types=True)


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a list in JSON, of JSON lines or of CSV; none if there is no such file."""
    if not path.exists():
        return
    with path.open(encoding="utf-8", newline="") as file:
        if path.suffix == ".csv":
            yield from ({name: _number(cell) for name, cell in row.items()} for row in csv.DictReader(file))
        else:
            yield from json.load(file) if path.suffix == ".json" else map(json.loads, file)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _number(cell: str) -> float | str | None:
    try:
        return _finite(float(cell))
    except ValueError:
        return cell or None


def _plain(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value
