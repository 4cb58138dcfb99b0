"""How a trained role is asked: as in its training, in the words that the run keeps.

A checkpoint is good only at the prompts that it was trained on. So a supporter or a seeker that was trained here is
asked in the layout and the words of its own training, whatever the words of the run that it plays in.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from esc_lab.artifacts import READ_ERRORS
from esc_lab.config.prompt import TemplateConfig
from esc_lab.data.dialogue import Dialogue, Speaker, Turn
from esc_lab.data.strategies import Inventory, build_inventory
from esc_lab.errors import UserError
from esc_lab.prompts.chat import Message, Role, build_prompt, label_text
from esc_lab.prompts.layouts import Layout, build_layout
from esc_lab.prompts.seeker import SeekerProfile, seeker_messages
from esc_lab.runs.layout import Settings, find_run, read_config

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SupporterPrompts:
    """How a trained supporter is asked: the layout of its training."""

    inventory: Inventory
    template: TemplateConfig
    layout: Layout

    def ask(
        self, seeker: SeekerProfile, history: Sequence[Turn], strategy: str | None, inference: str = "direct"
    ) -> tuple[tuple[Message, ...], str]:
        """The prompt for a reply with a strategy, and what the reply begins with: the label, or nothing.

        Without a strategy the prompt for the choice of one; a ValueError where the layout leaves the model no choice.
        `inference` names a prompting baseline of the layout.
        """
        talk = Dialogue(
            tuple(history), self.inventory.name, situation=seeker.situation, emotion=seeker.emotion,
            problem=seeker.problem,
        )  # fmt: skip
        prompt = build_prompt(
            self.layout, self.inventory, talk, len(history), strategy,
            history_labels=self.template.history_labels, situation=self.template.situation, inference=inference,
        )  # fmt: skip
        chosen = self.layout.chooses_strategy and strategy is not None
        return prompt.messages, label_text(strategy) if chosen and strategy else ""

    def record(self) -> dict[str, Any]:
        """All that the prompts depend on beside the inventory, as JSON types."""
        return {"side": "supporter", "template": asdict(self.template)}


@dataclass(frozen=True)
class SeekerPrompts:
    """How a trained seeker is asked: the words of its training (see `seeker_messages`)."""

    words: Mapping[str, str]

    def ask(self, seeker: SeekerProfile, history: Sequence[Turn]) -> tuple[Message, ...]:
        return seeker_messages(self.words, seeker, history)

    def record(self) -> dict[str, Any]:
        """All that the prompts depend on, as JSON types."""
        return {"side": "seeker", "words": dict(self.words)}


@dataclass(frozen=True)
class RewardPrompts:
    """What a reward model is shown: the talk, a message a turn. Words are put to it as in its training where it reads.

    Attributes:
        strategy_text: the supporter's messages begin with their first strategy; one without words is it in any case.
        strategy_share: of a reply's score that is of its strategy alone.
        strategy_centers: strategy -> what is taken off the logit of the strategy alone.
    """

    strategy_text: bool
    strategy_share: float = 0.0
    strategy_centers: Mapping[str, float] = field(default_factory=dict)

    def ask(self, history: Sequence[Turn]) -> tuple[Message, ...]:
        """The talk up to the reply that is to be scored, the supporter as assistant."""
        return tuple(Message(_ROLES[turn.speaker], self._text(turn)) for turn in history)

    def _text(self, turn: Turn) -> str:
        text = turn.reply.text
        named = turn.reply.strategies[:1] if self.strategy_text or not text else ()
        return " ".join([*map(label_text, named), *([text] if text else [])])

    def record(self) -> dict[str, Any]:
        """All that the messages depend on, as JSON types."""
        return {"side": "judge", **vars(self), "strategy_centers": dict(self.strategy_centers)}


_ROLES: Mapping[Speaker, Role] = {"seeker": "user", "supporter": "assistant"}
TrainedPrompts = SupporterPrompts | SeekerPrompts | RewardPrompts


def read_trained_prompts(checkpoint: Path, side: Speaker, inventory: Inventory, where: str) -> TrainedPrompts:
    """How the role of a side that a training made is asked.

    Args:
        checkpoint: run directory of the training, or its `adapter/` or `model/`.
        where: key of the configuration that names it, for messages.

    Raises:
        UserError: the run is gone or cannot be read, or it trained the other side or with another inventory.
    """
    where = f"{where}={checkpoint}"
    run = find_run(checkpoint)
    if run is None:
        fix = "name the run directory itself, with its config.yaml: a trained role is asked as in its training"
        raise UserError("the run that trained it is not there", where=where, fix=fix)
    try:
        config = read_config(run)
        check_side(run, side, where)
        if side == "seeker":
            return SeekerPrompts({str(name): str(text) for name, text in config["prompt"]["seeker"].items()})
        trained = build_inventory(config["inventory"]).names
        template = read_template(config)
    except READ_ERRORS as error:
        raise UserError(f"its config.yaml cannot be read: {error}", where=where, fix="copy the run again") from error
    if trained != inventory.names:
        what = f"it was trained on the strategies of '{config['inventory']['name']}', and these are '{inventory.name}'"
        raise UserError(what, where=where, fix=f"inventory={config['inventory']['name']}, or another checkpoint")
    return SupporterPrompts(inventory, template, build_layout(template))


def restore_trained_prompts(record: Mapping[str, Any], inventory: Inventory) -> TrainedPrompts:
    """The prompts whose `record()` this is."""
    if record["side"] == "seeker":
        return SeekerPrompts(record["words"])
    if record["side"] == "judge":
        return RewardPrompts(**{name: value for name, value in record.items() if name != "side"})
    template = TemplateConfig(**record["template"])
    return SupporterPrompts(inventory, template, build_layout(template))


def read_template(config: Settings) -> TemplateConfig:
    """The template that a training used, from the configuration of its run."""
    known = [field.name for field in fields(TemplateConfig)]
    return TemplateConfig(**{name: value for name, value in config["prompt"]["train"].items() if name in known})


def warn_of_training(checkpoint: Path, inventory: Inventory, template: str) -> None:
    """Say in the log where a supporter is evaluated with other strategies or another layout than it was trained with.

    A checkpoint whose run is not there says nothing of its training.

    Raises:
        what `read_config` raises.
    """
    run = find_run(checkpoint)
    if run is None or read_side(run) != "supporter":
        return
    config = read_config(run)
    trained, shown = build_inventory(config["inventory"]), read_template(config).template
    others = [f"the strategies of {trained.name}, not {inventory.name}"] if trained.names != inventory.names else []
    others += [f"the template {shown}, not {template}"] if shown != template else []
    if others:
        log.warning("%s was trained with %s (inventory=..., prompt=...)", checkpoint, " and ".join(others))


def read_side(run: Path) -> Speaker | None:
    """The side whose turns a run was trained on; None where it trained no side.

    Raises:
        what `read_config` raises, and KeyError where it says no stage.
    """
    config = read_config(run)
    if config["stage"] not in ("sft", "cso"):
        return None
    return "seeker" if config["data"].get("side") == "seeker" else "supporter"


def check_side(checkpoint: Path | None, side: Speaker, where: str) -> None:
    """Whether a checkpoint was trained on a side's turns, as far as its run is there to say so.

    Raises:
        UserError: it was trained on the other side's.
    """
    run = find_run(checkpoint) if checkpoint else None
    trained = read_side(run) if run else None
    if trained is not None and trained != side:
        fix = "name a run of stage=sft data.side=seeker" if side == "seeker" else "name a run of stage=sft or stage=cso"
        raise UserError(f"it was trained as the {trained}, and this is the {side}", where=where, fix=fix)
