"""Dialogues as the training files of other tools: TRL, LLaMA-Factory, OpenAI, and the `datasets` library.

All forms have the same files, `sft/SPLIT.jsonl` and `preference/SPLIT.jsonl` with SPLIT train, valid or test; one
without records is not written. A record of `preference` is a supporter turn with one rejected reply. A record of `sft`
is a supporter turn in TRL's form, and a whole dialogue in the others, which train on all of the assistant's messages.

Forms: https://huggingface.co/docs/trl/dataset_formats (conversational preference and prompt-completion),
https://github.com/hiyouga/LLaMA-Factory/tree/main/data (sharegpt), and OpenAI's guides of supervised fine-tuning and of
direct preference optimisation.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from esc_lab.artifacts import write_atomic
from esc_lab.data.corpora.jsonl import lines
from esc_lab.data.corpora.records import as_line
from esc_lab.data.corpora.splits import WRITTEN_STEMS
from esc_lab.data.dialogue import Dialogue
from esc_lab.data.strategies import Inventory
from esc_lab.prompts import Message
from esc_lab.training.exports.chats import Chat

KINDS = ("sft", "preference")
DIALOGUES = "dialogues"

Record = dict[str, Any]
Counts = dict[tuple[str, str], int]  # (kind, split) -> records


def write_trl(chats: Mapping[str, Sequence[Chat]], directory: Path, lost: Counter[str]) -> Counts:
    """`{prompt, completion}` a supporter turn and `{prompt, chosen, rejected}` a pair, lists of messages each.

    `scene` and `description`, which TRL leaves alone, let `data=esc_pro` tell the dialogues of different seeds apart.

    Args:
        chats: by split.
        lost: takes the counts of what is left out.

    Returns:
        How many records were written, by kind and split.
    """

    def shared(chat: Chat) -> Record:
        return {"scene": chat.problem, "description": chat.situation, "prompt": _messages(chat.messages)}

    def turn(chat: Chat) -> Record:
        return {**shared(chat), "completion": _answer(chat.reply)}

    def pair(chat: Chat, other: str) -> Record:
        return {**shared(chat), "chosen": _answer(chat.reply), "rejected": _answer(other)}

    return _write(chats, directory, turn, pair, lost)


def write_datasets(
    chats: Mapping[str, Sequence[Chat]],
    directory: Path,
    lost: Counter[str],
    dialogues: Mapping[str, Sequence[Dialogue]],
    inventory: Inventory,
) -> Counts:
    """TRL's files, and beside them whole dialogues: records of the one column `text`, a dialogue of esc-lab in JSON.

    As a text it is exact, and its columns are the same in every record, which those of free `meta` are not.
    """
    counts = write_trl(chats, directory, lost)
    for split, records in dialogues.items():
        texts = [as_line({"text": line}, "a dialogue to write") for line in lines(records, inventory)]
        counts |= _write_lines(texts, directory, DIALOGUES, split)
    return counts


def write_llama_factory(
    chats: Mapping[str, Sequence[Chat]], directory: Path, lost: Counter[str], name: str = "esc_lab"
) -> Counts:
    """sharegpt conversations, ranked ones for DPO, and the `dataset_info.json` that names them: NAME_sft_train, ..."""

    def conversation(messages: Iterable[Message]) -> list[Record]:
        return [{"from": _SHAREGPT[message.role], "value": message.content} for message in messages]

    def shared(chat: Chat) -> tuple[Record, list[Record]]:
        system = next((message.content for message in chat.messages if message.role == "system"), "")
        return {"system": system}, conversation(message for message in chat.messages if message.role != "system")

    def whole(chat: Chat) -> Record:
        system, messages = shared(chat)
        return {**system, "conversations": [*messages, {"from": "gpt", "value": chat.reply}]}

    def pair(chat: Chat, other: str) -> Record:
        system, messages = shared(chat)
        answers = {key: {"from": "gpt", "value": text} for key, text in (("chosen", chat.reply), ("rejected", other))}
        return {**system, "conversations": messages, **answers}

    counts = _write(_last(chats), directory, whole, None, lost) | _write(chats, directory, None, pair, lost)
    info = {}
    for kind, split in counts:
        columns = {"messages": "conversations", "system": "system"}
        if kind == "preference":
            columns |= {"chosen": "chosen", "rejected": "rejected"}
        info[f"{name}_{kind}_{WRITTEN_STEMS[split]}"] = {
            "file_name": f"{kind}/{WRITTEN_STEMS[split]}.jsonl",
            "formatting": "sharegpt",
            **({"ranking": True} if kind == "preference" else {}),
            "columns": columns,
        }
    write_atomic(directory / "dataset_info.json", json.dumps(info, indent=2))
    return counts


def write_openai(chats: Mapping[str, Sequence[Chat]], directory: Path, lost: Counter[str]) -> Counts:
    """`{messages}` a dialogue, and `{input, preferred_output, non_preferred_output}` a pair."""

    def whole(chat: Chat) -> Record:
        return {"messages": [*_messages(chat.messages), *_answer(chat.reply)]}

    def pair(chat: Chat, other: str) -> Record:
        asked = {"messages": _messages(chat.messages), "tools": [], "parallel_tool_calls": True}
        return {"input": asked, "preferred_output": _answer(chat.reply), "non_preferred_output": _answer(other)}

    return _write(_last(chats), directory, whole, None, lost) | _write(chats, directory, None, pair, lost)


_SHAREGPT = {"user": "human", "assistant": "gpt"}


def _messages(messages: Iterable[Message]) -> list[Record]:
    return [{"role": message.role, "content": message.content} for message in messages]


def _answer(content: str) -> list[Record]:
    return [{"role": "assistant", "content": content}]


def _last(chats: Mapping[str, Sequence[Chat]]) -> dict[str, list[Chat]]:
    """Of each dialogue the chat that holds all others."""
    return {split: [chat for chat in turns if chat.last] for split, turns in chats.items()}


def _write(
    chats: Mapping[str, Sequence[Chat]],
    directory: Path,
    reply: Callable[[Chat], Record] | None,
    pair: Callable[[Chat, str], Record] | None,
    lost: Counter[str],
) -> Counts:
    counts: Counts = {}
    for split, turns in chats.items():
        if reply:
            counts |= _write_records(map(reply, turns), directory, "sft", split, lost)
        if pair:
            pairs = (pair(chat, other) for chat in turns for other in chat.rejected)
            counts |= _write_records(pairs, directory, "preference", split, lost)
    return counts


def _write_records(records: Iterable[Record], directory: Path, kind: str, split: str, lost: Counter[str]) -> Counts:
    """Each record once: dialogues of one search tree have turns and pairs in common."""
    texts = [as_line(record, f"{kind} record {number} to write") for number, record in enumerate(records, start=1)]
    unique = list(dict.fromkeys(texts))
    lost[f"{kind} records that several dialogues have, beyond the first"] += len(texts) - len(unique)
    return _write_lines(unique, directory, kind, split)


def _write_lines(texts: Sequence[str], directory: Path, kind: str, split: str) -> Counts:
    if not texts:
        return {}
    write_atomic(directory / kind / f"{WRITTEN_STEMS[split]}.jsonl", "\n".join(texts))
    return {(kind, split): len(texts)}
