"""Which dialogues train, validate and test: published split files, reproducible proportions, nested fractions.

Splits go by `tree_id`, so that the dialogues of one search tree or seed never stand on two sides. Trees are ordered by
a hash of the seed and their id: the outcome depends on which trees there are, never on their order in the file.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from esc_lab.data.corpora.tables import TABLES, has_saved_splits, is_saved_dataset
from esc_lab.data.dialogue import Dialogue
from esc_lab.errors import UserError

log = logging.getLogger(__name__)

EIGHT_ONE_ONE: Mapping[str, float] = MappingProxyType({"train": 0.8, "val": 0.1, "test": 0.1})

_STEMS: Mapping[str, tuple[str, ...]] = {"train": ("train",), "val": ("valid", "val", "validation"), "test": ("test",)}
WRITTEN_STEMS = {split: stems[0] for split, stems in _STEMS.items()}  # how the files of a split are called here
_SUFFIXES = (".txt", ".json", ".jsonl", *TABLES)


def find_files(path: Path, split: str = "auto") -> tuple[dict[str, Path], bool]:
    """The files of a corpus, and whether they are a published split, by its names, or each by its own.

    A directory in which no file or folder is called as a split is one corpus, as of one file a dialogue.

    Args:
        split: `published` insists on one.

    Raises:
        UserError: a published split is incomplete, or a directory has no files.
    """
    if split != "published" and (not path.is_dir() or is_saved_dataset(path)):
        return {"": path}, False
    stems = {stem for names in _STEMS.values() for stem in names}
    named = path.is_dir() and any(file.stem in stems for file in path.iterdir())
    if split == "published" or named or has_saved_splits(path):
        return published_split(path), split != "proportion"
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in _SUFFIXES)
    if not files:
        fix = f"name a file, or a directory with files that end in {', '.join(_SUFFIXES)}"
        raise UserError("no data file in the directory", where=str(path), fix=fix)
    return {file.name: file for file in files}, False


def split_of(name: str) -> str:
    """The split that a file or a part of a data set is, by its name; of other names these themselves."""
    return next((split for split, stems in _STEMS.items() if name in stems), name)


def published_split(directory: str | Path) -> dict[str, Path]:
    """Files of a published split: `train`, `val` (from `valid`, `val` or `validation`) and `test`, or folders in which
    `datasets` saved them.

    Raises:
        UserError: no such directory, or a split has no file or several.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise UserError("there is no such directory", where=str(directory), fix=f"check the path from {Path.cwd()}")
    files: dict[str, Path] = {}
    for split, stems in _STEMS.items():
        names = [stem + suffix for stem in stems for suffix in _SUFFIXES]
        present = [directory / name for name in names if (directory / name).is_file()]
        present += [directory / stem for stem in stems if is_saved_dataset(directory / stem)]
        if len(present) != 1:
            what = f"{len(present)} files for the split '{split}'" if present else f"no file for the split '{split}'"
            fix = f"keep one of {', '.join(names)}"
            raise UserError(what, where=str(directory), fix=fix)
        files[split] = present[0]
    return files


def proportional_split(
    dialogues: Sequence[Dialogue], proportions: Mapping[str, float] = EIGHT_ONE_ONE, seed: int = 0
) -> dict[str, list[Dialogue]]:
    """Dialogues by split, each in their original order; `proportions` are shares of the trees and sum to 1.

    Shares are rounded by largest remainder, and every split with a share gets one tree at least.

    Raises:
        UserError: the proportions are negative or do not sum to 1, or there are fewer trees than splits with a share.
    """
    wrong = any(not math.isfinite(share) or share < 0 for share in proportions.values())
    if wrong or abs(sum(proportions.values()) - 1) > 1e-6:
        shown = ", ".join(f"{name} {share:g}" for name, share in proportions.items())
        raise UserError(f"the proportions are {shown}", fix="give shares from 0 to 1 that sum to 1")
    trees = _ordered_trees(dialogues, "split", seed)
    sizes = _sizes(len(trees), proportions)
    split_of: dict[str, str] = {}
    start = 0
    for name, size in sizes.items():
        split_of.update(dict.fromkeys(trees[start : start + size], name))
        start += size
    splits: dict[str, list[Dialogue]] = {name: [] for name in proportions}
    for dialogue in dialogues:
        splits[split_of[dialogue.tree_id]].append(dialogue)
    return splits


def count_shared_trees(splits: Mapping[str, Sequence[Dialogue]], where: str, *, refuse: bool) -> int:
    """Number of trees that several splits hold, so that one would be tested on what another was trained on.

    Raises:
        UserError: there are such trees, and they are refused.
    """
    places: dict[str, dict[str, str]] = {}
    for name, dialogues in splits.items():
        for dialogue in dialogues:
            places.setdefault(dialogue.tree_id, {}).setdefault(name, dialogue.where)
    shared = [names for names in places.values() if len(names) > 1]
    if shared and refuse:
        named = " and ".join(f"{name} ({place})" for name, place in shared[0].items())
        fix = "take them out of one, cut anew with data.split=proportion, or data.overlap=allow"
        what = f"{len(shared)} of {len(places)} dialogue trees are in several splits, such as one in {named}"
        raise UserError(what, where=where, fix=fix)
    if shared:
        log.warning("%s: %d of %d dialogue trees are in several splits", where, len(shared), len(places))
    return len(shared)


def seed_fraction(dialogues: Sequence[Dialogue], fraction: float, seed: int = 0) -> list[Dialogue]:
    """Dialogues of a share of the trees, in their original order; a larger fraction contains every smaller one.

    Args:
        fraction: share of the trees, in (0, 1]; at least one tree is kept.

    Raises:
        UserError: `fraction` is not in (0, 1].
    """
    if not 0 < fraction <= 1:
        raise UserError(f"the fraction of seeds is {fraction:g}", fix="give a number above 0 and up to 1")
    trees = _ordered_trees(dialogues, "fraction", seed)
    kept = set(trees[: max(1, round(fraction * len(trees)))])
    return [dialogue for dialogue in dialogues if dialogue.tree_id in kept]


def _ordered_trees(dialogues: Iterable[Dialogue], purpose: str, seed: int) -> list[str]:
    """Distinct tree ids in an order that only `purpose` and `seed` determine."""
    trees = {dialogue.tree_id for dialogue in dialogues}
    return sorted(trees, key=lambda tree: (hashlib.sha256(f"{purpose} {seed} {tree}".encode()).digest(), tree))


def _sizes(total: int, proportions: Mapping[str, float]) -> dict[str, int]:
    """Whole numbers that sum to `total`, by largest remainder; every share above 0 gets at least 1."""
    shared = [name for name, share in proportions.items() if share > 0]
    if total < len(shared):
        raise UserError(
            f"{total} trees cannot fill the splits {', '.join(shared)}", fix="give more dialogues or fewer splits"
        )
    # Rounded first, so that 0.29 * 100 counts as 29 and not as 28.999999999999996.
    exact = {name: round(proportions[name] * total, 9) for name in shared}
    sizes = {name: math.floor(value) for name, value in exact.items()}
    by_remainder = sorted(shared, key=lambda name: sizes[name] - exact[name])
    for name in by_remainder[: total - sum(sizes.values())]:
        sizes[name] += 1
    for name in shared:
        if sizes[name] == 0:
            sizes[max(sizes, key=lambda other: sizes[other])] -= 1
            sizes[name] = 1
    return sizes
