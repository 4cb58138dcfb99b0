"""What all readers share: texts are stripped, labels resolved, dialogues checked, and every change counted."""

from __future__ import annotations

import contextlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from esc_lab.artifacts import fingerprint
from esc_lab.config.data import FORMS
from esc_lab.config.files import option_files
from esc_lab.data.dialogue import Dialogue, Turn
from esc_lab.data.fields import check_type
from esc_lab.data.strategies import Inventory, fold_label, load_inventory, normalize_label
from esc_lab.errors import UserError, nearest

MAX_SHOWN = 30  # distinct unknown labels in an error


@dataclass
class ReadReport:
    """Counts of what was read, and of everything that reading dropped or changed."""

    dialogues: int = 0
    turns: int = 0
    supporter_turns: int = 0
    unlabelled_supporter_turns: int = 0  # without a strategy, whatever the reason
    labels_replaced: int = 0  # labels read as `data.labels` says
    unknown_labels_dropped: int = 0  # labels that the inventory does not know, left out by `data.unknown=drop`
    labels_mapped_away: int = 0  # labels that the mapping gives no counterpart
    empty_turns_dropped: int = 0  # turns without text in ESConv, ExTES and forms by columns
    system_messages_dropped: int = 0  # of ESC-Pro records, and messages of neither side in forms by columns
    rows_repeated: int = 0  # of tables, that say again what another row of the same place says
    seeker_labels_ignored: int = 0  # of forms by columns
    duplicate_pairs: int = 0  # ESC-Pro pairs or labelled replies that had been read before
    equal_pairs_dropped: int = 0  # ESC-Pro pairs whose rejected reply is the chosen one
    unpaired_rejected: int = 0  # rejected KTO replies without a preferred one, kept in `meta`
    keys_ignored: int = 0  # of pairs and KTO records, and columns of tables, where there is no place for them
    survey_answers_unreadable: int = 0  # of ESConv, no numbers from 1 to 5; kept in `meta`
    trees_in_two_splits: int = 0  # of a published split, allowed by `data.overlap=allow`
    texts_stripped: int = 0  # messages that had surrounding white space

    def __post_init__(self) -> None:
        # No field, since it is no count: how often labels were read, by (as it is spelt, as which strategy of the
        # corpus' inventory, and as which of the modelled one; None: as none, and as "" where it is not known).
        self.labels: Counter[tuple[str, str | None, str | None]] = Counter()
        self.refusal = ""  # what a training would say of the labels that were dropped since nothing knows them

    def add(self, dialogue: Dialogue) -> None:
        """Count a dialogue that was read."""
        supporter = [turn for turn in dialogue.turns if turn.speaker == "supporter"]
        self.dialogues += 1
        self.turns += len(dialogue.turns)
        self.supporter_turns += len(supporter)
        self.unlabelled_supporter_turns += sum(not turn.reply.strategies for turn in supporter)

    def changes(self) -> dict[str, int]:
        """What reading dropped or changed, or found to be without a label, by kind; without what did not occur."""
        return {name: count for name, count in asdict(self).items() if name not in _SIZES and count}

    def line(self) -> str:
        """One log line: the sizes, then every other count that is not zero."""
        counts = {name: count for name, count in asdict(self).items() if name in _SIZES or count}
        line = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.items())
        return f"{line} ({AMONG_UNLABELLED})" if self.unknown_labels_dropped else line


AMONG_UNLABELLED = "turns whose labels are all unknown are among the unlabelled"
_SIZES = ("dialogues", "turns", "supporter_turns")


class Reading:
    """One reading of files: the inventory their labels come from, the one they go to, and the counts.

    Args:
        report: counts to add to.
        inventory: inventory to read all labels as, in place of the corpus' own.
        mapping: inventory to map the labels to.
        labels: how labels are read, however they are spelt: as a strategy of the corpus' inventory, or None as none.
        drop_unknown: leave out, and count, labels that the corpus' inventory does not know.
        config_dirs: the user's own directories, in which inventories are looked up before `conf/`.
        fallback: inventory of labels of which neither the record nor the form says whose they are, where `mapping` is
            not set.

    Attributes:
        format: the corpus format of the file, which says whose labels they are where the record does not.

    Raises:
        UserError: `inventory` or `mapping` names no inventory.
    """

    def __init__(
        self,
        report: ReadReport,
        format: str = "jsonl",
        *,
        inventory: Inventory | str | None = None,
        mapping: Inventory | str | None = None,
        labels: Mapping[str, str | None] = MappingProxyType({}),
        drop_unknown: bool = False,
        config_dirs: Sequence[str | Path] = (),
        fallback: Inventory | None = None,
    ) -> None:
        self.report, self.format, self._config_dirs, self._fallback = report, format, config_dirs, fallback
        self._inventories = {given.name: given for given in (inventory, mapping) if isinstance(given, Inventory)}
        self._inventory = self._load(inventory, "data.inventory") if isinstance(inventory, str) else inventory
        self._mapping = self._load(mapping) if isinstance(mapping, str) else mapping
        self._mappings: dict[str, Mapping[str, str | None]] = {}
        self._labels = {fold_label(label): name for label, name in labels.items()}
        self._drop_unknown = drop_unknown
        self._unknown: list[tuple[str, Inventory, str]] = []  # (label, inventory, where)
        self._unmapped: tuple[Inventory, str] | None = None  # of the format, which has no mapping; where

    def inventory(self, stated: str | None, where: str) -> Inventory:
        """The inventory that labels are read as, `stated` by the record or not.

        Raises:
            UserError: no inventory is known, it does not exist, or there is no mapping from it.
        """
        known = self._inventory or (self._load(stated, where) if stated else self._default(where))
        if known is None:
            fix = "add 'inventory' to the record, or data.inventory=NAME"
            raise UserError("no 'inventory' says where the labels come from", where=where, fix=fix)
        if self._mapping and known.name not in self._mappings:
            self._mappings[known.name] = self._mapping.mapping_from(known, where)
        return known

    def labels(self, raw: Iterable[str], inventory: Inventory, where: str) -> tuple[str, ...]:
        """Canonical names of labels of `inventory`, mapped where a mapping is set; empty labels count as none.

        Unknown labels are remembered for `finish`.

        Raises:
            UserError: a label is to be read as a strategy that the inventory does not have.
        """
        names: dict[str, None] = {}
        for label in filter(str.strip, raw):
            read: str | None = label
            if self._labels and fold_label(label) in self._labels:
                value = self._labels[fold_label(label)]
                read = None if value is None else str(value)
                self.report.labels_replaced += 1
                if read is not None and not inventory.knows(read):
                    what = f"'{label}' is to be read as '{read}', which the inventory '{inventory.name}' does not know"
                    what += nearest(read, inventory.names)
                    raise UserError(what, where="data.labels", fix=f"use one of {', '.join(inventory.names)}, or null")
            if read is not None and not inventory.knows(read):
                self._unknown.append((label, inventory, where))
                self.report.labels[label, "", None] += 1
                continue
            own = name = None if read is None else normalize_label(read, inventory)
            if name and self._mapping:
                name = self._mappings[inventory.name][name]
                self.report.labels_mapped_away += name is None
            self.report.labels[label, own, name] += 1
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

    def _default(self, where: str) -> Inventory | None:
        """The inventory of the corpus format: the one mapped to, if it is one of the format, else the first that is.

        Where that has no mapping, the labels are read as the inventory mapped to, which a search may have written.
        """
        if self._mapping and self.format in self._mapping.formats:
            return self._mapping
        own = next((known for known in self._known() if self.format in known.formats), None)
        if own and self._mapping and own.name != self._mapping.name and own.name not in self._mapping.mappings:
            self._unmapped = self._unmapped or (own, where)
            return self._mapping
        if own is None and self.format in FORMS:
            return self._mapping or self._fallback
        return own

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
        return Dialogue(tuple(turns), (self._mapping or inventory).name, **content, where=where)

    def finish(self) -> None:
        """Raise one UserError for all labels that no inventory entry or spelling matched, or count them as dropped."""
        if not self._unknown:
            return
        labels = list(dict.fromkeys(label for label, _, _ in self._unknown))
        if self._unmapped and any(map(self._unmapped[0].knows, labels)):
            assert self._mapping
            self._mapping.mapping_from(*self._unmapped)  # says that there is none
        refusal = self._refuse_unknown(labels)
        if not self._drop_unknown:
            raise refusal
        self.report.unknown_labels_dropped += len(self._unknown)
        self.report.refusal = self.report.refusal or str(refusal)
        self._unknown.clear()

    def _refuse_unknown(self, labels: Sequence[str]) -> UserError:
        """What to say of labels that are not known, and how to have them read."""
        _, inventory, where = self._unknown[0]
        guesses = {label: _guess(label, inventory) or "NAME" for label in labels[:MAX_SHOWN]}
        names = f"one of {', '.join(inventory.names)}, or null for none"
        fix = f"{_as_setting(guesses)} ({f'NAME: {names}' if 'NAME' in guesses.values() else names})"
        fix += ", or data.unknown=drop to leave them out"
        for known in self._known():
            if all(map(known.knows, labels)):
                readable = self._mapping is None or known.name in (self._mapping.name, *self._mapping.mappings)
                fix += f"; '{known.name}' knows them all: {'data.' if readable else ''}inventory={known.name}"
        what = f"unknown strategies in inventory '{inventory.name}': {self._count_unknown()}"
        return UserError(what, where=where, fix=fix)

    def _count_unknown(self) -> str:
        """Each unknown label with how often it stands there, the most frequent first, and what it may mean."""
        counts = Counter((label, inventory) for label, inventory, _ in self._unknown)
        first = {label: where for label, _, where in reversed(self._unknown)}
        shown = []
        for (label, inventory), count in counts.most_common(MAX_SHOWN):
            where = first[label]
            place = "" if where == self._unknown[0][2] else f", first at {where.rpartition('/')[2]}"
            guess = _guess(label, inventory)
            meant = f"; did you mean '{guess}'" if guess else ""
            shown.append(f"'{label}' ({count}{place}{meant})")
        more = len(counts) - len(shown)
        return ", ".join(shown) + (f" and {more} more" if more else "")


def _guess(label: str, inventory: Inventory) -> str:
    """The strategy that a label is nearly spelt as; empty if there is none."""
    close = nearest(label, inventory.spellings.values(), cutoff=0.75)
    return close.partition("'")[2].rpartition("'")[0]


def _as_setting(guesses: Mapping[str, str]) -> str:
    """How the command line is told to read labels: Hydra knows no quotes around keys, but labels compare folded."""
    plain = re.compile(r"[A-Za-z][A-Za-z /-]*")
    pairs = {label if plain.fullmatch(label) else fold_label(label): guess for label, guess in guesses.items()}
    named = (f"{key}: {name if plain.fullmatch(name) else json.dumps(name)}" for key, name in pairs.items())
    setting = f"'data.labels={{{', '.join(named)}}}'"
    return setting if all(map(str.isascii, pairs)) else f"{setting} as YAML in a file of your own (docs/own-configs.md)"


def seed_id(*parts: str) -> str:
    """First 16 hex digits of the SHA-256 of texts that identify a seed: the `tree_id` of corpora that bring none.

    It leaves labels out, so that a corpus falls into the same splits whatever its labels are mapped to.
    """
    return fingerprint(parts)


def first_seeker_text(turns: Iterable[Turn]) -> str:
    """The seeker's first message, or an empty text."""
    return next((turn.reply.text for turn in turns if turn.speaker == "seeker"), "")
