"""What a search leaves: ESC-Pro in several forms with its data card, pages to look at, metrics."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from esc_lab.artifacts import write_atomic
from esc_lab.config import Config
from esc_lab.data.corpora import write_dialogues
from esc_lab.data.dialogue import Dialogue
from esc_lab.data.strategies import Inventory
from esc_lab.environment import git_commit
from esc_lab.errors import UserError
from esc_lab.report.tree_page import tree_page
from esc_lab.runs.layout import ESC_PRO, TREES
from esc_lab.search.calls import BudgetError, Spent
from esc_lab.search.data_card import Provenance, RoleSource, data_card
from esc_lab.search.judge_check import JudgeCheck
from esc_lab.search.preferences import PreferenceRule, Preferences, dialogues, find_preferences
from esc_lab.search.seed_dialogue import SeedDialogue
from esc_lab.search.statistics import SearchStatistics, search_statistics
from esc_lab.search.tree import Tree

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Searched:
    """What the search found, and what it took.

    Attributes:
        trees: with their seeds, and whether they were finished.
        stopped: the budget that was spent before they were.
        counts: answers of roles that were unusable, refused or missing.
        retries: calls of endpoints that failed in a way that may pass, by kind.
        models: by role, as the endpoint names them.
        prompts: hash of the prompts.
        dates: of the first and the last call.
        seconds: the search took.
    """

    trees: Sequence[tuple[SeedDialogue, Tree, bool]]
    stopped: BudgetError | None
    inventory: Inventory
    rule: PreferenceRule
    judge: JudgeCheck | None
    spent: Spent
    counts: Mapping[str, int]
    retries: Mapping[str, int]
    models: Mapping[str, Sequence[str]]
    prompts: str
    dates: tuple[str, str]
    seconds: float


def write_searched(cfg: Config, searched: Searched, splits: Mapping[str, Sequence[Dialogue]]) -> dict[str, float]:
    """Write everything into the run directory.

    Raises:
        UserError: nothing is preferred in any tree, or no preferred reply has a rejected one.
    """
    directory = Path(cfg.run_dir)
    found = [find_preferences(tree, searched.rule) for _, tree, _ in searched.trees]
    _write_pages(cfg, searched, found)
    made = [
        dialogue
        for (seed, tree, _), preferences in zip(searched.trees, found, strict=True)
        for dialogue in _dialogues(seed.dialogue, tree, preferences)
    ]
    statistics = search_statistics(made, [tree for _, tree, _ in searched.trees], searched.inventory.names)
    if not statistics.pairs:
        raise _nothing(searched, statistics)
    if searched.stopped:
        log.warning("%s", searched.stopped)
    _write_esc_pro(directory / ESC_PRO, made, splits, cfg.search.split, searched.inventory)
    write_atomic(directory / ESC_PRO / "README.md", _card(cfg, searched, found, statistics))
    _print(searched, statistics)
    log.info("ESC-Pro: %s (data=jsonl data.path=%s)", directory / ESC_PRO, directory / ESC_PRO)
    return _metrics(searched, statistics)


def _dialogues(seed: Dialogue, tree: Tree, preferences: Preferences) -> list[Dialogue]:
    return dialogues(
        tree,
        preferences,
        inventory=seed.inventory,
        tree_id=seed.tree_id,
        situation=seed.situation,
        emotion=seed.emotion,
        problem=seed.problem,
        meta={"seed_dialogue": seed.id},
    )


def _nothing(searched: Searched, statistics: SearchStatistics) -> UserError:
    rule, ended = searched.rule, [node for _, tree, _ in searched.trees for node in tree.nodes if node.ended]
    if statistics.dialogues:
        what = "no preferred reply has a rejected one beside it"
        fix = "more iterations, a higher mcts.preferences.rejected_max, or mcts.preferences.extend_rejected=true"
    else:
        best = max((node.value for node in ended), default=None)
        reached = f"the best of {len(ended)} has Q {best:.2f}" if best is not None else "no talk has ended"
        limit = f"{rule.threshold} {rule.preferred_min:g}, visits {rule.preferred_visits}"
        what = f"nothing is preferred in any tree ({limit}): {reached}"
        fix = (
            "a lower mcts.preferences.preferred_min, threshold=quantile, or more iterations; resume= goes on from here"
        )
    if searched.stopped:
        return UserError(f"{searched.stopped.message}; {what}", where=searched.stopped.where, fix=searched.stopped.fix)
    return UserError(what, where="mcts.preferences", fix=fix)


def _write_esc_pro(
    directory: Path,
    made: Sequence[Dialogue],
    splits: Mapping[str, Sequence[Dialogue]],
    seeds: str,
    inventory: Inventory,
) -> None:
    """The dialogues as split files in our own format, and in the published record forms.

    Args:
        seeds: split that the seeds are of; the dialogues hold them, so it is not written beside.
    """
    write_dialogues(made, directory / "train.jsonl", inventory=inventory)
    for name, file in (("val", "valid"), ("test", "test")):
        if name == seeds:
            log.warning("the seeds are those of %s, so esc_pro/ has no %s.jsonl", name, file)
        elif splits.get(name):
            write_dialogues(splits[name], directory / f"{file}.jsonl", inventory=inventory)
        else:
            log.warning("the split %s has no dialogues, so esc_pro/ has no %s.jsonl", name, file)
    for form in ("dialogues", "pairs", "kto"):
        write_dialogues(made, directory / f"{form}.json", f"esc_pro_{form}")


def _write_pages(cfg: Config, searched: Searched, found: Sequence[Preferences]) -> None:
    chosen = list(zip(searched.trees, found, strict=True))[: cfg.search.pages]
    for number, ((seed, tree, _), preferences) in enumerate(chosen, start=1):
        dialogue = seed.dialogue
        page = tree_page(
            tree,
            title=f"Search tree {number}: {dialogue.problem or dialogue.id}",
            situation=dialogue.situation,
            strategies=searched.inventory.names,
            c=cfg.mcts.c,
            emotion=dialogue.emotion,
            problem=dialogue.problem,
            preferred=preferences.preferred,
            rejected=preferences.rejected,
        )
        write_atomic(Path(cfg.run_dir) / TREES / f"{dialogue.id}.html", page)


def _card(cfg: Config, searched: Searched, found: Sequence[Preferences], statistics: SearchStatistics) -> str:
    roles = {}
    for role, models in searched.models.items():
        played = getattr(cfg.llm, role)
        own = played.client == "local" and played.model is None
        roles[role] = RoleSource(
            played.client,
            models,
            {"temperature": played.temperature, "top_p": played.top_p, "max_tokens": played.max_tokens},
            played.licence or (own and cfg.llm.local.model.licence) or "",
        )
    settings = {name: value for name, value in asdict(cfg.mcts).items() if name not in ("preferences", "name")}
    unfinished = sum(not finished for *_, finished in searched.trees)
    lost = sum(node.lost for _, tree, _ in searched.trees for node in tree.nodes)
    return data_card(
        f"ESC-Pro from {cfg.data.name}",
        statistics,
        Provenance(
            roles=roles,
            first_call=searched.dates[0],
            last_call=searched.dates[1],
            prompts=searched.prompts,
            search={**settings, "seed": cfg.search.seed},
            rule=searched.rule,
            limits=[(preferences.preferred_min, preferences.rejected_max) for preferences in found],
            inventory=searched.inventory.name,
            seeds=cfg.data.name,
            seeds_licence=cfg.data.licence or "",
            code=git_commit() or "",
            failures={**searched.counts, "decisions without texts": lost, "unfinished trees": unfinished},
        ),
        searched.judge,
    )


def _metrics(searched: Searched, statistics: SearchStatistics) -> dict[str, float]:
    spent = searched.spent
    metrics = statistics.as_metrics() | {
        "search/seconds": searched.seconds,
        "search/calls": float(spent.calls),
        "search/calls_per_s": spent.made / searched.seconds,
        "search/prompt_tokens": float(spent.prompt_tokens),
        "search/completion_tokens": float(spent.completion_tokens),
        "search/cost": spent.cost,
        "search/from_cache": float(spent.from_cache),
        "search/unfinished_trees": float(sum(not finished for *_, finished in searched.trees)),
    }
    metrics |= {f"search/{name}": float(count) for name, count in searched.counts.items()}
    metrics |= {f"search/retries/{kind}": float(count) for kind, count in searched.retries.items()}
    if searched.judge:
        metrics["search/judge_auc"] = searched.judge.auc
    return metrics


def _print(searched: Searched, statistics: SearchStatistics) -> None:
    console = Console(file=sys.stdout)
    table = Table(title="What the search found", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for row in statistics.table():
        table.add_row(*row)
    console.print(table)
    table = Table("strategy", title="Strategies of its replies")
    for heading in ("preferred", "rejected"):
        table.add_column(heading, justify="right")
    for cells in statistics.strategy_table():
        table.add_row(*cells)
    console.print(table)
    console.print(
        f"chosen replies: {statistics.preferred_found} found by the search, {statistics.preferred_seed} of the seeds"
    )
