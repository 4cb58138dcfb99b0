"""Settings of stage `extend`: where dialogues are cut, which strategies are prompted there, and what is kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from esc_lab.config.data import SPLITS
from esc_lab.config.item import COUNT, FROM_ZERO, SHARE, item
from esc_lab.config.prompt import TemplateConfig


@dataclass
class ExtendConfig:
    seed: int = item(
        1, "seed of cuts, strategies and replies, apart from the run's seed so that runs share what was written",
        within=(0, 2**32 - 1),
    )  # fmt: skip
    source: str = item(
        "model",
        "whose replies: a model's (llm.supporter) to prompts that name a strategy; or the corpus' own, at most cuts of "
        "each strategy a dialogue: those with one strategy, or their sentences with cues of one (inventory.cues)",
        choices=("model", "corpus"),
    )
    splits: list[str] = item([*SPLITS], "splits whose dialogues are continued; each stays a split", choices=SPLITS)
    cuts: int = item(
        1, "contexts of each dialogue, cut at random places after the seeker; more cuts add to fewer", within=COUNT
    )
    min_turns: int = item(5, "fewest turns of a context", within=COUNT)
    max_turns: int = item(23, "most turns of a context", within=COUNT)
    number: int | None = item(
        None,
        "strategies of each context, drawn from the inventory; more add to fewer; null = each with probability share",
        within=FROM_ZERO,
    )
    share: float = item(0.25, "number=null: probability of each strategy; a context has one at least", within=SHARE)
    unconditional: float = item(
        0.25, "probability that a context also gets a reply to a prompt that names no strategy", within=SHARE
    )
    template: str = item("c1_hf", "prompt layout that replies are written under; its prompts name the strategy")
    situation: bool = item(False, "show the seeker's situation in these prompts")
    examples: int = item(
        0,
        "exchanges of inventory.examples that a prompt shows of its strategy, drawn by context",
        within=FROM_ZERO,
    )
    layout: dict[str, Any] = item({}, "the layout of this name with its wording; filled in when a run starts")
    max_copied: float = item(
        0.5,
        "a reply is not used if more than this share of its runs of four words is in its history or examples, or in "
        "itself before",
        within=SHARE,
    )
    classifier: str | None = item(
        None,
        "keep only replies in which it finds the prompted strategy: a run of stage=classifier or a directory of a "
        "sequence classifier; auto = one that is trained on the training dialogues and kept; null = keep all",
    )

    def template_config(self) -> TemplateConfig:
        """The settings of its prompts; earlier replies stand there without their strategies."""
        return TemplateConfig(self.template, history_labels=False, situation=self.situation, layout=self.layout)
