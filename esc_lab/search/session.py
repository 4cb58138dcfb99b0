"""One search from all seed dialogues: journals, the roles of each tree, the check of the judge, and the result."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from esc_lab.artifacts import fingerprint
from esc_lab.config import Config
from esc_lab.config.search import ROLES
from esc_lab.data.dialogue import Dialogue, Turn
from esc_lab.data.strategies import build_inventory
from esc_lab.judge_check.cases import FOREIGN
from esc_lab.judge_check.check import JudgeCheck, check_rubric
from esc_lab.prompts import SeekerProfile
from esc_lab.runs.layout import JOURNAL_SUFFIX, TREES, find_run
from esc_lab.runs.lineage import find_training_trees
from esc_lab.search.builder import TreeSearch, load_tree, save_tree, search_trees
from esc_lab.search.calls import Calls
from esc_lab.search.journal import Journal, describe_role, take_over_journals
from esc_lab.search.mcts import Search
from esc_lab.search.preferences import find_extensions, find_preferences
from esc_lab.search.progress import search_progress
from esc_lab.search.role_prompts import build_role_prompts, fingerprint_prompts
from esc_lab.search.roles import Roles, leave_out_too_long
from esc_lab.search.seed_dialogue import SeedDialogue
from esc_lab.search.spending import BudgetError
from esc_lab.search.tree import Tree

log = logging.getLogger(__name__)
JUDGE_CHECK = "judge_check"


@dataclass(frozen=True)
class SearchResult:
    """The trees of a search, and what they took.

    Attributes:
        seeds, trees: seed dialogues, and the tree of each.
        unfinished: how many trees are not finished.
        stopped: the budget that was spent before they were.
        judge: the check of the judge, if there was one.
        calls: what clients did: costs, retries, models, dates.
        counts: answers of roles that were unusable, refused or missing; decisions without texts.
        prompts: hash of the prompts.
        seconds: the search took.
        unused: answers that were asked for ahead and that no tree was made from.
        too_long: how many of the unfinished trees are set aside: a conversation exceeds the context of a model.
    """

    seeds: Sequence[SeedDialogue]
    trees: Sequence[Tree]
    unfinished: int
    stopped: BudgetError | None
    judge: JudgeCheck | None
    calls: Calls
    counts: Counter[str]
    prompts: str
    seconds: float
    unused: int = 0
    too_long: int = 0

    def metrics(self) -> dict[str, float]:
        """Flat, under `search/`."""
        trees = {"unused_calls": self.unused, "unfinished_trees": self.unfinished, "too_long_trees": self.too_long}
        found = self.calls.describe(self.seconds) | trees | self.counts
        metrics = {f"search/{name}": float(value) for name, value in found.items()}
        if self.judge:
            metrics |= {f"search/judge_check/{name}": value for name, value in self.judge.metrics().items()}
            if FOREIGN in self.judge.kinds:
                metrics["search/judge_auc"] = self.judge.kinds[FOREIGN].value.value
        return metrics


class SearchSession:
    """Searches from all seeds, with the journals of a run directory.

    Args:
        others: dialogues that a judge is checked on which was trained on the seeds.
    """

    def __init__(
        self, cfg: Config, seeds: Sequence[SeedDialogue], calls: Calls, others: Sequence[Dialogue] = ()
    ) -> None:
        self.cfg, self.seeds, self.calls, self.others = cfg, seeds, calls, others
        calls.retry_too_long = True  # its tree is not finished
        self.inventory = build_inventory(cfg.inventory)
        prompts = build_role_prompts(self.inventory, cfg.llm)
        self.axes, self.prompts = prompts.axes, fingerprint_prompts(prompts, cfg.llm.strategist)
        self.directory = Path(cfg.run_dir) / TREES

    async def search(self) -> SearchResult:
        """Check the judge, then search all trees."""
        started = time.time()
        names = [seed.dialogue.id for seed in self.seeds]
        names += [JUDGE_CHECK] if self.cfg.search.judge_check else []
        configs = {name: self._journal_config(name) for name in names}
        take_over_journals(self.cfg, self.directory, configs)
        journals = {
            name: self.calls.open_journal(self.directory / f"{name}{JOURNAL_SUFFIX}", config)
            for name, config in configs.items()
        }
        trees = [self.plan_tree(seed, journals[seed.dialogue.id]) for seed in self.seeds]
        counts: Counter[str] = Counter()
        judge = None
        if JUDGE_CHECK in journals:
            log.info("checking the judge on up to %d given replies", self.cfg.search.judge_check)
            judge = await self.check_judge(journals[JUDGE_CHECK], counts)
        if judge:
            log.log(logging.INFO if judge.believed else logging.WARNING, "%s", judge.verdict)
        progress = search_progress(trees, self.calls, self.cfg.mcts.preferences)
        async with progress.shown():
            stopped = await search_trees(trees, self.cfg.search.trees, self._save, self.calls.has_room)
        too_long = [tree for tree in trees if tree.too_long]
        if too_long:
            log.warning(
                "%d of %d seed dialogues are set aside, as a conversation from them exceeds the context of a model; "
                "their trees are as far as they came", len(too_long), len(trees),
            )  # fmt: skip
            if len(too_long) == len(trees):
                assert too_long[0].too_long is not None
                raise too_long[0].too_long
        return SearchResult(
            seeds=self.seeds,
            trees=[tree.search.tree for tree in trees],
            unfinished=sum(not tree.finished for tree in trees),
            stopped=stopped,
            judge=judge,
            calls=self.calls,
            counts=sum((tree.roles.counts for tree in trees), counts),
            prompts=self.prompts,
            seconds=time.time() - started,
            unused=sum(tree.unused for tree in trees),
            too_long=len(too_long),
        )

    def _journal_config(self, name: str) -> dict[str, Any]:
        """Everything that the calls in a journal depend on beside their own content."""
        cfg = self.cfg
        constants = {
            key: value for key, value in asdict(cfg.mcts).items() if key not in ("name", "preferences", "in_flight")
        }
        return {
            "seed_dialogue": None if name == JUDGE_CHECK else name,
            "seed": cfg.search.seed,
            "inventory": self.inventory.name,
            "search": {**constants, "seed": cfg.search.seed},
            "roles": {role: describe_role(getattr(cfg.llm, role), self.calls.clients[role]) for role in ROLES},
            "axes": [asdict(axis) for axis in self.axes],
            "prompts": self.prompts,
        }

    def _tree_fingerprint(self, name: str) -> str:
        """Of what a finished tree depends on: what its calls do, and the rule where it is extended."""
        rule, config = self.cfg.mcts.preferences, self._journal_config(name)
        config["search"]["in_flight"] = 1  # trees of older versions depend on it; today's do not
        return fingerprint([config, asdict(rule) if rule.extend_rejected else None])

    def plan_tree(self, seed: SeedDialogue, journal: Journal) -> TreeSearch:
        """The search from a seed, at its start or, where its tree is in the run directory, at its end."""
        name, settings, counts = seed.dialogue.id, self.cfg.mcts, Counter[str]()
        if any(getattr(self.cfg.llm, role).client == "replay" for role in ROLES):
            settings = replace(settings, in_flight=1)  # a recording has only the answers that its search needed
        roles = self._roles(SeekerProfile.of(seed.dialogue), journal, counts, name)
        earlier = load_tree(self.directory / f"{name}.json", self._tree_fingerprint(name), settings)
        if earlier is not None:
            counts.update(earlier[1])
            return TreeSearch(name, earlier[0], roles, journal, finished=True)
        strategies = self.inventory.names
        search = Search(settings, seed.start, strategies, seed.path, seed.ended, self.cfg.search.seed)
        return TreeSearch(name, search, roles, journal, self._extend if settings.preferences.extend_rejected else None)

    def _extend(self, search: Search) -> list[int]:
        return find_extensions(search.tree, find_preferences(search.tree, self.cfg.mcts.preferences))

    def _save(self, tree: TreeSearch) -> None:
        save_tree(tree, self.directory, self._tree_fingerprint(tree.name))

    def _roles(self, seeker: SeekerProfile, journal: Journal, counts: Counter[str], group: str = "") -> Roles:
        send = partial(self.calls.send, journal, group=group)
        seed, watch = self.cfg.search.seed, self.calls.watch
        return Roles(self.inventory, seeker, self.cfg.llm, self.calls.scoring, send, counts, seed, watch)

    async def check_judge(self, journal: Journal, counts: Counter[str]) -> JudgeCheck | None:
        """Whether the judge is believed; None if that cannot be said."""
        dialogues, replies = self._unseen_dialogues(), self.cfg.search.judge_check
        if len({dialogue.tree_id for dialogue in dialogues}) < 2:
            log.warning("the judge is not checked: that takes two dialogues, none that it was trained on")
            return None
        roles = self._roles(SeekerProfile(""), journal, counts)

        async def score(history: Sequence[Turn]) -> float | None:
            return await leave_out_too_long(roles.score(history), "judge", counts)

        try:
            return await check_rubric(score, dialogues, replies, roles.claim, self.cfg.search.seed)
        except BudgetError:
            return None  # it stops the search too, which says so

    def _unseen_dialogues(self) -> list[Dialogue]:
        """What the judge is checked on: the seeds; where it was trained on some of them, the others that it was not."""
        seeds, played = [seed.dialogue for seed in self.seeds], self.cfg.llm.judge
        run = find_run(Path(played.checkpoint)) if played.client == "reward" and played.checkpoint else None
        trained = find_training_trees(run) if run else {}
        if not any(dialogue.tree_id in trained for dialogue in seeds):
            return seeds
        log.info("the judge is checked on dialogues that it was not trained on, in place of the seeds")
        return [dialogue for dialogue in (*seeds, *self.others) if dialogue.tree_id not in trained]
