"""Cards of many dialogues, written by a model: the calls, a journal a card, and what they took."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from esc_lab.config import Config
from esc_lab.data.cards import Card
from esc_lab.data.dialogue import Dialogue
from esc_lab.data.strategies import build_inventory
from esc_lab.evaluation.arena.card_writer import ROLE, CardWriter
from esc_lab.prompts import SeekerProfile
from esc_lab.runs.layout import CARDS
from esc_lab.search.calls import BudgetError, Calls
from esc_lab.search.journal import describe_role
from esc_lab.search.progress import CallProgress
from esc_lab.search.role_prompts import build_role_prompts
from esc_lab.search.roles import Roles, leave_out_too_long
from esc_lab.search.work_journals import WorkJournals
from esc_lab.seeds import derive_seed
from esc_lab.tracking.run import log_curve

log = logging.getLogger(__name__)


@dataclass
class WrittenCards:
    """Cards, in the order of their dialogues, and what they took.

    Attributes:
        unfinished: how many are not written, since the budget is spent.
        stopped: says which budget.
        counts: events of the answers (see `Roles`); `seeker/missing` are cards that no answer could be used for.
    """

    calls: Calls
    cards: list[Card] = field(default_factory=list)
    unfinished: int = 0
    stopped: BudgetError | None = None
    counts: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    def metrics(self) -> dict[str, float]:
        """Flat, under `cards/`."""
        metrics = self.calls.describe(self.seconds) | {"unfinished_cards": self.unfinished} | self.counts
        return {f"cards/{name}": float(value) for name, value in metrics.items()}


class CardSession:
    """Has a model write the card of each dialogue, with the journals of a run directory.

    Args:
        cards: by rule (see `build_cards`).
        dialogues: by the ids of the cards.
    """

    def __init__(self, cfg: Config, cards: Sequence[Card], dialogues: Mapping[str, Dialogue], calls: Calls) -> None:
        self.cfg, self.cards, self.dialogues, self.calls = cfg, cards, dialogues, calls
        self.writer = CardWriter(cfg.cards.wording, build_inventory(cfg.inventory))
        self._finished = 0

    async def write(self) -> WrittenCards:
        """Write all cards."""
        started, result = time.time(), WrittenCards(self.calls)
        configs = {card.id: self._journal_config(card) for card in self.cards}
        journals = WorkJournals(self.cfg, self.calls, Path(self.cfg.run_dir) / CARDS, configs)
        progress = CallProgress(
            "cards", len(self.cards), lambda: self._finished, parts=("cards", len(self.cards)),
            finished=lambda: self._finished, calls=self.calls,
        )  # fmt: skip
        showing = asyncio.create_task(progress.show())
        at_once = asyncio.Semaphore(self.cfg.search.concurrency)
        try:
            written = await asyncio.gather(
                *(self._write(card, journals, at_once, result.counts) for card in self.cards), return_exceptions=True
            )
        finally:
            showing.cancel()
        for card in written:
            if isinstance(card, BudgetError):
                result.stopped = result.stopped or card
                result.unfinished += 1
            elif isinstance(card, BaseException):
                raise card
            elif card is not None:
                result.cards.append(card)
        log_curve(progress.point())
        log.info("%s", progress.state())
        result.seconds = time.time() - started
        return result

    async def _write(
        self, card: Card, journals: WorkJournals, at_once: asyncio.Semaphore, counts: Counter[str]
    ) -> Card | None:
        async with at_once, journals.open(card.id) as journal:
            roles = Roles(
                self.writer.inventory, SeekerProfile(card.situation), self.cfg.llm, self.calls.scoring,
                partial(self.calls.send, journal), counts, derive_seed(self.cfg.cards.seed, "card", card.id),
                self.calls.watch,
            )  # fmt: skip
            asked = self.writer.write(roles, card, self.dialogues[card.id])
            written = await leave_out_too_long(asked, ROLE, counts)
            self._finished += 1
            return written

    def _journal_config(self, card: Card) -> dict[str, Any]:
        """Everything that the calls of a card depend on beside their own content."""
        return {
            "card": card.record(),
            "seed": self.cfg.cards.seed,
            "words": dict(self.writer.wording),
            "correction": build_role_prompts(self.writer.inventory, self.cfg.llm).wording["correction"],
            "roles": {ROLE: describe_role(getattr(self.cfg.llm, ROLE), self.calls.clients[ROLE])},
        }
