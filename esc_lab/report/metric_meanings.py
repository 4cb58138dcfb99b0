"""What the compared metrics mean, for readers who know neither the code nor the papers."""

from __future__ import annotations

from esc_lab.comparison.table import Column

_MEANINGS = {
    "strategy/Q": "Proficiency: how well the model's most probable strategy agrees with the one the human supporter "
    "used. Mean over the strategies of F1 (the harmonic mean of precision and recall), from 0 to 1.",
    "strategy/Q_W": "Weighted proficiency: as Q, but strategies count by how often the human supporters used them, "
    "so rare ones matter less. From 0 to 1.",
    "strategy/B": "Preference bias: how unevenly the model favours strategies, whatever the situation asks for. "
    "Standard deviation of its preferences over the strategies; 0 = no favourites.",
    "strategy/accuracy": "Share of decisions at which the model's most probable strategy is (one of) the human "
    "supporter's.",
    "strategy/label_mass": "Probability that the model's reply begins with the name of any strategy at all.",
    "strategy/classes_predicted": "How many of the strategies are the model's most probable one at least once.",
    "strategy/n": "Decisions at which the model's choice of strategy was measured.",
    "generated/Q": "As Q, but of the strategy that the model names in the reply it writes.",
    "generated/unparsable": "Share of the written replies that name no strategy.",
    "text/rouge_l": "Overlap of the written reply with the human one: F-measure of their longest common subsequence "
    "of words, from 0 to 1.",
    "text/bleu_2": "Overlap of the written replies with the human ones in words and pairs of words, from 0 to 1.",
    "text/distinct_2": "Diversity: different pairs of words, as a share of all pairs of words in the written replies. "
    "It falls as replies grow in number.",
    "text/perplexity": "How surprised the model is by the human supporter's replies, per token; 1 = not at all.",
    "sra/log_sra": "Strategy-Relevant Attention: mean logarithm of the attention that a reply's tokens give to the "
    "tokens of its strategy in the prompt. Higher (nearer to 0) = more attention.",
    "sra/sham_net": "Strategy-Relevant Attention beyond a control: log attention to the strategy's tokens minus that "
    "to as many tokens without a strategy; 0 = no more than those.",
    "adherence/accuracy": "Share of the written replies in which a classifier finds the strategy they were to follow.",
    "preference/accuracy": "Share of held-out pairs of replies of which the model finds the preferred one more "
    "probable than the rejected one.",
    "preference/reward_accuracy": "As pref., but by how much training raised the probability of the two replies.",
    "val/loss": "Loss on validation data at the end of the training; comparable only within one objective.",
}  # fmt: skip
_DIRECTIONS = {True: "More is better.", False: "Less is better.", None: ""}


def meaning(column: Column) -> str:
    """What a metric is and which way is better, in a sentence or two."""
    told = _MEANINGS.get(column.metric, f"{column.metric} in the runs' metrics.json.")
    return f"{told} {_DIRECTIONS[column.more]}".strip()
