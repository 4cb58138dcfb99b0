"""What stage `survey` leaves: questionnaires with their key, or ratings and what they say, as tables and metrics."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from esc_lab.artifacts import replace_nan, write_atomic
from esc_lab.comparison.formats import markdown_table
from esc_lab.judging.survey_answers import Ratings
from esc_lab.judging.survey_judge import JudgeAgreement
from esc_lab.judging.survey_key import SurveyKey
from esc_lab.judging.survey_results import QuestionResult
from esc_lab.runs.layout import RATINGS, SET_ASIDE, SURVEY_RESULT, SURVEY_TABLE
from esc_lab.statistics.paired_comparison import IMAGINED
from esc_lab.terminal import print_table


@dataclass(frozen=True)
class SurveyTable:
    """A table of texts, as pages and files show it."""

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]


def write_results(
    directory: Path,
    key: SurveyKey,
    ratings: Ratings,
    results: Sequence[QuestionResult],
    judged: Sequence[JudgeAgreement],
) -> dict[str, float]:
    """Write ratings.jsonl, set_aside.jsonl, survey.json and survey.md, print the tables; gives the metrics."""
    lines = [
        {
            "rater": r.rater, "question": r.question, "value": r.value, "shown": r.shown, "again": r.again,
            "item": r.item.name, "dialogue": r.item.dialogue, "tree": r.item.tree, "turn": r.item.turn,
            "strategy": r.item.strategy, "runs": [reply.run for reply in r.item.replies],
            "templates": [reply.template for reply in r.item.replies],
            "sra": [reply.sra for reply in r.item.replies],
        }
        for r in ratings.ratings
    ]  # fmt: skip
    write_atomic(directory / RATINGS, "\n".join(json.dumps(line, ensure_ascii=False) for line in lines))
    aside = [json.dumps(line, ensure_ascii=False) for line in ratings.set_aside]
    write_atomic(directory / SET_ASIDE, "\n".join(aside))
    tables, notes = [*_tables(key, ratings, results, judged)], _notes(key, ratings)
    record = {
        "survey": key.identity,
        "form": asdict(key.form),
        "runs": dict(key.runs),
        "counts": ratings.counts(),
        "missing": ratings.missing,
        "checks": ratings.checks,
        "careless": ratings.careless,
        "questions": [asdict(result) for result in results],
        "judge": [asdict(agreement) for agreement in judged],
        "tables": [asdict(table) for table in tables],
        "notes": notes,
    }
    write_atomic(directory / SURVEY_RESULT, json.dumps(replace_nan(record), indent=1, allow_nan=False))
    parts = [f"## {table.title}\n\n{markdown_table(list(table.heads), list(table.rows))}" for table in tables]
    write_atomic(directory / SURVEY_TABLE, "\n\n".join([*parts, "\n".join(f"- {note}" for note in notes)]))
    for number, table in enumerate(tables, start=1):
        shown = notes if number == len(tables) else ()
        print_table(table.title, list(table.heads), [list(row) for row in table.rows], notes=shown)
    return _metrics(ratings, results, judged)


def _tables(
    key: SurveyKey, ratings: Ratings, results: Sequence[QuestionResult], judged: Sequence[JudgeAgreement]
) -> Iterator[SurveyTable]:
    heads = ["question", "run", "ratings", "mean"]
    heads += ["strength", "wins", "ties", "losses"] if key.pairs else []
    rows = [
        [result.question, run.run, str(run.ratings), run.mean.text(2, "+" if key.pairs else ""),
         *([run.strength.text(2, "+"), str(run.wins), str(run.ties), str(run.losses)] if run.strength else [])]
        for result in results
        for run in result.runs
    ]  # fmt: skip
    yield SurveyTable("What people prefer" if key.pairs else "What people say of replies", heads, rows)
    heads = ["question", "ratings", "items", "alpha (interval)", "alpha (ordinal)", "alpha (nominal)", "trimmed"]
    heads += ["left or right"] if key.pairs else []
    rows = [
        [result.question, str(result.ratings), str(result.items), *(a.text(3) for a in result.alpha.values()),
         result.alpha_trimmed.text(3) if result.alpha_trimmed else "-",
         *([result.side.text(2, "+")] if result.side else [])]
        for result in results
    ]  # fmt: skip
    yield SurveyTable("Agreement", heads, rows)
    heads = ["question", "rater", "ratings", "mean", "with the others", "asked twice", "change", "checks", "missing"]
    rows = [
        [result.question, rater.rater, str(rater.ratings), f"{rater.mean:+.2f}", _number(rater.others, 2),
         str(rater.repeats), _number(rater.change, 2), _checks(ratings, rater.rater),
         str(ratings.missing.get(rater.rater, 0))]
        for result in results
        for rater in result.raters
    ]  # fmt: skip
    rows += [["(all)", rater, "set aside", *4 * ["-"], _checks(ratings, rater), str(ratings.missing.get(rater, 0))]
             for rater in ratings.careless]  # fmt: skip
    yield SurveyTable("Raters", heads, rows)
    if any(result.sra for result in results):
        heads = ["question", "rater", "ratings", "raw", "trimmed", "kept", "given order", "given templates"]
        rows = [
            [result.question, sra.raters, str(sra.ratings), sra.raw.text(3), sra.trimmed.text(3), str(sra.kept),
             sra.order.text(3), sra.templates.text(3)]
            for result in results
            for sra in result.sra
        ]  # fmt: skip
        yield SurveyTable("Correlation with SRA", heads, rows)
    if judged:
        heads = ["question", "pairs", "judge agrees", "people agree", "scored", "correlation of scores"]
        rows = [
            [each.question, str(each.pairs), each.agreement.text(3), each.people.text(3), str(each.scored),
             each.correlation.text(3)]
            for each in judged
        ]  # fmt: skip
        yield SurveyTable("The judge and people", heads, rows)


def _notes(key: SurveyKey, ratings: Ratings) -> list[str]:
    counts = ratings.counts()
    notes = ["Brackets: 95 % intervals of a bootstrap over dialogues."]
    if key.pairs:
        notes.append(
            "Mean: how much a run's replies are preferred to those that they met. Strength: Bradley and Terry's, in "
            f"natural logarithms of odds, a tie as half a win, {IMAGINED:g} imagined wins of each side of a pair. Left "
            "or right: mean answer as raters saw it, below 0 if they favour the left side."
        )
    notes.append(
        "Alpha: Krippendorff's; 1 is agreement, 0 chance; trimmed: interval, of the ratings of trimmed correlations. "
        "With the others: correlation of a rater with the mean of the other ratings of the same items. "
        "Change: mean distance of the answers to what was asked twice."
    )
    notes.append(
        "Given order: the correlation that is left once it is known which of two templates has more SRA; given "
        "templates: once each template has a term of its own. Both are of trimmed ratings."
    )
    notes.append(
        f"{counts['missing']:,.0f} questions without an answer; set aside: {counts['set_aside/double']:,.0f} answers "
        f"that contradict another one to the same question, {counts['set_aside/failed_checks']:,.0f} of "
        f"{counts['careless_raters']:,.0f} raters who failed attention checks."
    )
    return notes


def _checks(ratings: Ratings, rater: str) -> str:
    return "{} of {}".format(*ratings.checks[rater]) if rater in ratings.checks else "-"


def _number(value: float, decimals: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{decimals}f}"


def _metrics(ratings: Ratings, results: Sequence[QuestionResult], judged: Sequence[JudgeAgreement]) -> dict[str, float]:
    metrics: dict[str, float] = {f"survey/{name}": value for name, value in ratings.counts().items()}
    for result in results:
        start = f"survey/{result.question}"
        metrics |= {f"{start}/alpha/{level}": alpha.value for level, alpha in result.alpha.items()}
        if result.alpha_trimmed:
            metrics[f"{start}/alpha_trimmed"] = result.alpha_trimmed.value
        if result.side:
            metrics[f"{start}/side"] = result.side.value
        for run in result.runs:
            metrics[f"{start}/mean/{run.run}"] = run.mean.value
            if run.strength:
                metrics[f"{start}/strength/{run.run}"] = run.strength.value
        for sra in result.sra:
            kinds: Mapping[str, Any] = {"raw": sra.raw, "trimmed": sra.trimmed, "order": sra.order}
            kinds = {**kinds, "templates": sra.templates}
            metrics |= {f"{start}/sra/{sra.raters}/{kind}": value.value for kind, value in kinds.items()}
    for each in judged:
        metrics[f"survey/{each.question}/judge/agreement"] = each.agreement.value
        metrics[f"survey/{each.question}/judge/people"] = each.people.value
        metrics[f"survey/{each.question}/judge/correlation"] = each.correlation.value
    return {name: float(value) for name, value in metrics.items() if not math.isnan(value)}
