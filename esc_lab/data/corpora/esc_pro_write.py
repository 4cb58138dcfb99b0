"""The three ESC-Pro record forms of dialogues, with counts of what a form cannot hold.

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
from collections.abc import Iterable, Iterator
from typing import Any

from esc_lab.data.corpora.esc_pro import as_message
from esc_lab.data.corpora.esc_pro_tree import Seed, tree_id
from esc_lab.data.dialogue import Dialogue, Reply, Turn

_RESERVED = {
    "scene", "description", "messages", "chosen", "reject", "rejected", "label", "format", "turns", "dialog", "content",
}  # fmt: skip


def write_records(dialogues: Iterable[Dialogue], form: str) -> tuple[list[dict[str, Any]], Counter[str]]:
    """The records of a form (`dialogues`, `pairs` or `kto`), each once, and how much was left out, by kind."""
    lost = Counter[str]()
    records = [record for dialogue in dialogues for record in _FORMS[form](dialogue, lost)]
    if form != "dialogues":
        records = list({json.dumps(record, default=str): record for record in records}.values())
    return records, lost


def _dialogue_record(dialogue: Dialogue, lost: Counter[str]) -> Iterator[dict[str, Any]]:
    kept = {key: value for key, value in dialogue.meta.items() if key not in _RESERVED}
    lost += _lost(dialogue) + Counter({"meta entries": len(dialogue.meta) - len(kept)})
    messages: list[dict[str, Any]] = []
    for turn in dialogue.turns:
        if turn.speaker == "seeker":
            messages.append({"role": "user", "content": turn.reply.text})
        else:
            negative = [_plain(other.reply) for other in _rejected(turn, lost)]
            messages.append({"role": "assistant", **_plain(turn.reply), "negative": negative})
    yield {**_seed(dialogue), **kept, "messages": messages}


def _pair_records(dialogue: Dialogue, lost: Counter[str]) -> Iterator[dict[str, Any]]:
    after = _count_after(dialogue, [bool(turn.rejected) for turn in dialogue.turns])
    lost += _lost(dialogue) + Counter({"meta entries": len(dialogue.meta), "turns after the last pair": after})
    messages = [as_message(turn) for turn in dialogue.turns]
    for index, turn in enumerate(dialogue.turns):
        prompt = {**_seed(dialogue), "messages": messages[:index]}
        for other in _rejected(turn, lost):
            yield {**prompt, "chosen": messages[index], "reject": as_message(other)}


def _kto_records(dialogue: Dialogue, lost: Counter[str]) -> Iterator[dict[str, Any]]:
    after = _count_after(dialogue, [turn.speaker == "supporter" for turn in dialogue.turns])
    dropped = len(dialogue.meta.keys() - {"unpaired_rejected"})
    lost += _lost(dialogue) + Counter({"meta entries": dropped, "turns after the last reply": after})
    decisions, messages = set(dialogue.decisions()), [as_message(turn) for turn in dialogue.turns]
    labelled: list[tuple[list[dict[str, str]], bool]] = []
    for index, turn in enumerate(dialogue.turns):
        if index in decisions or turn.rejected:
            labelled.append((messages[: index + 1], True))
        labelled += [([*messages[:index], as_message(other)], False) for other in _rejected(turn, lost)]
    labelled += [(unpaired, False) for unpaired in dialogue.meta.get("unpaired_rejected", ())]
    for reply, label in labelled:
        yield {**_seed(dialogue), "messages": reply, "label": label}


_FORMS = {"dialogues": _dialogue_record, "pairs": _pair_records, "kto": _kto_records}


def _count_after(dialogue: Dialogue, wanted: list[bool]) -> int:
    """Number of turns after the last wanted one."""
    return len(dialogue.turns) - 1 - max((index for index, want in enumerate(wanted) if want), default=-1)


def _lost(dialogue: Dialogue) -> Counter[str]:
    replies = [reply for turn in dialogue.turns for reply in (turn.reply, *turn.rejected)]
    seed = Seed(dialogue.problem, dialogue.situation)
    return Counter(
        {
            "values or visits": sum(reply.value is not None or reply.visits is not None for reply in replies),
            "further strategies": sum(len(reply.strategies) > 1 for reply in replies),
            "emotions": int(bool(dialogue.emotion)),
            "surveys": int(dialogue.survey is not None),
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
    rejected = [Turn("supporter", reply) for reply in turn.rejected]
    different = [reply for reply in rejected if as_message(reply) != as_message(turn)]
    lost["rejected replies equal to the given one"] += len(rejected) - len(different)
    return different
