"""What an extension leaves and what it took: counts of replies by split and strategy, and of what became of answers."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from esc_lab.search.calls import Calls
from esc_lab.search.contexts import Context
from esc_lab.search.continuations import REMOVED, UNUSABLE
from esc_lab.search.spending import BudgetError

UNCONDITIONAL = "unconditional"


@dataclass
class Written:
    """What was written for a dialogue: its contexts with the strategy and the reply of each, and counts of events."""

    replies: list[tuple[Context, str | None, str]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


@dataclass
class ExtendResult:
    """What an extension left and what it took.

    Attributes:
        dialogues: that have contexts, `without_context` those that have none.
        kept: replies that were kept, by split and strategy.
        contexts: of which replies were kept, by number of turns.
        counts: events of the answers: what was taken off replies, what could not be used, what is missing.
        unfinished: dialogues without all their answers, since the budget is spent; nothing of them was written.
        stopped: says which budget.
    """

    calls: Calls
    dialogues: int
    without_context: int
    kept: dict[str, Counter[str]] = field(default_factory=dict)
    contexts: Counter[int] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    unfinished: int = 0
    stopped: BudgetError | None = None
    seconds: float = 0.0

    @property
    def strategies(self) -> Counter[str]:
        """Kept replies by strategy."""
        return sum(self.kept.values(), Counter())

    def metrics(self) -> dict[str, float]:
        """Flat, under `extend/`."""
        spent = self.calls.spent
        metrics: dict[str, float] = {
            "seconds": self.seconds,
            "replies": self.strategies.total(),
            "replies_per_s": self.strategies.total() / self.seconds,
            "dialogues": self.dialogues,
            "dialogues_without_context": self.without_context,
            "contexts": self.contexts.total(),
            "calls": spent.calls,
            "prompt_tokens": spent.prompt_tokens,
            "completion_tokens": spent.completion_tokens,
            "cost": spent.cost,
            "from_cache": spent.from_cache,
            "unfinished_dialogues": self.unfinished,
        }
        metrics |= {f"retries/{kind}": count for kind, count in self.calls.retries.items()}
        metrics |= {f"{split}_replies": counts.total() for split, counts in self.kept.items()}
        metrics |= {f"strategy/{name}": count for name, count in self.strategies.items()}
        metrics |= dict.fromkeys(("asked", "missing", "unconfirmed", "unusable", *REMOVED, *UNUSABLE), 0) | self.counts
        return {f"extend/{name}": float(value) for name, value in metrics.items()}
