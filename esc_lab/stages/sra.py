"""Stage `sra`: studies of Strategy-Relevant Attention. Evaluations side by side, then what they say together."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from esc_lab.artifacts import write_atomic
from esc_lab.config import Config
from esc_lab.config.evaluate import BoostConfig, SRAStudyConfig
from esc_lab.config.prompt import use_template
from esc_lab.data.corpora import read_dialogues
from esc_lab.evaluation.arena.given_talks import use_talks
from esc_lab.metrics.predictions import read_predictions
from esc_lab.report import boost_report, sra_report
from esc_lab.report.attention_files import HEADS
from esc_lab.report.turns_report import turns
from esc_lab.runs.layout import DIALOGUES, PREDICTIONS, STUDY
from esc_lab.scorers.auto_classifier import stored_classifier
from esc_lab.sra.sample import MeasuredReply, ReplySample, read_measured_replies
from esc_lab.sra.turns import place_in_talks
from esc_lab.stages.run_stage import run_substage


def run(cfg: Config) -> dict[str, float]:
    """Run the evaluations of `sra.study` in subdirectories; study.json, tables and figures go into the run directory.

    Raises:
        UserError: no reply of an evaluation could be measured, or what the evaluations raise.
    """
    root, study = Path(cfg.run_dir), cfg.sra.study
    cfg = replace(cfg, trainer=replace(cfg.trainer, devices="1"))
    measure = f"{cfg.evaluate.sra.definition}/{cfg.evaluate.sra.span}"
    if study == "turns":
        return _write(_report_turns(cfg, root, measure), root)
    if study in ("boost", "ablate"):
        report = boost_report.REPORTS[study]([directory for _, directory in _boosts(cfg, root)], root)
        return _write(report, root)
    replies: list[MeasuredReply] = []
    attention = []  # of each head [replies, layers, heads]
    for label, directory in _STUDIES[study](cfg, root):
        replies += read_measured_replies(directory, label, measure)
        if study == "heads":
            attention.append(load_file(directory / HEADS)["heads"])
    if study == "heads":
        report = sra_report.heads(replies, np.concatenate(attention), root, seed=cfg.seed)
    else:
        report = sra_report.STUDIES[study](ReplySample(replies, cfg.sra.draws, cfg.seed), root)
    return _write(report, root)


def _write(report: sra_report.Report, root: Path) -> dict[str, float]:
    write_atomic(root / STUDY, json.dumps(report.results, indent=1))
    write_atomic(root / "study.md", report.markdown)
    return report.metrics


def _templates(cfg: Config, root: Path) -> Iterator[tuple[str, Path]]:
    for template in cfg.sra.templates:
        yield _evaluate(_set_template(cfg, template), template, root / template)


def _finetuned(cfg: Config, root: Path) -> Iterator[tuple[str, Path]]:
    """The model before and after fine-tuning on replies to prompts that name their strategy."""
    (template,) = cfg.sra.templates
    cfg = _set_template(cfg, template)
    yield _evaluate(cfg, "base", root / "base")
    training = replace(cfg, stage="sft", checkpoint=None, init_from=cfg.checkpoint)
    run_substage(training, root / "sft")
    yield _evaluate(replace(cfg, checkpoint=str(root / "sft")), "SFT", root / "evaluate_sft")


def _lengths(cfg: Config, root: Path) -> Iterator[tuple[str, Path]]:
    """The same decisions of long dialogues under histories of different lengths."""
    longest = max(cfg.sra.lengths)
    for template in cfg.sra.templates:
        for length in cfg.sra.lengths:
            step = replace(cfg.evaluate, history_turns=length, min_turns=longest)
            label = f"{template}, {length}"
            directory = root / f"{template}_{length}"
            yield _evaluate(replace(_set_template(cfg, template), evaluate=step), label, directory)


def _boosts(cfg: Config, root: Path) -> Iterator[tuple[str, Path]]:
    """Without a boost, and with attention on each span boosted by each dose, or blocked."""
    asked, study = cfg.evaluate.boost, cfg.sra
    doses, mode = (study.doses, asked.mode) if study.study == "boost" else ([0.0], "block")
    for template in study.templates:
        own = _set_template(cfg, template)
        plain = replace(cfg.evaluate, boost=BoostConfig())
        yield _evaluate(replace(own, evaluate=plain), template, root / template)
        for (name, heads), span, dose in product(_list_heads(study).items(), study.spans, doses):
            boost = replace(asked, mode=mode, amount=dose, span=span, **heads)
            label = "_".join([template, span, *([] if name == "all" else [name]), *([f"{dose:g}"] if dose else [])])
            yield _evaluate(replace(own, evaluate=replace(cfg.evaluate, boost=boost)), label, root / label)


def _list_heads(study: SRAStudyConfig) -> dict[str, dict[str, Any]]:
    """Settings of a boost by a name: each choice of heads; several draws of random ones beside those of each other."""
    chosen = [choice for choice in study.choices if choice in ("adherence", "attention")]
    beside: list[str | None] = [*chosen, *([] if chosen else [None])]
    found: dict[str, dict[str, Any]] = {choice: {"choice": choice} for choice in study.choices if choice != "random"}
    if "random" in study.choices:
        for matched, draw in product(beside, range(1, study.random_draws + 1)):
            parts = ["random", *([matched] if matched and len(chosen) > 1 else []), *([str(draw)] if draw > 1 else [])]
            found["_".join(parts)] = {"choice": "random", "matched": matched, "draw": draw}
    return found


def _report_turns(cfg: Config, root: Path, measure: str) -> sra_report.Report:
    """The supporter's turns of talks, each under the prompt that it was written to and by the model that wrote it."""
    runs = [Path(run) for run in cfg.sra.talks]
    if cfg.evaluate.classifier == "auto":  # trained on the corpus: talks are nothing to learn from
        judge = stored_classifier(replace(cfg, inventory=use_talks(cfg, runs[0]).inventory), run_substage)
        cfg = replace(cfg, evaluate=replace(cfg.evaluate, classifier=str(judge)))
    replies: list[MeasuredReply] = []
    shortened: dict[str, int] = {}
    for run in runs:
        label, directory = _evaluate(use_talks(cfg, run), run.name, root / run.name)
        found = read_measured_replies(directory, label, measure)
        replies += place_in_talks(found, read_dialogues(directory / DIALOGUES))
        shortened[label] = sum(each.history < each.turn for each in read_predictions(directory / PREDICTIONS))
    return turns(ReplySample(replies, cfg.sra.draws, cfg.seed), root, shortened)


_STUDIES: dict[str, Callable[[Config, Path], Iterator[tuple[str, Path]]]] = {
    "templates": _templates,
    "strategies": _templates,
    "heads": _templates,
    "finetuned": _finetuned,
    "lengths": _lengths,
}


def _set_template(cfg: Config, template: str) -> Config:
    return replace(cfg, prompt=use_template(cfg.prompt, template, cfg.config_dirs))


def _evaluate(cfg: Config, label: str, directory: Path) -> tuple[str, Path]:
    run_substage(replace(cfg, stage="evaluate", init_from=None, resume=None), directory)
    return label, directory
