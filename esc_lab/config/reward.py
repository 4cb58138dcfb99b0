"""Settings of the reward model: what given replies are compared with, what it reads, how it is trained and checked."""

from __future__ import annotations

from dataclasses import dataclass

from esc_lab.config.item import COUNT, FROM_ZERO, SHARE, item

# Kinds of comparison, and what a given reply is compared with in each.
RATED = "rated"
COMPARISONS = {
    "same_dialogue": "a later reply of the same dialogue",
    "other_dialogue": "a reply of another dialogue",
    "rejected": "a rejected reply of the records",
    "own_reply": "what the model itself writes under another strategy (data.negatives says which, and how many)",
    RATED: "a reply of the same turn with another search value",
    "strategy": "its strategy, without words, against one that is drawn as often as it is given in other turns",
}


@dataclass
class RewardConfig:
    kinds: dict[str, float] = item(
        {"same_dialogue": 1.0, "other_dialogue": 1.0, "rejected": 1.0},
        "what given replies are compared with, each with its share: " + ", ".join(COMPARISONS),
    )
    foils: int = item(2, "replies that each given one is compared with, drawn anew in each epoch", within=COUNT)
    strategy_text: bool = item(
        False, "it reads the strategies of replies too, as (strategy) text, and not the text alone"
    )
    strategy_share: float = item(
        0.0, "share of a reply's score that is of its strategy alone, whatever its words; needs the kind strategy",
        within=(0, 1),
    )  # fmt: skip
    likelihood: bool = item(
        False,
        "a score has a second part, with a weight that is trained: how much likelier the dialogue makes the reply, "
        "log p(reply | dialogue) - log p(reply), over the root of its tokens; the latter is the base model's",
    )
    reply_tokens: int = item(
        192, "longest reply that it reads, in tokens; the rest is cut off and counted", within=COUNT
    )
    layers: int | None = item(None, "how many of the last layers get an adapter; null = adapter.layers", within=COUNT)
    head_lr: float = item(1e-3, "peak learning rate of the head; optimizer.lr is the adapter's", within=FROM_ZERO)
    anchor: float = item(
        0.5,
        "weight of comparisons with an imagined reply of score 0, which given replies beat and others lose to: makes "
        "scores of different turns comparable",
        within=FROM_ZERO,
    )
    tie_margin: float = item(0.0, "kind rated: search values that differ by no more are a tie", within=FROM_ZERO)
    held_out: float = item(
        0.1,
        "kind rated: share of the training trees with values, one at least, that are validation data where the "
        "validation split has no values",
        within=SHARE,
    )
    outcome_weight: float = item(
        0.0,
        "more weight of dialogues whose seekers were relieved more: 1 + this per standard deviation of the drop of the "
        "emotion's intensity, not below 0",
        within=FROM_ZERO,
    )
    step_dialogues: int = item(4, "dialogues in one optimizer step", within=COUNT)
    check: int = item(
        400, "given replies of each split that it has to tell from foils of each kind", within=(2, float("inf"))
    )
