"""The comparison of runs: read, check, estimate."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from esc_lab.comparison.boosts import BoostResults, find_boosts
from esc_lab.comparison.checks import check_cells, choose_metrics, load_predictions
from esc_lab.comparison.estimates import Estimates, compute_estimates
from esc_lab.comparison.gains import Gain, find_gains
from esc_lab.comparison.groups import GroupEstimate, estimate_groups, group_decisions
from esc_lab.comparison.judgements import (
    OVERALL,
    Judgements,
    add_judge_metrics,
    add_values,
    read_judgements,
    split_off,
)
from esc_lab.comparison.runs import Cell, Run, group_cells, read_runs
from esc_lab.comparison.search_judges import SearchJudge, find_search_judges
from esc_lab.comparison.strategies import StrategyTable, tabulate_strategies
from esc_lab.comparison.surveys import SurveyedReplies, add_survey_metrics, read_survey
from esc_lab.comparison.talk_judgements import TalkJudgements, add_talk_metrics, split_off_talk_judges
from esc_lab.comparison.talks import Curve, check_talks, load_talks, trace_intensity
from esc_lab.config.evaluate import GenerationConfig
from esc_lab.errors import UserError, nearest
from esc_lab.evaluation.arena.read_talks import Talks
from esc_lab.metrics.chance import chance_levels
from esc_lab.metrics.metric import Metric
from esc_lab.metrics.prediction_table import PredictionTable, TestSet
from esc_lab.metrics.records import SURVEY, find_metric
from esc_lab.metrics.strategy_choice import CHOICES
from esc_lab.metrics.talks import JUDGED, PRIMARY, TALKS


@dataclass(frozen=True)
class ComparisonResult:
    """Runs side by side, before anything is written: evaluations and trainings, or whole talks.

    Attributes:
        cells: model x method, those of a model together.
        columns: the compared metrics.
        estimates: of each metric of each cell that has it.
        baselines: the cell that each cell is compared with, by name.
        primary: the metric whose p-values are left uncorrected; None if it was not measured.
        test: the decisions of all evaluations; None without predictions.
        groups: metrics in subgroups of the decisions.
        left_out: groups that are too small, with their number of decisions.
        strategies: strategy by strategy, by cell.
        remarks: what was left out or stands out among the runs.
        judgements: of a judge, if one is named.
        survey: what people said, if it is named.
        search_judges: of the searches on whose data a cell was trained, by the cell's name.
        gains: of each trained cell over its base model and over what its training went on from.
        boosts: what boosts of attention do.
        talks: of whole talks, by the run's directory.
        intensity: of whole talks, by the cell's name (see `trace_intensity`).
        beside: the comparison of the whole talks that were named together with evaluations or trainings.
    """

    cells: Sequence[Cell]
    columns: Sequence[Metric]
    estimates: Estimates
    baselines: Mapping[str, Cell]
    primary: str | None
    test: TestSet | None
    groups: Sequence[GroupEstimate]
    left_out: Sequence[str]
    strategies: Mapping[str, StrategyTable]
    remarks: Sequence[str]
    judgements: Judgements | None = None
    survey: SurveyedReplies | None = None
    search_judges: Mapping[str, Sequence[SearchJudge]] = field(default_factory=dict)
    gains: Sequence[Gain] = ()
    boosts: BoostResults = field(default_factory=BoostResults)
    talks: Mapping[Path, Talks] = field(default_factory=dict)
    intensity: Mapping[str, Curve] = field(default_factory=dict)
    beside: ComparisonResult | None = None

    @property
    def parts(self) -> list[ComparisonResult]:
        """This comparison, and the one beside it."""
        return [self, *(self.beside.parts if self.beside else [])]

    @property
    def title(self) -> str:
        """Of its table."""
        return "talks" if self.talks else "comparison"

    @property
    def unit(self) -> str:
        """What intervals are over, beside seeds: `dialogues` or `cards`."""
        return self.test.kind[1] if self.test else "dialogues"

    @property
    def runs(self) -> list[Run]:
        return [run for cell in self.cells for run in cell.runs]

    @property
    def chance(self) -> dict[str, float]:
        """What blind guesses would score on the test set (see `chance_levels`); empty if no choice is compared."""
        choices = {f"{group}/{name}" for group in CHOICES for name in ("Q", "accuracy")}
        compared = any(column.name in choices for column in self.columns)
        return chance_levels(self.test) if self.test and compared else {}

    @property
    def metrics(self) -> dict[str, float]:
        """Flat: `<cell>/<metric>` for every metric of its runs (a mean over the seeds).

        Of those that are compared also `<cell>/difference/<metric>` and `<cell>/p/<metric>` (corrected). What does not
        exist is left out.
        """
        metrics: dict[str, float] = self.beside.metrics if self.beside else {}
        for cell in self.cells:
            for metric in {name: None for run in cell.runs for name in run.metrics}:
                values = [run.metrics[metric] for run in cell.runs if metric in run.metrics]
                metrics[f"{cell.name}/{metric}"] = sum(values) / len(values)
        for (name, metric), estimate in self.estimates.items():
            if estimate.difference:
                metrics[f"{name}/difference/{metric}"] = estimate.difference.interval.value
                metrics[f"{name}/p/{metric}"] = estimate.difference.corrected
        return {name: value for name, value in metrics.items() if not math.isnan(value)}


def compute_comparison(
    directories: Sequence[Path],
    *,
    baseline: str | None = None,
    primary: str = "strategy/Q",
    metrics: Sequence[str] | None = None,
) -> ComparisonResult:
    """Read and compare runs; nothing is written.

    Args:
        directories: of evaluations, whole talks, trainings, pipelines or multiruns, of judges (one of evaluations) and
            of one survey.
        baseline: what differences are to: a cell (`tiny CSO (cso)`), or a method (`SFT`), then for each model its own.
            None: the base model for each, or its first cell; the first of all cells if each model has only one.
        primary: the metric whose p-values are not corrected; of talks `PRIMARY`, unless it is one of theirs.
        metrics: the compared ones; None = all columns that tables know and some run has.

    Raises:
        UserError: runs are not finished or cannot be compared (see `read_runs`, `check_cells`, `load_predictions`,
            `check_talks`), or there is no such baseline or metric.
    """
    directories, talk_judges = split_off_talk_judges(directories)
    directories, judge = split_off("judge", directories)
    directories, asked = split_off("survey", directories)
    runs, remarks = read_runs(directories)
    judgements = read_judgements(judge) if judge else None
    if judgements:
        runs, judge_remarks = add_judge_metrics(runs, judgements)
        remarks = [*remarks, *judge_remarks]
    for talk_judge in talk_judges:
        runs = add_talk_metrics(runs, talk_judge)
        remarks = [*remarks, *talk_judge.remarks]
    survey = read_survey(asked) if asked else None
    if survey:
        runs, survey_remarks = add_survey_metrics(runs, survey)
        remarks = [*remarks, *survey_remarks]
    _check_primary(primary, runs)
    asked_for = dict.fromkeys(metrics or ())
    beside = None
    if (talks := [run for run in runs if run.of_talks]) and len(talks) < len(runs):
        own = [name for name in asked_for if name.startswith(TALKS)]
        beside = _compare(talks, None, None, talk_judges, baseline=baseline, primary=primary, metrics=own or None)
        runs = [run for run in runs if not run.of_talks]
        metrics = [name for name in asked_for if name not in own] or None
    found = _compare(runs, judgements, survey, talk_judges, baseline=baseline, primary=primary, metrics=metrics)
    return replace(found, remarks=[*remarks, *found.remarks], beside=beside)


def _compare(
    runs: Sequence[Run],
    judgements: Judgements | None,
    survey: SurveyedReplies | None,
    talk_judges: Sequence[TalkJudgements],
    *,
    baseline: str | None,
    primary: str,
    metrics: Sequence[str] | None,
) -> ComparisonResult:
    """Compare evaluations and trainings, or whole talks."""
    names, cells, remarks = choose_metrics(runs, metrics), group_cells(runs), list[str]()
    said = [name for name in names if name == OVERALL or name.startswith((SURVEY, JUDGED))]  # by others than these runs
    for name in said if metrics is None else ():
        if any(_measured_in_part(cell, name) for cell in cells):
            names.remove(name)
            remarks.append(f"{name} is left out: some seeds of a cell were not judged")
    baselines, own = choose_baselines(cells, baseline), [name for name in names if name not in said]
    talks = load_talks(runs) if runs[0].of_talks else {}
    if talks:
        primary = primary if primary.startswith(TALKS) else PRIMARY
        remarks += check_talks(cells, talks, own)
        predictions = {directory: of_run.table for directory, of_run in talks.items()}
    else:
        remarks += check_cells(cells, names)
        predictions = load_predictions(runs, own)
    for others in (judgements, survey, *talk_judges):
        predictions = add_values(runs, predictions, others.values_of) if others else predictions
    test = next((table.test for table in predictions.values()), None)
    groups, left_out = group_decisions(test, _find_drawing(runs)) if test and not talks else ([], [])
    strategies = {cell.name: tabulate_strategies(cell, predictions) for cell in cells}
    return ComparisonResult(
        cells=cells,
        columns=[find_metric(name) for name in names],
        estimates=compute_estimates(cells, predictions, names, baselines, primary),
        baselines=baselines,
        primary=primary if primary in names else None,
        test=test,
        groups=estimate_groups(cells, predictions, groups, names, baselines),
        left_out=left_out,
        strategies={name: table for name, table in strategies.items() if table},
        remarks=[*remarks, *_remarks(runs, predictions)],
        judgements=judgements,
        survey=survey,
        search_judges=find_search_judges(cells),
        gains=find_gains(cells, predictions),
        boosts=find_boosts(cells, predictions),
        talks=talks,
        intensity=trace_intensity(cells, talks) if talks else {},
    )


def _check_primary(primary: str, runs: Sequence[Run]) -> None:
    measured = {name for run in runs for name in run.metrics}
    if primary not in ("strategy/Q", *measured):
        hint = nearest(primary, measured)
        raise UserError(f"no run has the metric{hint}", where=f"compare.primary={primary}", fix="see metrics.json")


def _find_drawing(runs: Sequence[Run]) -> GenerationConfig | None:
    """How the decisions with replies were drawn, where evaluations agree on that."""
    known = [run.config["evaluate"]["generation"] for run in runs if run.evaluation]
    found = [GenerationConfig(decisions=one.get("decisions"), depths=[*one.get("depths", [])]) for one in known]
    return found[0] if found and all(one == found[0] for one in found) else None


def _measured_in_part(cell: Cell, metric: str) -> bool:
    return 0 < sum(metric in run.metrics for run in cell.runs) < len(cell.runs)


def choose_baselines(cells: Sequence[Cell], baseline: str | None) -> dict[str, Cell]:
    """The baseline of each evaluated cell, by the cell's name. It is its own baseline's too.

    Raises:
        UserError: there is no such cell or method, or a model has it under several templates.
    """
    evaluated = [cell for cell in cells if cell.evaluation]
    by_model: dict[str, list[Cell]] = {}
    for cell in evaluated:
        by_model.setdefault(cell.model, []).append(cell)
    if baseline is None:
        if all(len(members) == 1 for members in by_model.values()):
            return {cell.name: evaluated[0] for cell in evaluated}
        base = {
            model: next((c for c in members if c.method == "base"), members[0]) for model, members in by_model.items()
        }
        return {cell.name: base[cell.model] for cell in evaluated}
    for whole in evaluated:
        if whole.name == baseline:
            return {cell.name: whole for cell in evaluated}
    baselines: dict[str, Cell] = {}
    for model, members in by_model.items():
        matching = [cell for cell in members if cell.method == baseline]
        if len(matching) > 1:
            fix = f"name one of the cells: {', '.join(cell.name for cell in matching)}"
            raise UserError(f"{model} has {len(matching)} cells of the method {baseline}", where="baseline", fix=fix)
        baselines |= {cell.name: matching[0] for cell in members if matching}
    if not baselines:
        known = list(dict.fromkeys([*(cell.method for cell in evaluated), *(cell.name for cell in evaluated)]))
        message = f"no cell or method {baseline!r}{nearest(baseline, known)}"
        raise UserError(message, where="baseline", fix=", ".join(known))
    return baselines


def _remarks(runs: Sequence[Run], predictions: Mapping[Path, PredictionTable]) -> list[str]:
    remarks = []
    without = [str(run.directory) for run in runs if run.evaluation and run.directory not in predictions]
    if without:
        remarks.append(
            f"no predictions.jsonl in {', '.join(without)}: its values have no interval over dialogues and no test"
        )
    commits = {str(run.environment.get("git_commit")) for run in runs if run.environment.get("git_commit")}
    if len(commits) > 1:
        remarks.append(f"the runs are of {len(commits)} versions of this program: {', '.join(sorted(commits))}")
    return remarks
