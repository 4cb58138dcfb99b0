"""Settings of stages `convert` (data into another form) and `data` (a look at a corpus)."""

from __future__ import annotations

from dataclasses import dataclass

from esc_lab.config.item import COUNT, FROM_ZERO, item

WRITTEN = ("jsonl", "esc_pro_dialogues", "esc_pro_pairs", "esc_pro_kto")  # forms that can be written


@dataclass
class ConvertConfig:
    to: str = item(
        "jsonl", "form to write: esc-lab's own, which holds everything, or one of ESC-Pro's", choices=WRITTEN
    )
    path: str | None = item(
        None,
        "file to write, or a new directory where the corpus has splits; null = dialogues.* in the run directory",
    )


@dataclass
class LookConfig:
    """`look`, since `data` is the corpus."""

    prompts: int = item(10, "rendered prompts to show, from all over the corpus", within=FROM_ZERO)
    labels: int = item(40, "spellings of labels to show, the most frequent first", within=COUNT)
