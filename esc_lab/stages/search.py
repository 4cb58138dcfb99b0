"""Stage `search`: grow a tree from each seed dialogue, and make preference data (ESC-Pro) of what was found."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from esc_lab.artifacts import fingerprint
from esc_lab.config import Config
from esc_lab.config.search import ROLES
from esc_lab.data.corpora import ReadReport
from esc_lab.data.dialogue import Dialogue, Turn
from esc_lab.data.strategies import build_inventory
from esc_lab.errors import UserError
from esc_lab.runs.layout import TREES
from esc_lab.search import builder
from esc_lab.search.builder import Growing
from esc_lab.search.cache import RequestCache
from esc_lab.search.calls import Budget, BudgetError, Calls
from esc_lab.search.clients.choose import build_clients, retries
from esc_lab.search.files import Searched, write_searched
from esc_lab.search.journal import Journal, journal_config
from esc_lab.search.judge_check import TRUSTED_AUC, JudgeCheck, scored_check
from esc_lab.search.mcts import Search
from esc_lab.search.preferences import PreferenceRule, find_preferences, to_extend
from esc_lab.search.progress import search_progress
from esc_lab.search.requests import Client
from esc_lab.search.role_prompts import Axis, Case
from esc_lab.search.roles import Roles, RoleSettings, prompts_fingerprint, turn_score
from esc_lab.search.seed_dialogue import SeedDialogue, seed_dialogue
from esc_lab.search.settings import SearchSettings
from esc_lab.tracking.run import log_curve
from esc_lab.training.datamodule import read_splits
from esc_lab.training.trainer import prepare

log = logging.getLogger(__name__)


def run(cfg: Config) -> dict[str, float]:
    """Search; ESC-Pro with its data card goes into `esc_pro/`, journals, trees and their pages into `trees/`.

    Raises:
        UserError: there are no seeds, an answer cannot be had, or nothing is preferred in any tree.
    """
    prepare(cfg)
    report = ReadReport()
    splits = read_splits(cfg.data, build_inventory(cfg.inventory), report, cfg.config_dirs)
    seeds = _seeds(cfg, splits)
    log.info("%s: %d seed dialogues of %s; %s", cfg.data.name, len(seeds), cfg.search.split, report.line())
    run_ = _Run(cfg, seeds, build_clients(cfg))
    try:
        searched = builder.run(run_.search())
    except (UserError, KeyboardInterrupt):
        if run_.calls.spent.calls:
            log.info("%d answers are kept; resume=%s goes on from here", run_.calls.spent.calls, cfg.run_dir)
        raise
    return write_searched(cfg, searched, splits)


def _seeds(cfg: Config, splits: Mapping[str, Sequence[Dialogue]]) -> list[SeedDialogue]:
    made = [seed_dialogue(dialogue) for dialogue in splits.get(cfg.search.split, ())[: cfg.search.seeds]]
    found = {seed.dialogue.id: seed for seed in made}
    if not found:
        fix = "check data.path, data.limit and search.split"
        raise UserError("there are no seed dialogues", where=f"search.split={cfg.search.split}", fix=fix)
    cut = sum(not seed.ended and bool(seed.path) for seed in found.values())
    if cut:
        log.warning("%d seed dialogues are followed only up to their first reply without a strategy", cut)
    return list(found.values())


class _Run:
    """One search over all seeds."""

    def __init__(self, cfg: Config, seeds: Sequence[SeedDialogue], clients: dict[str, Client]) -> None:
        self.cfg, self.seeds, self.clients = cfg, seeds, clients
        self.inventory = build_inventory(cfg.inventory)
        self.axes = [Axis(name, **axis) for name, axis in cfg.llm.judge.axes.items()]
        self.roles = {role: _role_settings(cfg, role, clients[role]) for role in ROLES}
        self.settings = SearchSettings(
            **{entry.name: getattr(cfg.mcts, entry.name) for entry in fields(SearchSettings) if entry.name != "seed"},
            seed=cfg.search.seed,
        )
        rule = asdict(cfg.mcts.preferences)
        self.extend_rejected = rule.pop("extend_rejected")
        self.rule = PreferenceRule(**rule)
        self.judge_counts: Counter[str] = Counter()  # of the check of the judge
        self.directory = Path(cfg.run_dir) / TREES
        cache = RequestCache(Path(cfg.cache_dir) / "requests.sqlite") if cfg.search.cache else None
        self.calls = Calls(clients, cfg.search.concurrency, cache, Budget(**asdict(cfg.search.budget)))
        self._grown_with: dict[str, str] = {}  # fingerprint for the name of each tree
        self.started = time.time()

    async def search(self) -> Searched:
        """Check the judge, then grow all trees."""
        cfg = self.cfg
        journals: list[Journal] = []
        try:
            self._take_over()
            trees = []
            for seed in self.seeds:
                journals.append(Journal(_journal(self.directory, seed.dialogue.id), self._config(seed)))
                trees.append(self._tree(seed, journals[-1]))
            checking = None
            if cfg.search.judge_check:
                checking = Journal(_journal(self.directory, "judge_check"), self._config(None))
                journals.append(checking)
            for journal in journals:
                self.calls.spent.add_journal(journal)
            check = await self._check_judge(checking) if checking else None
            with search_progress(trees, self.calls.spent, lambda: retries(self.clients)) as progress:
                showing = asyncio.create_task(progress.keep_showing())
                stopped = await builder.grow(trees, self.calls, cfg.search.trees, progress.change, self._save)
                showing.cancel()
                log_curve(progress.point())
                log.info("%s", progress.state())
        finally:
            await self.calls.close()
            for journal in journals:
                journal.sync()
        dates = sorted(date[:10] for journal in journals for date in (journal.first, journal.last) if date)
        return Searched(
            trees=[(seed, tree.search.tree, tree.finished) for seed, tree in zip(self.seeds, trees, strict=True)],
            stopped=stopped,
            inventory=self.inventory,
            rule=self.rule,
            judge=check,
            spent=self.calls.spent,
            counts=sum((tree.roles.counts for tree in trees), self.judge_counts),
            retries=retries(self.clients),
            models={
                role: sorted({name for journal in journals for name in journal.models.get(role, ())}) for role in ROLES
            },
            prompts=prompts_fingerprint(self.inventory, self.axes, discourage=cfg.llm.strategist.discourage),
            dates=(dates[0], dates[-1]) if dates else ("", ""),
            seconds=time.time() - self.started,
        )

    def _config(self, seed: SeedDialogue | None) -> dict[str, Any]:
        """Everything that the calls of a tree depend on; of the check of the judge without a seed."""
        roles = {role: {**asdict(self.roles[role]), "client": dict(self.clients[role].identity)} for role in ROLES}
        return {
            "seed_dialogue": seed.dialogue.id if seed else None,
            "seed": self.cfg.search.seed,
            "inventory": self.cfg.inventory.name,
            "search": {**asdict(self.settings), "seed_path": self.cfg.mcts.seed_path},
            "roles": roles,
            "axes": [asdict(axis) for axis in self.axes],
            "prompts": prompts_fingerprint(self.inventory, self.axes, discourage=self.cfg.llm.strategist.discourage),
        }

    def _tree(self, seed: SeedDialogue, journal: Journal) -> Growing:
        name = seed.dialogue.id
        dialogue = seed.dialogue
        counts: Counter[str] = Counter()
        roles = self._roles(Case(dialogue.situation, dialogue.emotion, dialogue.problem), journal, counts)
        # What a finished tree depends on: what its calls do, and the rule where it is extended.
        self._grown_with[name] = fingerprint([self._config(seed), asdict(self.rule) if self.extend_rejected else None])
        found = builder.load(self.directory, name, self._grown_with[name])
        if found is not None:
            search, earlier = found
            counts.update(earlier)
            return Growing(name, search, roles, journal, finished=True)
        path = seed.path if self.cfg.mcts.seed_path else ()
        search = Search(self.settings, seed.start, self.inventory.names, path, seed.ended)
        return Growing(name, search, roles, journal, self._to_extend if self.extend_rejected else None)

    def _to_extend(self, done: Search) -> list[int]:
        return to_extend(done.tree, find_preferences(done.tree, self.rule))

    def _roles(self, case: Case, journal: Journal, counts: Counter[str]) -> Roles:
        return Roles(
            self.inventory,
            case,
            self.roles,
            self.axes,
            lambda request: self.calls.send(journal, request),
            counts,
            discourage=self.cfg.llm.strategist.discourage,
            seed=self.cfg.search.seed,
        )

    def _save(self, tree: Growing) -> None:
        builder.save(tree, self.directory, self._grown_with[tree.name])

    async def _check_judge(self, journal: Journal) -> JudgeCheck | None:
        """Whether the judge tells the given replies from shuffled ones."""
        dialogues = [seed.dialogue for seed in self.seeds]
        if len({dialogue.tree_id for dialogue in dialogues}) < 2:
            log.warning("the judge is not checked: that takes two seed dialogues")
            return None
        log.info("checking the judge on up to %d given replies and as many shuffled ones", self.cfg.search.judge_check)
        roles = self._roles(Case(""), journal, self.judge_counts)

        async def score(history: Sequence[Turn]) -> float | None:
            axes = await roles.judge(history)
            return None if axes is None else turn_score(axes, self.axes)

        try:
            check = await scored_check(score, dialogues, self.cfg.search.judge_check, self.cfg.search.seed)
        except BudgetError:
            return None  # which stops the search too, and is told there
        if check is None:
            log.warning("the judge is not checked: it gave no usable score")
            return None
        tell = log.info if check.trusted else log.warning
        tell(
            "judge: AUC %.2f [%.2f, %.2f] between given and shuffled replies (%d contexts)%s",
            check.auc, check.low, check.high, check.pairs,
            "" if check.trusted else f"; below {TRUSTED_AUC}: its values say little about good replies",
        )  # fmt: skip
        return check

    def _take_over(self) -> None:
        """Copy journals and finished trees of the run that `resume` names."""
        if not self.cfg.resume:
            return
        found = self._interrupted() if self.cfg.resume == "auto" else _trees_of(Path(self.cfg.resume))
        if found is None:
            log.info("resume=%s: no search of this configuration there; starting anew", self.cfg.resume)
            return
        log.info("resume=%s: going on from %s", self.cfg.resume, found)
        if found.resolve() != self.directory.resolve():
            for seed in self.seeds:  # refuse before anything is copied
                path = _journal(found, seed.dialogue.id)
                if path.exists():
                    Journal(path, self._config(seed))
            shutil.copytree(found, self.directory, dirs_exist_ok=True)

    def _interrupted(self) -> Path | None:
        """The directory with the most journal of this configuration below `output_root`."""
        configs = {seed.dialogue.id: json.loads(json.dumps(self._config(seed))) for seed in self.seeds}
        size: Counter[Path] = Counter()
        for path in Path(self.cfg.output_root).glob(f"**/{TREES}/*.journal.jsonl"):
            name = path.name.removesuffix(".journal.jsonl")
            if name in configs and journal_config(path) == configs[name]:
                size[path.parent] += path.stat().st_size
        return size.most_common(1)[0][0] if size else None


def _role_settings(cfg: Config, role: str, client: Client) -> RoleSettings:
    played = getattr(cfg.llm, role)
    return RoleSettings(played.temperature, played.top_p, played.max_tokens, played.attempts, client.scores)


def _trees_of(run_dir: Path) -> Path | None:
    """Where a search, or a pipeline's, has its trees."""
    places = (run_dir / TREES, run_dir / "search" / TREES)
    return next((place for place in places if place.is_dir()), None)


def _journal(directory: Path, name: str) -> Path:
    return directory / f"{name}.journal.jsonl"
