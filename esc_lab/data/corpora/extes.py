"""ExTES (Zheng et al. 2023): `{scene, description, content: [{"User": ...}, {"AI Strategy": ..., "AI": ...}, ...]}`.

The corpus was written by a language model and has its slips: `AI` may be an object with `Response` (and the strategy),
one item may hold both sides (whoever did not speak last comes first), an item may lack its text (dropped and counted),
and the strategy may be missing, null or empty (no strategy). `description` becomes the situation, `scene` the problem.
`tree_id` is the seed's hash as for ESC-Pro, which grew from this corpus: a seed and its search tree share it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from esc_lab.data.corpora.reading import Reading, first_seeker_text, seed_id
from esc_lab.data.corpora.records import Record
from esc_lab.data.dialogue import Dialogue, Reply, Turn
from esc_lab.data.fields import check_type, optional, require
from esc_lab.data.strategies import Inventory
from esc_lab.errors import UserError

_FIELDS = {"scene", "description", "content"}
_STRATEGY_KEYS = ("AI Strategy", "AI strategy", "Strategy", "strategy")


def read(records: Iterable[Record], reading: Reading) -> list[Dialogue]:
    """Dialogues of ExTES records; items without text are dropped and counted.

    Raises:
        UserError: a record or item is not of this format.
    """
    return [_dialogue(record, reading) for record in records]


def _dialogue(record: Record, reading: Reading) -> Dialogue:
    data, where = record.data, record.where
    inventory = reading.inventory(None, where)
    turns: list[Turn] = []
    for number, item in enumerate(require(data, "content", list, where), start=1):
        new = _turns(item, inventory, reading, f"{where}, item {number}")
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


def _turns(item: object, inventory: Inventory, reading: Reading, where: str) -> list[Turn]:
    """The turns of one item, the seeker's first; none if it names a strategy but has no text."""
    data = check_type(item, dict, "the item", where)
    turns: list[Turn] = []
    if "User" in data:
        turns.append(Turn("seeker", Reply(reading.text(_said(data["User"], where), where))))
    if "AI" in data:
        said = data["AI"]
        nested = said if isinstance(said, dict) else {}
        label = _strategy(data, where) or _strategy(nested, where)
        strategies = reading.labels([label], inventory, where)
        turns.append(Turn("supporter", Reply(reading.text(_said(said, where), where), strategies)))
    if not turns and not any(key in data for key in _STRATEGY_KEYS):
        raise UserError(f"unknown speaker among the keys {', '.join(data)}", where=where, fix="use 'User' or 'AI'")
    return turns


def _said(value: object, where: str) -> object:
    return require(value, "Response", str, where) if isinstance(value, dict) else value


def _strategy(data: Mapping[str, Any], where: str) -> str:
    return next(filter(None, (optional(data, key, str, where) for key in _STRATEGY_KEYS)), "")
