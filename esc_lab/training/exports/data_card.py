"""The card of dialogues that were written for other tools: what they are, how many, and under which licence.

Every number is counted, and licences are never guessed.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from esc_lab.config import Config
from esc_lab.data.corpora.splits import WRITTEN_STEMS
from esc_lab.data.dialogue import Dialogue, Reply
from esc_lab.runs.layout import CONTINUATIONS, ESC_PRO, find_run
from esc_lab.terminal import escape_markdown
from esc_lab.training.exports.data_files import KINDS, Counts
from esc_lab.training.model_card import NOT_STATED, find_source

_LIBRARY_SPLITS = {"train": "train", "val": "validation", "test": "test"}  # as the `datasets` library names them
_FORMS = {
    "trl": "Records of TRL: conversational `preference`, and prompt and completion as `sft`.",
    "datasets": "Records of TRL (conversational `preference`, prompt and completion as `sft`), and the whole "
    "`dialogues`: the column `text` holds one in esc-lab's format, as JSON.",
    "llama_factory": "Conversations of LLaMA-Factory (sharegpt), which `dataset_info.json` names; those of "
    "`preference` are ranked, for DPO.",
    "openai": "Fine-tuning files of OpenAI: `sft` for supervised fine-tuning, `preference` for direct preference "
    "optimisation.",
}
_USES = {
    "trl": '    load_dataset("DIRECTORY", "preference")   # or "sft"',
    "datasets": '    load_dataset("DIRECTORY", "preference")   # or "sft", "dialogues"',
    "llama_factory": "    dataset_dir: DIRECTORY\n    dataset: {name}_preference_train   # with stage: dpo",
    "openai": '    client.files.create(file=open("sft/train.jsonl", "rb"), purpose="fine-tune")',
}  # fmt: skip
# The hub's names for how many records there are: the first number that is too many, and the name.
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
_LARGEST = "n>1M"
_CAUTION = (
    "For research. **Not for people in crisis.** Nobody with clinical training has checked these replies, and some may "
    "harm. Do not put a model that was trained on them in front of people in distress without professional "
    "supervision, without a tested way to notice danger to life, and without handing such conversations over to "
    "emergency services or a crisis line."
)


def write_data_card(
    cfg: Config,
    dialogues: Mapping[str, Sequence[Dialogue]],
    counts: Counts,
    notes: Mapping[str, int],
    code: str,
) -> str:
    """A data card in Markdown, with the metadata that the hub reads.

    Args:
        dialogues: by split, as they were written.
        counts: records by kind and split.
        notes: how often something was left out or changed, by kind.
        code: version of the code.
    """
    form, run = str(cfg.export.data), Path(cfg.run_dir)
    source, corpus = find_source(asdict(cfg.data), run)
    name = dataset_name(cfg.data.name)
    system = "the system message of the training prompts" if cfg.export.system else "no system message"
    about = (
        f"Dialogues of emotional support, from {source}. The user is the seeker, the assistant the supporter, whose "
        f"messages begin with their `(strategy)`, one of the inventory `{cfg.inventory.name}`, where they have one. "
        f"Chats have {system}. {_FORMS[form]}"
    )
    facts = [
        f"Licence of these files: {_licence(cfg) or NOT_STATED}",
        f"Licence of {corpus['name']}: {corpus.get('licence') or NOT_STATED}; its terms, and those of models that "
        "wrote replies, may bind whoever uses or passes on these files",
        "Language: not stated",
        f"Written by esc-lab{f' {code}' if code else ''}; consecutive turns: `data.merge={cfg.data.merge}`",
    ]
    return "\n\n".join(
        [
            _head(cfg, counts, dialogues),
            f"# {cfg.data.name} for {form}",
            about,
            _USES[form].format(name=name),
            "\n".join(f"- {fact}" for fact in facts),
            "## What it holds",
            _table(("records", *dialogues), _count_rows(dialogues, counts)),
            _table(("strategy", "given replies", "rejected replies"), _strategy_rows(dialogues)),
            *_describe_changes(notes),
            "## Use",
            _CAUTION,
            *_source_card(cfg, run),
        ]
    )


def size_category(records: int) -> str:
    """The hub's name for a number of records."""
    return next((name for limit, name in _SIZES if records < limit), _LARGEST)


def dataset_name(name: str) -> str:
    """The corpus' name as a word of letters, digits and underscores."""
    return "".join(sign if sign.isalnum() and sign.isascii() else "_" for sign in name) or "esc_lab"


def _head(cfg: Config, counts: Counts, dialogues: Mapping[str, Sequence[Dialogue]]) -> str:
    tags = ["emotional-support-conversation", "esc-lab"]
    tags += ["preference"] if any(kind == "preference" for kind, _ in counts) else []
    lines = [
        f"pretty_name: {json.dumps(f'{cfg.data.name} for {cfg.export.data}')}",
        f"license: {json.dumps(_licence(cfg) or 'unknown')}",
        'task_categories: ["text-generation"]',
        f"size_categories: [{json.dumps(size_category(sum(map(len, dialogues.values()))))}]",
        f"tags: {json.dumps(tags)}",
    ]
    if cfg.export.data in ("trl", "datasets"):
        lines.append("configs:")
        kinds = [kind for kind in ("preference", "sft", "dialogues") if any(kind == known for known, _ in counts)]
        for kind in kinds:
            files = [
                {"split": _LIBRARY_SPLITS[split], "path": f"{kind}/{WRITTEN_STEMS[split]}.jsonl"}
                for known, split in counts
                if known == kind
            ]
            first = ", default: true" if kind == kinds[0] else ""
            lines.append(f"- {{config_name: {kind}, data_files: {json.dumps(files)}{first}}}")
    return "\n".join(["---", *lines, "---"])


def _licence(cfg: Config) -> str | None:
    """As the hub calls it: what was asked for; else the corpus' own, whose dialogues stand here in another form.

    Of what a search or an extension wrote nobody has said it.
    """
    source, corpus = find_source(asdict(cfg.data), Path(cfg.run_dir))
    known = str(corpus.get("licence") or "").lower().replace(" ", "-") if source == corpus["name"] else ""
    return cfg.export.licence or known or None


def _count_rows(dialogues: Mapping[str, Sequence[Dialogue]], counts: Counts) -> Iterable[Sequence[object]]:
    yield "dialogues they are from", *(len(records) for records in dialogues.values())
    for kind in KINDS:
        yield f"`{kind}`", *(counts.get((kind, split), 0) for split in dialogues)


def _strategy_rows(dialogues: Mapping[str, Sequence[Dialogue]]) -> Iterable[Sequence[object]]:
    """Replies of all splits by their first strategy."""
    given, rejected = Counter[str](), Counter[str]()
    for dialogue in (dialogue for records in dialogues.values() for dialogue in records):
        for turn in (turn for turn in dialogue.turns if turn.speaker == "supporter"):
            given[_first(turn.reply)] += 1
            rejected.update(map(_first, turn.rejected))
    for name in sorted(given | rejected, key=lambda name: (-given[name], name)):
        yield name, given[name], rejected[name]


def _first(reply: Reply) -> str:
    return reply.strategies[0] if reply.strategies else "(none)"


def _describe_changes(notes: Mapping[str, int]) -> list[str]:
    rows = [(kind.replace("_", " "), count) for kind, count in sorted(notes.items()) if count]
    return ["## What was left out or changed", _table(("what", "count"), rows)] if rows else []


def _source_card(cfg: Config, run: Path) -> list[str]:
    """The card of what a search or an extension made, without its metadata."""
    if not cfg.data.path:
        return []
    places = [
        place for place in (Path(cfg.data.path), Path(cfg.data.path).parent) if place.name in (ESC_PRO, CONTINUATIONS)
    ]
    card = next((place / "README.md" for place in places if find_run(place, run)), None)
    if card is None or not card.exists():
        return []
    _, _, body = card.read_text(encoding="utf-8").removeprefix("---\n").partition("\n---\n")  # without its metadata
    told = "## The card of the data that these files were written from"
    return [told, "Its numbers are those of all of that data.", re.sub(r"(?m)^#", "###", body.strip())]


def _table(heads: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "\n".join(f"| {' | '.join(_cell(value) for value in line)} |" for line in lines)


def _cell(value: Any) -> str:
    text = str(value)
    return text if text.startswith(("`", "---")) else escape_markdown(text)
