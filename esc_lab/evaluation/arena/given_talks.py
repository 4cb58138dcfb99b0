"""An evaluation of the supporter's turns of talks as they were written, under the prompts that they were written to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

from esc_lab.artifacts import READ_ERRORS
from esc_lab.config import Config, DataConfig
from esc_lab.config.data import InventoryConfig
from esc_lab.config.model import ENDPOINT, ModelConfig
from esc_lab.config.prompt import TemplateConfig
from esc_lab.config.search import LOADED
from esc_lab.errors import UserError
from esc_lab.prompts import build_layout
from esc_lab.runs.layout import TALKS_FILE, Settings, find_run, read_config

T = TypeVar("T")


def use_talks(cfg: Config, run: Path) -> Config:
    """The configuration for an evaluation of the talks of a run of stage `converse`: their supporter, its prompts and
    inventory, and each of its replies as the gold one.

    Raises:
        UserError: the run cannot be read, or its supporter's weights are not here.
    """
    where = f"sra.talks={run}"
    try:
        config = read_config(run)
        model = _section(ModelConfig, config["model"])
        template = _section(TemplateConfig, config["prompt"]["eval"])
        inventory = _section(InventoryConfig, config["inventory"])
        checkpoint, client = config["checkpoint"], config["llm"]["supporter"]["client"]
    except READ_ERRORS as error:
        fix = "name a run of stage=converse"
        raise UserError(f"its config.yaml cannot be read: {error}", where=where, fix=fix) from error
    if model.source == ENDPOINT or client not in LOADED:
        who = f"model={ENDPOINT}" if model.source == ENDPOINT else f"llm.supporter.client={client}"
        fix = "have a model that is loaded here talk, or name the run that a replay repeats"
        raise UserError(f"attention takes the weights of the supporter, and its talks have {who}", where=where, fix=fix)
    span, spans = cfg.evaluate.sra.span, build_layout(template).strategy_spans
    if span not in spans:
        what = f"the template {template.template} of its talks writes no strategy like that"
        raise UserError(what, where=f"evaluate.sra.span={span}", fix=f"use {', '.join(spans)}")
    evaluate = replace(
        cfg.evaluate, split="test", replies="gold", prompted="gold", likelihood=False, score_opening=False, min_turns=0,
        history_turns=None, generation=replace(cfg.evaluate.generation, decisions=None, samples=1),
    )  # fmt: skip
    data = DataConfig(
        name=run.name, path=str(run / TALKS_FILE), format="jsonl", merge="none", proportions={"test": 1.0},
        too_long="drop", row_tokens=cfg.data.row_tokens,
    )  # fmt: skip
    return replace(
        cfg, model=model, checkpoint=str(find_run(Path(checkpoint), run) or checkpoint) if checkpoint else None,
        inventory=inventory, prompt=replace(cfg.prompt, eval=template, inference="direct"), data=data,
        evaluate=evaluate,
    )  # fmt: skip


def _section(kind: type[T], settings: Settings) -> T:
    """A section of a configuration; keys that it had and has no more are left out."""
    known: Mapping[str, Any] = {field.name: settings[field.name] for field in fields(kind) if field.name in settings}  # type: ignore[arg-type]
    return kind(**known)
