"""Finished evaluations of one test set, as judges and surveys read them, with the dialogues behind them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import OmegaConf

from esc_lab.comparison.checks import check_cells, load_predictions
from esc_lab.comparison.runs import Run, group_cells, read_runs
from esc_lab.config import DataConfig
from esc_lab.data.corpora import ReadReport, read_dialogues, read_splits
from esc_lab.data.dialogue import Dialogue
from esc_lab.data.strategies import Inventory, build_inventory
from esc_lab.errors import UserError, nearest
from esc_lab.metrics.prediction_table import TestSet
from esc_lab.runs.layout import DIALOGUES

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluations:
    """Finished evaluations of one test set.

    Attributes:
        labels: by run: model, method, template, and the seed where a cell has several.
        dialogues: those of the test set, by id.
        remarks: sentences on what stands out.
    """

    labels: Mapping[Run, str]
    inventory: Inventory
    dialogues: Mapping[str, Dialogue]
    test: TestSet
    remarks: Sequence[str]


def read_evaluations(paths: Sequence[str], where: str, config_dirs: Sequence[str]) -> Evaluations:
    """The evaluations in run directories; `where` is the setting that names them.

    Raises:
        UserError: a directory holds no finished evaluation with predictions, evaluations are of different test sets or
            were sampled differently, or their dialogues are gone.
    """
    runs, remarks = read_runs([Path(path) for path in paths])
    without = [str(run.directory) for run in runs if not run.predictions]
    if without:
        fix = "name run directories of stage=evaluate"
        raise UserError(f"no evaluation with predictions: {', '.join(without)}", where=where, fix=fix)
    cells = group_cells(runs)
    check_cells(cells, ["text/rouge_l"])
    names = {run: cell.run_name(run) for cell in cells for run in cell.runs}
    inventory = build_inventory(runs[0].config["inventory"], config_dirs)
    return Evaluations(
        labels={run: names[run] for run in runs},
        inventory=inventory,
        dialogues=_read_dialogues(runs, inventory, config_dirs),
        test=load_predictions(runs, ())[runs[0].directory].test,
        remarks=remarks,
    )


def choose_baseline(evaluations: Evaluations, asked: str | None, where: str) -> str:
    """The label of the run that is named, by its label or directory, in the setting `where`; None = the first one."""
    names = [*evaluations.labels.values()]
    if asked is None:
        return names[0]
    for run, label in evaluations.labels.items():
        if label == asked or run.directory.resolve() == Path(asked).resolve():
            return label
    raise UserError(f"no judged run '{asked}'{nearest(asked, names)}", where=where, fix=", ".join(names))


def _read_dialogues(runs: Sequence[Run], inventory: Inventory, config_dirs: Sequence[str]) -> dict[str, Dialogue]:
    """The evaluated dialogues by id: those that an evaluation left, else those of its corpus."""
    for run in runs:
        if (run.directory / DIALOGUES).exists():
            dialogues = read_dialogues(run.directory / DIALOGUES, inventory=inventory)
            return {dialogue.id: dialogue for dialogue in dialogues}
    config = runs[0].config
    data = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(DataConfig), config["data"]))
    assert isinstance(data, DataConfig)
    data.overlap = "allow"  # only their texts are read
    log.info("no %s in %s: reading its corpus", DIALOGUES, runs[0].directory)
    splits = read_splits(data, inventory, ReadReport(), config_dirs)
    return {dialogue.id: dialogue for dialogue in splits.get(config["evaluate"]["split"], ())}
