"""ExTES (Zheng et al. 2023): `{scene, description, content: [{"User": ...}, {"AI Strategy": ..., "AI": ...}, ...]}`.

The corpus was written by a language model and has its slips: `AI` may be an object with `Response` (and the strategy),
one item may hold both sides (whoever did not speak last comes first), an item may lack its text (dropped and counted),
and the strategy may be missing, null or empty (no strategy). `description` becomes the situation, `scene` the problem.
`tree_id` is the seed's hash as for ESC-Pro, which grew from this corpus: a seed and its search tree share it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from esc_lab.data.corpora.reading import Reading, first_seeker_text, seed_id
from esc_lab.data.corpora.records import Record
from esc_lab.data.dialogue import Dialogue, Reply, Turn
from esc_lab.data.fields import items, optional, require
from esc_lab.data.strategies import Inventory
from esc_lab.errors import UserError

_FIELDS = {"scene", "description", "content"}
_STRATEGY_KEYS = ("AI Strategy", "AI strategy", "Strategy", "strategy")


def read_dialogue(record: Record, reading: Reading) -> Dialogue:
    """The dialogue of a record; items without text are dropped and counted.

    Raises:
        UserError: the record or item is not of this format.
    """
    data, where = record.data, record.where
    inventory = reading.inventory(None, where)
    turns: list[Turn] = []
    for item, place in items(require(data, "content", list, where), dict, "item", where):
        new = _turns(item, inventory, reading, place)
        if len(new) == 2 and turns and turns[-1].speaker == "seeker":
            new.reverse()
        full = [turn for turn in new if turn.reply.text]
        reading.report.empty_turns_dropped += max(len(new), 1) - len(full)
        turns.extend(full)
    scene, description = ((optional(data, key, str, where) or "").strip() for key in ("scene", "description"))
    return reading.dialogue(
        turns,
        inventory,
        where,
        tree_id=seed_id(scene, description, first_seeker_text(turns)),
        situation=description,
        problem=scene,
        meta={key: value for key, value in data.items() if key not in _FIELDS},
    )


def _turns(data: dict[str, Any], inventory: Inventory, reading: Reading, where: str) -> list[Turn]:
    """The turns of one item, the seeker's first; none if it names a strategy but has no text."""
    turns: list[Turn] = []
    if "User" in data:
        turns.append(Turn("seeker", Reply(reading.text(_said(data["User"], where), where))))
    if "AI" in data:
        said = data["AI"]
        label = _strategy(data, where) or (_strategy(said, where) if isinstance(said, dict) else "")
        strategies = reading.labels([label], inventory, where)
        turns.append(Turn("supporter", Reply(reading.text(_said(said, where), where), strategies)))
    if not turns and not any(key in data for key in _STRATEGY_KEYS):
        raise UserError(f"unknown speaker among the keys {', '.join(data)}", where=where, fix="use 'User' or 'AI'")
    return turns


def _said(value: object, where: str) -> object:
    return require(value, "Response", str, where) if isinstance(value, dict) else value


def _strategy(data: Mapping[str, Any], where: str) -> str:
    return next(filter(None, (optional(data, key, str, where) for key in _STRATEGY_KEYS)), "")
