"""Stage `converse`: whole talks of the supporter under test with simulated seekers, and what is measured of them."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from esc_lab.artifacts import write_atomic
from esc_lab.config import Config
from esc_lab.config.model import ENDPOINT
from esc_lab.config.search import ASKED, LOADED
from esc_lab.data.cards import Card, choose_cards, read_cards, shipped_cards
from esc_lab.data.cards.esc_eval import read_esc_eval_cards
from esc_lab.data.cards.from_dialogues import build_cards
from esc_lab.data.corpora import ReadReport, read_splits, write_dialogues
from esc_lab.data.dialogue import Dialogue
from esc_lab.data.strategies import build_inventory
from esc_lab.evaluation.arena.measures import describe_talks, measure_talks
from esc_lab.evaluation.arena.session import ConverseSession
from esc_lab.metrics.talks import METRICS, TALKS
from esc_lab.runs.layout import TALK_MEASURES, TALKS_FILE
from esc_lab.search.calls import Calls, open_calls
from esc_lab.search.clients.replay import take_sampling
from esc_lab.search.work_results import WorkResult
from esc_lab.terminal import print_table

log = logging.getLogger(__name__)
# What the terminal's tables are.
NOTES = (
    "Means over talks. Cards: what the simulated seekers are told of themselves. Turns to success: a talk without "
    "success counts the most turns that it may have.",
)
# Ends of talks that broke off.
_BROKEN = {
    "supporter_missing": "the supporter wrote nothing that can be used",
    "seeker_missing": "the seeker wrote nothing that can be used",
    "too_long": "a prompt exceeds the context of a model",
}
STRATEGY_NOTES = ("share: of its replies that have a strategy.",)


def run(cfg: Config) -> dict[str, float]:
    """Converse; `talks.jsonl` and `measures.json` go into the run directory, the journals into `talks/`.

    Neither a replay nor an endpoint needs torch.

    Raises:
        UserError: cards are wrong, an answer cannot be had, or the budget lasts for no talk.
    """
    roles = ASKED["converse"]
    if any(getattr(cfg.llm, role).client in LOADED for role in roles):
        from esc_lab.training.trainer import prepare

        prepare(cfg)
    cfg = take_sampling(cfg)
    cards = load_cards(cfg)
    log.info("%d cards (%s)", len(cards), cfg.cards.name)
    calls = open_calls(cfg, roles, {"supporter": play_supporter(cfg)})
    _warn_of_template(cfg, calls)
    result = calls.run(ConverseSession(cfg, cards, calls).converse(), cfg.run_dir)
    if result.stopped:
        if not result.finished:
            raise result.stopped
        log.warning("%s", result.stopped)
    _warn_of_broken(result.finished)
    directory = Path(cfg.run_dir)
    success, most = cfg.converse.success, cfg.converse.max_turns
    write_dialogues(result.finished, directory / TALKS_FILE, inventory=build_inventory(cfg.inventory))
    measures = describe_talks(result.finished, success=success, max_turns=most)
    write_atomic(directory / TALK_MEASURES, json.dumps(measures, indent=1, ensure_ascii=False))
    metrics = measure_talks(result.finished, success=success, max_turns=most)
    _print(cfg, result, metrics)
    return {f"converse/{name}": value for name, value in metrics.items()} | result.metrics("converse", "talks")


def load_cards(cfg: Config) -> list[Card]:
    """The cards of a configuration.

    Raises:
        UserError: they cannot be read, or one that is named is not there.
    """
    settings = cfg.cards
    if settings.source == "corpus":
        splits = read_splits(
            cfg.data, build_inventory(cfg.inventory), ReadReport(), cfg.config_dirs, needs_labels=False
        )
        cards = build_cards(splits.get(settings.split, ()), f"data={cfg.data.name} cards.split={settings.split}")
    elif settings.source == "file":
        path = Path(settings.path or "")
        cards = read_esc_eval_cards(path) if path.suffix == ".json" else read_cards(path)
    else:
        cards = read_cards(shipped_cards(settings.source))
    return choose_cards(cards, settings.only, settings.limit)


def play_supporter(cfg: Config) -> Config:
    """The settings that the supporter under test is played with: `model` and `checkpoint`, unless its client is none of
    a loaded model.
    """
    supporter = cfg.llm.supporter
    if supporter.client not in LOADED:
        return cfg
    if cfg.model.source == ENDPOINT:
        return replace(cfg, llm=replace(cfg.llm, supporter=replace(supporter, client="openai", model=cfg.model.path)))
    local = replace(cfg.llm.local, model=cfg.model)
    return replace(cfg, llm=replace(cfg.llm, local=local, supporter=replace(supporter, checkpoint=cfg.checkpoint)))


def _warn_of_template(cfg: Config, calls: Calls) -> None:
    """A model is good only at the prompts that it was trained on."""
    trained = calls.scoring.get("supporter")
    if trained and trained["template"]["template"] != cfg.prompt.eval.template:
        log.warning(
            "the supporter was trained with template %s and talks with %s (prompt=...)",
            trained["template"]["template"], cfg.prompt.eval.template,
        )  # fmt: skip


def _warn_of_broken(talks: Sequence[Dialogue]) -> None:
    for end, why in _BROKEN.items():
        if count := sum(talk.meta["ends"] == end for talk in talks):
            log.warning("%d of %d talks broke off: %s (ends/%s)", count, len(talks), why, end)


def _print(cfg: Config, result: WorkResult[Dialogue], metrics: dict[str, float]) -> None:
    known = [(metric, metrics.get(metric.name.removeprefix(TALKS))) for metric in METRICS]
    rows = [(metric.gist.rstrip("."), f"{value:.{metric.decimals}f}") for metric, value in known if value is not None]
    print_table(f"Talks with {cfg.cards.name} cards", ("", ""), [*rows, *result.rows("talks")], notes=NOTES)
    shares = [
        (name.partition("/")[2], f"{share:.3f}") for name, share in metrics.items() if name.startswith("strategy/")
    ]
    if shares:
        print_table("Strategies of the supporter", ("strategy", "share"), shares, notes=STRATEGY_NOTES)
