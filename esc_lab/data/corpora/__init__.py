"""Support dialogues from files and back: ESConv, ExTES, ESC-Pro, esc-lab's own JSONL, and by columns tables and the
forms of other tools (docs/data-format.md).

Every label goes through the corpus' own inventory (the one whose `formats` name it, or what the record says) and, if
asked for, is mapped to another. Whatever reading drops or changes is counted in a `ReadReport`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

from esc_lab.artifacts import replace_file, write_atomic
from esc_lab.config import SPLITS, DataConfig
from esc_lab.config.convert import WRITTEN
from esc_lab.config.data import FORMATS
from esc_lab.data.corpora import esc_pro, esconv, extes, jsonl, mapped
from esc_lab.data.corpora.detect import Form
from esc_lab.data.corpora.esc_pro import unpaired_dialogues
from esc_lab.data.corpora.esc_pro_write import write_records
from esc_lab.data.corpora.reading import Reading, ReadReport
from esc_lab.data.corpora.records import Record, as_line, check_nesting, read_records
from esc_lab.data.corpora.splits import (
    EIGHT_ONE_ONE,
    count_shared_trees,
    find_files,
    proportional_split,
    published_split,
    seed_fraction,
    split_of,
)
from esc_lab.data.corpora.tables import load_hub_dataset
from esc_lab.data.dialogue import Dialogue, merge_turns
from esc_lab.data.strategies import Inventory, map_to_nothing
from esc_lab.errors import UserError, nearest

__all__ = [
    "EIGHT_ONE_ONE",
    "ReadReport",
    "find_files",
    "proportional_split",
    "published_split",
    "read_corpus",
    "read_dialogues",
    "read_splits",
    "sample_path",
    "seed_fraction",
    "stream_dialogues",
    "unpaired_dialogues",
    "write_dialogues",
]

_READERS: Mapping[str, Callable[[Record, Reading], Dialogue]] = {
    "esconv": esconv.read_dialogue,
    "extes": extes.read_dialogue,
    "jsonl": jsonl.read_dialogue,
}


def read_dialogues(
    path: str | Path,
    format: str = "auto",
    *,
    inventory: Inventory | str | None = None,
    mapping: Inventory | str | None = None,
    labels: Mapping[str, str | None] = MappingProxyType({}),
    unknown: str = "error",
    report: ReadReport | None = None,
    columns: Mapping[str, Any] = MappingProxyType({}),
    roles: Mapping[str, str | None] = MappingProxyType({}),
    config_dirs: Sequence[str | Path] = (),
) -> list[Dialogue]:
    """Dialogues of a file, in its order; of a directory with a published split, those of train, val and test.

    Args:
        format: `jsonl`, `esconv`, `extes`, `esc_pro` (dialogues, pairs or KTO), a form of `conf/data` that declares
            columns, or `auto`: by the first record's keys.
        inventory: read the file's labels as this inventory instead of the corpus' own.
        mapping: map the labels to this inventory, which the dialogues then have. Labels without a counterpart leave
            their turn unlabelled.
        labels: how labels are read, however they are spelt: as a strategy of the file's inventory, or None as none.
        unknown: `error`, or `drop`: labels that the file's inventory does not know leave their turn unlabelled.
        report: counts to add to.
        columns: which key or column holds what, in place of those of a form (docs/data-format.md).
        roles: `seeker`, `supporter` or None (neither) by a speaker's name, beside the usual ones.
        config_dirs: directories of your own in which inventories are looked up by name before `conf/`.

    Raises:
        UserError: the file cannot be read, a record is not of the format, or labels are unknown.
    """
    path = Path(path)
    report = ReadReport() if report is None else report
    reading = Reading(
        report, inventory=inventory, mapping=mapping, labels=labels, drop_unknown=unknown == "drop",
        config_dirs=config_dirs,
    )  # fmt: skip
    _check_format(format, ("auto", *FORMATS), path)
    form = Form(format, columns, roles)
    read = _read_files(_records_of(find_files(path)[0]), form, reading)
    return [dialogue for dialogues in read.values() for dialogue in dialogues]


def _records_of(files: Mapping[str, Path]) -> Iterator[tuple[str, list[Record]]]:
    return ((name, read_records(file)) for name, file in files.items())


def _read_files(
    files: Iterable[tuple[str, Sequence[Record]]], form: Form, reading: Reading
) -> dict[str, list[Dialogue]]:
    """The dialogues of the records of each file; labels that are unknown in any of them are one error."""
    in_files: dict[str, list[Dialogue]] = {}
    for key, records in files:
        in_files[key] = _read_records(records, form, reading)
        if not in_files[key]:
            file, fix = records[0].where.rpartition(":")[0], "give at least one pair of two different replies"
            raise UserError("the file holds no dialogues", where=file or records[0].where, fix=fix)
    reading.finish()
    for dialogues in in_files.values():
        for dialogue in dialogues:
            check_nesting(dialogue.meta, dialogue.where)
            reading.report.add(dialogue)
    return in_files


def _read_records(records: Sequence[Record], form: Form, reading: Reading) -> list[Dialogue]:
    first = records[0]
    if form.name not in ("auto", "jsonl") and str(first.data.get("format")).startswith("esc-lab/"):
        fix = "read it as jsonl (data=jsonl)"
        raise UserError(f"not {form.name}, but esc-lab's own format", where=first.where, fix=fix)
    reading.format, columns = form.resolve(first)
    if columns:
        return mapped.read_all(records, columns, reading)
    if reading.format == "esc_pro":
        return esc_pro.read_all(records, reading)
    return [_READERS[reading.format](record, reading) for record in records]


def read_splits(
    data: DataConfig,
    inventory: Inventory,
    report: ReadReport,
    config_dirs: Sequence[str] = (),
    *,
    needs_labels: bool = True,
) -> dict[str, list[Dialogue]]:
    """Dialogues of each split, labels mapped onto the inventory, consecutive turns merged, limits applied.

    Of the training split only the share `seed_fraction` of its trees is kept.

    Args:
        config_dirs: the user's own directories, in which the corpus' own inventory is looked up before `conf/`.
        needs_labels: without a mapping from the corpus' own inventory there is an error; else its labels are left out.

    Raises:
        UserError: files or labels are wrong, there is no mapping onto the inventory, a published split has no such
            files, or two of these hold the same trees.
    """
    if not needs_labels:
        inventory = map_to_nothing(inventory, config_dirs)
    reading = Reading(
        report, inventory=data.inventory, mapping=inventory,
        labels=data.labels, drop_unknown=data.unknown == "drop", config_dirs=config_dirs,
    )  # fmt: skip
    splits, published = _read_source(data, reading)
    if published:
        place = data.hub or str(data.path)
        report.trees_in_two_splits += count_shared_trees(splits, place, refuse=data.overlap == "error")
    else:
        together = [dialogue for dialogues in splits.values() for dialogue in dialogues]
        splits = proportional_split(together, dict.fromkeys(SPLITS, 0.0) | data.proportions, data.split_seed)
    if data.seed_fraction < 1 and "train" in splits:
        splits["train"] = seed_fraction(splits["train"], data.seed_fraction, data.split_seed)
    for name, count in data.limit.items():
        if name not in SPLITS:
            raise UserError(f"no split '{name}'", where="data.limit", fix=f"one of {', '.join(SPLITS)}")
        splits[name] = splits.get(name, [])[:count]
    return {
        name: [merge_turns(dialogue, data.merge) for dialogue in dialogues]  # type: ignore[arg-type]
        for name, dialogues in splits.items()
    }


def read_corpus(
    data: DataConfig, inventory: Inventory, report: ReadReport, config_dirs: Sequence[str] = ()
) -> dict[str, list[Dialogue]]:
    """The dialogues of each split or, of a corpus without, of all files, as they are: with the labels of their own
    inventory, and nothing merged or cut.

    Args:
        inventory: what labels are read as where neither the records nor their form say whose they are.

    Raises:
        UserError: files or labels are wrong, or a data set of the hub cannot be had.
    """
    reading = Reading(
        report, inventory=data.inventory, labels=data.labels, drop_unknown=data.unknown == "drop",
        config_dirs=config_dirs, fallback=inventory,
    )  # fmt: skip
    read, published = _read_source(data, reading)
    whole = published or data.hub
    return read if whole else {"": [dialogue for dialogues in read.values() for dialogue in dialogues]}


def _read_source(data: DataConfig, reading: Reading) -> tuple[dict[str, list[Dialogue]], bool]:
    """The dialogues of each file, or part of a data set of the hub, and whether these are a published split."""
    form = Form(data.format, data.columns, data.roles)
    if data.hub:
        rows = load_hub_dataset(data.hub, data.subset, data.revision)
        records = {split_of(name): [Record(row, where) for where, row in placed] for name, placed in rows.items()}
        published = len(records) > 1 and {*records} <= {*SPLITS} and data.split != "proportion"
        return _read_files(records.items(), form, reading), published
    files, published = find_files(Path(data.path) if data.path else sample_path(), data.split)
    return _read_files(_records_of(files), form, reading), published


def write_dialogues(
    dialogues: Iterable[Dialogue],
    path: str | Path,
    format: str = "jsonl",
    *,
    inventory: Inventory | None = None,
) -> dict[str, int]:
    """Write dialogues; the file appears whole or not at all, and missing folders are made.

    Args:
        format: `jsonl` (esc-lab's own, exact), or `esc_pro_dialogues`, `esc_pro_pairs`, `esc_pro_kto`: JSON lists in
            the forms that `esc_pro` reads. `esc_lab.data.corpora.esc_pro_write` says what these hold.
        inventory: of the dialogues, where it is none of `conf/`.

    Returns:
        How much the format could not hold, by kind; empty if all of it was written.

    Raises:
        UserError: unknown format, nothing to write, a dialogue that cannot be read back, or no permission.
    """
    path, dialogues = Path(path), list(dialogues)
    _check_format(format, WRITTEN, path)
    for number, dialogue in enumerate(dialogues, start=1):
        _check(dialogue, f"dialogue {number} to write")
    if format == "jsonl":
        lines, lost = jsonl.lines(dialogues, inventory), {}
    else:
        records, counts = write_records(dialogues, format.removeprefix("esc_pro_"))
        lines = [as_line(record, f"record {number} to write") for number, record in enumerate(records, start=1)]
        lost = {kind: count for kind, count in counts.items() if count}
    if not lines:
        fix = "pass at least one dialogue" + (" with a rejected reply" if format == "esc_pro_pairs" else "")
        raise UserError(f"there is nothing to write as '{format}'", where=str(path), fix=fix)
    write_atomic(path, "\n".join(lines) if format == "jsonl" else "[\n" + ",\n".join(lines) + "\n]")
    return lost


@contextmanager
def stream_dialogues(path: Path, inventory: Inventory) -> Iterator[Callable[[Sequence[Dialogue]], None]]:
    """Write dialogues in esc-lab's own format as they come, none of them kept in memory.

    The file appears whole at the end of the block; without a dialogue there is none.

    Yields:
        A function that writes some. It raises what `write_dialogues` does.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    written = 0

    def write(dialogues: Sequence[Dialogue]) -> None:
        nonlocal written
        for number, dialogue in enumerate(dialogues, start=written + 1):
            _check(dialogue, f"dialogue {number} to write")
        written += len(dialogues)
        file.writelines(f"{line}\n" for line in jsonl.lines(dialogues, inventory))

    with replace_file(path) as part, part.open("w", encoding="utf-8") as file:
        yield write
    if not written:
        path.unlink()


def sample_path() -> Path:
    """The sample corpus that ships with esc-lab, in its own format."""
    return Path(__file__).parent / "sample.jsonl"


def _check_format(format: str, known: Sequence[str], path: Path) -> None:
    if format not in known:
        fix = f"use one of {', '.join(known)}"
        raise UserError(f"unknown format '{format}'{nearest(format, known)}", where=str(path), fix=fix)


def _check(dialogue: Dialogue, where: str) -> None:
    """Refuse what no reader would take back."""
    if all(turn.speaker == "seeker" for turn in dialogue.turns):
        raise UserError("the dialogue has no supporter turn", where=where, fix="leave it out")
    for number, turn in enumerate(dialogue.turns, start=1):
        for reply in (turn.reply, *turn.rejected):
            if not reply.text or reply.text != reply.text.strip():
                what = f"the text {reply.text[:40]!r} is empty or has white space around it"
                raise UserError(what, where=f"{where}, turn {number}", fix="strip the text, or leave the turn out")
