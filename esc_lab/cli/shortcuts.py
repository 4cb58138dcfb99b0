"""Hydra's composition with less work and the same result: what it parses, copies and prepares again and again, once.

Importing this module puts the shortcuts in place, for every composition of the process.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import cache
from types import SimpleNamespace
from typing import Any

import omegaconf
import yaml
from hydra._internal import defaults_list
from hydra._internal.config_repository import ConfigRepository
from hydra.conf import HydraConf
from hydra.core.config_store import ConfigNode, ConfigStore
from hydra.core.default_element import InputDefault
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig, Node, OmegaConf
from omegaconf.base import Box

from esc_lab import config
from esc_lab.config.schema import ConfigDumper

# Types of what is kept: YAML, the schema and Hydra's own, and no class of a plugin, which pickle may not find.
_KEPT = (dict, config.Config, HydraConf)


@cache
def _register_schema() -> None:
    """Let Hydra know the schema, which need not be copied. It takes a while, for which `--help` need not wait."""
    node = ConfigNode(name="schema.yaml", node=config.schema(), group=None, package=None, provider=None)
    ConfigStore.instance().repo[node.name] = node


def _load_once(load: Callable[[ConfigRepository, str], ConfigResult | None]) -> Any:
    """Hydra's loading of an option, which parses a file again only if it has changed: a multirun composes often."""
    loaded: dict[Any, bytes] = {}

    def load_once(repository: ConfigRepository, config_path: str) -> ConfigResult | None:
        _register_schema()
        sources = [(source.path, _stamp(source.path, config_path)) for source in repository.sources]
        key = (config_path, *sources)
        if key in loaded:
            copied: ConfigResult = pickle.loads(loaded[key])  # ten times as fast as a deep copy
            return copied
        result = load(repository, config_path)
        if result is not None and OmegaConf.get_type(result.config) in _KEPT:
            loaded[key] = pickle.dumps(result)
        return result

    return load_once


def _stamp(directory: str, config_path: str) -> tuple[int, int] | None:
    """Time and size of an option's file; None if there is none."""
    try:
        status = os.stat(os.path.join(directory, f"{config_path.removesuffix('.yaml')}.yaml"))
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size


def _map_if_needed(create: Callable[..., DictConfig]) -> Any:
    """Hydra's table of all choices, which it makes for every file of a composition, where one has to look into it."""

    def create_if_needed(overrides: Any, defaults: Sequence[InputDefault], self_added: bool) -> DictConfig | None:
        interpolated = any(each.is_interpolation() for each in defaults if not (each.is_self() or each.is_override()))
        return create(overrides, defaults, self_added) if interpolated else None

    return create_if_needed


def _copy_by_pickle(copy: Callable[[DictConfig, dict[int, Any]], DictConfig]) -> Any:
    """OmegaConf's deep copy; of a whole configuration by pickle, which is ten times as fast."""

    def copy_root(self: DictConfig, memo: dict[int, Any]) -> DictConfig:
        if self._get_parent() is None and not memo:
            with suppress(pickle.PicklingError):  # a class of a plugin, which pickle may not find
                copied: DictConfig = pickle.loads(pickle.dumps(self))
                return copied
        return copy(self, memo)

    return copy_root


def _re_parent(self: Box) -> None:
    """OmegaConf's: every node below knows its parent again. Each merge does it to all that there is so far."""
    boxes = [self]
    while boxes:
        parent = boxes.pop()
        content = parent.__dict__["_content"]
        children: Iterable[Any] = [content] if isinstance(content, Node) else ()
        if isinstance(content, dict | list):
            children = content.values() if isinstance(content, dict) else content
        for child in children:
            if child is not None:
                state = child.__dict__
                state["_parent"], state["_flags_cache"] = parent, None
                if "_content" in state:
                    boxes.append(child)


ConfigRepository.load_config = _load_once(ConfigRepository.load_config)  # type: ignore[method-assign]
defaults_list._create_interpolation_map = _map_if_needed(defaults_list._create_interpolation_map)
# It is copied with the sources of each composition, although nothing in it is ever changed by one.
ConfigStore.__deepcopy__ = lambda store, _: store  # type: ignore[attr-defined]
DictConfig.__deepcopy__ = _copy_by_pickle(DictConfig.__deepcopy__)  # type: ignore[method-assign]
Box._re_parent = _re_parent  # type: ignore[method-assign]
# OmegaConf's YAML is read and written in C.
omegaconf.omegaconf.get_omega_conf_dumper = lambda: ConfigDumper  # type: ignore
_in_c = {**vars(yaml), "SafeLoader": getattr(yaml, "CSafeLoader", yaml.SafeLoader)}
omegaconf._utils.yaml = SimpleNamespace(**_in_c)  # type: ignore
