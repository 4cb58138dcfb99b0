"""What the calls of a search have cost so far, and the end of its budget."""

from __future__ import annotations

from dataclasses import dataclass

from esc_lab.config.search import BudgetConfig
from esc_lab.errors import UserError
from esc_lab.search.requests import Answer


class BudgetError(UserError):
    """The budget is spent. The answers so far are kept."""


@dataclass
class Spent:
    """What clients did: calls, tokens and cost of all answers of the run, and calls that this process `made`.

    Answers `from_journal` and `from_cache` were there already.
    """

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    made: int = 0
    from_journal: int = 0
    from_cache: int = 0

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def text(self) -> str:
        """Calls, tokens and cost in a few words."""
        cost = f", ${self.cost:.2f}" if self.cost else ""
        return f"{self.calls} calls, {self.tokens / 1000:.0f}k tokens{cost}"

    def add(self, answer: Answer) -> None:
        self.calls += 1
        self.prompt_tokens += answer.prompt_tokens
        self.completion_tokens += answer.completion_tokens
        self.cost += answer.cost

    def check(self, budget: BudgetConfig, more: int) -> None:
        """Raise a BudgetError if the budget is spent.

        Args:
            more: calls to pay without an answer: those under way, and those whose answer was lost.
        """
        for name in ("calls", "tokens", "cost"):
            limit = getattr(budget, name)
            spent = getattr(self, name) + (more if name == "calls" else 0)
            if limit is not None and spent >= limit:
                fix = f"a larger search.budget.{name}, with resume=<run directory>"
                raise BudgetError(f"the budget of {limit:g} {name} is spent", where=f"search.budget.{name}", fix=fix)
