"""Stage `cards`: seeker cards of a corpus' situations, by rule or written by a model, for stage `converse`."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path

from esc_lab.config import Config
from esc_lab.config.search import ASKED, LOADED
from esc_lab.data.cards import Card, choose_cards, read_cards, write_cards
from esc_lab.data.cards.from_dialogues import build_cards
from esc_lab.data.corpora import ReadReport, read_splits
from esc_lab.data.dialogue import Dialogue
from esc_lab.data.strategies import build_inventory
from esc_lab.errors import UserError
from esc_lab.evaluation.arena.card_session import CardSession
from esc_lab.evaluation.arena.card_writer import ROLE
from esc_lab.runs.layout import CARDS_FILE
from esc_lab.search.calls import open_calls
from esc_lab.search.clients.replay import take_sampling
from esc_lab.terminal import print_table

log = logging.getLogger(__name__)
# What the terminal's tables are.
NOTES = ("A card: what a simulated seeker is told of itself, its situation, problem and emotion.",)
PROBLEM_NOTES = (
    "The most frequent problems, as the corpus names them, and how many cards have each; (not known): cards whose "
    "dialogue names none.",
)


def run(cfg: Config) -> dict[str, float]:
    """Make cards; `cards.yaml` goes into the run directory, the journals of a model into `cards/`.

    Raises:
        UserError: there is no situation, an answer cannot be had, or no answer can be used.
    """
    splits = read_splits(cfg.data, build_inventory(cfg.inventory), ReadReport(), cfg.config_dirs, needs_labels=False)
    dialogues = splits.get(cfg.cards.split, ())
    known = build_cards(dialogues, f"data={cfg.data.name} cards.split={cfg.cards.split}")
    cards = choose_cards(known, cfg.cards.only, cfg.cards.limit)
    metrics: dict[str, float] = {}
    answers: list[tuple[str, str]] = []
    if cfg.cards.by == "model":
        cards, metrics, answers = _write(cfg, cards, {dialogue.id: dialogue for dialogue in dialogues})
    path = Path(cfg.run_dir) / CARDS_FILE
    write_cards(path, cards, f"{cfg.data.name}_{cfg.cards.split}")
    cards = read_cards(path)
    _print(cards, answers)
    log.info("%s (stage=converse cards=file cards.path=%s)", path, path)
    return {"cards/cards": float(len(cards)), **metrics}


def _write(
    cfg: Config, cards: list[Card], dialogues: dict[str, Dialogue]
) -> tuple[list[Card], dict[str, float], list[tuple[str, str]]]:
    """The cards as the model wrote them, metrics, and what became of its answers."""
    if getattr(cfg.llm, ROLE).client in LOADED:
        from esc_lab.training.trainer import prepare

        prepare(cfg)
    cfg = take_sampling(cfg)
    calls = open_calls(cfg, ASKED["cards"])
    result = calls.run(CardSession(cfg, cards, dialogues, calls).write(), cfg.run_dir)
    if result.stopped:
        log.warning("%s", result.stopped)
    written = [card for card in result.finished if card is not None]
    if not written:
        if result.stopped:
            raise result.stopped
        counts = ", ".join(f"{count} {name}" for name, count in sorted(result.counts.items()))
        fix = "another model, a larger llm.seeker.max_tokens, or cards.by=rule"
        raise UserError(f"no answer is a card: {counts}", where="cards.by=model", fix=fix)
    return written, result.metrics("cards", "cards"), result.rows("cards")


def _print(cards: list[Card], answers: list[tuple[str, str]]) -> None:
    print_table("Cards", ("", ""), [("cards", f"{len(cards)}"), *answers], notes=NOTES)
    problems = Counter(card.problem or "(not known)" for card in cards).most_common(8)
    rows = [(name, f"{count}") for name, count in problems]
    print_table("Their problems", ("problem", "cards"), rows, notes=PROBLEM_NOTES)
