"""What stage `judge` judges of runs of stage `converse`: whole talks, paired by card and number under one seeker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from esc_lab.artifacts import READ_ERRORS
from esc_lab.comparison.runs import group_cells, read_runs
from esc_lab.comparison.talks import require_same_seekers
from esc_lab.config import Config
from esc_lab.config.search import LOADED
from esc_lab.data.dialogue import Dialogue
from esc_lab.data.strategies import Inventory, build_inventory
from esc_lab.errors import UserError, list_names, nearest
from esc_lab.evaluation.arena.read_talks import read_talk_settings, read_talks
from esc_lab.judging.inputs import JudgeModel, check_lineage, draw_decisions, judge_model, model_names
from esc_lab.metrics.prediction_table import Key
from esc_lab.runs.layout import Settings, read_config


@dataclass(frozen=True)
class TalkRun:
    """A run of stage `converse` under its name in comparisons: its talks by card and number."""

    label: str
    directory: Path
    config: Settings
    talks: Mapping[Key, Dialogue]


@dataclass(frozen=True)
class TalkPairInputs:
    """The talks that are judged.

    Attributes:
        runs: `baseline` is one of them.
        inventory: of the baseline's supporter.
        keys: card and number of the talks that are judged, in every run the same, drawn with `seed`.
        shared: talks that every run has.
        conflicts, remarks: see `JudgeInputs`.
    """

    runs: Sequence[TalkRun]
    baseline: TalkRun
    inventory: Inventory
    keys: Sequence[Key]
    shared: int
    seed: int
    judge: JudgeModel
    conflicts: Sequence[str]
    remarks: Sequence[str]

    @property
    def candidates(self) -> list[TalkRun]:
        return [run for run in self.runs if run is not self.baseline]

    @property
    def cards(self) -> list[str]:
        return [card for card, _ in self.keys]


def holds_talks(paths: Sequence[str]) -> bool:
    """Whether run directories are of stage `converse`.

    Raises:
        UserError: some are, and some are not.
    """
    of_talks = [path for path in paths if _stage(Path(path)) == "converse"]
    if of_talks and len(of_talks) < len(paths):
        what = f"{list_names(of_talks, 3)}: whole talks are not judged together with replies of evaluations"
        raise UserError(what, where="judge.runs", fix="name runs of stage=converse alone, or evaluations alone")
    return bool(of_talks)


def read_talk_runs(cfg: Config, min_severity: int = 0) -> TalkPairInputs:
    """Read everything; of talks only those with cards of a severity.

    Raises:
        UserError: a run has not come to its end, the talks of two are not with the same seekers, they share none, or
            none of this severity, or there is no such baseline.
    """
    found, remarks = read_runs([Path(path) for path in cfg.judge.runs])
    names = {run: cell.run_name(run) for cell in group_cells(found) for run in cell.runs}
    runs = []
    for run in found:
        inventory = build_inventory(run.config["inventory"], cfg.config_dirs)
        runs.append(TalkRun(names[run], run.directory, run.config, read_talks(run.directory, inventory).dialogues))
    baseline = _choose_baseline(runs, cfg.judge.baseline)
    _check_paired(baseline, [run for run in runs if run is not baseline])
    shared = [key for key in baseline.talks if all(key in run.talks for run in runs)]
    if not shared:
        fix = "converse with the same cards and converse.talks"
        raise UserError("there is no talk that every run has", where="judge.runs", fix=fix)
    rated = [key for key in shared if find_severity(baseline.talks[key]) >= min_severity]
    if not rated:
        what = f"there is no talk with a card of severity {min_severity} or more"
        raise UserError(what, where="judge.runs", fix="converse with cards=crisis")
    if left := max(len(run.talks) for run in runs) - len(shared):
        remarks.append(f"{left} talks are not in every run, and left out")
    judge = judge_model(asdict(cfg))
    conflicts, lineage = check_lineage({run.label: run.directory for run in runs}, judge)
    if judge.names & _seeker_names(baseline.config):
        remarks.append("the judge's model plays the seeker, too: what it says of the talks is no second opinion")
    return TalkPairInputs(
        runs=runs,
        baseline=baseline,
        inventory=build_inventory(baseline.config["inventory"], cfg.config_dirs),
        keys=draw_decisions(rated, cfg.judge.decisions, cfg.seed),
        shared=len(shared),
        seed=cfg.seed,
        judge=judge,
        conflicts=conflicts,
        remarks=[*remarks, *lineage],
    )


def find_severity(talk: Dialogue) -> int:
    """Of the card of a talk; 0 for none."""
    return int(talk.meta.get("severity", 0))


def _stage(directory: Path) -> str:
    try:
        return str(read_config(directory).get("stage"))
    except READ_ERRORS:
        return ""  # reading it as an evaluation says what is wrong


def _check_paired(baseline: TalkRun, others: Sequence[TalkRun]) -> None:
    """Whether the seekers are the same: their model, words, cards, seeds and when talks end."""
    settings = {run.directory: read_talk_settings(run.directory) for run in (baseline, *others) if others}
    for directory, known in settings.items():
        if not known:
            fix = "bring the whole run directory, or converse again"
            raise UserError("there are no journals, which say what its seekers are", where=str(directory), fix=fix)
    for run in others:
        first, second = ((one.directory, settings[one.directory]) for one in (baseline, run))
        require_same_seekers(first, second, "judge.runs")


def _choose_baseline(runs: Sequence[TalkRun], asked: str | None) -> TalkRun:
    for run in runs:
        if asked is None or asked == run.label or Path(asked).resolve() == run.directory.resolve():
            return run
    names = [run.label for run in runs]
    what = f"no judged run '{asked}'{nearest(str(asked), names)}"
    raise UserError(what, where="judge.baseline", fix=", ".join(names))


def _seeker_names(config: Settings) -> frozenset[str]:
    """Names of the model that plays the seeker; none where that is not known, since a recording plays it."""
    played, llm = config["llm"]["seeker"], config["llm"]
    if played["client"] == "replay":
        return frozenset()
    own = played["model"] if played["client"] in LOADED else played["model"] or llm["openai"]["model"]
    return model_names({"path": own} if own else llm["local"]["model"])
