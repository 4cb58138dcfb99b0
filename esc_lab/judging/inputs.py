"""What stage `judge` judges: replies of evaluations of one test set, with the dialogues that they were written in."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from omegaconf import OmegaConf

from esc_lab.comparison.checks import check_cells, load_predictions
from esc_lab.comparison.runs import Run, group_cells, read_runs
from esc_lab.config import Config, DataConfig
from esc_lab.data.corpora import ReadReport, read_dialogues
from esc_lab.data.dialogue import Dialogue, Turn
from esc_lab.data.read_splits import read_splits
from esc_lab.data.strategies import Inventory, build_inventory
from esc_lab.errors import UserError, nearest
from esc_lab.judging.replies import WrittenReply, build_history, check_context, draw_decisions, read_replies
from esc_lab.judging.same_judge import JudgeModel, judge_model, model_names
from esc_lab.metrics.prediction_table import Key
from esc_lab.runs.layout import DIALOGUES, PREDICTIONS, read_config
from esc_lab.runs.lineage import find_searches

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvaluatedRun:
    """An evaluation: its label (model, method, template, and the seed where there are several) and its replies."""

    label: str
    run: Run
    replies: Mapping[Key, WrittenReply]


@dataclass(frozen=True)
class JudgeInputs:
    """What is judged.

    Attributes:
        runs: the evaluations; `baseline` is one of them.
        inventory: of their strategies.
        dialogues: those of the test set, by id.
        keys: the decisions that are judged, in every run the same.
        with_replies: decisions that have a reply in every run.
        test_set: identity of the test set, as in comparisons.
        seed: what they were drawn with.
        judge: the model that judges.
        conflicts: why the judge must not judge: sentences on runs whose training data it judged.
        remarks: sentences on what stands out.
    """

    runs: Sequence[EvaluatedRun]
    baseline: EvaluatedRun
    inventory: Inventory
    dialogues: Mapping[str, Dialogue]
    keys: Sequence[Key]
    with_replies: int
    test_set: str
    seed: int
    judge: JudgeModel
    conflicts: Sequence[str]
    remarks: Sequence[str]

    @property
    def candidates(self) -> list[EvaluatedRun]:
        """The runs that are compared with the baseline."""
        return [run for run in self.runs if run is not self.baseline]

    @property
    def trees(self) -> list[str]:
        """The tree of each judged decision's dialogue."""
        return [self.baseline.replies[key].tree for key in self.keys]

    def history(self, key: Key) -> tuple[Turn, ...]:
        return build_history(self.dialogues[key[0]], key[1])


def read_inputs(cfg: Config) -> JudgeInputs:
    """Read everything.

    Raises:
        UserError: a directory holds no finished evaluation with replies, evaluations are of different test sets or were
            sampled differently, their dialogues are gone, or there is no such baseline.
    """
    runs, remarks = read_runs([Path(path) for path in cfg.judge.runs])
    without = [str(run.directory) for run in runs if not run.predictions]
    if without:
        fix = "name run directories of stage=evaluate"
        raise UserError(f"no evaluation with predictions: {', '.join(without)}", where="judge.runs", fix=fix)
    cells = group_cells(runs)
    check_cells(cells, ["text/rouge_l"])
    test = load_predictions(runs, ())[runs[0].directory].test
    labels = {run.directory: cell.run_name(run) for cell in cells for run in cell.runs}
    judged = [EvaluatedRun(labels[run.directory], run, _read_replies(run)) for run in runs]
    inventory = build_inventory(runs[0].config["inventory"], cfg.config_dirs)
    dialogues = _read_dialogues(runs, inventory, cfg.config_dirs)
    for run in judged:
        check_context(dialogues, run.replies, str(run.run.directory))
    shared, few = _find_shared_decisions(judged, test.keys)
    judge = judge_model(asdict(cfg))
    conflicts, lineage = _check_lineage(judged, judge)
    evaluated = {dialogue for dialogue, _ in test.keys}
    return JudgeInputs(
        runs=judged,
        baseline=_choose_baseline(judged, cfg.judge.baseline),
        inventory=inventory,
        dialogues={name: dialogue for name, dialogue in dialogues.items() if name in evaluated},
        keys=draw_decisions(shared, cfg.judge.decisions, cfg.seed),
        with_replies=len(shared),
        test_set=test.identity,
        seed=cfg.seed,
        judge=judge,
        conflicts=conflicts,
        remarks=[*remarks, *few, *lineage],
    )


def _find_shared_decisions(runs: Sequence[EvaluatedRun], keys: Sequence[Key]) -> tuple[list[Key], list[str]]:
    """The decisions with a reply in every run, and a remark if that is few of them.

    Raises:
        UserError: there are none.
    """
    shared = [key for key in keys if all(key in run.replies for run in runs)]
    if not shared:
        fix = "evaluate all with the same seed and evaluate.generation.decisions"
        raise UserError("there is no decision to which every run wrote a reply", where="judge.runs", fix=fix)
    smallest = min(len(run.replies) for run in runs)
    if len(shared) >= 0.5 * smallest:
        return shared, []
    remark = f"only {len(shared)} decisions have a reply of every run, of {smallest} or more that each replied to"
    return shared, [f"{remark}; their evaluations chose different ones"]


def _read_replies(run: Run) -> dict[Key, WrittenReply]:
    path = run.directory / PREDICTIONS
    replies = read_replies(path)
    if not replies:
        fix = "evaluate with evaluate.generation.enabled=true"
        raise UserError("there is no written reply", where=str(path), fix=fix)
    return replies


def _read_dialogues(runs: Sequence[Run], inventory: Inventory, config_dirs: Sequence[str]) -> dict[str, Dialogue]:
    """The evaluated dialogues by id: those that an evaluation left, else those of its corpus."""
    for run in runs:
        if (run.directory / DIALOGUES).exists():
            dialogues = read_dialogues(run.directory / DIALOGUES, inventory=inventory)
            return {dialogue.id: dialogue for dialogue in dialogues}
    config = runs[0].config
    data = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(DataConfig), config["data"]))
    assert isinstance(data, DataConfig)
    log.info("no %s in %s: reading its corpus", DIALOGUES, runs[0].directory)
    splits = read_splits(data, inventory, ReadReport(), config_dirs)
    return {dialogue.id: dialogue for dialogue in splits.get(config["evaluate"]["split"], ())}


def _choose_baseline(runs: Sequence[EvaluatedRun], asked: str | None) -> EvaluatedRun:
    if asked is None:
        return runs[0]
    for evaluated in runs:
        if evaluated.label == asked or evaluated.run.directory.resolve() == Path(asked).resolve():
            return evaluated
    names = [evaluated.label for evaluated in runs]
    raise UserError(f"no judged run '{asked}'{nearest(asked, names)}", where="judge.baseline", fix=", ".join(names))


def _check_lineage(runs: Sequence[EvaluatedRun], judge: JudgeModel) -> tuple[list[str], list[str]]:
    """Sentences on runs whose training data the judge judged, and on what else stands out in how they were made."""
    conflicts, remarks = [], []
    for label, run in ((evaluated.label, evaluated.run) for evaluated in runs):
        searches, lost = find_searches(run.directory)
        for search in searches:
            try:
                other = judge_model(read_config(search))
            except (KeyError, TypeError, OSError) as error:
                remarks.append(f"{search}, which {label} was trained on, does not say who judged it ({error!r})")
                continue
            if judge.same(other):
                conflicts.append(f"{judge} judged the search {search}, on whose data {label} was trained")
        if lost:
            gone = f"the training behind {label} is gone ({', '.join(lost)})"
            remarks.append(f"{gone}: whether the judge had a part in it is not known")
        if judge.names & model_names(run.config["model"]):
            remarks.append(f"the judge is the model that {label} is made of; models favour their own words")
    return conflicts, remarks
