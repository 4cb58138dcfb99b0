"""What is asked at a decision: which strategies prompts name, a prediction to be filled for each reply, the prompt."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np

from esc_lab.config import TemplateConfig
from esc_lab.config.evaluate import EvaluateConfig, GenerationConfig
from esc_lab.data.dialogue import Dialogue
from esc_lab.data.strategies import Inventory
from esc_lab.metrics.prediction_table import Key
from esc_lab.metrics.predictions import Prediction
from esc_lab.prompts import Layout, Prompt, build_prompt
from esc_lab.seeds import EVALUATION_SEED, derive_seed
from esc_lab.tokens import Example

log = logging.getLogger(__name__)


def draw_decisions(keys: Iterable[Key], settings: GenerationConfig) -> frozenset[Key] | None:
    """Which decisions get a reply: all (None), or a number of them that is drawn alike in all runs.

    With `depths` as many from each stratum, as far as it has them; where no number is given, all of these.
    """
    count, strata, decisions = settings.decisions, list(pairwise(settings.depths)), sorted(keys)
    if count is None and not strata:
        return None
    draw = random.Random(derive_seed(EVALUATION_SEED, "decisions to generate for"))
    if not strata:
        return frozenset(draw.sample(decisions, min(count or 0, len(decisions))))
    drawn: list[Key] = []
    for number, (start, end) in enumerate(strata):
        there = [key for key in decisions if start <= key[1] < end]
        share = len(there) if count is None else (count + len(strata) - 1 - number) // len(strata)
        if len(there) < share:
            log.warning("after %d to %d turns there are %d decisions, not %d", start, end - 1, len(there), share)
        drawn += draw.sample(there, min(share, len(there)))
    return frozenset(drawn)


def list_predictions(
    dialogue: Dialogue,
    example: Example,
    layout: Layout,
    inventory: Inventory,
    settings: EvaluateConfig,
    *,
    replies: bool,
) -> list[Prediction]:
    """A prediction of a decision, to be filled, for each strategy that its prompts name and each sample of a reply.

    Args:
        example: of the decision; says how much of the history its prompt shows.
        replies: whether the decision gets replies.
    """
    turn, samples = example.key.turn, settings.generation.samples if replies else 1
    reply = dialogue.turns[turn].reply
    return [
        Prediction(
            dialogue=dialogue.id, tree=dialogue.tree_id, turn=turn, problem=dialogue.problem,
            emotion=dialogue.emotion, gold=list(reply.strategies), gold_reply=reply.text, prompted=strategy,
            template=layout.name, history=turn - example.first_turn, sample=sample,
        )
        for strategy in _list_strategies(dialogue, turn, layout, inventory, settings)
        for sample in range(samples)
    ]  # fmt: skip


def choose_given(predictions: Sequence[Prediction]) -> Prediction | None:
    """The prediction of a decision, if any, after whose prompt the given reply is scored.

    That whose prompt names the reply's own strategy, or lets the model choose. Where the corpus has no strategy of the
    inventory, one whose strategy is drawn among those that are prompted, by dialogue and turn: alike in all runs.
    """
    first, *_ = predictions
    if first.prompted is None or first.gold:
        return first if first.prompted in (None, *first.gold[:1]) else None
    drawn = sorted((each for each in predictions if not each.sample), key=lambda each: str(each.prompted))
    return random.Random(derive_seed(EVALUATION_SEED, "scored prompt", first.dialogue, first.turn)).choice(drawn)


def _list_strategies(
    dialogue: Dialogue, turn: int, layout: Layout, inventory: Inventory, settings: EvaluateConfig
) -> list[str | None]:
    """The strategies that the prompts of a decision name, the gold one first; None where the model chooses."""
    gold = dialogue.turns[turn].reply.strategies[:1]
    if layout.chooses_strategy:
        return [None]
    if settings.prompted == "gold":
        return [*gold]
    names = sorted(inventory.names, key=lambda name: name not in gold)
    if settings.prompted == "random":
        draw = np.random.default_rng(derive_seed(EVALUATION_SEED, "prompted", dialogue.id, turn))
        share = draw.random(len(names))
        names = [name for name, own in zip(names, share, strict=True) if own < settings.prompted_share] or [
            names[int(share.argmin())]
        ]
    return [*names]


def prompt_for(
    prediction: Prediction,
    dialogue: Dialogue,
    layout: Layout,
    inventory: Inventory,
    settings: TemplateConfig,
    *,
    inference: str,
    start: int,
) -> Prompt:
    """The prompt of a prediction, with the history from turn `start` on; the prediction notes its neutral phrase."""
    prompt = build_prompt(
        layout, inventory, dialogue, prediction.turn, prediction.prompted,
        history_labels=settings.history_labels, situation=settings.situation, inference=inference,
        start=start,
    )  # fmt: skip
    prediction.neutral = prompt.neutral
    return prompt
