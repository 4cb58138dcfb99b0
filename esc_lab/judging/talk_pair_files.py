"""What stage `judge` leaves of whole talks: every judgement, the results with their intervals, a table, metrics."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from esc_lab.artifacts import file_fingerprint, replace_nan, write_atomic
from esc_lab.comparison.formats import markdown_table
from esc_lab.judging.files import measure_calls, note_calls
from esc_lab.judging.results import OVERALL, PairwiseResult
from esc_lab.judging.session import JUDGE
from esc_lab.judging.talk_pair_results import MEASURES, IntensityResult, summarize_aspects, summarize_intensity
from esc_lab.judging.talk_pair_session import TalkPairAnswers, TalkPairSession
from esc_lab.judging.talk_pairs import Aspect
from esc_lab.judging.talks import TalkRun
from esc_lab.runs.layout import JUDGE_RESULT, JUDGE_TABLE, JUDGEMENTS, TALKS_FILE
from esc_lab.terminal import escape_markdown, print_table

_Table = tuple[str, list[str], list[list[str]]]  # title, headings, rows
# What the columns are: of pairs, and of the intensity.
NOTES = (
    "Win rate: both orders are asked, a mismatch is a tie and counts half; overall: all questions together; at "
    "equal length of what the supporters say: after Dubois et al. 2024; consistency: share of pairs on which "
    "both orders agree.",
)
INTENSITY_NOTES = (
    "Intensity of the seeker's emotion, from 1 to 5, by the seeker's own model and by the judge: intensity at first, "
    "before any reply, and at the end; relief: by how much it fell; success: share of talks that come down to "
    "converse.success; turns to success: in how many, a talk without success counting the most turns.",
)


def write_pair_results(session: TalkPairSession, answers: TalkPairAnswers) -> dict[str, float]:
    """Write everything into the run directory, and the tables to the terminal; gives the metrics."""
    settings, inputs, directory = session.cfg.judge, session.inputs, Path(session.cfg.run_dir)
    drawn = (inputs.cards, settings.draws, inputs.seed)
    pairs = {label: summarize_aspects(of_aspects, *drawn) for label, of_aspects in answers.pairs.items()}
    intensity = {
        run.label: summarize_intensity(
            [run.talks[key].meta["intensity"] for key in inputs.keys], answers.intensity[run.label],
            _limits(run), *drawn,
        )
        for run in inputs.runs if run.label in answers.intensity
    }  # fmt: skip
    lines = [json.dumps(line, ensure_ascii=False) for line in _lines(session, answers)]
    write_atomic(directory / JUDGEMENTS, "\n".join(lines))
    record = _record(session, answers, pairs, intensity)
    write_atomic(directory / JUDGE_RESULT, json.dumps(replace_nan(record), indent=1, allow_nan=False))
    tables = [(f"check of the {gate.judge} judge of talks", *gate.table()) for gate in answers.gates]
    tables += [*_pairs_table(session, pairs), *_intensity_table(intensity)]
    notes = _notes(session, answers, intensity)
    pages = [f"## {title[0].upper()}{title[1:]}\n\n{markdown_table(heads, rows)}" for title, heads, rows in tables]
    write_atomic(directory / JUDGE_TABLE, "\n\n".join([*pages, "\n".join(f"- {note}" for note in notes)]))
    for number, (title, heads, rows) in enumerate(tables, start=1):
        print_table(title, heads, rows, notes=notes if number == len(tables) else ())
    return _metrics(session, answers, pairs, intensity)


def _limits(run: TalkRun) -> tuple[float, int]:
    settings = run.config["converse"]
    return float(settings["success"]), int(settings["max_turns"])


def _lines(session: TalkPairSession, answers: TalkPairAnswers) -> Iterator[dict[str, Any]]:
    """A line for each pair in each aspect, and for the intensities of each talk."""
    inputs = session.inputs
    for label, of_aspects in answers.pairs.items():
        for aspect, pairs in of_aspects.items():
            for (card, number), pair in zip(inputs.keys, pairs, strict=True):
                yield {
                    "kind": "talk_pair", "run": label, "baseline": inputs.baseline.label, "card": card, "talk": number,
                    "aspect": aspect, "first": pair.first, "second": pair.second, "outcome": pair.outcome,
                    "identical": pair.identical, "length_difference": pair.difference,
                }  # fmt: skip
    talks = {run.label: run.talks for run in inputs.runs}
    for label, intensities in answers.intensity.items():
        for key, intensity in zip(inputs.keys, intensities, strict=True):
            seeker = talks[label][key].meta["intensity"]
            known = {"kind": "intensity", "run": label, "card": key[0], "talk": key[1]}
            yield {**known, "judge": intensity, "seeker": seeker}


def _record(
    session: TalkPairSession,
    answers: TalkPairAnswers,
    pairs: Mapping[str, Mapping[str, PairwiseResult]],
    intensity: Mapping[str, IntensityResult],
) -> dict[str, Any]:
    """What judge.json holds."""
    inputs, calls = session.inputs, session.calls
    known = {"models": calls.models(JUDGE), "prompts": session.config["prompts"], "dates": calls.dates}
    return {
        "judge": {**session.settings, **known},
        "aspects": session.config["aspects"],
        "gates": [gate.record() for gate in answers.gates],
        "forced": list(answers.forced),
        "remarks": list(inputs.remarks),
        "judged_talks": len(inputs.keys),
        "shared_talks": inputs.shared,
        "cards": len({*inputs.cards}),
        "draws": session.cfg.judge.draws,
        "seed": inputs.seed,
        "baseline": inputs.baseline.label,
        "runs": [
            {
                "label": run.label,
                "directory": str(run.directory),
                "talks": file_fingerprint(run.directory / TALKS_FILE),
                "pairwise": {name: asdict(found) for name, found in pairs.get(run.label, {}).items()} or None,
                "intensity": asdict(intensity[run.label]) if run.label in intensity else None,
            }
            for run in inputs.runs
        ],
        "calls": asdict(calls.spent),
        "counts": dict(session.counts),
    }


def _metrics(
    session: TalkPairSession,
    answers: TalkPairAnswers,
    pairs: Mapping[str, Mapping[str, PairwiseResult]],
    intensity: Mapping[str, IntensityResult],
) -> dict[str, float]:
    """`LABEL/pairwise/...` is of all aspects together, as of replies; `LABEL/pairwise/ASPECT/...` of one."""
    metrics = {"judge/forced": bool(answers.forced), "judge/seconds": answers.seconds}
    metrics |= measure_calls(session.calls, session.counts)
    for gate in answers.gates:
        metrics |= {f"gate/{gate.judge}/{name}": value for name, value in gate.metrics().items()}
    for label, of_aspects in pairs.items():
        for aspect, found in of_aspects.items():
            place = f"{label}/pairwise/" + ("" if aspect == OVERALL else f"{aspect}/")
            metrics |= {
                f"{place}win_rate": found.win_rate.value, f"{place}length_controlled": found.length_controlled.value,
                f"{place}consistency": found.consistency.value, f"{place}n": found.wins + found.ties + found.losses,
                f"{place}missing": found.missing,
            }  # fmt: skip
    for label, of_run in intensity.items():
        metrics |= {f"{label}/judge/{name}": of_run.judge[name].value for name in MEASURES}
        metrics |= {f"{label}/seeker/{name}": of_run.seeker[name].value for name in MEASURES}
        metrics |= {f"{label}/judge/correlation": of_run.turns.value}
        metrics |= {f"{label}/judge/relief_correlation": of_run.relief.value, f"{label}/judge/missing": of_run.missing}
    return {name: float(value) for name, value in metrics.items() if not math.isnan(value)}


def _pairs_table(session: TalkPairSession, pairs: Mapping[str, Mapping[str, PairwiseResult]]) -> list[_Table]:
    if not pairs:
        return []
    names = [aspect.name for aspect in session.prompts.aspects]
    rows = []
    for label, found in pairs.items():
        whole = found[OVERALL]
        row = [label, *(found[name].win_rate.text(2) for name in names), whole.win_rate.text(2)]
        rows.append([*row, whole.length_controlled.text(2), f"{whole.consistency.value:.2f}"])
    heads = ["run", *names, OVERALL, "at equal length", "consistency"]
    return [(f"win rates of talks against {session.inputs.baseline.label}", heads, rows)]


def _intensity_table(intensity: Mapping[str, IntensityResult]) -> list[_Table]:
    rows = [
        [label, who, *(found[name].text(2) for name in MEASURES)]
        for label, result in intensity.items()
        for who, found in (("seeker", result.seeker), ("judge", result.judge))
    ]
    heads = ["run", "by", "intensity at first", "at the end", "relief", "success", "turns to success"]
    return [("intensity of the emotion", heads, rows)] if rows else []


def _describe(aspect: Aspect) -> str:
    """An aspect in the first sentence of what the judge is asked."""
    question = aspect.question.split(". ")[0].rstrip(".")
    return question if question.lower().startswith(aspect.name.lower()) else f"{aspect.name}: {question}"


def _notes(session: TalkPairSession, answers: TalkPairAnswers, intensity: Mapping[str, IntensityResult]) -> list[str]:
    settings, inputs = session.cfg.judge, session.inputs
    models = escape_markdown(", ".join(session.calls.models(JUDGE))) or str(inputs.judge)
    notes = [f"FORCED, do not rely on these numbers: {reason}." for reason in answers.forced]
    notes.append(
        f"Judge: {models}. {len(inputs.keys)} of {inputs.shared} talks that every run has, with {len({*inputs.cards})} "
        f"cards; 95 % intervals from {settings.draws:,} bootstrap draws of cards."
    )
    for gate in answers.gates:
        notes += [*gate.column_notes(), *(f"{gate.judge.capitalize()} judge: {note}" for note in gate.notes())]
    notes += [*NOTES, *(_describe(aspect) for aspect in session.prompts.aspects)] if answers.pairs else ()
    notes += INTENSITY_NOTES if intensity else ()
    for label, found in intensity.items():
        notes.append(
            f"{label}: correlation of what judge and seeker say of the intensity {found.turns.text(2, '+')} over "
            f"{found.turns_n} turns, of the relief {found.relief.text(2, '+')} over {found.relief_n} talks."
        )
    return notes + note_calls(session.calls, session.counts, inputs.remarks)
