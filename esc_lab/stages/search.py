"""Stage `search`: a tree search from each seed dialogue, and preference data (ESC-Pro) of the trees."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path

from esc_lab.artifacts import write_atomic
from esc_lab.config import Config
from esc_lab.config.search import ROLES
from esc_lab.data.corpora import ReadReport, read_splits
from esc_lab.data.dialogue import Dialogue
from esc_lab.data.strategies import build_inventory
from esc_lab.errors import UserError
from esc_lab.report.tree_page import tree_page
from esc_lab.runs.environment import git_commit
from esc_lab.runs.layout import ESC_PRO, JUDGE_CHECK, TREES
from esc_lab.search.calls import open_calls
from esc_lab.search.clients.replay import take_sampling
from esc_lab.search.esc_pro import render_data_card, require_pairs, write_esc_pro
from esc_lab.search.forecast import HEADS as FORECAST_HEADS
from esc_lab.search.forecast import forecast_search
from esc_lab.search.preferences import Preferences, extract_dialogues, find_preferences
from esc_lab.search.seed_dialogue import SeedDialogue, build_seed
from esc_lab.search.seeker_texts import HEADS, NOTES, compare_seekers
from esc_lab.search.session import SearchResult, SearchSession
from esc_lab.search.statistics import NOTES as STATISTICS_NOTES
from esc_lab.search.statistics import SearchStatistics, compute_statistics
from esc_lab.seeds import derive_seed
from esc_lab.terminal import print_table
from esc_lab.training.trainer import prepare, quiet_libraries

log = logging.getLogger(__name__)


def run(cfg: Config) -> dict[str, float]:
    """Search; ESC-Pro with its data card goes into `esc_pro/`, journals, trees and their pages into `trees/`.

    With `search.dry_run` only say what that will take.

    Raises:
        UserError: there are no seeds, there is no answer to a call, or nothing is preferred in any tree.
    """
    if cfg.search.dry_run:
        quiet_libraries()
    else:
        prepare(cfg)
    inventory, report = build_inventory(cfg.inventory), ReadReport()
    splits = read_splits(cfg.data, inventory, report, cfg.config_dirs)
    seeds = _build_seeds(cfg, splits)
    log.info("%s: %d seed dialogues of %s; %s", cfg.data.name, len(seeds), cfg.search.split, report.line())

    cfg = take_sampling(cfg)
    others = [dialogue for split, part in splits.items() if split != cfg.search.split for dialogue in part]
    if cfg.search.dry_run:
        forecast = forecast_search(cfg, seeds, others)
        rows = [role.row() for role in (*forecast.roles, forecast.total)]
        print_table("What the search will take, about", FORECAST_HEADS, rows, notes=forecast.notes)
        return forecast.metrics()
    calls = open_calls(cfg, ROLES)
    result = calls.run(SearchSession(cfg, seeds, calls, others).search(), cfg.run_dir)
    if result.judge:
        record = {"models": calls.models("judge"), **result.judge.record()}
        write_atomic(Path(cfg.run_dir) / JUDGE_CHECK, json.dumps(record, indent=1))

    rule = cfg.mcts.preferences
    preferences = [find_preferences(tree, rule) for tree in result.trees]
    _write_pages(cfg, result, preferences)
    dialogues = [
        dialogue
        for seed, tree, choice in zip(seeds, result.trees, preferences, strict=True)
        for dialogue in extract_dialogues(tree, choice, seed.dialogue)
    ]
    statistics = compute_statistics(dialogues, result.trees, inventory.names)
    require_pairs(result, rule, statistics)
    if result.stopped:
        log.warning("%s", result.stopped)
    directory = Path(cfg.run_dir) / ESC_PRO
    write_esc_pro(directory, dialogues, splits, cfg.search.split, inventory)
    texts = compare_seekers(cfg, calls, dialogues, splits)
    card = render_data_card(cfg, result, preferences, statistics, git_commit() or "", texts)
    write_atomic(directory / "README.md", card)
    if result.judge:
        notes, meanings = result.judge.notes(), result.judge.column_notes()
        print_table("Check of the judge", *result.judge.table(), notes=notes, meanings=meanings)
    _print(statistics)
    if texts:
        print_table("What seekers say", HEADS, [figures.row(name) for name, figures in texts.items()], meanings=NOTES)
    log.info("ESC-Pro: %s (data=jsonl data.path=%s)", directory, directory)
    measured = [figures.metrics(name) for name, figures in texts.items()]
    return statistics.metrics() | result.metrics() | dict(chain.from_iterable(group.items() for group in measured))


def _build_seeds(cfg: Config, splits: Mapping[str, Sequence[Dialogue]]) -> list[SeedDialogue]:
    """The first `search.seeds` dialogues of the split after `search.skip`, equal ones once."""
    dialogues = splits.get(cfg.search.split, ())[cfg.search.skip :][: cfg.search.seeds]
    seeds = [build_seed(dialogue) for dialogue in dialogues]
    if cfg.search.start == "random":
        seeds = [_start_later(seed, cfg.search.seed) for seed in seeds]
    distinct = list({seed.dialogue.id: seed for seed in seeds}.values())
    if not distinct:
        fix = "check data.path, data.limit and search.split" + (", and search.skip" if cfg.search.skip else "")
        raise UserError("there are no seed dialogues", where=f"search.split={cfg.search.split}", fix=fix)
    cut = sum(not seed.ended and bool(seed.path) for seed in distinct)
    if cut:
        log.warning("%d seed dialogues are followed only up to their first reply without a strategy", cut)
    return distinct


def _start_later(seed: SeedDialogue, drawn_by: int) -> SeedDialogue:
    """The seed from one of its decisions on, which depends on the dialogue and the seed of the draw alone."""
    skip = derive_seed(drawn_by, "start", seed.dialogue.id) % max(len(seed.path), 1)
    return build_seed(seed.dialogue, skip)


def _write_pages(cfg: Config, result: SearchResult, preferences: Sequence[Preferences]) -> None:
    """A page for each of the first `search.pages` trees."""
    trees = list(zip(result.seeds, result.trees, preferences, strict=True))[: cfg.search.pages]
    for number, (seed, tree, choice) in enumerate(trees, start=1):
        dialogue = seed.dialogue
        page = tree_page(
            tree,
            title=f"Search tree {number}: {dialogue.problem or dialogue.id}",
            situation=dialogue.situation,
            strategies=build_inventory(cfg.inventory).names,
            c=cfg.mcts.c,
            emotion=dialogue.emotion,
            problem=dialogue.problem,
            preferred=choice.preferred,
            rejected=choice.rejected,
        )
        write_atomic(Path(cfg.run_dir) / TREES / f"{dialogue.id}.html", page)


def _print(statistics: SearchStatistics) -> None:
    print_table("What the search found", ("", ""), statistics.table(), meanings=STATISTICS_NOTES)
    by_source = f"{statistics.preferred_found} found by the search, {statistics.preferred_seed} of the seeds"
    heads = ("strategy", "preferred", "rejected")
    notes = [f"preferred: {by_source}; rejected: worse replies at the same turns."]
    print_table("Strategies of its replies", heads, statistics.strategy_table(), notes=notes)
