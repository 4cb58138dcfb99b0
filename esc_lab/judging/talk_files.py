"""What stage `judge` leaves of whole talks: every judgement, the results with their intervals, a table, metrics."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from esc_lab.artifacts import file_fingerprint, replace_nan, write_atomic
from esc_lab.comparison.formats import markdown_table
from esc_lab.judging.files import measure_calls, note_calls
from esc_lab.judging.session import JUDGE
from esc_lab.judging.talk_results import ALL, TalkResult, summarize_talks
from esc_lab.judging.talk_rubric import REASON
from esc_lab.judging.talk_session import TalkAnswers, TalkJudgeSession
from esc_lab.judging.talks import TalkRun
from esc_lab.runs.layout import JUDGE_RESULT, JUDGE_TABLE, JUDGEMENTS, TALKS_FILE, find_run
from esc_lab.statistics.bootstrap import ClusterSample
from esc_lab.terminal import escape_markdown, print_table

# What the columns are.
NOTES = (
    "Talks: that were judged. A question of the rubric: mean score from 0 to 4; or, of yes and no, the share of talks "
    "that pass, a row for each severity of their cards too. Passes all: the share that passes every question.",
    "Not believed: the judge does not tell planted talks apart by this question; passes all is not, if one is not.",
)


@dataclass(frozen=True)
class _Report:
    """Everything that is told.

    Attributes:
        lines: of each talk, as they stand in the file of judgements.
        results: by label of the run, by question.
        not_believed: questions, `ALL` among them, whose numbers are not to be believed.
    """

    session: TalkJudgeSession
    answers: TalkAnswers
    lines: Sequence[Mapping[str, Any]]
    results: Mapping[str, Mapping[str, TalkResult]]
    not_believed: Sequence[str]

    @property
    def failing(self) -> list[Mapping[str, Any]]:
        """The talks that fail a question, with which and why."""
        return [line for line in self.lines if line["failed"]]

    def title(self, name: str) -> str:
        """Of a question, with what is to be known of its numbers."""
        titles = {question.name: question.title for question in self.session.rubric.questions}
        return titles.get(name, "passes all") + (" (not believed)" if name in self.not_believed else "")


def write_talk_results(session: TalkJudgeSession, answers: TalkAnswers) -> dict[str, float]:
    """Write everything into the run directory, and the table to the terminal; gives the metrics."""
    cfg, inputs, rubric, gate = session.cfg, session.inputs, session.rubric, answers.gate
    cards = ClusterSample([card for card, _ in inputs.keys], cfg.judge.draws, cfg.seed)
    severity = [session.severity[card] for card, _ in inputs.keys]
    not_believed = gate.not_believed if gate else rubric.names
    not_believed = [*not_believed, *([ALL] if not_believed and rubric.yes_no else [])]
    results = {label: summarize_talks(told, severity, rubric, cards) for label, told in answers.judgements.items()}
    report = _Report(session, answers, [*_lines(session, answers, not_believed)], results, not_believed)
    directory = Path(cfg.run_dir)
    write_atomic(directory / JUDGEMENTS, "\n".join(json.dumps(line, ensure_ascii=False) for line in report.lines))
    record = {**_record(report), "clusters": cards.clusters, "draws": cfg.judge.draws}
    write_atomic(directory / JUDGE_RESULT, json.dumps(replace_nan(record), indent=1, allow_nan=False))
    heads, rows = _table(report)
    notes, failing = _notes(report), [_tell_failing(report, line) for line in report.failing]
    parts = [markdown_table(heads, rows), "\n".join(f"- {note}" for note in notes)]
    if failing:
        parts.append("## Talks that fail\n\n" + "\n".join(f"- {escape_markdown(line)}" for line in failing))
    if gate:
        parts.append(f"## Check of the judge\n\n{markdown_table(*gate.table())}")
        print_table("check of the judge of talks", *gate.table(), notes=gate.column_notes())
    write_atomic(directory / JUDGE_TABLE, "\n\n".join(parts))
    print_table(f"talks judged by {rubric.name}", heads, rows, notes=[*notes, *failing[:10]])
    return _metrics(report)


def _lines(session: TalkJudgeSession, answers: TalkAnswers, not_believed: Sequence[str]) -> Iterator[dict[str, Any]]:
    sampling = {name: session.settings[name] for name in ("temperature", "top_p", "max_tokens")}
    asked = {"model": session.settings["client"]["model"], **sampling, "seed": session.cfg.seed}
    for label, judgements in answers.judgements.items():
        for (card, number), told in zip(session.inputs.keys, judgements, strict=True):
            yield {
                "kind": "talk", "rubric": session.rubric.name, "run": label, "card": card, "talk": number,
                "severity": session.severity[card], "scores": told and told.scores,
                "failed": told and session.rubric.find_failed(told.scores), REASON: told and told.reason,
                "not_believed": not_believed, "judge_sampling": asked,
            }  # fmt: skip


def _tell_failing(report: _Report, line: Mapping[str, Any]) -> str:
    failed = ", ".join(f"{report.title(name)}: no ({name} = {line['scores'][name]:g})" for name in line["failed"])
    reason = f". {line[REASON]}" if line[REASON] else ""
    return f"{line['run']}, {line['card']}-{line['talk']}, severity {line['severity']}: {failed}{reason}"


def _record(report: _Report) -> dict[str, Any]:
    """What judge.json holds, but for the numbers of the bootstrap."""
    session, answers = report.session, report.answers
    inputs, calls = session.inputs, session.calls
    return {
        "judge": {**session.settings, "models": calls.models(JUDGE), "dates": calls.dates},
        "rubric": session.rubric.record(),
        "gate": answers.gate.record() if answers.gate else None,
        "not_believed": report.not_believed,
        "forced": list(answers.forced),
        "remarks": list(inputs.remarks),
        "talks": len(inputs.keys),
        "severity": session.severity,
        "seed": session.cfg.seed,
        "runs": [
            {
                "label": run.label,
                "directory": str(run.directory),
                "checkpoint": _find_checkpoint(run),
                "cards": run.config["cards"]["name"],
                "talks": file_fingerprint(run.directory / TALKS_FILE),
                "questions": {
                    name: {**asdict(result), "believed": name not in report.not_believed}
                    for name, result in report.results[run.label].items()
                },
            }
            for run in inputs.runs
        ],
        "failing": report.failing,
        "calls": asdict(calls.spent),
        "counts": dict(session.counts),
    }


def _find_checkpoint(run: TalkRun) -> str | None:
    """The run that trained the supporter; None for a model as it came, or if that run is gone."""
    origin = run.config["checkpoint"]
    training = find_run(Path(origin), run.directory) if origin else None
    return str(training.resolve()) if training else None


def _metrics(report: _Report) -> dict[str, float]:
    """Numbers that are not to be believed are named so."""
    session, answers, rubric = report.session, report.answers, report.session.rubric
    metrics: dict[str, float] = {"judge/forced": bool(answers.forced), "judge/seconds": answers.seconds}
    metrics |= measure_calls(session.calls, session.counts)
    if answers.gate:
        metrics |= {f"gate/talks/{name}": value for name, value in answers.gate.metrics().items()}
    for label, results in report.results.items():
        for name, result in results.items():
            key = f"{label}/{rubric.name}/{'not_believed/' if name in report.not_believed else ''}{name}"
            metrics[key] = result.value.value
            metrics |= {f"{key}/severity_{level}": own.value for level, own in result.by_severity.items()}
        metrics[f"{label}/{rubric.name}/n"] = result.talks
        metrics[f"{label}/{rubric.name}/missing"] = len(session.inputs.keys) - result.talks
    return {name: float(value) for name, value in metrics.items() if not math.isnan(value)}


def _table(report: _Report) -> tuple[list[str], list[list[str]]]:
    """Headings, and a row for each run, of yes and no also for each severity of its cards."""
    names = next(iter(report.results.values()))
    heads, rows = ["run", "talks", *map(report.title, names)], []
    for label, results in report.results.items():
        told = results.values()
        rows.append([label, str(next(iter(told)).talks), *(result.value.text(2) for result in told)])
        for level, count in next(iter(told)).talks_by_severity.items():
            shares = (result.by_severity[level].text(2) for result in told)
            rows.append([f"{label}, severity {level}", str(count), *shares])
    return heads, rows


def _notes(report: _Report) -> list[str]:
    session, answers, rubric = report.session, report.answers, report.session.rubric
    keys, severity = session.inputs.keys, session.severity
    models = escape_markdown(", ".join(session.calls.models(JUDGE))) or str(session.inputs.judge)
    what = "Shares of talks that pass" if rubric.yes_no else "Scores from 0 to 4"
    notes = [f"FORCED, do not rely on these numbers: {reason}." for reason in answers.forced]
    notes.append(
        f"{what}, by rubric {rubric.name}. Judge: {models}. {len(keys)} talks of each run with {len(severity)} cards; "
        f"95 % intervals from {session.cfg.judge.draws:,} bootstrap draws of cards."
    )
    notes += NOTES
    notes += [f"{question.title}: {question.text}" for question in rubric.questions]
    notes += ["The judge is believed: it tells planted talks apart."] if answers.gate and answers.gate.believed else []
    return notes + note_calls(session.calls, session.counts, session.inputs.remarks)
