"""Columns of the tables of attention studies, and what they are."""

from __future__ import annotations

from esc_lab.comparison.boosts import MEASURES as BOOST_MEASURES

MEASURES = {
    "log_sra": "mean log SRA",
    "sham_net": "sham-net log SRA",
    "log_relative": "log relative",
    "adherence": "adherence",
}
# Column -> what it is.
NOTES = {
    MEASURES["log_sra"]: "logarithm of the attention that a token of the reply pays to a token of its strategy, a mean "
    "over replies.",
    MEASURES["sham_net"]: "that less the same of a neutral phrase in the prompt; compare runs, not a level with 0.",
    MEASURES["log_relative"]: "logarithm of that attention as a multiple of even attention; 0 = even.",
    MEASURES["adherence"]: "share of the replies that follow their strategy, as a classifier says.",
    "n": "replies.",
    "r within templates": "correlation of log SRA with adherence among the replies of a template; over templates: "
    "among the templates' means.",
    "sd over phrases": "how far the level depends on the words of the neutral phrase.",
    "if even": "what as many heads would have if all had the same.",
    "pairs": "replies to the same turn with the same strategy under both.",
    "r over templates": "correlation of the templates' means of log SRA with those of adherence.",
    "heads": "how many of the model's attention heads are taken.",
    "share": "what those with the most of it have of all attention on the strategy.",
    "chosen": "over the heads with the highest correlation on other dialogues.",
    "at random": "over as many heads, drawn.",
    "all heads": "over all of them.",
    "level": "sham-net, a mean over the neutral phrases.",
    "phrases": "how many neutral phrases prompts take turns with.",
    "lowest": "sham-net with the phrase that gives the least; highest: with that which gives the most.",
    "phrase before minus after": "sham-net where the neutral phrase stands before the strategy, less where after it.",
    "measure": "of attention, which is related to adherence.",
    "templates": "how many prompt templates the correlation is over.",
    "Pearson (dialogues)": "correlation of the templates' means; in brackets its interval over dialogues.",
    "Pearson (templates)": "the same, its interval over templates.",
    "Spearman": "correlation of their ranks.",
    "turn": "which turn of the supporter in its talk.",
    "boost": "whose attention is raised, and on what.",
    "dose": "by how much: evaluate.boost.amount.",
    "boost of attention": "whose, and on what; minus: a difference of two.",
}


def describe_column(heading: str) -> str:
    """What a column is; those of studies of boosts that stand not in `NOTES` are metrics. Empty where nobody says."""
    return NOTES.get(heading) or next((metric.gist for metric in BOOST_MEASURES if metric.heading == heading), "")
