"""How a configuration key is declared: default and doc, allowed values and range, and what depends on it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_type_hints

ANY = (-math.inf, math.inf)
COUNT = (1, math.inf)
FROM_ZERO = (0, math.inf)
SHARE = (0, 1)


@dataclass(frozen=True)
class Effect:
    """What a key means for a run.

    Attributes:
        kind: `result`; or else no number, no dialogue and no weight depends on it, but only `looks` (names, pages,
            cards, checks on the side), `speed` (how fast or by which route a result comes, rounding aside) or `place`
            (where files and logs go).
        stages: the stages that leave other files with another value. Those that run other stages (pipeline, sra, ...)
            depend on what these depend on, too.
    """

    kind: str
    stages: frozenset[str] = frozenset()

    def within(self, section: Effect | None) -> Effect:
        """The effect of a key in a section: on stages that the section affects at all."""
        return Effect(self.kind, self.stages & section.stages) if section else self


def results(*stages: str) -> Effect:
    """The results of these stages depend on the key."""
    return Effect("result", frozenset(stages))


def looks(*stages: str) -> Effect:
    """Only names, pages or cards that these stages leave depend on the key."""
    return Effect("looks", frozenset(stages))


LOOKS, SPEED, PLACE = looks(), Effect("speed"), Effect("place")
TRAININGS = ("sft", "cso", "classifier", "reward")
TRAINING = results(*TRAININGS)
TEST_SET = ("",)  # as `measures`: decides which decisions are scored, and so every metric


def item(
    default: Any,
    doc: str,
    *,
    choices: tuple[str, ...] = (),
    within: tuple[float, float] = ANY,
    path: bool = False,
    affects: Effect | None = None,
    measures: tuple[str, ...] = (),
    method: bool | None = None,
) -> Any:
    """A configuration key.

    Args:
        doc: what it means, with its unit.
        choices: allowed values.
        within: least and greatest value.
        path: names files that must exist; a result depends on their content, not on where they are.
        affects: what depends on it, within what the section affects; None = all of that.
        measures: beginnings of the names of metrics, or of the counts they are means over (`Metric.count`), that it
            decides how to measure: evaluations are compared in these only where they agree on it.
        method: whether a run that differs in it has another method, which its name then says; None = in a training yes,
            in an evaluation unless it only measures.
    """
    metadata = {
        "doc": doc, "choices": choices, "within": within, "path": path, "affects": affects, "measures": measures,
        "method": method,
    }  # fmt: skip
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: default.copy(), metadata=metadata)
    return field(default=default, metadata=metadata)


Section = TypeVar("Section")


def section(kind: Callable[[], Section], affects: Effect) -> Section:
    """A section of keys, and what they can affect at most."""
    value: Section = field(default_factory=kind, metadata={"affects": affects})
    return value


@dataclass(frozen=True)
class Key:
    """A leaf of the schema: dotted name, type, default, and how it was declared (see `item`)."""

    name: str
    type: str
    default: Any
    free: bool  # a dict whose keys are the user's own
    doc: str
    choices: tuple[str, ...]
    within: tuple[float, float]
    path: bool
    affects: Effect
    measures: tuple[str, ...]
    method: bool | None

    def decides(self, stage: str) -> bool:
        """Whether the result of a stage depends on it, and not only looks."""
        return self.affects.kind == "result" and stage in self.affects.stages


def keys_of(node: type, prefix: str = "", affects: Effect | None = None) -> Iterator[Key]:
    """The leaf keys of a dataclass in declaration order.

    Raises:
        TypeError: neither a key nor its section declares what it affects.
    """
    hints = get_type_hints(node)
    for entry in dataclasses.fields(node):
        kind, name = hints[entry.name], f"{prefix}{entry.name}"
        own: Effect | None = entry.metadata.get("affects")
        effect = own.within(affects) if own else affects
        if dataclasses.is_dataclass(kind):
            assert isinstance(kind, type)
            yield from keys_of(kind, f"{name}.", effect)
            continue
        if effect is None:
            raise TypeError(f"{name}: declare what it affects")
        default = entry.default if entry.default_factory is dataclasses.MISSING else entry.default_factory()
        yield Key(
            name, _type_name(kind), default, str(kind).startswith("dict"), **{**entry.metadata, "affects": effect}
        )


def _type_name(kind: Any) -> str:
    """As a user reads it.

    >>> _type_name(list[str]), _type_name(int | None), _type_name(dict[str, Any])
    ('list[str]', 'int | null', 'dict[str, Any]')
    """
    if isinstance(kind, UnionType):
        return " | ".join(map(_type_name, get_args(kind)))
    if get_args(kind):
        return f"{kind.__name__}[{', '.join(map(_type_name, get_args(kind)))}]"
    return "null" if kind is NoneType else str(kind.__name__)
