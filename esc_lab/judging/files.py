"""What stage `judge` leaves: every judgement, the results with their intervals, a table, metrics."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from esc_lab.artifacts import file_fingerprint, write_atomic
from esc_lab.comparison.formats import markdown_table
from esc_lab.comparison.record import replace_nan
from esc_lab.config import Config
from esc_lab.judging.gate import Gate
from esc_lab.judging.inputs import JudgeInputs
from esc_lab.judging.pairwise import Pair, PairwiseResult, pairwise_result
from esc_lab.judging.rubric import OVERALL, RubricResult, Scores, rubric_result
from esc_lab.search.calls import Spent
from esc_lab.search.role_prompts import Axis
from esc_lab.search.roles import turn_score
from esc_lab.statistics.bootstrap import ClusterSample
from esc_lab.statistics.length_control import PRIOR
from esc_lab.terminal import console

JUDGE = "judge"


@dataclass(frozen=True)
class Judged:
    """What the judge said, and what it took.

    Attributes:
        gates: how the judges did on gold and shuffled replies.
        forced: reasons not to believe them that were overruled.
        scores: of each run's replies, by label, in the order of the decisions; empty without a rubric.
        pairs: of each run but the baseline, likewise.
        axes: of the rubric.
        settings: how the judge was asked: client, sampling, attempts.
        prompts: hash of the prompts.
        models: as the endpoint names them.
        dates: of the first and the last call.
        counts: answers that were unusable, refused or missing.
        retries: calls of an endpoint that failed in a way that may pass, by kind.
        seconds: the judging took.
    """

    gates: Sequence[Gate]
    forced: Sequence[str]
    scores: Mapping[str, Sequence[Scores | None]]
    pairs: Mapping[str, Sequence[Pair]]
    axes: Sequence[Axis]
    settings: Mapping[str, Any]
    prompts: str
    models: Sequence[str]
    dates: tuple[str, str]
    counts: Mapping[str, int]
    spent: Spent
    retries: Mapping[str, int]
    seconds: float


@dataclass(frozen=True)
class _Results:
    """By label of the run."""

    rubric: Mapping[str, RubricResult]
    pairwise: Mapping[str, PairwiseResult]


def write_judged(cfg: Config, inputs: JudgeInputs, judged: Judged) -> dict[str, float]:
    """Write everything into the run directory, and the table to the terminal; gives the metrics."""
    directory = Path(cfg.run_dir)
    sample = ClusterSample(inputs.trees, cfg.judge.draws, cfg.seed)
    results = _Results(
        {label: rubric_result(scores, judged.axes, sample) for label, scores in judged.scores.items()},
        {label: pairwise_result(pairs, sample) for label, pairs in judged.pairs.items()},
    )
    lines = [json.dumps(line, ensure_ascii=False) for line in _lines(inputs, judged)]
    write_atomic(directory / "judgements.jsonl", "\n".join(lines))
    record = {**_record(inputs, judged, results), "clusters": sample.clusters, "draws": cfg.judge.draws}
    write_atomic(directory / "judge.json", json.dumps(replace_nan(record), indent=1, allow_nan=False))
    heads, rows = _table(inputs, judged.axes, results)
    notes = _notes(cfg, inputs, judged)
    bullets = "\n".join(f"- {note}" for note in notes)
    write_atomic(directory / "judge.md", f"{markdown_table(heads, rows)}\n\n{bullets}")
    _print(heads, rows, notes)
    return _metrics(judged, results)


def _lines(inputs: JudgeInputs, judged: Judged) -> Iterator[dict[str, Any]]:
    """A line for each scored reply and each pair."""
    replies = {run.label: run.replies for run in inputs.runs}
    sampling = {name: judged.settings[name] for name in ("temperature", "top_p", "max_tokens")}
    asked = {"model": judged.settings["client"]["model"], **sampling, "seed": inputs.seed}
    for label, run_scores in judged.scores.items():
        for key, scores in zip(inputs.keys, run_scores, strict=True):
            reply = replies[label][key]
            yield {
                "kind": "rubric", "run": label, "dialogue": key[0], "tree": reply.tree, "turn": key[1],
                "scores": scores, OVERALL: None if scores is None else turn_score(dict(scores), judged.axes),
                "reply": reply.text, "strategy": reply.strategy, "reply_sampling": reply.sampling,
                "judge_sampling": asked,
            }  # fmt: skip
    for label, pairs in judged.pairs.items():
        for key, pair in zip(inputs.keys, pairs, strict=True):
            reply = replies[label][key]
            yield {
                "kind": "pairwise", "run": label, "baseline": inputs.baseline.label, "dialogue": key[0],
                "tree": reply.tree, "turn": key[1], "first": pair.first, "second": pair.second,
                "outcome": pair.outcome, "identical": pair.identical, "length_difference": pair.difference,
                "reply": reply.text, "baseline_reply": inputs.baseline.replies[key].text, "judge_sampling": asked,
            }  # fmt: skip


def _record(inputs: JudgeInputs, judged: Judged, results: _Results) -> dict[str, Any]:
    """What judge.json holds, but for the numbers of the bootstrap."""
    return {
        "judge": {**judged.settings, "models": judged.models, "prompts": judged.prompts, "dates": judged.dates},
        "axes": [asdict(axis) for axis in judged.axes],
        "gates": [{**asdict(gate), "passed": gate.passed} for gate in judged.gates],
        "forced": list(judged.forced),
        "remarks": list(inputs.remarks),
        "test_set": inputs.test_set,
        "decisions": len(inputs.keys),
        "with_replies": inputs.with_replies,
        "seed": inputs.seed,
        "baseline": inputs.baseline.label,
        "length_control": {"formula": "logistic(theta + phi * tanh(d / std(d))) at d = 0", "prior_sd_of_phi": PRIOR},
        "runs": [
            {
                "label": run.label,
                "directory": str(run.run.directory),
                "predictions": file_fingerprint(run.run.directory / "predictions.jsonl"),
                "rubric": asdict(results.rubric[run.label]) if run.label in results.rubric else None,
                "pairwise": asdict(results.pairwise[run.label]) if run.label in results.pairwise else None,
            }
            for run in inputs.runs
        ],
        "calls": asdict(judged.spent),
        "counts": dict(judged.counts),
    }


def _metrics(judged: Judged, results: _Results) -> dict[str, float]:
    spent = judged.spent
    metrics = {
        "judge/forced": bool(judged.forced), "judge/seconds": judged.seconds, "judge/calls": spent.calls,
        "judge/from_cache": spent.from_cache, "judge/prompt_tokens": spent.prompt_tokens,
        "judge/completion_tokens": spent.completion_tokens, "judge/cost": spent.cost,
    }  # fmt: skip
    metrics |= judged.counts
    metrics |= {f"judge/retries/{kind}": count for kind, count in judged.retries.items()}
    for gate in judged.gates:
        name = "auc" if gate.judge == "rubric" else "share"
        values = {name: gate.value, "low": gate.low, "high": gate.high, "contexts": gate.contexts}
        metrics |= {f"gate/{gate.judge}/{key}": value for key, value in values.items()}
    for label, rubric in results.rubric.items():
        metrics |= {f"{label}/rubric/{axis}": mean.value for axis, mean in rubric.means.items()}
        metrics |= {f"{label}/rubric/n": rubric.replies, f"{label}/rubric/missing": rubric.missing}
    for label, pairs in results.pairwise.items():
        values = {
            "win_rate": pairs.win_rate.value, "length_controlled": pairs.length_controlled.value,
            "consistency": pairs.consistency.value, "n": pairs.wins + pairs.ties + pairs.losses,
            "missing": pairs.missing,
        }  # fmt: skip
        metrics |= {f"{label}/pairwise/{name}": value for name, value in values.items()}
    return {name: float(value) for name, value in metrics.items() if not math.isnan(value)}


def _table(inputs: JudgeInputs, axes: Sequence[Axis], results: _Results) -> tuple[list[str], list[list[str]]]:
    """Headings, and a row for each run."""
    names = [axis.name for axis in axes]
    heads = ["run", *([*names, OVERALL] if results.rubric else [])]
    heads += ["win rate", "at equal length", "consistency"] if results.pairwise else []
    rows = []
    for run in inputs.runs:
        row = [run.label]
        if rubric := results.rubric.get(run.label):
            row += [f"{rubric.means[name].value:.2f}" for name in names] + [rubric.means[OVERALL].text(2)]
        if pairs := results.pairwise.get(run.label):
            row += [pairs.win_rate.text(3), pairs.length_controlled.text(3), f"{pairs.consistency.value:.3f}"]
        row += ["baseline"] if results.pairwise and run is inputs.baseline else []
        rows.append([*row, *["-"] * (len(heads) - len(row))])
    return heads, rows


def _notes(cfg: Config, inputs: JudgeInputs, judged: Judged) -> list[str]:
    weights = ", ".join(f"{axis.weight:g} {axis.name}" for axis in judged.axes)
    spent = judged.spent
    notes = [f"FORCED, do not rely on these numbers: {reason}." for reason in judged.forced]
    notes += [
        f"Judge: {', '.join(judged.models) or inputs.judge}. {len(inputs.keys)} of {inputs.with_replies} decisions "
        f"with a reply in every run; 95 % intervals from {cfg.judge.draws:,} bootstrap draws of dialogues."
    ]
    notes += [f"{gate.text[0].upper()}{gate.text[1:]}." for gate in judged.gates]
    if judged.scores:
        notes.append(f"Scores from 0 to 4; {OVERALL} = {weights}.")
    if judged.pairs:
        notes.append(
            f"Win rate against {inputs.baseline.label}: both orders are asked, a mismatch is a tie and counts half; at "
            "equal length: after Dubois et al. 2024; consistency: share of pairs on which both orders agree."
        )
    missing = judged.counts.get("judge/missing", 0)
    notes += [f"{missing} questions had no usable answer and are left out."] if missing else []
    notes += [f"{remark[0].upper()}{remark[1:]}." for remark in inputs.remarks]
    cost = f", ${spent.cost:.2f}" if spent.cost else ""
    notes.append(f"{spent.calls} calls ({spent.from_cache} more from the cache), {spent.tokens:,} tokens{cost}.")
    return notes


def _print(heads: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str]) -> None:
    table = Table(title="judgements")
    for number, head in enumerate(heads):
        table.add_column(head, justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    screen = console()
    screen.print(table)
    for note in notes:
        screen.print(f"- {note}", highlight=False, markup=False, style="dim")
