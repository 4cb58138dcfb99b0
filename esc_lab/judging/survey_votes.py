"""What people preferred, as preference pairs in esc-lab's own JSONL: for CSO and for the reward model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from esc_lab.data.dialogue import Dialogue, Reply, Turn
from esc_lab.data.strategies import Inventory
from esc_lab.judging.survey_answers import Rating
from esc_lab.judging.survey_items import SurveyItem, SurveyReply
from esc_lab.judging.survey_judge import mean_ratings


def build_votes(
    ratings: Sequence[Rating],
    dialogues: Mapping[str, Dialogue],
    inventory: Inventory,
    min_margin: float,
    *,
    ties: bool = False,
) -> tuple[list[Dialogue], int]:
    """Dialogues that end with the preferred reply, beside which others are rejected.

    Of a pair the values of the replies are its mean preference and the negative of that. Single replies to the same
    turns and strategy are put together, those of the same words as one: their values are their mean scores, the best
    one is preferred. A tree keeps its name, so that splits keep what was said of one dialogue together.

    Args:
        ratings: of one question.
        min_margin: less preference, or a smaller difference of scores, makes no pair.
        ties: then the replies have equal values, their mean; without it they are left out.

    Returns:
        The dialogues, and the number of items, or groups of single replies, that made no pair.
    """
    items, means = mean_ratings(ratings)
    groups: dict[object, list[tuple[SurveyItem, float]]] = defaultdict(list)
    for item, mean in zip(items, means.tolist(), strict=True):
        groups[item.name if len(item.replies) == 2 else (item.dialogue, item.turn, item.strategy)].append((item, mean))
    votes, undecided = [], 0
    for group in groups.values():
        item, _ = group[0]
        values: dict[str, list[float]] = defaultdict(list)  # by text: what two runs wrote is one reply
        replies: dict[str, SurveyReply] = {}
        for each, mean in group:
            for reply, value in zip(each.replies, (mean,) if len(each.replies) == 1 else (-mean, mean), strict=True):
                values[reply.text].append(value)
                replies.setdefault(reply.text, reply)
        valued = {text: sum(own) / len(own) for text, own in values.items()}
        best = max(valued, key=lambda text: valued[text])
        margin = min_margin * len(item.replies)  # the values of a pair are twice the preference apart
        others = [text for text, value in valued.items() if value < valued[best] and valued[best] - value >= margin]
        undecided += not others
        if not others and ties and len(valued) > 1:
            valued = dict.fromkeys(valued, sum(valued.values()) / len(valued))
            others = [text for text in valued if text != best]
        if others:
            chosen, *rejected = (_reply(replies[text], valued[text], inventory) for text in (best, *others))
            votes.append(_end_with(dialogues[item.dialogue], item, chosen, tuple(rejected)))
    return votes, undecided


def _reply(reply: SurveyReply, value: float, inventory: Inventory) -> Reply:
    strategies = (reply.strategy,) if reply.strategy and reply.strategy in inventory.names else ()
    return Reply(reply.text, strategies, value)


def _end_with(dialogue: Dialogue, item: SurveyItem, chosen: Reply, rejected: tuple[Reply, ...]) -> Dialogue:
    history = tuple(Turn(t.speaker, Reply(t.reply.text, t.reply.strategies)) for t in dialogue.turns[: item.turn])
    turns = (*history, Turn("supporter", chosen, rejected))
    return replace(dialogue, turns=turns, tree_id=item.tree, meta={"survey_item": item.name}, survey=None)
