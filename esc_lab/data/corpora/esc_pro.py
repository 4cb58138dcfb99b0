"""ESC-Pro, the preference data of the CSO paper (arXiv 2503.05362), in its three record forms.

- dialogue: `{scene, description, iter, messages: [{role: user, content} | {role: assistant, content, strategy,
  negative: [{content, strategy}]}]}`; one record is one dialogue.
- pair: `{scene, description, messages, chosen, reject}` (or `rejected`), the supporter's messages `(strategy) text`.
- KTO: `{scene, description, messages, label}`; the last message is the reply, preferred if the label is true.
- TRL's conversational `{prompt, chosen, rejected}` (or without prompt) and `{prompt, completion, label}`, lists of
  messages each, are pairs and KTO records; without `label` the completion is a preferred reply.

Without `strategy`, the text of a dialogue's message is read as in the other forms, `(strategy) text`.

Pairs and labelled replies are put back into dialogues: records whose messages extend one another are one path, each
path that none extends is one dialogue, and a rejected reply stands at its turn in every dialogue that goes through the
preferred one. All dialogues of one seed (scene, description, first seeker message) share `tree_id`. A rejected KTO
reply to messages that have no preferred reply cannot stand at a turn: it is kept in `meta["unpaired_rejected"]`, as a
list of messages that ends in the reply, of the first dialogue that shares its history up to the last decision (of its
seed, if it answers the first message). Supporter messages of a history count as preferred replies.

`scene` becomes the problem, `description` the situation. Other keys of a dialogue record go to `meta`; those of pair
and KTO records are counted, not kept. System messages are dropped and counted.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from esc_lab.data.corpora.esc_pro_tree import (
    LabelledReply,
    Pair,
    Seed,
    Tree,
    tree_id,
    tree_of_labelled,
    tree_of_pairs,
)
from esc_lab.data.corpora.reading import Reading
from esc_lab.data.corpora.records import Record
from esc_lab.data.dialogue import Dialogue, Reply, Speaker, Turn
from esc_lab.data.fields import items, optional, require
from esc_lab.data.strategies import Inventory
from esc_lab.errors import UserError

LABELLED = re.compile(r"\(([^()]*)\)\s*(.*)", re.DOTALL)
ROLES: dict[str, Speaker | None] = {
    "user": "seeker",
    "seeker": "seeker",
    "assistant": "supporter",
    "supporter": "supporter",
    "system": None,
}
_SHARED_KEYS = frozenset({"scene", "description", "messages"})
_PAIR_KEYS = _SHARED_KEYS | {"chosen", "reject", "rejected"}
_KTO_KEYS = _SHARED_KEYS | {"label"}


def read_all(records: Sequence[Record], reading: Reading) -> list[Dialogue]:
    """Dialogues of ESC-Pro records, all of the form of the first.

    Raises:
        UserError: a record is not of this form, a message is empty, or a rejected KTO reply has no dialogue of its
            seed to stay with.
    """
    records = [_from_trl(record) for record in records]
    keys = records[0].data.keys()
    inventory = reading.inventory(None, records[0].where)
    if "messages" in keys and keys & {"chosen", "reject", "rejected"}:
        tree = tree_of_pairs(_pairs(records, _Messages(reading, inventory)), reading.report)
    elif "messages" in keys and "label" in keys:
        tree = tree_of_labelled(_labelled(records, _Messages(reading, inventory)), reading.report)
    else:
        return [_dialogue(record, inventory, reading) for record in records]
    return read_tree(tree, inventory, reading)


def read_tree(tree: Tree, inventory: Inventory, reading: Reading) -> list[Dialogue]:
    """Every path of a tree as a dialogue; rejected replies that stand at no turn go to `meta`."""
    dialogues = []
    for path in tree.paths():
        unpaired = [[as_message(turn) for turn in turns] for turns in path.unpaired]
        meta = {"unpaired_rejected": unpaired} if unpaired else {}
        dialogues.append(_of_seed(path.seed, path.turns, meta, inventory, reading, path.where))
    return dialogues


def _from_trl(record: Record) -> Record:
    """A record of TRL's conversational formats as a pair or KTO record; any other as it is."""
    data, where = dict(record.data), record.where
    if "messages" in data or not ("prompt" in data or isinstance(data.get("chosen"), list)):
        return record
    prompt = data.pop("prompt", None)
    if isinstance(prompt, str):
        fix = "write {messages: [{role, content}, ...], chosen: {role, content}, rejected: {role, content}}"
        raise UserError("'prompt' is a text, not a list of messages", where=where, fix=fix)
    if "completion" in data:
        answer = require(data, "completion", list, where)
        del data["completion"]
        return Record({"label": True, **data, "messages": [*(prompt or ()), *answer]}, where)
    histories = []
    for key in ("chosen", "rejected"):
        messages = require(data, key, list, where)
        if not messages:
            raise UserError(f"'{key}' is empty", where=where, fix="end it with the reply")
        histories.append(messages[:-1])
        data[key] = messages[-1]
    if histories[0] != histories[1]:
        fix = "let 'prompt' hold the history and 'chosen' and 'rejected' a reply each"
        raise UserError("'chosen' and 'rejected' answer different messages", where=where, fix=fix)
    return Record({**data, "messages": [*(prompt or ()), *histories[0]]}, where)


def _of_seed(
    seed: Seed, turns: Sequence[Turn], meta: dict[str, Any], inventory: Inventory, reading: Reading, where: str
) -> Dialogue:
    about = {"situation": seed.description, "problem": seed.scene, "emotion": seed.emotion}
    return reading.dialogue(turns, inventory, where, tree_id=tree_id(seed, turns), **about, meta=meta)


def as_message(turn: Turn) -> dict[str, str]:
    """The turn as pairs and KTO records write it, its first strategy in brackets before the text.

    `()` stands before an unlabelled text that would otherwise be taken for a labelled one.
    """
    text = turn.reply.text
    if turn.speaker == "seeker":
        return {"role": "user", "content": text}
    if turn.reply.strategies:
        text = f"({turn.reply.strategies[0]}) {text}"
    elif LABELLED.match(text):
        text = f"() {text}"
    return {"role": "assistant", "content": text}


def _dialogue(record: Record, inventory: Inventory, reading: Reading) -> Dialogue:
    data, where = record.data, record.where
    turns = []
    for message, place in items(require(data, "messages", list, where), dict, "message", where):
        speaker = _speaker(message, place)
        if speaker is None:
            reading.report.system_messages_dropped += 1
        elif speaker == "seeker":
            text = reading.full_text(require(message, "content", str, place), place)
            turns.append(Turn("seeker", Reply(text)))
        else:
            turns.append(_supporter_turn(message, inventory, reading, place))
    meta = {key: value for key, value in data.items() if key not in _SHARED_KEYS}
    return _of_seed(_seed(data, where), turns, meta, inventory, reading, where)


def _supporter_turn(message: Mapping[str, Any], inventory: Inventory, reading: Reading, where: str) -> Turn:
    def reply(data: Mapping[str, Any], place: str) -> Reply:
        text = reading.full_text(require(data, "content", str, place), place)
        if "strategy" not in data:
            return _labelled_reply(text, inventory, reading, place)
        label = optional(data, "strategy", str, place) or ""
        return Reply(text, reading.labels([label], inventory, place))

    given = reply(message, where)
    rejected: dict[Reply, None] = {}
    for item, place in items(optional(message, "negative", list, where), dict, "negative", where):
        other = reply(item, place)
        reading.report.equal_pairs_dropped += other == given
        reading.report.duplicate_pairs += other in rejected
        if other != given:
            rejected[other] = None
    return Turn("supporter", given, tuple(rejected))


def _labelled_reply(text: str, inventory: Inventory, reading: Reading, where: str) -> Reply:
    """The reply that `(strategy) text` stands for."""
    labelled = LABELLED.match(text)
    if labelled is None:
        return Reply(text)
    return Reply(reading.full_text(labelled[2], where), reading.labels([labelled[1]], inventory, where))


class _Messages:
    """Reads messages whose strategies are written into the text; equal ones, which histories repeat, only once."""

    def __init__(self, reading: Reading, inventory: Inventory) -> None:
        self.report = reading.report
        self._reading, self._inventory = reading, inventory
        self._turns: dict[tuple[Speaker, str], Turn] = {}

    def history(self, data: Mapping[str, Any], known: frozenset[str], where: str) -> list[Turn]:
        """The messages of a record whose keys should be `known`."""
        self.report.keys_ignored += len(data.keys() - known)
        turns = []
        for message, place in items(require(data, "messages", list, where), dict, "message", where):
            turn = self.turn(message, place)
            if turn is None:
                self.report.system_messages_dropped += 1
            else:
                turns.append(turn)
        return turns

    def reply(self, data: Mapping[str, Any], key: str, where: str) -> Reply:
        """The supporter's message under `key`."""
        turn = self.turn(require(data, key, dict, where), f"{where}, '{key}'")
        if turn is None or turn.speaker != "supporter":
            raise UserError(f"'{key}' is not the supporter's", where=where, fix="give it the role 'assistant'")
        return turn.reply

    def turn(self, message: Mapping[str, Any], where: str) -> Turn | None:
        """The turn of one message; None for a system message."""
        speaker = _speaker(message, where)
        if speaker is None:
            return None
        content = require(message, "content", str, where)
        if (speaker, content) not in self._turns:
            text = self._reading.full_text(content, where)
            reply = Reply(text)
            if speaker == "supporter":
                reply = _labelled_reply(text, self._inventory, self._reading, where)
            self._turns[speaker, content] = Turn(speaker, reply)
        return self._turns[speaker, content]


def _pairs(records: Sequence[Record], messages: _Messages) -> Iterator[Pair]:
    for record in records:
        data, where = record.data, record.where
        prompt = messages.history(data, _PAIR_KEYS, where)
        chosen = messages.reply(data, "chosen", where)
        rejected = messages.reply(data, "rejected" if "rejected" in data else "reject", where)
        yield Pair(_seed(data, where), tuple(prompt), chosen, rejected, where)


def _labelled(records: Sequence[Record], messages: _Messages) -> Iterator[LabelledReply]:
    for record in records:
        data, where = record.data, record.where
        turns = messages.history(data, _KTO_KEYS, where)
        preferred = require(data, "label", bool, where)
        if not turns or turns[-1].speaker != "supporter":
            raise UserError("the last message is not the supporter's", where=where, fix="end 'messages' with the reply")
        yield LabelledReply(_seed(data, where), tuple(turns[:-1]), turns[-1].reply, preferred, where)


def _speaker(message: Mapping[str, Any], where: str) -> Speaker | None:
    role = require(message, "role", str, where)
    if role not in ROLES:
        raise UserError(f"unknown role '{role}'", where=where, fix=f"use one of {', '.join(ROLES)}")
    return ROLES[role]


def _seed(data: Mapping[str, Any], where: str) -> Seed:
    return Seed(optional(data, "scene", str, where) or "", optional(data, "description", str, where) or "")


def unpaired_dialogues(dialogue: Dialogue) -> list[Dialogue]:
    """The rejected replies that stand at no turn (`meta["unpaired_rejected"]`), each as a dialogue that ends in it."""
    return [
        replace(dialogue, turns=tuple(map(_from_message, messages)), meta={})
        for messages in dialogue.meta.get("unpaired_rejected", ())
    ]


def _from_message(message: Mapping[str, str]) -> Turn:
    """The inverse of `as_message`, whose strategies are canonical names already."""
    if message["role"] == "user":
        return Turn("seeker", Reply(message["content"]))
    labelled = LABELLED.match(message["content"])
    if labelled is None:
        return Turn("supporter", Reply(message["content"]))
    return Turn("supporter", Reply(labelled[2], (labelled[1],) if labelled[1] else ()))
