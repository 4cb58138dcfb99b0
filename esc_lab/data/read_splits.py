"""The dialogues of a corpus as the section `data` of the configuration wants them: split, mapped, limited, merged."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from esc_lab.config import SPLITS, DataConfig
from esc_lab.data.corpora import (
    ReadReport,
    proportional_split,
    published_split,
    read_dialogues,
    sample_path,
    seed_fraction,
)
from esc_lab.data.dialogue import Dialogue, merge_turns
from esc_lab.data.strategies import Inventory
from esc_lab.errors import UserError


def read_splits(
    data: DataConfig, inventory: Inventory, report: ReadReport, config_dirs: Sequence[str] = ()
) -> dict[str, list[Dialogue]]:
    """Dialogues of each split, labels mapped onto the inventory, consecutive turns merged, limits applied.

    Of the training split only the share `seed_fraction` of its trees is kept.

    Args:
        config_dirs: the user's own directories, in which the corpus' own inventory is looked up before `conf/`.

    Raises:
        UserError: files or labels are wrong, there is no mapping onto the inventory, or a published split has no such
            files.
    """
    path = Path(data.path) if data.path else sample_path()
    published = data.split == "published" or (data.split == "auto" and path.is_dir())
    read = partial(read_dialogues, format=data.format, mapping=inventory, report=report, config_dirs=config_dirs)
    if published:
        splits = {name: read(file) for name, file in published_split(path).items()}
    else:
        splits = proportional_split(read(path), dict.fromkeys(SPLITS, 0.0) | data.proportions, data.split_seed)
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
