"""The data card of continuations, and the tables that a run shows of them."""

from __future__ import annotations

from collections.abc import Mapping

from esc_lab.config import Config
from esc_lab.metrics.text import RUN_WORDS
from esc_lab.search.data_card import describe_player, render_card
from esc_lab.search.extend_result import UNCONDITIONAL, ExtendResult
from esc_lab.search.extend_session import ROLE
from esc_lab.training.exports.data_card import size_category

_EVENTS: Mapping[str, str] = {
    "asked": "replies asked for",
    "missing": "of these without a usable answer, left out",
    "unconfirmed": "of these whose strategy the classifier does not find, left out",
    f"{ROLE}/too_long": "of these whose prompt exceeds the model's context, left out",
    "unusable": "answers that cannot be used",
    "refused": "of these refused by the model",
    "empty": "of these without words",
    "cut_off": "of these cut off at the token limit before a sentence ends",
    "copy": "of these copies of the conversation or of an example",
    "repetition": "of these that repeat themselves",
    "other_side": "of these words of the seeker",
    "meta": "of these about the roles",
    "role_prefix": "answers that lost a role prefix",
    "label": "answers that lost a strategy's label",
    "further_turns": "answers that lost turns after the reply",
    "unfinished_sentence": "answers that lost a last sentence that was cut off",
}

# What the rows of its tables are.
NOTES = (
    "A context: a dialogue up to a place that was drawn, where the seeker has spoken; its turns are the messages.",
    "Replies: those that are kept as continuations of contexts; replies asked for: all that were wanted. Dialogues not "
    "finished: the budget of calls was spent before.",
)
STRATEGY_NOTES = ("Replies that were kept, by split. unconditional: their prompts name no strategy.",)


def render_card_of(cfg: Config, result: ExtendResult, code: str) -> str:
    """The card. Every number comes from the arguments; `code` is the version of the code."""
    settings = cfg.extend
    drawn = f"share {settings.share:g}" if settings.number is None else f"{settings.number} of each context"
    written = [
        ("contexts of each dialogue, at most", settings.cuts),
        ("strategies", drawn),
        ("prompt layout", settings.template),
        ("examples of the strategy in a prompt, at most", settings.examples),
    ]
    found = [("replies of a strategy in each dialogue, at most", settings.cuts)]
    return render_card(
        "continuation_card.md.jinja",
        title=f"Continuations of {cfg.data.name}",
        size=size_category(result.strategies.total()),
        corpus=cfg.data.name,
        licence=cfg.data.licence,
        inventory=cfg.inventory.name,
        players=[describe_player(cfg, ROLE, result.calls.models(ROLE))] if settings.source == "model" else [],
        dates=result.calls.dates,
        code=code,
        settings=[
            ("turns of a context", f"{settings.min_turns} to {settings.max_turns}"),
            *(written if settings.source == "model" else found),
            ("probability of a reply without a strategy", settings.unconditional),
            ("kept by a classifier", "no" if settings.classifier is None else "yes"),
            ("seed", settings.seed),
        ],
        cues=bool(cfg.inventory.cues),
        kept_by_classifier=settings.classifier is not None,
        run_words=RUN_WORDS,
        max_copied=settings.max_copied,
        summary=summary_rows(result),
        strategies=strategy_rows(result),
        kept=list(result.kept),
    )


def summary_rows(result: ExtendResult) -> list[tuple[str, str]]:
    """What was written and what became of it."""
    kept, contexts = result.strategies.total(), result.contexts
    turns = sum(turns * count for turns, count in contexts.items()) / max(contexts.total(), 1)
    rows = [
        ("dialogues", f"{result.dialogues}"),
        ("dialogues without a context", f"{result.without_context}"),
        ("dialogues not finished", f"{result.unfinished}"),
        ("contexts", f"{contexts.total()}"),
        ("mean turns of a context", f"{turns:.1f}"),
        ("replies", f"{kept}"),
    ]
    return rows + [(words, f"{result.counts[name]}") for name, words in _EVENTS.items() if result.counts[name]]


def strategy_rows(result: ExtendResult) -> list[tuple[str, ...]]:
    """Kept replies by prompted strategy and split, the unconditional ones last."""
    names = sorted(result.strategies, key=lambda name: (name == UNCONDITIONAL, name))
    return [(name, *(f"{counts[name]}" for counts in result.kept.values())) for name in names]
