"""What a model card says of the newest evaluation of the weights, or that there is none."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from esc_lab.artifacts import READ_ERRORS
from esc_lab.comparison.formats import markdown_table
from esc_lab.metrics.records import METRICS
from esc_lab.runs.layout import CONFIG, DIALOGUES, Settings, find_run, read_config
from esc_lab.runs.layout import METRICS as METRICS_FILE
from esc_lab.training.model_card import find_source

_NONE = "## Evaluation\n\nNo evaluation of these weights lies beside the run that trained them."


class _Evaluation(NamedTuple):
    run: Path
    config: Settings
    metrics: Mapping[str, float]


def describe_evaluation(training: Path) -> str:
    """The section of a model card: the metrics that a comparison shows, beside those of the base model where the same
    pipeline evaluated that on the same dialogues.

    Args:
        training: the run that trained the model. Its evaluations are looked for among the steps of its pipeline, and
            among the runs of `stage=evaluate` beside it.
    """
    found = [each for run in _list_evaluations(training) if (each := _read(run)) and _is_of(each, training)]
    if not found:
        return _NONE
    own = max(found, key=lambda each: (each.run / METRICS_FILE).stat().st_mtime_ns)
    base = _find_base(own)
    runs = {"value": own, **({"base model": base} if base else {})}
    shown = [metric for metric in METRICS.values() if metric.shown and metric.name in own.metrics]
    heads = ["measure", "what it is", *runs]
    rows = [
        [
            f"{metric.heading} {metric.arrow}".strip(),
            metric.gist,
            *(_format(each.metrics.get(metric.name), metric.decimals) for each in runs.values()),
        ]
        for metric in shown
    ]
    source, _ = find_source(own.config["data"], own.run)
    decisions, dialogues = own.metrics.get("decisions", 0), len(_dialogues(own).splitlines())
    told = (
        f"On {decisions:,.0f} supporter turns of {dialogues:,} dialogues ({own.config['evaluate']['split']}) of "
        f"{source}, prompts of the `{own.config['prompt']['eval']['template']}` layout. One training, without "
        "intervals: `stage=compare` has these."
    )
    return f"## Evaluation\n\n{told}\n\n{markdown_table(heads, rows, texts=2)}"


def _list_evaluations(training: Path) -> list[Path]:
    beside = training.absolute().parent
    return [path.parent for root in (beside, beside.parent / "evaluate") for path in root.glob(f"*/{METRICS_FILE}")]


def _read(run: Path) -> _Evaluation | None:
    """A finished evaluation; None if it is another run, or broken."""
    try:
        if "stage: evaluate\n" not in (run / CONFIG).read_text(encoding="utf-8"):
            return None
        metrics = json.loads((run / METRICS_FILE).read_text(encoding="utf-8"))
        return _Evaluation(run, read_config(run), {str(name): float(value) for name, value in metrics.items()})
    except READ_ERRORS:
        return None


def _is_of(evaluation: _Evaluation, training: Path) -> bool:
    checkpoint = evaluation.config.get("checkpoint")
    run = find_run(Path(checkpoint), evaluation.run) if checkpoint else None
    return run is not None and run.resolve() == training.resolve()


def _find_base(own: _Evaluation) -> _Evaluation | None:
    base = _read(own.run.parent / "evaluate_base")
    same = base and not base.config.get("checkpoint") and _dialogues(base) == _dialogues(own)
    return base if same else None


def _dialogues(evaluation: _Evaluation) -> bytes:
    path = evaluation.run / DIALOGUES
    return path.read_bytes() if path.exists() else b""


def _format(value: float | None, decimals: int) -> str:
    return "-" if value is None else f"{value:,.{decimals}f}"
