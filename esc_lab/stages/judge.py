"""Stage `judge`: a language model judges the replies of evaluations, by a rubric and in pairs against a baseline."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from esc_lab.config import Config
from esc_lab.data.dialogue import Turn
from esc_lab.errors import UserError
from esc_lab.judging.files import JUDGE, Judged, write_judged
from esc_lab.judging.gate import Gate, pairwise_gate, rubric_gate
from esc_lab.judging.inputs import JudgedRun, JudgeInputs, judge_inputs
from esc_lab.judging.pairwise import Pair
from esc_lab.judging.progress import finished
from esc_lab.judging.prompts import judge_fingerprint
from esc_lab.judging.rubric import Scores
from esc_lab.runs.layout import JUDGE_JOURNAL
from esc_lab.search import builder
from esc_lab.search.cache import RequestCache
from esc_lab.search.calls import Budget, Calls
from esc_lab.search.clients.choose import build_clients, retries
from esc_lab.search.journal import Journal, journal_config
from esc_lab.search.requests import Client
from esc_lab.search.role_prompts import Axis, Case
from esc_lab.search.roles import Roles, RoleSettings, turn_score
from esc_lab.training.trainer import prepare

log = logging.getLogger(__name__)


def run(cfg: Config) -> dict[str, float]:
    """Judge; judgements.jsonl, judge.json, judge.md and the journal of all calls go into the run directory.

    Raises:
        UserError: the runs cannot be judged together, the judge must not be trusted and is not forced, an answer cannot
            be had, or the budget is spent.
    """
    prepare(cfg)
    inputs = judge_inputs(cfg)
    if inputs.same and not cfg.judge.force:
        fix = "another model as judge, or judge.force=true, which is told with the results"
        raise UserError("; ".join(inputs.same), where="llm.judge", fix=fix)
    if not (cfg.judge.rubric or inputs.others):
        raise UserError("one run makes no pair", where="judge.runs", fix="name a second one, or judge.rubric=true")
    judging = _Judging(cfg, inputs, build_clients(cfg, (JUDGE,)))
    log.info("judging %d decisions of %d runs", len(inputs.keys), len(inputs.runs))
    try:
        judged = builder.run(judging.judge())
    except (UserError, KeyboardInterrupt):
        if judging.calls.spent.calls:
            log.info("%d answers are kept; resume=%s goes on from here", judging.calls.spent.calls, cfg.run_dir)
        raise
    return write_judged(cfg, inputs, judged)


class _Judging:
    """One judge, and all that it is asked."""

    def __init__(self, cfg: Config, inputs: JudgeInputs, clients: dict[str, Client]) -> None:
        self.cfg, self.inputs, self.clients = cfg, inputs, clients
        played = cfg.llm.judge
        self.settings = RoleSettings(
            played.temperature, played.top_p, played.max_tokens, played.attempts, clients[JUDGE].scores
        )
        self.axes = [Axis(name, **axis) for name, axis in played.axes.items()]
        cache = RequestCache(Path(cfg.cache_dir) / "requests.sqlite") if cfg.search.cache else None
        self.calls = Calls(clients, cfg.search.concurrency, cache, Budget(**asdict(cfg.search.budget)))
        self.counts: Counter[str] = Counter()
        self.started = time.time()

    async def judge(self) -> Judged:
        """Check the judges, then have them judge."""
        inputs = self.inputs
        journal: Journal | None = None
        try:
            self._take_over()
            journal = Journal(Path(self.cfg.run_dir) / JUDGE_JOURNAL, self.config)
            self.calls.spent.add_journal(journal)
            self.roles = self._roles(journal)
            gates, reasons = await self._checked()
            scored = inputs.runs if self.cfg.judge.rubric else []
            paired = inputs.others if self.cfg.judge.pairwise else []
            work = [self._score(one, key) for one in scored for key in inputs.keys]
            pairs = [self._pair(one, key) for one in paired for key in inputs.keys]
            found: list[Any] = await finished([*work, *pairs], self._state)
        finally:
            await self.calls.close()
            if journal:
                journal.sync()
        parts = [found[start : start + len(inputs.keys)] for start in range(0, len(found), len(inputs.keys))]
        return Judged(
            gates=gates,
            forced=[*inputs.same, *reasons],
            scores={one.label: part for one, part in zip(scored, parts, strict=False)},
            pairs={one.label: part for one, part in zip(paired, parts[len(scored) :], strict=True)},
            axes=self.axes,
            settings=self.config["roles"][JUDGE],
            prompts=self.config["prompts"],
            models=sorted(journal.models.get(JUDGE, ())),
            dates=(journal.first[:10], journal.last[:10]),
            counts=self.counts,
            spent=self.calls.spent,
            retries=retries(self.clients),
            seconds=time.time() - self.started,
        )

    @property
    def config(self) -> dict[str, Any]:
        """Everything that the calls depend on beside their own content."""
        client = {"client": dict(self.clients[JUDGE].identity)}
        return {
            "seed": self.cfg.seed,
            "inventory": self.inputs.inventory.name,
            "roles": {JUDGE: {**asdict(self.settings), **client}},
            "axes": [asdict(axis) for axis in self.axes],
            "prompts": judge_fingerprint(self.inputs.inventory, self.axes),
        }

    def _roles(self, journal: Journal) -> Roles:
        return Roles(
            self.inputs.inventory,
            Case(""),
            {JUDGE: self.settings},
            self.axes,
            lambda request: self.calls.send(journal, request),
            self.counts,
            seed=self.cfg.seed,
        )

    async def _checked(self) -> tuple[list[Gate], list[str]]:
        """How the judges did on given and shuffled replies, and why they should not be believed.

        Raises:
            UserError: there are reasons, and the judge is not forced.
        """
        settings = self.cfg.judge
        dialogues = [self.inputs.dialogues[name] for name in sorted(self.inputs.dialogues)]
        gates: list[Gate] = []
        if len({dialogue.tree_id for dialogue in dialogues if any(dialogue.decisions())}) < 2:
            reasons = ["the judges cannot be checked: that takes two dialogues"]
        else:
            limits = (dialogues, settings.check, settings.least_auc, self.cfg.seed)
            if settings.rubric:
                gates.append(await rubric_gate(self._overall, *limits))
            if settings.pairwise and self.inputs.others:
                gates.append(await pairwise_gate(self._compared, *limits))
            for gate in gates:
                log.log(logging.INFO if gate.passed else logging.WARNING, "%s", gate.text)
            reasons = [
                f"{gate.text}; it takes {gate.least:g} and an interval above 0.5" for gate in gates if not gate.passed
            ]
        if reasons and not settings.force:
            others = "" if len(reasons) == len(gates) else "; judge.rubric=false or judge.pairwise=false leaves one out"
            fix = f"a larger model as judge{others}; judge.force=true judges all the same, and tells so"
            raise UserError("; ".join(reasons), where="judge", fix=fix)
        return gates, reasons

    async def _overall(self, history: Sequence[Turn]) -> float | None:
        scores = await self.roles.judge(history)
        return None if scores is None else turn_score(scores, self.axes)

    async def _compared(self, history: Sequence[Turn], one: Turn, other: Turn) -> Pair:
        """Both orders of two replies; identical ones are not asked."""
        texts = [" ".join(turn.reply.text.split()) for turn in (one, other)]
        difference = len(one.reply.text) - len(other.reply.text)
        if texts[0] == texts[1]:
            return Pair(None, None, difference, identical=True)
        first = await self.roles.prefer(history, *texts)
        second = await self.roles.prefer(history, *reversed(texts))
        return Pair(first, None if second is None else 1 - second, difference)

    async def _score(self, one: JudgedRun, key: tuple[str, int]) -> Scores | None:
        return await self.roles.judge([*self.inputs.history(key), one.replies[key].turn])

    async def _pair(self, one: JudgedRun, key: tuple[str, int]) -> Pair:
        reply, other = one.replies[key], self.inputs.baseline.replies[key]
        pair = await self._compared(self.inputs.history(key), reply.turn, other.turn)
        return replace(pair, difference=len(reply.text) - len(other.text))  # an empty one is shown in words

    def _state(self) -> str:
        spent = self.calls.spent
        cost = f", ${spent.cost:.2f}" if spent.cost else ""
        return f"{spent.calls} calls, {spent.tokens / 1000:.0f}k tokens{cost}"

    def _take_over(self) -> None:
        """Copy the journal of the run that `resume` names."""
        if not self.cfg.resume:
            return
        found = self._interrupted() if self.cfg.resume == "auto" else Path(self.cfg.resume) / JUDGE_JOURNAL
        if found is None:
            log.info("resume=auto: no judge of this configuration there; starting anew")
            return
        log.info("resume=%s: going on from %s", self.cfg.resume, found)
        own = Path(self.cfg.run_dir) / JUDGE_JOURNAL
        if found.resolve() != own.resolve():
            Journal(found, self.config)  # refuse before anything is copied
            shutil.copyfile(found, own)

    def _interrupted(self) -> Path | None:
        """The largest journal of this configuration below `output_root`."""
        wanted = json.loads(json.dumps(self.config))
        found = [
            path for path in Path(self.cfg.output_root).glob(f"**/{JUDGE_JOURNAL}") if journal_config(path) == wanted
        ]
        return max(found, key=lambda path: path.stat().st_size, default=None)
