"""Writers of the three ESC-Pro record forms: each gives the records and counts what the form cannot hold.

No form holds values, visits, emotions, the inventory's name, or a second strategy of a reply (the first is written);
the reader gives `tree_id` anew from the seed. Beside that:

- dialogue form: exact. Meta entries become keys of the record, save those whose names the formats use themselves.
- pairs: exactly the pairs. Turns after a dialogue's last rejected reply, and meta, are not part of any pair.
- KTO: exactly the preferred and rejected replies; of meta only `unpaired_rejected`. Openings are not preferred replies
  unless something was rejected in their place; turns after the last reply are not part of any record.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from typing import Any

from esc_lab.data.corpora.esc_pro import as_message, tree_id
from esc_lab.data.corpora.esc_pro_tree import Seed
from esc_lab.data.dialogue import Dialogue, Reply, Turn

_RESERVED = {
    "scene", "description", "messages", "chosen", "reject", "rejected", "label", "format", "turns", "dialog", "content",
}  # fmt: skip

Written = tuple[list[dict[str, Any]], Counter[str]]


def dialogue_records(dialogues: Iterable[Dialogue]) -> Written:
    """One record a dialogue, and how much was left out, by kind."""
    records, lost = [], Counter[str]()
    for dialogue in dialogues:
        kept = {key: value for key, value in dialogue.meta.items() if key not in _RESERVED}
        lost += _lost(dialogue) + Counter({"meta entries": len(dialogue.meta) - len(kept)})
        messages: list[dict[str, Any]] = []
        for turn in dialogue.turns:
            if turn.speaker == "seeker":
                messages.append({"role": "user", "content": turn.reply.text})
            else:
                negative = [_plain(other.reply) for other in _rejected(turn, lost)]
                messages.append({"role": "assistant", **_plain(turn.reply), "negative": negative})
        records.append({**_seed(dialogue), **kept, "messages": messages})
    return records, lost


def pair_records(dialogues: Iterable[Dialogue]) -> Written:
    """One record a pair of a given and a rejected reply, each pair once, and how much was left out, by kind."""
    records, lost = [], Counter[str]()
    for dialogue in dialogues:
        last = max((index for index, turn in enumerate(dialogue.turns) if turn.rejected), default=-1)
        after = len(dialogue.turns) - 1 - last
        lost += _lost(dialogue) + Counter({"meta entries": len(dialogue.meta), "turns after the last pair": after})
        messages = [as_message(turn) for turn in dialogue.turns]
        for index, turn in enumerate(dialogue.turns):
            prompt = {**_seed(dialogue), "messages": messages[:index]}
            for other in _rejected(turn, lost):
                records.append({**prompt, "chosen": messages[index], "reject": as_message(other)})
    return _distinct(records), lost


def kto_records(dialogues: Iterable[Dialogue]) -> Written:
    """One record a reply with the label whether it is preferred, each once, and how much was left out, by kind."""
    records, lost = [], Counter[str]()
    for dialogue in dialogues:
        decisions = set(dialogue.decisions())
        last = max((index for index, turn in enumerate(dialogue.turns) if turn.speaker == "supporter"), default=-1)
        after = len(dialogue.turns) - 1 - last
        dropped = len(dialogue.meta.keys() - {"unpaired_rejected"})
        lost += _lost(dialogue) + Counter({"meta entries": dropped, "turns after the last reply": after})
        messages = [as_message(turn) for turn in dialogue.turns]
        labelled: list[tuple[list[dict[str, str]], bool]] = []
        for index, turn in enumerate(dialogue.turns):
            if index in decisions or turn.rejected:
                labelled.append((messages[: index + 1], True))
            labelled += [([*messages[:index], as_message(other)], False) for other in _rejected(turn, lost)]
        labelled += [(unpaired, False) for unpaired in dialogue.meta.get("unpaired_rejected", ())]
        records += [{**_seed(dialogue), "messages": reply, "label": label} for reply, label in labelled]
    return _distinct(records), lost


def _lost(dialogue: Dialogue) -> Counter[str]:
    replies = [reply for turn in dialogue.turns for reply in (turn.reply, *turn.rejected)]
    seed = Seed(dialogue.problem, dialogue.situation)
    return Counter(
        {
            "values or visits": sum(reply.value is not None or reply.visits is not None for reply in replies),
            "further strategies": sum(len(reply.strategies) > 1 for reply in replies),
            "emotions": int(bool(dialogue.emotion)),
            "inventory names": int(dialogue.inventory != "cso"),
            "tree ids": int(dialogue.tree_id != tree_id(seed, dialogue.turns)),
        }
    )


def _seed(dialogue: Dialogue) -> dict[str, str]:
    return {"scene": dialogue.problem, "description": dialogue.situation}


def _plain(reply: Reply) -> dict[str, str]:
    return {"content": reply.text, "strategy": reply.strategies[0] if reply.strategies else ""}


def _rejected(turn: Turn, lost: Counter[str]) -> list[Turn]:
    """The rejected replies as turns, without those that would be written exactly as the given reply is."""
    others = [Turn("supporter", reply) for reply in turn.rejected]
    different = [other for other in others if as_message(other) != as_message(turn)]
    lost["rejected replies equal to the given one"] += len(others) - len(different)
    return different


def _distinct(records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return list({json.dumps(record, default=str): record for record in records}.values())
