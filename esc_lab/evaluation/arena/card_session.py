"""Cards of many dialogues, written by a model: the calls, and a journal a card."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
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
from esc_lab.search.calls import Calls
from esc_lab.search.journal import describe_role
from esc_lab.search.progress import CallProgress
from esc_lab.search.role_prompts import build_role_prompts
from esc_lab.search.roles import Roles, leave_out_too_long
from esc_lab.search.work_journals import WorkJournals
from esc_lab.search.work_results import WorkResult
from esc_lab.seeds import derive_seed


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

    async def write(self) -> WorkResult[Card | None]:
        """Write all cards; None for each that no answer could be used for (`seeker/missing`)."""
        result: WorkResult[Card | None] = WorkResult(self.calls)
        configs = {card.id: self._journal_config(card) for card in self.cards}
        journals = WorkJournals(self.cfg, self.calls, Path(self.cfg.run_dir) / CARDS, configs)
        progress = CallProgress(
            "cards", len(self.cards), lambda: self._finished, parts=("cards", len(self.cards)),
            finished=lambda: self._finished, calls=self.calls,
        )  # fmt: skip
        at_once = asyncio.Semaphore(self.cfg.search.concurrency)
        await result.collect((self._write(card, journals, at_once, result.counts) for card in self.cards), progress)
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
