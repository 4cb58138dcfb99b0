"""What people are asked about: replies of evaluations, in pairs or one by one, balanced over strategies and runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TypeAlias

import numpy as np

from esc_lab.comparison.runs import Run
from esc_lab.config.survey import SurveyConfig
from esc_lab.errors import UserError, nearest
from esc_lab.judging.evaluations import Evaluations, choose_baseline
from esc_lab.judging.inputs import WrittenReply, check_context
from esc_lab.metrics.predictions import Prediction, read_predictions
from esc_lab.runs.layout import PREDICTIONS
from esc_lab.seeds import derive_seed

Prompt: TypeAlias = tuple[str, int, str | None]  # dialogue, turn, and the strategy that the prompt named


@dataclass(frozen=True)
class SurveyReply:
    """A reply that is asked about.

    Attributes:
        strategy: the one that it was to follow or that it names; None if it names none.
        sra: its attention to that strategy; None where it was not measured.
    """

    run: str
    template: str
    text: str
    strategy: str | None = None
    sra: float | None = None


@dataclass(frozen=True)
class SurveyItem:
    """One reply, or two in an order drawn by chance, to the turns of a dialogue before index `turn`.

    Attributes:
        tree: what intervals draw: see `TestSet.cluster`.
        strategy: the one that all its replies were to follow; None if there is none.
    """

    name: str
    dialogue: str
    tree: str
    turn: int
    strategy: str | None
    replies: tuple[SurveyReply, ...]


@dataclass(frozen=True)
class _Offer:
    """What could be asked about: the replies of a group of runs to one prompt."""

    prompt: Prompt
    tree: str
    shared: str | None  # the strategy that they all were to follow
    balanced: str  # the strategy that it counts for
    replies: tuple[SurveyReply, ...]


def choose_items(evaluations: Evaluations, settings: SurveyConfig, seed: int) -> list[SurveyItem]:
    """The items of a survey.

    Pairs of runs, and strategies within each, come equally often as far as their replies allow, dialogues too. Single
    replies are those of all runs to the same prompts. Replies without words, and pairs of the same words, are left out.

    Raises:
        UserError: a run has no replies, there is no such baseline or SRA, or nothing is left to ask about.
    """
    replies = {label: _read_replies(evaluations, run, settings.sra) for run, label in evaluations.labels.items()}
    groups = {group: list(_find_offers(group, replies, settings)) for group in _group_runs(evaluations, settings)}
    if not any(groups.values()):
        what = "strategy" if settings.form.strategy else "prompt"
        fix = "evaluate all with the same seed, evaluate.prompted and evaluate.generation.decisions"
        raise UserError(f"no two runs replied to the same {what}", where="survey.runs", fix=fix)
    single = settings.form.unit == "reply"
    size = len(replies) if single else 1
    wanted = sum(map(len, groups.values())) if settings.items is None else -(-settings.items // size)
    chance = np.random.default_rng(derive_seed(seed, "items of a survey"))
    items: list[SurveyItem] = []
    turned: Counter[tuple[str, ...]] = Counter()
    for group, offer in _balance(groups, wanted, chance):
        sets: list[tuple[SurveyReply, ...]] = [(reply,) for reply in offer.replies]
        if not single:
            turned[group] += 1
            first = (turned[group] + derive_seed(seed, "order of", *group)) % 2  # by turns; offers are in random order
            sets = [offer.replies if first else offer.replies[::-1]]
        dialogue, turn, _ = offer.prompt
        for replies_of in sets:
            name = f"item_{len(items) + 1:04d}"
            items.append(SurveyItem(name, dialogue, offer.tree, turn, offer.shared, replies_of))
    return items


def _read_replies(evaluations: Evaluations, run: Run, measure: str) -> dict[Prompt, tuple[SurveyReply, Prediction]]:
    """A run's first reply to each prompt."""
    found: dict[Prompt, tuple[SurveyReply, Prediction]] = {}
    written: dict[tuple[str, int], WrittenReply] = {}
    for p in read_predictions(run.directory / PREDICTIONS):
        if p.reply is None or p.sample:
            continue
        if p.sra and measure not in p.sra:
            hint = nearest(measure, p.sra)
            raise UserError(f"no such SRA{hint}", where=f"survey.sra={measure}", fix=f"one of {', '.join(p.sra)}")
        sra = p.sra[measure]["sra"] if p.sra else None
        reply = SurveyReply(evaluations.labels[run], p.template, p.reply.strip(), p.followed, sra)
        found.setdefault((p.dialogue, p.turn, p.prompted), (reply, p))
        written[p.dialogue, p.turn] = WrittenReply(reply.text, p.followed, p.gold_reply, p.tree, p.sampling)
    if not found:
        fix = "evaluate with evaluate.generation.enabled=true"
        raise UserError("there is no written reply", where=str(run.directory), fix=fix)
    check_context(evaluations.dialogues, written, str(run.directory))
    return found


def _group_runs(evaluations: Evaluations, settings: SurveyConfig) -> list[tuple[str, ...]]:
    """The runs whose replies are asked about together."""
    labels = [*evaluations.labels.values()]
    if settings.form.unit == "reply":
        return [tuple(labels)]
    if len(labels) < 2:
        raise UserError("one run makes no pair", where="survey.runs", fix="name a second one, or form=acceptance")
    if settings.pairs == "all":
        return [*combinations(labels, 2)]
    baseline = choose_baseline(evaluations, settings.baseline, "survey.baseline")
    return [(baseline, label) for label in labels if label != baseline]


def _find_offers(
    group: Sequence[str],
    replies: Mapping[str, Mapping[Prompt, tuple[SurveyReply, Prediction]]],
    settings: SurveyConfig,
) -> Iterator[_Offer]:
    first, *others = (replies[label] for label in group)
    for prompt, (_, prediction) in first.items():
        if not all(prompt in other for other in others):
            continue
        of_runs = tuple(replies[label][prompt][0] for label in group)
        strategies = {reply.strategy for reply in of_runs}
        shared = strategies.pop() if len(strategies) == 1 else None
        texts = [" ".join(reply.text.split()) for reply in of_runs]
        alike = settings.form.unit == "pair" and len(set(texts)) == 1
        if all(texts) and not alike and not (settings.form.strategy and shared is None):
            balanced = shared or next(iter(prediction.gold), "")
            yield _Offer(prompt, prediction.tree, shared, balanced, of_runs)


def _balance(
    groups: Mapping[tuple[str, ...], Sequence[_Offer]], wanted: int, chance: np.random.Generator
) -> Iterator[tuple[tuple[str, ...], _Offer]]:
    """Offers one by one: of the group that had the fewest, of the strategy that it had, then all had, least often."""
    left = {group: [offers[number] for number in chance.permutation(len(offers))] for group, offers in groups.items()}
    if wanted >= sum(map(len, left.values())):
        yield from ((group, offer) for group, offers in left.items() for offer in offers)
        return
    used: Counter[object] = Counter()
    for _ in range(wanted):
        group = min((group for group, offers in left.items() if offers), key=lambda group: used[group])
        offers = left[group]

        def cost(number: int, offers: list[_Offer] = offers, group: tuple[str, ...] = group) -> tuple[int, ...]:
            offer = offers[number]
            strategy = offer.balanced
            return used[group, strategy], used[strategy], used[offer.prompt[:2]], used[offer.prompt[0]], number

        offer = offers.pop(min(range(len(offers)), key=cost))
        used.update([group, (group, offer.balanced), offer.balanced, offer.prompt[:2], offer.prompt[0]])
        yield group, offer
