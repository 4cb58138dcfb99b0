"""What is wrong with a configuration, told before anything heavy is imported.

Hydra checks types; `problems` finds what it lets through: unknown keys added with `+`, values outside a choice or a
range, missing values and absent paths, all at once. This module imports neither torch nor Hydra.
"""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig, ListConfig, OmegaConf

from esc_lab.config import RESUMED, SPLITS, Key, keys
from esc_lab.config.item import ANY
from esc_lab.config.role_checks import judge_problems, role_problems, url_problems
from esc_lab.config.schema import RENAMED
from esc_lab.config.search import ROLES
from esc_lab.errors import nearest

# Packages whose classes `_target_` may name, besides those in `allow`.
TARGET_PACKAGES = ("esc_lab", "pytorch_lightning", "lightning_fabric", "transformers", "wandb")


def unknown_key(name: str) -> str | None:
    """Message for a dotted key that the schema does not have, naming the nearest valid one; None if it is known."""
    known = {key.name: key for key in keys()}
    sections = {name.rsplit(".", depth)[0] for name in known for depth in range(1, name.count(".") + 1)}
    if name in known or name in sections:
        return None
    parents = [".".join(name.split(".")[:depth]) for depth in range(1, name.count(".") + 1)]
    for parent in parents:
        if parent in known and known[parent].free:
            return None
        if parent in known and isinstance(known[parent].default, list):
            if name.removeprefix(f"{parent}.").split(".")[0].isdigit():
                return None
            fix = f"Fix: count its items from 0, as in {parent}.0, or give all of it"
            return f"'{name}': {parent} is a list ({known[parent].doc}). {fix}"
    section = name.split(".")[0]
    topic = f" {section}" if section in sections else ""
    if name in RENAMED:
        return f"unknown config key '{name}'; it is '{RENAMED[name]}' now. Fix: write {RENAMED[name]}=..."
    fix = f"Fix: `python run.py --help{topic}` lists the keys"
    return f"unknown config key '{name}'{_hint(name, known, sections)} {fix}"


def _hint(name: str, known: Mapping[str, Key], sections: set[str]) -> str:
    """What an unknown key may have been meant to be: a similar name, or a key whose doc has its words."""
    section, _, leaf = name.rpartition(".")

    def likeness(other: str) -> float:
        other_section, _, other_leaf = other.rpartition(".")
        in_full = difflib.SequenceMatcher(None, name, other).ratio()
        last_part = difflib.SequenceMatcher(None, leaf, other_leaf).ratio()
        if leaf in other_leaf.split("_"):
            last_part = max(last_part, 0.9)
        return max(0.9 * in_full, 0.85 * last_part + 0.15 * (section == other_section))

    best = max([*known, *([] if section in sections else sections)], key=likeness)
    if likeness(best) >= 0.68:
        return f"; did you mean '{best}'?"
    words = set(leaf.lower().split("_"))
    documented = [key for key in known.values() if words <= set(key.doc.lower().replace(",", "").split())]
    if documented:
        meant = min(documented, key=lambda key: (not key.name.startswith(f"{section}."), len(key.doc)))
        return f"; did you mean '{meant.name}'?"
    if section in sections:
        own = [key.removeprefix(f"{section}.") for key in known if key.startswith(f"{section}.")]
        return f"; '{section}' has {', '.join(own)}."
    return nearest(name, [*known, *sections]) or "."


def problems(cfg: DictConfig) -> list[str]:
    """Everything wrong with a composed configuration that its values alone can tell. Empty if it is fine."""
    found: list[str] = []
    known = {key.name: key for key in keys()}
    for name, value in _leaves(cfg):
        if name not in known:
            message = unknown_key(name)
            found += [message] if message else []
        elif value is not None:
            found += _value_problems(known[name], value)
    return found + _combined(cfg)


def _value_problems(key: Key, value: Any) -> list[str]:
    if value == MISSING:
        return [f"missing value for '{key.name}' ({key.doc}). Fix: add {key.name}=..."]
    for one in (value if isinstance(value, (list, ListConfig)) else [value]) if key.choices else []:
        if one not in key.choices:
            renamed = RENAMED.get(f"{key.name}={one}")
            hint = f"; it is {renamed} now" if renamed else nearest(str(one), key.choices)
            return [f"{key.name}={one}: not one of {', '.join(key.choices)}{hint}"]
    low, high = key.within
    if key.within != ANY and not low <= value <= high:
        allowed = f"at least {low:g}" if math.isinf(high) else f"from {low:g} to {high:g}"
        return [f"{key.name}={value}: has to be {allowed} ({key.doc})"]
    if key.path and not os.path.exists(str(value)):
        start = "" if os.path.isabs(value) else f"; the working directory is {os.getcwd()}"
        return [f"{key.name}={value}: no such file or directory. Fix: check the path{start}"]
    return []


def _combined(cfg: DictConfig) -> list[str]:
    """Problems that need more than one key to see, or a look at the disk."""
    found = url_problems(cfg)
    stage = OmegaConf.select(cfg, "stage")
    if stage == "compare" and not cfg.compare.runs and not cfg.compare.wandb:
        fix = "Fix: add compare.runs=[outputs/...,outputs/...], or compare.wandb=entity/project"
        found.append(f"stage=compare needs run directories. {fix}")
    for run in cfg.compare.runs if stage == "compare" else []:
        if not any(os.path.exists(Path(run) / name) for name in ("config.yaml", "manifest.jsonl")):
            fix = "name directories of finished runs or multiruns"
            found.append(f"compare.runs: {run} holds no config.yaml and no manifest.jsonl: it is no run. Fix: {fix}")
    if stage == "export" and cfg.checkpoint is None:
        found.append("stage=export needs a trained model. Fix: add checkpoint=<run directory of an sft run>")
    if stage in ("sft", "cso") and cfg.checkpoint is not None:
        found.append(f"checkpoint={cfg.checkpoint}: stage={stage} trains. Fix: start from it with init_from=")
    if stage == "search" or (stage == "pipeline" and "search" in cfg.pipeline.stages):
        found += _search_problems(cfg)
    if stage == "pipeline":
        found += _pipeline_problems(cfg)
    if stage == "judge":
        found += judge_problems(cfg)
    if stage == "classifier":
        found += _classifier_problems(cfg)
    if stage in ("evaluate", "pipeline", "sra"):
        found += _evaluate_problems(cfg)
    if stage == "sra":
        found += _sra_problems(cfg)
    if OmegaConf.select(cfg, "resume") is not None:
        found += _resume_problems(cfg)
    found += _model_problems(cfg.model) + _data_problems(cfg) + _target_problems(cfg)
    for name in ("output_root", "cache_dir", "export.directory"):
        path = OmegaConf.select(cfg, name)
        if path is not None and not _writable(Path(path)):
            found.append(f"{name}={path}: cannot be written to. Fix: choose another place")
    if len(cfg.optimizer.betas) != 2:
        found.append(f"optimizer.betas={cfg.optimizer.betas}: two numbers are needed, such as [0.9,0.999]")
    return found


def _pipeline_problems(cfg: DictConfig) -> list[str]:
    found = []
    chosen = list(cfg.pipeline.stages)
    if chosen != [name for name in ("search", "sft", "cso") if name in chosen]:
        found.append(f"pipeline.stages={chosen}: choose of search, sft, cso, in this order")
    if cfg.trainer.devices not in ("auto", "1"):
        found.append(
            f"trainer.devices={cfg.trainer.devices}: stage=pipeline runs on one device. "
            "Fix: run stage=sft on several, then stage=evaluate"
        )
    return found


def _search_problems(cfg: DictConfig) -> list[str]:
    found = role_problems(cfg, ROLES)
    rule = cfg.mcts.preferences
    if rule.threshold == "quantile" and not (0 <= rule.preferred_min <= 1 and 0 <= rule.rejected_max <= 1):
        found.append(
            f"mcts.preferences: quantiles are from 0 to 1; preferred_min={rule.preferred_min}, "
            f"rejected_max={rule.rejected_max}. Fix: threshold=absolute, or other limits"
        )
    if cfg.data.negatives != "recorded":
        found.append(f"data.negatives={cfg.data.negatives}: the search finds the rejected replies. Fix: leave it out")
    return found


def _evaluate_problems(cfg: DictConfig) -> list[str]:
    found = []
    judge = cfg.evaluate.classifier
    if judge not in (None, "auto") and not Path(judge).is_dir():
        fix = "name a run of stage=classifier, or use auto"
        found.append(f"evaluate.classifier={judge}: no such directory. Fix: {fix}")
    generation = cfg.evaluate.generation
    if generation.samples > 1:
        several = f"evaluate.generation.samples={generation.samples}"
        if cfg.evaluate.replies == "gold" or not generation.enabled:
            found.append(f"{several}: no reply is written. Fix: leave it out")
        elif generation.temperature == 0:
            fix = "evaluate.generation.temperature=0.7, or leave samples out"
            found.append(f"{several}: at temperature 0 all samples are the same reply. Fix: {fix}")
    return found


def _sra_problems(cfg: DictConfig) -> list[str]:
    found = []
    if not cfg.sra.templates:
        found.append("sra.templates is empty. Fix: name one or more")
    if cfg.sra.study == "finetuned" and len(cfg.sra.templates) > 1:
        found.append("sra.study=finetuned compares under one template. Fix: sra.templates=[standard]")
    if cfg.sra.study == "lengths" and not all(length >= 1 for length in cfg.sra.lengths or [0]):
        found.append(f"sra.lengths={cfg.sra.lengths}: numbers of turns are needed, such as [1,5,9]")
    if not cfg.evaluate.sra.enabled:
        found.append("evaluate.sra.enabled=false: stage=sra measures it. Fix: leave it out")
    if cfg.evaluate.replies == "generated" and not cfg.evaluate.generation.enabled:
        found.append("evaluate.generation.enabled=false: no replies. Fix: leave it out, or evaluate.replies=gold")
    return found


def _classifier_problems(cfg: DictConfig) -> list[str]:
    found = []
    for name in ("checkpoint", "init_from"):
        if cfg[name] is not None:
            found.append(
                f"{name}={cfg[name]}: a classifier starts from a base model, so that it judges all runs alike. "
                "Fix: leave it out, or name the directory of an exported model with model=directory"
            )
    if cfg.model.quantization:
        found.append(
            f"model.quantization={cfg.model.quantization}: a classifier is trained on weights that are not quantised. "
            "Fix: model.quantization=null"
        )
    if cfg.model.trust_remote_code:
        found.append(
            "model.trust_remote_code=true: a classifier runs no code that ships with a model. "
            "Fix: choose another model, or leave it at false"
        )
    if cfg.data.strategy_weights:
        found.append("data.strategy_weights: stage=classifier weighs all replies alike. Fix: leave it out")
    if cfg.trainer.devices not in ("auto", "1"):
        found.append(f"trainer.devices={cfg.trainer.devices}: stage=classifier runs on one device. Fix: leave it out")
    return found


def _resume_problems(cfg: DictConfig) -> list[str]:
    found = []
    if cfg.stage not in RESUMED:
        found.append(f"resume={cfg.resume}: stage={cfg.stage} trains nothing. Fix: leave it out")
    if cfg.trainer.fast_dev_run:
        found.append(f"resume={cfg.resume}: a dry run goes on from nothing. Fix: trainer.fast_dev_run=false")
    places = ["trees/*.journal.jsonl"] if cfg.stage in ("search", "pipeline") else []
    places += ["checkpoints/last.ckpt"] if cfg.stage not in ("search", "judge") else []
    places += ["judge.journal.jsonl"] if cfg.stage == "judge" else []
    places += [f"*/{place}" for place in places if cfg.stage == "pipeline"]
    if cfg.resume != "auto" and not any(True for place in places for _ in Path(cfg.resume).glob(place)):
        found.append(
            f"resume={cfg.resume}: no {' or '.join(places)} there: not such a run, or a training that has finished or "
            "did not come to its first checkpoint. Fix: resume=auto, or name another run directory"
        )
    return found


def _model_problems(model: DictConfig) -> list[str]:
    path = OmegaConf.select(model, "path")
    if model.source == "directory" and path and not os.path.exists(Path(path) / "config.json"):
        return [f"model.path={path}: no model directory (it has no config.json)"]
    if model.source == "random" and "model_type" not in model.shape:
        return ["model.source=random needs model.shape.model_type"]
    if model.chat_template and model.chat_template.endswith(".jinja") and not os.path.exists(model.chat_template):
        return [f"model.chat_template={model.chat_template}: no such file"]
    return []


def _data_problems(cfg: DictConfig) -> list[str]:
    data = cfg.data
    found = []
    for name in ("limit", "proportions"):
        wrong = {split: value for split, value in data[name].items() if split not in SPLITS or value < 0}
        if wrong:
            found.append(f"data.{name}={wrong}: give numbers from 0 for {', '.join(SPLITS)}")
    if abs(sum(data.proportions.values()) - 1) > 1e-6:
        found.append(f"data.proportions={data.proportions}: train, val and test have to add up to 1; give all three")
    strategies = [strategy.name for strategy in cfg.inventory.strategies if "name" in strategy]
    for name in data.strategy_weights:
        if name not in strategies:
            found.append(
                f"data.strategy_weights: no strategy '{name}' in {cfg.inventory.name}{nearest(name, strategies)}"
            )
    return found


def target_problem(section: Any, allow: Sequence[str]) -> str | None:
    """What is wrong with the class that a section names by `_target_`: there is none, or its package may not run."""
    target = section.get("_target_") if isinstance(section, (Mapping, DictConfig)) else None
    if "." not in str(target or ""):
        return f"_target_ names no class: {target!r}. Fix: {{_target_: package.module.Class, argument: value}}"
    package = str(target).split(".")[0]
    if package not in (*TARGET_PACKAGES, *allow):
        return f"{target}: code of {package} is not allowed to run. Fix: allow=[{package}], if you trust it"
    return None


def _target_problems(cfg: DictConfig) -> list[str]:
    problems = []
    for key in ("trainer.callbacks", "logger.extra"):
        for name, section in OmegaConf.select(cfg, key).items():
            problem = target_problem(section, cfg.allow)
            problems += [f"{key}.{name}: {problem}"] if problem else []
    return problems


def _writable(path: Path) -> bool:
    """Whether `path` can be created or written to, without touching it."""
    existing = next(parent for parent in (path.absolute(), *path.absolute().parents) if os.path.lexists(parent))
    return existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)


def _leaves(cfg: DictConfig, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name in cfg:
        full = f"{prefix}{name!s}"
        if OmegaConf.is_missing(cfg, name):
            yield full, MISSING
            continue
        value = cfg[name]
        if isinstance(value, DictConfig) and len(value):
            yield from _leaves(value, f"{full}.")
        else:
            yield full, value
