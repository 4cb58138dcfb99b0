"""What is wrong with a configuration, said before anything heavy is imported.

Hydra checks types; `problems` finds what it lets through: unknown keys added with `+`, values outside a choice or a
range, missing values and absent paths, all at once. This module imports neither torch nor Hydra.
"""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig, ListConfig, OmegaConf

from esc_lab.config.data import SPLITS
from esc_lab.config.endpoint import is_variable_name
from esc_lab.config.files import COMMAND
from esc_lab.config.item import ANY, Key
from esc_lab.config.model import ENDPOINT
from esc_lab.config.schema import RENAMED, keys
from esc_lab.config.search import ROLES
from esc_lab.config.stage_checks import stage_problems
from esc_lab.errors import nearest

# Packages whose classes `_target_` may name, besides those in `allow`.
TARGET_PACKAGES = ("esc_lab", "pytorch_lightning", "lightning_fabric", "transformers", "wandb")
# Fields of a request that have settings of their own, or that the client of endpoints depends on.
_FIELD_SETTINGS = {
    "model": "llm.openai.model names it",
    "messages": "the words of prompts are in conf/roles",
    "temperature": "llm.<role>.temperature",
    "top_p": "llm.<role>.top_p",
    "max_tokens": "llm.<role>.max_tokens, in the field llm.openai.token_limit",
    "max_completion_tokens": "llm.<role>.max_tokens, in the field llm.openai.token_limit",
    "seed": "search.seed, sent with llm.openai.seeds=true",
    "response_format": "llm.openai.structured",
    "stream": "answers are read whole",
    "n": "each call gives one answer",
    "logprobs": "evaluate.generation.top_logprobs, or llm.openai.ratings",
    "top_logprobs": "evaluate.generation.top_logprobs, or llm.openai.ratings",
    "continue_final_message": "llm.openai.ratings=continued",
    "add_generation_prompt": "llm.openai.ratings=continued",
}


def problems(cfg: DictConfig) -> list[str]:
    """Everything wrong with a composed configuration that its values alone can tell. Empty if it is fine."""
    known = _known_keys()
    messages: list[str] = []
    for name, value in _leaves(cfg):
        message = _value_problem(known[name], value) if name in known else unknown_key(name)
        messages += [message] if message else []
    checks = (_endpoint_problems, stage_problems, _model_problems, _data_problems, _target_problems, _place_problems)
    return [*messages, *chain.from_iterable(check(cfg) for check in checks)]


def _leaves(cfg: DictConfig, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name in cfg:
        full = f"{prefix}{name!s}"
        value = MISSING if OmegaConf.is_missing(cfg, name) else cfg[name]
        if isinstance(value, ListConfig):
            OmegaConf.to_container(value, resolve=True)  # an interpolation in it that fails, fails here
        if isinstance(value, DictConfig) and len(value):
            yield from _leaves(value, f"{full}.")
        else:
            yield full, value


def _value_problem(key: Key, value: Any) -> str | None:
    if value is None:
        return None
    if value == MISSING:
        return f"missing value for '{key.name}' ({key.doc}). Fix: add {key.name}=..."
    for choice in (value if isinstance(value, ListConfig) else [value]) if key.choices else []:
        if choice not in key.choices:
            renamed = RENAMED.get(f"{key.name}={choice}")
            hint = f"; it is {renamed} now" if renamed else nearest(str(choice), key.choices)
            return f"{key.name}={choice}: not one of {', '.join(key.choices)}{hint}"
    low, high = key.within
    if key.within != ANY and not low <= value <= high:
        allowed = f"at least {low:g}" if math.isinf(high) else f"from {low:g} to {high:g}"
        return f"{key.name}={value}: has to be {allowed} ({key.doc})"
    if isinstance(value, float) and not math.isfinite(value):
        return f"{key.name}={value}: has to be a finite number ({key.doc})"
    if key.path and not os.path.exists(str(value)):
        start = "" if os.path.isabs(value) else f"; the working directory is {os.getcwd()}"
        return f"{key.name}={value}: no such file or directory. Fix: check the path{start}"
    return None


def _endpoint_problems(cfg: DictConfig) -> Iterator[str]:
    """URLs of endpoints that would bring a secret into the record of a run, whatever its stage."""
    for name in ("openai", *ROLES):
        given = cfg.llm[name].base_url
        urls = list(given) if isinstance(given, ListConfig) else [given or ""]
        if not urls or not all(isinstance(url, str) for url in urls) or len(set(urls)) < len(urls):
            yield f"llm.{name}.base_url={given}: give one URL, or a list of different ones"
            continue
        url = "".join(urls)
        if "@" in url:
            fix = "export OPENAI_BASE_URL=... with it instead"
            yield f"llm.{name}.base_url: a user and password in it would come into config.yaml. Fix: {fix}"
        elif "?" in url or "#" in url:
            fix = "give it as http(s)://host:port/v1, and the key in the variable llm.openai.key_variable"
            yield f"llm.{name}.base_url: what follows ? or # may be a secret, and is never sent. Fix: {fix}"

    openai = cfg.llm.openai
    if not is_variable_name(openai.key_variable):  # it may be the key itself, so it is not shown
        fix = "give the name, such as OPENAI_API_KEY, and export the key under it"
        yield f"llm.openai.key_variable: no name of an environment variable in capital letters. Fix: {fix}"
    for name in (name for name in _FIELD_SETTINGS if name in openai.extra_body):
        yield f"llm.openai.extra_body.{name}: no field that can be added. Fix: {_FIELD_SETTINGS[name]}"


def _model_problems(cfg: DictConfig) -> Iterator[str]:
    model, path = cfg.model, OmegaConf.select(cfg, "model.path")
    if cfg.llm.local.model.source == ENDPOINT:
        fix = "llm.<role>.client=openai for the roles that an endpoint plays"
        yield f"llm.local.model.source=endpoint: roles of clients here need weights. Fix: {fix}"
    if model.source == "directory" and path and not Path(path, "config.json").exists():
        yield f"model.path={path}: no model directory (it has no config.json)"
    if model.source == "random" and "model_type" not in model.shape:
        yield "model.source=random needs model.shape.model_type"
    if model.chat_template and model.chat_template.endswith(".jinja") and not os.path.exists(model.chat_template):
        yield f"model.chat_template={model.chat_template}: no such file"


def _data_problems(cfg: DictConfig) -> Iterator[str]:
    data = cfg.data
    for name in ("limit", "proportions"):
        wrong = {split: value for split, value in data[name].items() if split not in SPLITS or value < 0}
        if wrong:
            yield f"data.{name}={wrong}: give numbers from 0 for {', '.join(SPLITS)}"
    shares = data.proportions.values()
    if min(shares, default=0) >= 0 and abs(sum(shares) - 1) > 1e-6:
        yield f"data.proportions={data.proportions}: train, val and test have to add up to 1; one left out gets none"
    strategies = [strategy.name for strategy in cfg.inventory.strategies if "name" in strategy]
    for name in (name for name in data.strategy_weights if name not in strategies):
        yield f"data.strategy_weights: no strategy '{name}' in {cfg.inventory.name}{nearest(name, strategies)}"
    if len(cfg.optimizer.betas) != 2 or not all(0 <= beta < 1 for beta in cfg.optimizer.betas):
        yield f"optimizer.betas={cfg.optimizer.betas}: two numbers from 0 to below 1 are needed, such as [0.9,0.999]"
    for name in ("max_epochs", "max_steps"):
        if cfg.trainer[name] == 0:
            yield f"trainer.{name}=0: nothing would be trained. Fix: give at least 1, or -1 for no limit"
    if cfg.trainer.max_epochs == cfg.trainer.max_steps == -1:
        yield "trainer.max_epochs=-1 and trainer.max_steps=-1: training would never end. Fix: limit one of them"


def _target_problems(cfg: DictConfig) -> Iterator[str]:
    for key in ("trainer.callbacks", "logger.extra"):
        for name, section in OmegaConf.select(cfg, key).items():
            problem = target_problem(section, cfg.allow)
            if problem:
                yield f"{key}.{name}: {problem}"


def target_problem(section: Any, allow: Sequence[str]) -> str | None:
    """What is wrong with the class that a section names by `_target_`: there is none, or its package may not run."""
    target = section.get("_target_") if isinstance(section, (Mapping, DictConfig)) else None
    if "." not in str(target or ""):
        return f"_target_ names no class: {target!r}. Fix: {{_target_: package.module.Class, argument: value}}"
    package = str(target).split(".")[0]
    if package not in (*TARGET_PACKAGES, *allow):
        return f"{target}: code of {package} is not allowed to run. Fix: allow=[{package}], if you trust it"
    return None


def _place_problems(cfg: DictConfig) -> Iterator[str]:
    for name in ("output_root", "cache_dir", "export.directory"):
        path = OmegaConf.select(cfg, name)
        if path is not None and not _is_writable(Path(path)):
            yield f"{name}={path}: cannot be written to. Fix: choose another place"


def _is_writable(path: Path) -> bool:
    """Whether `path` can be created or written to, without touching it."""
    existing = next(parent for parent in (path.absolute(), *path.absolute().parents) if os.path.lexists(parent))
    return existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)


@cache
def _known_keys() -> Mapping[str, Key]:
    return {key.name: key for key in keys()}


@cache
def _known_sections() -> frozenset[str]:
    return frozenset(name.rsplit(".", depth)[0] for name in _known_keys() for depth in range(1, name.count(".") + 1))


def unknown_key(name: str) -> str | None:
    """Message for a dotted key that the schema does not have, naming the nearest valid one; None if it is known."""
    known, sections = _known_keys(), _known_sections()
    if name in known or name in sections:
        return None
    for depth in range(1, name.count(".") + 1):
        parent = ".".join(name.split(".")[:depth])
        key = known.get(parent)
        if key and key.free:
            return None
        if key and isinstance(key.default, list):
            if name.split(".")[depth].isdigit():
                return None
            fix = f"Fix: count its items from 0, as in {parent}.0, or give all of it"
            return f"'{name}': {parent} is a list ({key.doc}). {fix}"
    if name in RENAMED:
        return f"unknown config key '{name}'; it is '{RENAMED[name]}' now. Fix: write {RENAMED[name]}=..."
    section = name.split(".")[0]
    topic = f" {section}" if section in sections else ""
    return f"unknown config key '{name}'{_hint(name, sections)} Fix: `{COMMAND} --help{topic}` lists the keys"


def _hint(name: str, sections: frozenset[str]) -> str:
    """What an unknown key may have been meant to be: a similar name, or a key whose doc has its words."""
    known = {key.name: key.doc for key in keys()}
    section, _, leaf = name.rpartition(".")

    def likeness(other: str) -> float:
        other_section, _, other_leaf = other.rpartition(".")
        in_full = difflib.SequenceMatcher(None, name, other).ratio()
        last_part = difflib.SequenceMatcher(None, leaf, other_leaf).ratio()
        if leaf in (*other_leaf.split("_"), *known.get(other, "").replace(",", "").split()[:1]):
            last_part = max(last_part, 0.9)
        return max(0.9 * in_full, 0.85 * last_part + 0.15 * (section == other_section))

    best = max([*known, *([] if section in sections else sections)], key=likeness)
    if likeness(best) >= 0.68:
        return f"; did you mean '{best}'?"
    words = set(leaf.lower().split("_"))
    documented = [key for key, doc in known.items() if words <= set(doc.lower().replace(",", "").split())]
    if documented:
        meant = min(documented, key=lambda key: (not key.startswith(f"{section}."), len(known[key])))
        return f"; did you mean '{meant}'?"
    if section in sections:
        own = [key.removeprefix(f"{section}.") for key in known if key.startswith(f"{section}.")]
        return f"; '{section}' has {', '.join(own)}."
    return nearest(name, [*known, *sections]) or "."
