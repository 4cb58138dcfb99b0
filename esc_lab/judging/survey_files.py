"""What stage `survey` leaves: questionnaires with their key, or ratings and what they say, as tables and metrics."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TypeAlias

from esc_lab.artifacts import replace_nan, write_atomic
from esc_lab.comparison.formats import markdown_table
from esc_lab.judging.survey_answers import Ratings
from esc_lab.judging.survey_judge import JudgeAgreement
from esc_lab.judging.survey_key import SurveyKey
from esc_lab.judging.survey_results import QuestionResult
from esc_lab.runs.layout import RATINGS, SET_ASIDE, SURVEY_RESULT, SURVEY_TABLE
from esc_lab.statistics.agreement import LEVELS
from esc_lab.statistics.intervals import Interval
from esc_lab.statistics.paired_comparison import IMAGINED
from esc_lab.terminal import print_table

_Table: TypeAlias = tuple[str, list[str], list[list[str]]]  # title, heads, rows
# What the columns are: of all surveys, of those of pairs, of those with SRA, and beside a judge.
NOTES = (
    "Brackets: 95 % intervals of a bootstrap over dialogues, for these raters: how much other raters would differ is "
    "not in them.",
    "Ratings: answers that count; items: the replies or pairs that they are about. Mean: of the answers.",
    "Alpha: Krippendorff's, with answers taken as names, ranks or distances; 1 is agreement, 0 chance; trimmed: "
    "interval, of the ratings of trimmed correlations.",
    "With the others: correlation of a rater with the mean of the other ratings of the same items. Asked twice: items "
    "that a rater saw again; change: mean distance of the two answers. Checks: attention checks that were passed; "
    "missing: questions without an answer.",
)
PAIR_NOTES = (
    "Of pairs the mean is how much a run's replies are preferred to those that they met. Strength: Bradley and "
    f"Terry's, in natural logarithms of odds, a tie as half a win, {IMAGINED:g} imagined wins of each side of a pair. "
    "Wins, ties, losses: answers for its reply, for neither and for the other. Left or right: mean answer as raters "
    "saw it, below 0 if they favour the left side.",
)
SRA_NOTES = (
    "Correlation with SRA: raw, of all ratings; trimmed, of those that are kept, without the most unusual SRA "
    "(survey.trim). Given order: what is left of it once it is known which of two templates has more SRA; given "
    "templates, given runs: once each template, or each run (so each model under each template), has a term of its "
    "own. All three are of trimmed ratings, and need two templates, or runs.",
)
JUDGE_NOTES = (
    "Judge asked: of pairs, help or adherence (judge.question); where a question of the survey asks the same "
    "(helpfulness, adherence), pairs are those of that question alone. Judge and all: share of the pairs on which it "
    "prefers what all raters prefer on average. People and others: each rater is left out in turn and compared with "
    "the mean of the others; judge and others: the judge is, in the rater's place. Compare these two with each other: "
    "people are no upper limit, as one person has the noise of one. Scored: items that the judge scored; correlation "
    "of scores: of these with mean ratings.",
)


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
    for name, content in ((RATINGS, lines), (SET_ASIDE, ratings.set_aside)):
        write_atomic(directory / name, "\n".join(json.dumps(line, ensure_ascii=False) for line in content))
    tables, notes = [*_tables(key, ratings, results, judged)], _notes(key, ratings, results, judged)
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
        "tables": [{"title": title, "heads": heads, "rows": rows} for title, heads, rows in tables],
        "notes": notes,
    }
    write_atomic(directory / SURVEY_RESULT, json.dumps(replace_nan(record), indent=1, allow_nan=False))
    parts = [f"## {title}\n\n{markdown_table(heads, rows)}" for title, heads, rows in tables]
    write_atomic(directory / SURVEY_TABLE, "\n\n".join([*parts, "\n".join(f"- {note}" for note in notes)]))
    for table in tables:
        print_table(*table, notes=notes if table is tables[-1] else ())
    return _metrics(ratings, results, judged)


def _tables(
    key: SurveyKey, ratings: Ratings, results: Sequence[QuestionResult], judged: Sequence[JudgeAgreement]
) -> Iterator[_Table]:
    sign = "+" if key.pairs else ""
    heads = ["question", "run", "ratings", "mean"]
    rows = [
        [result.question, run.run, str(run.ratings), run.mean.text(2, sign),
         *([run.strength.text(2, "+"), str(run.wins), str(run.ties), str(run.losses)] if run.strength else [])]
        for result in results
        for run in result.runs
    ]  # fmt: skip
    if key.pairs:
        yield "What people prefer", [*heads, "strength", "wins", "ties", "losses"], rows
    else:
        yield "What people say of replies", heads, rows
    heads = ["question", "ratings", "items", *(f"alpha ({level})" for level in LEVELS), "trimmed"]
    rows = [
        [result.question, str(result.ratings), str(result.items), *(a.text(3) for a in result.alpha.values()),
         result.alpha_trimmed.text(3) if result.alpha_trimmed else "-",
         *([result.side.text(2, "+")] if result.side else [])]
        for result in results
    ]  # fmt: skip
    yield "Agreement", [*heads, "left or right"] if key.pairs else heads, rows
    mean = "left or right" if key.pairs else "mean"
    heads = ["question", "rater", "ratings", mean, "with the others", "asked twice", "change", "checks", "missing"]
    rows = [
        [result.question, rater.rater, str(rater.ratings), f"{rater.mean:{sign}.2f}", _number(rater.others),
         str(rater.repeats), _number(rater.change), *_care(ratings, rater.rater)]
        for result in results
        for rater in result.raters
    ]  # fmt: skip
    rows += [["(all)", rater, "set aside", *4 * ["-"], *_care(ratings, rater)] for rater in ratings.careless]
    yield "Raters", heads, rows
    rows = [
        [result.question, sra.raters, str(sra.ratings), str(sra.kept), *(c.text(3) for c in sra.correlations.values())]
        for result in results
        for sra in result.sra
    ]
    if rows:
        heads = ["question", "rater", "ratings", "kept", "raw", "trimmed"]
        yield "Correlation with SRA", [*heads, "given order", "given templates", "given runs"], rows
    if judged:
        heads = ["question", "judge asked", "pairs", "judge and all", "judge and others", "people and others"]
        heads += ["scored", "correlation of scores"]
        rows = [
            [each.question, each.asked if each.pairs else "-", str(each.pairs), each.agreement.text(3),
             each.others.text(3), each.people.text(3), str(each.scored), each.correlation.text(3)]
            for each in judged
        ]  # fmt: skip
        yield "The judge and people", heads, rows


def _notes(
    key: SurveyKey, ratings: Ratings, results: Sequence[QuestionResult], judged: Sequence[JudgeAgreement]
) -> list[str]:
    counts = ratings.counts()
    notes = [*NOTES, *(PAIR_NOTES if key.pairs else ())]
    notes += SRA_NOTES if any(result.sra for result in results) else ()
    notes += JUDGE_NOTES if judged else ()
    notes.append(
        f"{counts['missing']:,.0f} questions have no answer. Set aside are {counts['set_aside/double']:,.0f} answers "
        f"that contradict another one to the same question, and {counts['set_aside/failed_checks']:,.0f} of raters who "
        f"failed attention checks ({', '.join(ratings.careless) or 'nobody did'})."
    )
    return notes


def _care(ratings: Ratings, rater: str) -> list[str]:
    """Attention checks and missing answers."""
    checks = "{} of {}".format(*ratings.checks[rater]) if rater in ratings.checks else "-"
    return [checks, str(ratings.missing.get(rater, 0))]


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}"


def _metrics(ratings: Ratings, results: Sequence[QuestionResult], judged: Sequence[JudgeAgreement]) -> dict[str, float]:
    metrics: dict[str, float] = {f"survey/{name}": value for name, value in ratings.counts().items()}
    intervals: dict[str, Interval | None] = {}
    for result in results:
        own: dict[str, Interval | None] = {f"alpha/{level}": alpha for level, alpha in result.alpha.items()}
        own |= {"alpha_trimmed": result.alpha_trimmed, "side": result.side}
        own |= {f"mean/{run.run}": run.mean for run in result.runs}
        own |= {f"strength/{run.run}": run.strength for run in result.runs}
        own |= {f"sra/{sra.raters}/{kind}": found for sra in result.sra for kind, found in sra.correlations.items()}
        intervals |= {f"survey/{result.question}/{name}": interval for name, interval in own.items()}
    for each in judged:
        own = {"agreement": each.agreement, "others": each.others, "people": each.people}
        own |= {"correlation": each.correlation}
        intervals |= {f"survey/{each.question}/judge/{name}": interval for name, interval in own.items()}
    metrics |= {name: interval.value for name, interval in intervals.items() if interval}
    return {name: float(value) for name, value in metrics.items() if not math.isnan(value)}
