"""Records of any form as dialogues, by the columns that say which of their keys holds what (`data.columns`).

A record is a message (rows of a table, put together by `dialogue`), a dialogue (`turns`, or `prompt` and `reply`), a
preference pair (`chosen`, `rejected`), or a labelled reply (`label`). Pairs and labelled replies are put back into
dialogues as those of ESC-Pro are. Messages stand in a list, in a cell that spells such a list, or in a text whose lines
begin with their speaker.
"""

from __future__ import annotations

import ast
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from esc_lab.data.corpora.columns import Columns, fold_role
from esc_lab.data.corpora.esc_pro import LABELLED, read_tree
from esc_lab.data.corpora.esc_pro_tree import LabelledReply, Pair, Seed, tree_of_labelled, tree_of_pairs
from esc_lab.data.corpora.reading import Reading, seed_id
from esc_lab.data.corpora.records import Record
from esc_lab.data.corpora.rows import join_rows
from esc_lab.data.dialogue import Dialogue, Reply, Speaker, Turn
from esc_lab.data.strategies import Inventory
from esc_lab.errors import UserError

_TEMPLATE_MARK = re.compile(r"<\|\w+\|>|\[INST\]|<start_of_turn>|<s>")
_NO_LABEL = ("", "n/a", "na", "nan", "none", "null", "-")
_TRUE, _FALSE = ("true", "1", "1.0", "yes", "y"), ("false", "0", "0.0", "no", "n")


class _Asked(NamedTuple):
    """What a record asks to be read, its turns those before the reply of a pair or a labelled reply."""

    data: Mapping[str, Any]
    where: str
    turns: list[Turn]


def read_all(records: Sequence[Record], columns: Columns, reading: Reading) -> list[Dialogue]:
    """Dialogues of records, first those that stand there as such, then those of pairs and of labelled replies.

    Raises:
        UserError: something that the columns name is missing or of another kind, or speakers are unknown.
    """
    reader = _Reader(columns, reading, reading.inventory(None, records[0].where))
    dialogues, pairs, labelled = list[_Asked](), list[Pair](), list[LabelledReply]()
    for shared, rows in join_rows(records, columns, reading.report) if columns.is_rows else ():
        dialogues.append(_Asked(shared.data, shared.where, reader.read_rows(rows)))
    for record in () if columns.is_rows else records:
        asked = _Asked(record.data, record.where, reader.read_messages(record))
        if columns.get(record.data, "chosen") is not None:
            pairs += reader.read_pairs(asked)
        elif columns.get(record.data, "label") is not None:
            labelled.append(reader.read_labelled(asked))
        else:
            dialogues.append(asked)
    reader.finish()
    trees = (tree_of_pairs(pairs, reading.report), tree_of_labelled(labelled, reading.report))
    return [
        *map(reader.read_dialogue, dialogues),
        *(dialogue for tree in trees for dialogue in read_tree(tree, reader.inventory, reading)),
    ]


class _Reader:
    """Reads the parts of records; speakers that it does not know are remembered for `finish`."""

    def __init__(self, columns: Columns, reading: Reading, inventory: Inventory) -> None:
        self.columns, self.reading, self.inventory = columns, reading, inventory
        self._unknown = Counter[str]()
        self._unknown_at = ""
        names = sorted((name for name in columns.roles if name), key=len, reverse=True)
        spelt = "|".join(re.escape(name).replace(r"\ ", "[ -]") for name in names)
        self._line = re.compile(rf"^[ \t]*[*\[<]*({spelt})[*\]>]*[ \t]*[:\uff1a][* \t]*", re.IGNORECASE | re.MULTILINE)

    def read_rows(self, rows: Sequence[Record]) -> list[Turn]:
        """The turns of rows of one message each, with the replies that were rejected in their place."""
        turns: list[Turn] = []
        for row in rows:
            new = self._read_items([row.data], row.where, self.columns)
            value, label = self.columns.get(row.data, "rejected"), self._label(row.data, "rejected")
            other = self._read(value, "rejected", row.where, "supporter", label)
            if new and other and new[-1].speaker == "supporter":
                new[-1] = replace(new[-1], rejected=tuple(turn.reply for turn in other))
            turns += new
        return turns

    def read_messages(self, record: Record) -> list[Turn]:
        """The turns that a record has as `turns`, `history`, `prompt` and `reply`, in this order."""
        data, where = record.data, record.where
        turns: list[Turn] = []
        for key in ("turns", "history"):
            value = self.columns.get(data, key)
            if value is None and key == "turns" and key in self.columns and "chosen" not in self.columns:
                raise self._missing(data, key, where)
            turns += self._read(value, key, where, None)
        names = self.columns.names.get("prompt", ())
        prompts = [self.columns.get(data, "prompt")] if len(names) == 1 else self._prompt_parts(data)
        if prompts and all(isinstance(value, str) for value in prompts):
            prompts = ["\n".join(filter(None, map(str.strip, prompts)))]
        for value in prompts:
            turns += self._read(value, "prompt", where, "seeker")
        reply = self._read(self.columns.get(data, "reply"), "reply", where, "supporter", self._label(data, "reply"))
        return turns + reply

    def read_dialogue(self, asked: _Asked) -> Dialogue:
        """A record that is a dialogue; what else it brings goes to `meta`."""
        data, seed = asked.data, self._seed(asked)
        used = self.columns.used(data)
        return self.reading.dialogue(
            asked.turns,
            self.inventory,
            asked.where,
            tree_id=seed.tree or seed_id(seed.description, *(turn.reply.text for turn in asked.turns)),
            situation=seed.description,
            emotion=seed.emotion,
            problem=seed.scene,
            meta={key: value for key, value in data.items() if key not in used and value is not None},
        )

    def read_pairs(self, asked: _Asked) -> Iterator[Pair]:
        """The pairs of a record, one for each rejected reply."""
        chosen = self._read_reply(asked, "chosen", self.columns.get(asked.data, "chosen"))
        rejected = self.columns.get(asked.data, "rejected")
        if rejected is None:
            raise self._missing(asked.data, "rejected", asked.where)
        several = isinstance(rejected, list) and all(isinstance(other, str) for other in rejected)
        self._count_ignored(asked.data)
        for other in rejected if several else [rejected]:
            history, reply = self._read_reply(asked, "rejected", other)
            if history != chosen[0]:
                fix = "let both answer the same messages"
                raise UserError("the chosen and the rejected reply answer different messages", where=asked.where,
                                fix=fix)  # fmt: skip
            yield Pair(self._seed(asked), (*asked.turns, *history), chosen[1], reply, asked.where)

    def read_labelled(self, asked: _Asked) -> LabelledReply:
        """A record that says of its last reply whether it is preferred."""
        value = self.columns.get(asked.data, "label")
        text = str(value).strip().lower()
        if text not in (*_TRUE, *_FALSE):
            raise UserError(f"{self.columns.shown('label')} is {value!r}", where=asked.where, fix="write true or false")
        if not asked.turns or asked.turns[-1].speaker != "supporter":
            raise UserError("the last message is not the supporter's", where=asked.where, fix="end it with the reply")
        self._count_ignored(asked.data)
        prompt = tuple(asked.turns[:-1])
        return LabelledReply(self._seed(asked), prompt, asked.turns[-1].reply, text in _TRUE, asked.where)

    def finish(self) -> None:
        """Raise one UserError for all speakers that no role names."""
        if not self._unknown:
            return
        shown = ", ".join(f"'{name}' ({count})" for name, count in self._unknown.most_common(10))
        more = f" and {len(self._unknown) - 10} more" if len(self._unknown) > 10 else ""
        first = self._unknown.most_common(1)[0][0]
        fix = f"data.roles={{{first}: seeker}} with seeker, supporter or null (neither) for each"
        raise UserError(f"unknown speakers: {shown}{more}", where=self._unknown_at, fix=fix)

    def _prompt_parts(self, data: Mapping[str, Any]) -> list[Any]:
        parts = Columns({name: (name,) for name in self.columns.names.get("prompt", ())})
        return [value for name in parts.names if (value := parts.get(data, name)) not in (None, "")]

    def _read_reply(self, asked: _Asked, key: str, value: Any) -> tuple[tuple[Turn, ...], Reply]:
        """The reply that a value ends with, and the messages before it, if the value holds some."""
        turns = self._read(value, key, asked.where, "supporter", self._label(asked.data, key))
        if not turns or turns[-1].speaker != "supporter":
            what = f"{self.columns.shown(key)} does not end with a reply of the supporter"
            raise UserError(what, where=asked.where, fix="end it with the reply, not empty")
        return tuple(turns[:-1]), turns[-1].reply

    def _read(self, value: Any, key: str, where: str, side: Speaker | None, label: Any = None) -> list[Turn]:
        """The turns of a value: messages, a message, a cell that spells them, a transcript, or what `side` says."""
        value = parse_cell(value)
        if value is None:
            return []
        place = f"{where}, {self.columns.shown(key)}" if key in self.columns and key not in ("turns",) else where
        if isinstance(value, list):
            if key == "history" and all(isinstance(item, list | tuple) for item in value):
                value = [dict(zip(("seeker", "supporter"), item, strict=False)) for item in value]
                return self._read_items(value, place, Columns({name: (name,) for name in ("seeker", "supporter")}))
            if side and value and all(isinstance(item, str) for item in value):
                return [turn for item in value for turn in self._turn(side, item, label, place)]
            return self._read_items(value, place, self.columns)
        if isinstance(value, dict):
            return self._read_items([value], place, self.columns)
        if not isinstance(value, str):
            raise UserError(f"it is {value!r}", where=place, fix="make it a text or a list of messages")
        if self._line.search(value):
            return self._read_transcript(value, place)
        if side is None:
            fix = "let each message begin a line with its speaker, as in 'Seeker: ...', or name speakers in data.roles"
            raise UserError(f"no speaker begins a line of {value[:50]!r}", where=place, fix=fix)
        if mark := _TEMPLATE_MARK.search(value):
            fix = "give the messages before a chat template made one text of them"
            raise UserError(f"a text with marks of a chat template, {mark[0]!r}", where=place, fix=fix)
        return self._turn(side, value, label, place)

    def _read_items(self, items: Sequence[Any], where: str, columns: Columns) -> list[Turn]:
        turns: list[Turn] = []
        for number, item in enumerate(items, start=1):
            place = where if columns.is_rows and len(items) == 1 else f"{where}, message {number}"
            if "speaker" in columns and (name := columns.get(item, "speaker")) is not None:
                side, text = self._side(name, place), columns.get(item, "text")
                turns += self._turn(side, text, columns.get(item, "strategy"), place)
                continue
            both = [columns.get(item, key) for key in ("seeker", "supporter")]
            if both == [None, None]:
                raise self._missing(item, "speaker" if "speaker" in columns else "seeker", place)
            if both[0] is not None:
                turns += self._turn("seeker", both[0], None, place)
            if both[1] is not None:
                turns += self._turn("supporter", both[1], columns.get(item, "strategy"), place)
        return turns

    def _read_transcript(self, text: str, where: str) -> list[Turn]:
        """The turns of a text whose lines begin with their speaker; what stands before the first is left out."""
        marks = list(self._line.finditer(text))
        self.reading.report.system_messages_dropped += bool(text[: marks[0].start()].strip())
        turns: list[Turn] = []
        for number, mark in enumerate(marks, start=1):
            said = text[mark.end() : marks[number].start() if number < len(marks) else len(text)]
            if number < len(marks) or said.strip():  # a prompt may end where the reply begins
                turns += self._turn(self._side(mark[1], where), said, None, f"{where}, message {number}")
        return turns

    def _side(self, name: object, where: str) -> Speaker | None:
        folded = fold_role(name)
        if folded not in self.columns.roles:
            self._unknown[str(name)] += 1
            self._unknown_at = self._unknown_at or where
        return self.columns.roles.get(folded)

    def _turn(self, side: Speaker | None, said: object, label: Any, where: str) -> list[Turn]:
        """The turn of a message, none if it is empty or of neither side, which is counted."""
        report = self.reading.report
        if side is None:
            report.system_messages_dropped += 1
            return []
        text = self.reading.text(_join_parts(said), where)
        labels = self._split(label)
        if side == "seeker":
            report.seeker_labels_ignored += len(labels)
        elif not labels and self.columns.label_in_text and (labelled := LABELLED.match(text)):
            labels, text = self._split(labelled[1]), labelled[2].strip()
        if not text:
            report.empty_turns_dropped += 1
            return []
        strategies = self.reading.labels(labels, self.inventory, where) if side == "supporter" else ()
        return [Turn(side, Reply(text, strategies))]

    def _label(self, data: Mapping[str, Any], key: str) -> Any:
        return self.columns.get(data, f"{key}_strategy")

    def _split(self, label: Any) -> list[str]:
        given = parse_cell(label)
        texts = given if isinstance(given, list) else [given]
        if self.columns.separator:
            texts = [part for text in texts if text is not None for part in str(text).split(self.columns.separator)]
        return [str(text).strip() for text in texts if text is not None and str(text).strip().lower() not in _NO_LABEL]

    def _seed(self, asked: _Asked) -> Seed:
        problem, situation, emotion, tree = (
            str(self.columns.get(asked.data, key) or "").strip() for key in ("problem", "situation", "emotion", "tree")
        )
        return Seed(problem, situation, emotion, tree)

    def _count_ignored(self, data: Mapping[str, Any]) -> None:
        self.reading.report.keys_ignored += len(data.keys() - self.columns.used(data))

    def _missing(self, data: Any, key: str, where: str) -> UserError:
        keys = ", ".join(map(str, data)) if isinstance(data, dict) else repr(data)[:60]
        if isinstance(data, dict) and any(name in data for name in self.columns.names.get(key, ())):
            return UserError(f"{self.columns.shown(key)} is empty", where=where, fix="fill it in, or leave the row out")
        what = f"no {self.columns.shown(key) or f'column of {key}'} among {keys or '(none)'}"
        return UserError(what, where=where, fix=f"data.columns.{key}=NAME names where it stands")


def parse_cell(value: Any) -> Any:
    """A cell as the list or object that it spells, in JSON or as Python writes it; any other value as it is."""
    if not isinstance(value, str) or value.lstrip()[:1] not in ("[", "{"):
        return value
    for parse in (json.loads, ast.literal_eval):
        try:
            return parse(value.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return value


def _join_parts(said: object) -> object:
    """The text of a message whose content is a list of parts, as endpoints take them; nothing (None) as empty."""
    if isinstance(said, list) and said and all(isinstance(part, dict) and "text" in part for part in said):
        return "\n".join(str(part["text"]) for part in said)
    return "" if said is None else said
