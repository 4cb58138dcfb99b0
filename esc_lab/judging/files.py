"""What stage `judge` leaves: every judgement, the results with their intervals, a table, metrics."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from esc_lab.artifacts import file_fingerprint, replace_nan, write_atomic
from esc_lab.comparison.formats import markdown_table
from esc_lab.comparison.judgements import QUESTIONS
from esc_lab.judge_check.cases import FOREIGN
from esc_lab.judging.inputs import JudgeInputs
from esc_lab.judging.results import OVERALL, PairwiseResult, RubricResult, summarize_pairs, summarize_rubric
from esc_lab.judging.session import JUDGE, JudgeAnswers, JudgeSession
from esc_lab.runs.layout import JUDGE_RESULT, JUDGE_TABLE, JUDGEMENTS, PREDICTIONS
from esc_lab.search.calls import Calls
from esc_lab.search.role_prompts import Axis
from esc_lab.search.role_scores import score_turn
from esc_lab.statistics.bootstrap import ClusterSample
from esc_lab.statistics.length_control import PRIOR
from esc_lab.terminal import escape_markdown, print_table

PAIR_NOTE = (
    "both orders are asked, a mismatch is a tie and counts half; at equal length: after Dubois et al. 2024; "
    "consistency: share of pairs on which both orders agree."
)


class _Results(NamedTuple):
    """By label of the run."""

    rubric: Mapping[str, RubricResult]
    pairwise: Mapping[str, PairwiseResult]


def write_results(session: JudgeSession, answers: JudgeAnswers) -> dict[str, float]:
    """Write everything into the run directory, and the table to the terminal; gives the metrics."""
    cfg, inputs = session.cfg, session.inputs
    directory = Path(cfg.run_dir)
    sample = ClusterSample(inputs.trees, cfg.judge.draws, cfg.seed)
    results = _Results(
        {label: summarize_rubric(scores, session.axes, sample) for label, scores in answers.scores.items()},
        {label: summarize_pairs(pairs, sample) for label, pairs in answers.pairs.items()},
    )
    lines = [json.dumps(line, ensure_ascii=False) for line in _lines(session, answers)]
    write_atomic(directory / JUDGEMENTS, "\n".join(lines))
    record = {**_record(session, answers, results), "clusters": sample.clusters, "draws": cfg.judge.draws}
    write_atomic(directory / JUDGE_RESULT, json.dumps(replace_nan(record), indent=1, allow_nan=False))
    heads, rows = _table(inputs, session.axes, results)
    notes = _notes(session, answers)
    bullets = "\n".join(f"- {note}" for note in notes)
    checks = [f"## Check of the {gate.judge} judge\n\n{markdown_table(*gate.table())}" for gate in answers.gates]
    write_atomic(directory / JUDGE_TABLE, "\n\n".join([markdown_table(heads, rows), bullets, *checks]))
    for gate in answers.gates:
        print_table(f"check of the {gate.judge} judge", *gate.table(), notes=gate.column_notes())
    print_table("judgements", heads, rows, notes=notes)
    return _metrics(session, answers, results)


def _lines(session: JudgeSession, answers: JudgeAnswers) -> Iterator[dict[str, Any]]:
    """A line for each scored reply and each pair."""
    inputs = session.inputs
    replies = {run.label: run.replies for run in inputs.runs}
    sampling = {name: session.settings[name] for name in ("temperature", "top_p", "max_tokens")}
    asked = {"model": session.settings["client"]["model"], **sampling, "seed": inputs.seed}
    for label, run_scores in answers.scores.items():
        for key, scores in zip(inputs.keys, run_scores, strict=True):
            reply = replies[label][key]
            yield {
                "kind": "rubric", "run": label, "dialogue": key[0], "tree": reply.tree, "turn": key[1],
                "scores": scores, OVERALL: None if scores is None else score_turn(scores, session.axes),
                "reply": reply.text, "strategy": reply.strategy, "reply_sampling": reply.sampling,
                "judge_sampling": asked,
            }  # fmt: skip
    for label, pairs in answers.pairs.items():
        for key, pair in zip(inputs.keys, pairs, strict=True):
            reply = replies[label][key]
            yield {
                "kind": "pairwise", "run": label, "baseline": inputs.baseline.label, "dialogue": key[0],
                "tree": reply.tree, "turn": key[1], "first": pair.first, "second": pair.second,
                "outcome": pair.outcome, "identical": pair.identical, "length_difference": pair.difference,
                "question": session.cfg.judge.question, "strategy": reply.strategy, "reply": reply.text,
                "baseline_reply": inputs.baseline.replies[key].text, "judge_sampling": asked,
            }  # fmt: skip


def _record(session: JudgeSession, answers: JudgeAnswers, results: _Results) -> dict[str, Any]:
    """What judge.json holds, but for the numbers of the bootstrap."""
    inputs, calls = session.inputs, session.calls
    known = {"models": calls.models(JUDGE), "prompts": session.config["prompts"], "dates": calls.dates}
    return {
        "judge": {**session.settings, **known},
        "axes": [asdict(axis) for axis in session.axes],
        "gates": [gate.record() for gate in answers.gates],
        "forced": list(answers.forced),
        "remarks": list(inputs.remarks),
        "test_set": inputs.test_set,
        "decisions": len(inputs.keys),
        "with_replies": inputs.with_replies,
        "seed": inputs.seed,
        "baseline": inputs.baseline.label,
        "question": session.cfg.judge.question,
        "length_control": {"formula": "logistic(theta + phi * tanh(d / std(d))) at d = 0", "prior_sd_of_phi": PRIOR},
        "runs": [
            {
                "label": run.label,
                "directory": str(run.run.directory),
                "predictions": file_fingerprint(run.run.directory / PREDICTIONS),
                "rubric": asdict(results.rubric[run.label]) if run.label in results.rubric else None,
                "pairwise": asdict(results.pairwise[run.label]) if run.label in results.pairwise else None,
            }
            for run in inputs.runs
        ],
        "calls": asdict(calls.spent),
        "counts": dict(session.counts),
    }


def _metrics(session: JudgeSession, answers: JudgeAnswers, results: _Results) -> dict[str, float]:
    metrics = {"judge/forced": bool(answers.forced), "judge/seconds": answers.seconds}
    metrics |= measure_calls(session.calls, session.counts)
    for gate in answers.gates:
        metrics |= {f"gate/{gate.judge}/{key}": value for key, value in gate.metrics().items()}
        if foreign := gate.kinds.get(FOREIGN):
            values = {gate.measure.lower(): foreign.value.value, "low": foreign.value.low, "high": foreign.value.high}
            metrics |= {f"gate/{gate.judge}/{key}": value for key, value in values.items()}
            metrics[f"gate/{gate.judge}/contexts"] = foreign.contexts
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


def measure_calls(calls: Calls, counts: Mapping[str, int]) -> dict[str, float]:
    """What the judge's calls took, and what became of its answers."""
    counted = ("calls", "from_cache", "prompt_tokens", "completion_tokens", "cost")
    metrics = {f"judge/{name}": getattr(calls.spent, name) for name in counted}
    return {**counts, **metrics, **{f"judge/retries/{kind}": count for kind, count in calls.retries.items()}}


def note_calls(calls: Calls, counts: Mapping[str, int], remarks: Sequence[str]) -> list[str]:
    """Sentences on questions without an answer, on what stands out among the inputs, and on what the calls took."""
    missing, too_long = (counts.get(f"judge/{event}", 0) for event in ("missing", "too_long"))
    notes = [f"{missing} questions had no usable answer and are left out."] if missing else []
    notes += [f"{too_long} questions exceed the judge's context and are left out."] if too_long else []
    notes += [f"{remark[0].upper()}{remark[1:]}." for remark in remarks]
    spent = calls.spent
    cost = f", ${spent.cost:.2f}" if spent.cost else ""
    return [*notes, f"{spent.calls} calls ({spent.from_cache} more from the cache), {spent.tokens:,} tokens{cost}."]


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


def _notes(session: JudgeSession, answers: JudgeAnswers) -> list[str]:
    cfg, inputs = session.cfg, session.inputs
    models = escape_markdown(", ".join(session.calls.models(JUDGE))) or inputs.judge
    weights = ", ".join(f"{axis.weight:g} {axis.name}" for axis in session.axes)
    notes = [f"FORCED, do not rely on these numbers: {reason}." for reason in answers.forced]
    notes += [
        f"Judge: {models}. {len(inputs.keys)} of {inputs.with_replies} decisions "
        f"with a reply in every run; 95 % intervals from {cfg.judge.draws:,} bootstrap draws of dialogues."
    ]
    notes += [f"{gate.judge.capitalize()} judge: {note}" for gate in answers.gates for note in gate.notes()]
    if answers.scores:
        notes.append(f"Scores from 0 to 4; {OVERALL} = {weights}.")
    if answers.pairs:
        against = f"Win rate against {inputs.baseline.label}, {QUESTIONS[cfg.judge.question]}"
        notes.append(f"{against}: {PAIR_NOTE}")
    return notes + note_calls(session.calls, session.counts, inputs.remarks)
