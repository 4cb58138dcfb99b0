"""What all readers share: texts are stripped, labels resolved, dialogues checked, and every change counted."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from esc_lab.artifacts import fingerprint
from esc_lab.config.files import option_files
from esc_lab.data.dialogue import Dialogue, Turn
from esc_lab.data.fields import check_type
from esc_lab.data.strategies import Inventory, UnknownStrategyError, load_inventory, normalize_label
from esc_lab.errors import UserError


@dataclass
class ReadReport:
    """Counts of what was read, and of everything that reading dropped or changed."""

    dialogues: int = 0
    turns: int = 0
    supporter_turns: int = 0
    unlabelled_supporter_turns: int = 0  # without a strategy, whatever the reason
    labels_mapped_away: int = 0  # labels that the mapping gives no counterpart
    empty_turns_dropped: int = 0  # turns without text in ESConv and ExTES
    system_messages_dropped: int = 0  # of ESC-Pro records
    duplicate_pairs: int = 0  # ESC-Pro pairs or labelled replies that had been read before
    equal_pairs_dropped: int = 0  # ESC-Pro pairs whose rejected reply is the chosen one
    unpaired_rejected: int = 0  # rejected KTO replies without a preferred one, kept in `meta`
    keys_ignored: int = 0  # of ESC-Pro pairs and KTO records, where they are not part of the format
    survey_answers_unreadable: int = 0  # of ESConv, no numbers from 1 to 5; kept in `meta`
    texts_stripped: int = 0  # messages that had surrounding white space

    def add(self, dialogue: Dialogue) -> None:
        """Count a dialogue that was read."""
        supporter = [turn for turn in dialogue.turns if turn.speaker == "supporter"]
        self.dialogues += 1
        self.turns += len(dialogue.turns)
        self.supporter_turns += len(supporter)
        self.unlabelled_supporter_turns += sum(not turn.reply.strategies for turn in supporter)

    def line(self) -> str:
        """One log line: the sizes, then every other count that is not zero."""
        sizes = ("dialogues", "turns", "supporter_turns")
        counts = {name: count for name, count in asdict(self).items() if name in sizes or count}
        return ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.items())


class Reading:
    """One reading of a file: the inventory its labels come from, the one they go to, and the counts.

    Args:
        report: counts to add to.
        format: the corpus format, which says whose labels they are where the record does not.
        inventory: inventory to read all labels as, in place of the corpus' own.
        mapping: inventory to map the labels to.
        config_dirs: the user's own directories, in which inventories are looked up before `conf/`.

    Raises:
        UserError: `inventory` or `mapping` names no inventory.
    """

    def __init__(
        self,
        report: ReadReport,
        format: str,
        *,
        inventory: Inventory | str | None = None,
        mapping: Inventory | str | None = None,
        config_dirs: Sequence[str | Path] = (),
    ) -> None:
        self.report, self._format, self._config_dirs = report, format, config_dirs
        self._inventories = {given.name: given for given in (inventory, mapping) if isinstance(given, Inventory)}
        self._inventory = self._load(inventory) if isinstance(inventory, str) else inventory
        self._mapping = self._load(mapping) if isinstance(mapping, str) else mapping
        self._mappings: dict[str, Mapping[str, str | None]] = {}
        self._unknown: list[tuple[str, Inventory, str]] = []  # (label, inventory, where)

    def inventory(self, stated: str | None, where: str) -> Inventory:
        """The inventory that labels are read as, `stated` by the record or not.

        Raises:
            UserError: no inventory is known, it does not exist, or there is no mapping from it.
        """
        known = self._inventory or (self._load(stated, where) if stated else self._default())
        if known is None:
            fix = "add 'inventory' to the record, or say how to read the file"
            raise UserError("no 'inventory' says where the labels come from", where=where, fix=fix)
        if self._mapping and known.name not in self._mappings:
            self._mappings[known.name] = self._mapping.mapping_from(known, where)
        return known

    def labels(self, raw: Iterable[str], inventory: Inventory, where: str) -> tuple[str, ...]:
        """Canonical names of labels of `inventory`, mapped where a mapping is set; empty labels count as none.

        Unknown labels are remembered for `finish`.
        """
        names: dict[str, None] = {}
        for label in filter(str.strip, raw):
            if not inventory.knows(label):
                self._unknown.append((label, inventory, where))
                continue
            name: str | None = normalize_label(label, inventory)
            if name and self._mapping:
                name = self._mappings[inventory.name][name]
                self.report.labels_mapped_away += name is None
            if name:
                names[name] = None
        return tuple(names)

    def _load(self, name: str, where: str | None = None) -> Inventory:
        if name not in self._inventories:
            try:
                self._inventories[name] = load_inventory(name, self._config_dirs)
            except UserError as error:
                raise UserError(error.message, where=error.where or where, fix=error.fix) from error
        return self._inventories[name]

    def _default(self) -> Inventory | None:
        """The inventory of the corpus format: the one mapped to, if it is one of the format, else the first that is."""
        if self._mapping and self._format in self._mapping.formats:
            return self._mapping
        return next((known for known in self._known() if self._format in known.formats), None)

    def _known(self) -> Iterator[Inventory]:
        """All inventories there are; files that are wrong concern nobody who does not name them."""
        for name in option_files("inventory", self._config_dirs):
            with contextlib.suppress(UserError):
                yield self._load(name)

    def text(self, raw: object, where: str) -> str:
        """A message's text without surrounding white space; may be empty.

        Raises:
            UserError: it is not a text.
        """
        text = check_type(raw, str, "the message", where)
        self.report.texts_stripped += text.strip() != text
        return text.strip()

    def full_text(self, raw: object, where: str) -> str:
        """As `text`, but an empty one is a UserError."""
        text = self.text(raw, where)
        if not text:
            raise UserError("the message is empty", where=where, fix="write its text or remove it")
        return text

    def dialogue(self, turns: Sequence[Turn], inventory: Inventory, where: str, **content: Any) -> Dialogue:
        """The dialogue of these turns, whose labels were read as `inventory`, with its other `content`.

        Raises:
            UserError: there are no turns, or none of the supporter's.
        """
        if not turns:
            raise UserError("the dialogue has no turns", where=where, fix="add its messages or remove the record")
        if all(turn.speaker == "seeker" for turn in turns):
            raise UserError("the dialogue has no supporter turn", where=where, fix="add one or remove the record")
        return Dialogue(tuple(turns), (self._mapping or inventory).name, **content)

    def finish(self) -> None:
        """Raise one UserError for all labels that no inventory entry or spelling matched."""
        if not self._unknown:
            return
        label, inventory, where = self._unknown[0]
        distinct = list(dict.fromkeys(entry[0] for entry in self._unknown))
        more = f"{len(self._unknown) - 1} more unknown labels" if self._unknown[1:] else ""
        more += f", such as '{distinct[1]}'" if distinct[1:] else ""
        knowing = [known.name for known in self._known() if all(known.knows(label) for label in distinct)]
        fix = "correct the labels in the file"
        fix += f", or read it with an inventory that knows them: {', '.join(knowing)}" if knowing else ""
        try:
            normalize_label(label, inventory)
        except UnknownStrategyError as error:
            raise UserError(f"{error} ({more})" if more else str(error), where=where, fix=fix) from error


def seed_id(*parts: str) -> str:
    """First 16 hex digits of the SHA-256 of texts that identify a seed: the `tree_id` of corpora that bring none.

    It leaves labels out, so that a corpus falls into the same splits whatever its labels are mapped to.
    """
    return fingerprint(parts)


def first_seeker_text(turns: Iterable[Turn]) -> str:
    """The seeker's first message, or an empty text."""
    return next((turn.reply.text for turn in turns if turn.speaker == "seeker"), "")
