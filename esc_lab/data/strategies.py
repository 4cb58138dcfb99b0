"""Support strategies: inventories, built from the `inventory` section of a configuration, and how labels are read.

The inventories themselves are data: `conf/inventory/*.yaml`, and files like them in the user's own directories.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from esc_lab.config.data import InventoryConfig
from esc_lab.config.files import option_files, read_option
from esc_lab.data.fields import check_keys, items, optional, require
from esc_lab.errors import UserError, nearest

MAX_NAME = 60  # characters of a name that can be read back from `(name) reply`


@dataclass(frozen=True)
class Strategy:
    """A support strategy: the label that models read and write, what it means, and other spellings of its name."""

    name: str
    definition: str
    spellings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Exchange:
    """What a seeker says, and a supporter's answer with a strategy."""

    seeker: str
    strategy: str
    supporter: str


@dataclass(frozen=True)
class Inventory:
    """An ordered set of strategies. The order fixes class indices everywhere (metrics, distributions, tables)."""

    name: str
    strategies: tuple[Strategy, ...]
    # How labels of other inventories are read, by their inventory's name; None: no counterpart.
    mappings: Mapping[str, Mapping[str, str | None]] = field(default_factory=dict, hash=False)
    formats: tuple[str, ...] = ()  # of corpora whose labels are of this inventory where nothing else is said
    example: tuple[Exchange, ...] = ()  # worked, for prompts
    examples: tuple[Exchange, ...] = ()  # of single strategies, for prompts that name one
    # By strategy, regular expressions that tell a sentence of it.
    cues: Mapping[str, tuple[str, ...]] = field(default_factory=dict, hash=False)

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(strategy.name for strategy in self.strategies)

    def __len__(self) -> int:
        return len(self.strategies)

    def index(self, name: str) -> int:
        """Class index of a canonical name. Raises ValueError if it is not in the inventory."""
        return self.names.index(name)

    def definition(self, name: str) -> str:
        return self.strategies[self.index(name)].definition

    @cached_property
    def spellings(self) -> dict[str, str]:
        """Canonical names by every known spelling, folded."""
        return {
            fold_label(text): strategy.name
            for strategy in self.strategies
            for text in (*strategy.spellings, strategy.name)
        }

    def knows(self, label: str) -> bool:
        """Whether a label, however it is spelt, is one of these strategies."""
        return fold_label(label) in self.spellings

    def mapping_from(self, source: Inventory, where: str | None = None) -> Mapping[str, str | None]:
        """How the labels of another inventory are read.

        Raises:
            UserError: there is no such mapping, or it lacks names of the source or has others.
        """
        if source.name == self.name:
            return {name: name for name in self.names}
        if source.name not in self.mappings:
            fix = (
                f"choose inventory={source.name}, or add mappings: {source.name} to the inventory '{self.name}'; an "
                "evaluation under a prompt that names the strategy needs no labels with evaluate.prompted=all or random"
            )
            raise UserError(f"there is no mapping from '{source.name}' to '{self.name}'", where=where, fix=fix)
        mapping = self.mappings[source.name]
        where, fix = f"inventory '{self.name}', mappings: {source.name}", f"map {', '.join(source.names)}"
        for name in (*mapping, *source.names):
            if name not in source.names:
                raise UserError(f"no strategy '{name}' there{nearest(name, source.names)}", where=where, fix=fix)
            if name not in mapping:
                raise UserError(f"'{name}' is missing", where=where, fix=f"{fix}; null where there is no counterpart")
        return mapping


class UnknownStrategyError(ValueError):
    """A label that the inventory does not know; the message names the nearest one that it does."""


def load_inventory(name: str, config_dirs: Sequence[str | Path] = ()) -> Inventory:
    """The inventory of a name: from the user's own directories, else of `conf/inventory`.

    Raises:
        UserError: there is none, or its file is wrong.
    """
    section = read_option("inventory", name, config_dirs)
    where = str(option_files("inventory", config_dirs)[name])
    if section.get("name") != name or not section.get("strategies"):
        raise UserError("not an inventory of this name", where=where, fix=f"write name: {name}, and strategies: [...]")
    return build_inventory(section, where=where)


def map_to_nothing(inventory: Inventory, config_dirs: Sequence[str | Path] = ()) -> Inventory:
    """The inventory with a mapping from every other; where it had none, labels of the other have no counterpart."""
    unmapped = {}
    for name in option_files("inventory", config_dirs):
        with contextlib.suppress(UserError):  # a file that is wrong concerns nobody who does not name it
            unmapped[name] = dict.fromkeys(load_inventory(name, config_dirs).names)
    return replace(inventory, mappings={**unmapped, **inventory.mappings})


def build_inventory(
    section: InventoryConfig | Mapping[str, Any], config_dirs: Sequence[str | Path] = (), *, where: str = "inventory"
) -> Inventory:
    """The inventory that the section of a configuration holds; one with nothing but a name is looked up by it.

    Raises:
        UserError: something is wrong in it, or there is none of this name.
    """
    data = asdict(section) if isinstance(section, InventoryConfig) else section
    name = require(data, "name", str, where)
    if not data.get("strategies"):
        return load_inventory(name, config_dirs)
    check_keys(data, InventoryConfig.__dataclass_fields__, where)
    strategies = tuple(
        _strategy(*item) for item in items(optional(data, "strategies", list, where), dict, "strategy", where)
    )
    _check_spellings(strategies, where)
    example, examples = (
        tuple(_exchange(*item) for item in items(optional(data, key, list, where), dict, "exchange", where))
        for key in ("example", "examples")
    )
    inventory = Inventory(
        name,
        strategies,
        optional(data, "mappings", dict, where) or {},
        tuple(text for text, _ in items(optional(data, "formats", list, where), str, "format", where)),
        example,
        examples,
        _read_cues(optional(data, "cues", dict, where) or {}, f"{where}, cues"),
    )
    fix = f"use one of {', '.join(inventory.names)}"
    for exchange in (*inventory.example, *inventory.examples):
        if exchange.strategy not in inventory.names:
            what = f"unknown strategy '{exchange.strategy}'{nearest(exchange.strategy, inventory.names)}"
            raise UserError(what, where=f"{where}, example", fix=fix)
    for name in (name for name in inventory.cues if name not in inventory.names):
        what = f"unknown strategy '{name}'{nearest(name, inventory.names)}"
        raise UserError(what, where=f"{where}, cues", fix=fix)
    for source in inventory.mappings:
        place = f"{where}, mappings: {source}"
        for label, target in require(inventory.mappings, source, dict, place).items():
            if target is not None and target not in inventory.names:
                what = f"'{label}' becomes the unknown strategy '{target}'{nearest(str(target), inventory.names)}"
                raise UserError(what, where=place, fix=f"{fix}, or null")
    return inventory


def _text(data: Mapping[str, Any], key: str, where: str) -> str:
    text = require(data, key, str, where).strip()
    if not text:
        raise UserError(f"'{key}' is empty", where=where, fix="write it")
    return text


def _strategy(data: Mapping[str, Any], where: str) -> Strategy:
    check_keys(data, Strategy.__dataclass_fields__, where)
    name = _text(data, "name", where)
    if len(name) > MAX_NAME or re.search(r"[()\[\]\n]", name) or not fold_label(name):
        fix = f"use letters, at most {MAX_NAME} characters, and no brackets: models write it as (name)"
        raise UserError(f"the name {name!r} could not be read back", where=where, fix=fix)
    spellings = tuple(text for text, _ in items(optional(data, "spellings", list, where), str, "spelling", where))
    return Strategy(name, _text(data, "definition", where), spellings)


def _exchange(data: Mapping[str, Any], where: str) -> Exchange:
    check_keys(data, Exchange.__dataclass_fields__, where)
    return Exchange(*(_text(data, key, where) for key in Exchange.__dataclass_fields__))


def _read_cues(data: Mapping[str, Any], where: str) -> dict[str, tuple[str, ...]]:
    cues = {name: tuple(text for text, _ in items(require(data, name, list, where), str, name, where)) for name in data}
    for name, texts in cues.items():
        for text in texts:
            try:
                re.compile(text)
            except re.error as error:
                what = f"{name}: {text!r} is no regular expression: {error}"
                raise UserError(what, where=where, fix="in YAML, put it between single quotation marks") from error
    return cues


def _check_spellings(strategies: Sequence[Strategy], where: str) -> None:
    """Refuse two strategies that one label could mean."""
    owners: dict[str, str] = {}
    for strategy in strategies:
        for text in dict.fromkeys(map(fold_label, (strategy.name, *strategy.spellings))):
            if text in owners:
                what = f"'{text}' is both '{owners[text]}' and '{strategy.name}'"
                raise UserError(what, where=where, fix="give each strategy names and spellings of its own")
            owners[text] = strategy.name


def fold_label(label: str) -> str:
    """Lower case, `&` as `and`, punctuation and runs of blanks as one blank."""
    return re.sub(r"[\W_]+", " ", label.lower().replace("&", " and ")).strip()


def normalize_label(label: str, inventory: Inventory) -> str:
    """Canonical name of a label as corpora and models spell it: case, hyphens, known variants, brackets.

    Raises:
        UnknownStrategyError: the label is not in the inventory under any known spelling.
    """
    if not inventory.knows(label):
        hint = nearest(label, inventory.names) or f"; known: {', '.join(inventory.names)}"
        raise UnknownStrategyError(f"unknown strategy '{label}' in inventory '{inventory.name}'{hint}")
    return inventory.spellings[fold_label(label)]
