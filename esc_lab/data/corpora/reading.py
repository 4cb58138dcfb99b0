"""What all readers share: texts are stripped, labels resolved, dialogues checked, and every change counted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from esc_lab.artifacts import fingerprint
from esc_lab.data.corpora.records import checked
from esc_lab.data.dialogue import Dialogue, Turn
from esc_lab.data.strategies import INVENTORIES, MAPPINGS, Inventory, UnknownStrategyError, map_label, normalize_label
from esc_lab.errors import UserError, nearest


@dataclass
class ReadReport:
    """Counts of what was read, and of everything that reading dropped or changed.

    Attributes:
        dialogues, turns, supporter_turns: what came out.
        unlabelled_supporter_turns: supporter turns without a strategy, whatever the reason.
        labels_mapped_away: labels that the mapping gives no counterpart.
        empty_turns_dropped: turns without text in ESConv and ExTES.
        system_messages_dropped: system messages of ESC-Pro records.
        duplicate_pairs: ESC-Pro pairs or labelled replies that had been read before.
        equal_pairs_dropped: ESC-Pro pairs whose rejected reply is the chosen one.
        unpaired_rejected: rejected KTO replies without a preferred one, kept in `meta`.
        keys_ignored: keys of ESC-Pro pairs and KTO records that are not part of the format.
        texts_stripped: messages that had surrounding white space.
    """

    dialogues: int = 0
    turns: int = 0
    supporter_turns: int = 0
    unlabelled_supporter_turns: int = 0
    labels_mapped_away: int = 0
    empty_turns_dropped: int = 0
    system_messages_dropped: int = 0
    duplicate_pairs: int = 0
    equal_pairs_dropped: int = 0
    unpaired_rejected: int = 0
    keys_ignored: int = 0
    texts_stripped: int = 0

    def add(self, dialogue: Dialogue) -> None:
        """Count a dialogue that was read."""
        supporter = [turn for turn in dialogue.turns if turn.speaker == "supporter"]
        self.dialogues += 1
        self.turns += len(dialogue.turns)
        self.supporter_turns += len(supporter)
        self.unlabelled_supporter_turns += sum(not turn.reply.strategies for turn in supporter)

    def line(self) -> str:
        """One log line: the sizes, then every other count that is not zero."""
        counts = {field.name: getattr(self, field.name) for field in fields(self)}
        sizes = ("dialogues", "turns", "supporter_turns")
        shown = [name for name in counts if name in sizes or counts[name]]
        return ", ".join(f"{counts[name]} {name.replace('_', ' ')}" for name in shown)


class Reading:
    """One reading of a file: the inventory its labels come from, the one they go to, and the counts.

    Args:
        report: counts to add to.
        inventory: inventory to read all labels as, in place of the corpus' own.
        mapping: inventory to map the labels to.

    Raises:
        UserError: `inventory` or `mapping` names no inventory.
    """

    def __init__(self, report: ReadReport, *, inventory: str | None = None, mapping: str | None = None) -> None:
        for name in (inventory, mapping):
            if name is not None:
                _check_inventory(name, where=None)
        self.report = report
        self._inventory, self._mapping = inventory, mapping
        self._canonical: dict[tuple[str, str], str | None] = {}  # None: unknown
        self._unknown: list[tuple[str, str, str]] = []  # (label, inventory, where)

    def inventory(self, own: str | None, where: str) -> str:
        """Name of the inventory that labels are read as; `own` is what the corpus or the record says.

        Raises:
            UserError: no inventory is known, it does not exist, or there is no mapping from it.
        """
        name = self._inventory or own
        if name is None:
            fix = f"add 'inventory' ({', '.join(INVENTORIES)}) to the record, or say how to read the file"
            raise UserError("no 'inventory' says where the labels come from", where=where, fix=fix)
        _check_inventory(name, where)
        if self._mapping not in (None, name) and (name, self._mapping) not in MAPPINGS:
            targets = [target for source, target in MAPPINGS if source == name]
            known = " or ".join([name, *targets])
            fix = f"choose the inventory {known}"
            raise UserError(f"there is no mapping from '{name}' to '{self._mapping}'", where=where, fix=fix)
        return name

    def labels(self, raw: Iterable[str], inventory: str, where: str) -> tuple[str, ...]:
        """Canonical names of labels of `inventory`, mapped where a mapping is set; empty labels count as none.

        Unknown labels are remembered for `finish`.
        """
        names: list[str] = []
        for label in filter(str.strip, raw):
            name = self._normalized(label, inventory, where)
            if name is not None and self._mapping not in (None, inventory):
                name = map_label(name, MAPPINGS[inventory, str(self._mapping)])
                self.report.labels_mapped_away += name is None
            if name is not None:
                names.append(name)
        return tuple(dict.fromkeys(names))

    def text(self, raw: object, where: str) -> str:
        """A message's text without surrounding white space; may be empty.

        Raises:
            UserError: it is not a text.
        """
        text = checked(raw, str, "the message", where)
        stripped = text.strip()
        self.report.texts_stripped += stripped != text
        return stripped

    def full_text(self, raw: object, where: str) -> str:
        """As `text`, but an empty one is a UserError."""
        text = self.text(raw, where)
        if not text:
            raise UserError("the message is empty", where=where, fix="write its text or remove it")
        return text

    def dialogue(
        self,
        turns: Sequence[Turn],
        inventory: str,
        where: str,
        *,
        tree_id: str,
        situation: str = "",
        emotion: str = "",
        problem: str = "",
        meta: Mapping[str, Any] | None = None,
    ) -> Dialogue:
        """The dialogue of these turns, whose labels were read as `inventory`.

        Raises:
            UserError: there are no turns, or none of the supporter's.
        """
        if not turns:
            raise UserError("the dialogue has no turns", where=where, fix="add its messages or remove the record")
        if all(turn.speaker == "seeker" for turn in turns):
            raise UserError("the dialogue has no supporter turn", where=where, fix="add one or remove the record")
        return Dialogue(
            turns=tuple(turns),
            inventory=self._mapping or inventory,
            tree_id=tree_id,
            situation=situation,
            emotion=emotion,
            problem=problem,
            meta=dict(meta or {}),
        )

    def finish(self) -> None:
        """Raise one UserError for all labels that no inventory entry or spelling matched."""
        if not self._unknown:
            return
        label, inventory, where = self._unknown[0]
        distinct = list(dict.fromkeys(entry[0] for entry in self._unknown))
        try:
            normalize_label(label, INVENTORIES[inventory])
        except UnknownStrategyError as error:
            more = f" ({len(self._unknown) - 1} more unknown labels" if self._unknown[1:] else ""
            others = f", such as '{distinct[1]}'" if distinct[1:] else ""
            fix = "correct the labels in the file" + _inventories_with(distinct)
            raise UserError(f"{error}{more}{others}{')' if more else ''}", where=where, fix=fix) from error

    def _normalized(self, label: str, inventory: str, where: str) -> str | None:
        key = (inventory, label)
        if key not in self._canonical:
            try:
                self._canonical[key] = normalize_label(label, INVENTORIES[inventory])
            except UnknownStrategyError:
                self._canonical[key] = None
        if self._canonical[key] is None:
            self._unknown.append((label, inventory, where))
        return self._canonical[key]


def seed_id(*parts: str) -> str:
    """First 16 hex digits of the SHA-256 of texts that identify a seed: the `tree_id` of corpora that bring none.

    It leaves labels out, so that a corpus falls into the same splits whatever its labels are mapped to.
    """
    return fingerprint(parts)


def first_seeker_text(turns: Iterable[Turn]) -> str:
    """The seeker's first message, or an empty text."""
    return next((turn.reply.text for turn in turns if turn.speaker == "seeker"), "")


def _check_inventory(name: str, where: str | None) -> None:
    if name not in INVENTORIES:
        raise UserError(
            f"unknown inventory '{name}'{nearest(name, INVENTORIES)}", where=where, fix=f"use {', '.join(INVENTORIES)}"
        )


def _inventories_with(labels: Iterable[str]) -> str:
    """A hint that names the inventories that know every one of `labels`, if there are any."""

    def knows(inventory: Inventory, label: str) -> bool:
        try:
            normalize_label(label, inventory)
        except UnknownStrategyError:
            return False
        return True

    names = [name for name, inventory in INVENTORIES.items() if all(knows(inventory, label) for label in labels)]
    return f", or read it with an inventory that knows them: {', '.join(names)}" if names else ""
