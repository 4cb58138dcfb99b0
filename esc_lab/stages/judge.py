"""Stage `judge`: a language model judges the replies of evaluations, by a rubric and in pairs against a baseline."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from esc_lab.config import Config
from esc_lab.data.dialogue import Turn
from esc_lab.errors import UserError
from esc_lab.judging.files import JUDGE, Judged, write_judged
from esc_lab.judging.gate import Gate, pairwise_gate, rubric_gate
from esc_lab.judging.inputs import JudgedRun, JudgeInputs, judge_inputs
from esc_lab.judging.pairwise import Pair
from esc_lab.judging.progress import gather_with_progress
from esc_lab.judging.prompts import judge_fingerprint
from esc_lab.judging.rubric import Scores
from esc_lab.runs.layout import JUDGE_JOURNAL
from esc_lab.search.calls import Calls
from esc_lab.search.clients.build import open_calls
from esc_lab.search.journal import Journal
from esc_lab.search.resume import take_over_journals
from esc_lab.search.role_prompts import SeekerProfile
from esc_lab.search.roles import Roles, build_axes, describe_role
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
    calls = open_calls(cfg, (JUDGE,))
    log.info("judging %d decisions of %d runs", len(inputs.keys), len(inputs.runs))
    judged = calls.run(_Judging(cfg, inputs, calls).judge(), cfg.run_dir)
    return write_judged(cfg, inputs, judged)


class _Judging:
    """One judge, and all that it is asked."""

    def __init__(self, cfg: Config, inputs: JudgeInputs, calls: Calls) -> None:
        self.cfg, self.inputs, self.calls = cfg, inputs, calls
        self.axes = build_axes(cfg.llm.judge)
        self.counts: Counter[str] = Counter()
        self.started = time.time()

    async def judge(self) -> Judged:
        """Check the judges, then have them judge."""
        inputs, directory = self.inputs, Path(self.cfg.run_dir)
        take_over_journals(self.cfg, directory, {JUDGE: self.config})
        self.roles = self._roles(self.calls.open_journal(directory / JUDGE_JOURNAL, self.config))
        gates, reasons = await self._checked()
        scored = inputs.runs if self.cfg.judge.rubric else []
        paired = inputs.others if self.cfg.judge.pairwise else []
        work = [self._score(one, key) for one in scored for key in inputs.keys]
        pairs = [self._pair(one, key) for one in paired for key in inputs.keys]
        found: list[Any] = await gather_with_progress([*work, *pairs], self._state)
        parts = [found[start : start + len(inputs.keys)] for start in range(0, len(found), len(inputs.keys))]
        return Judged(
            gates=gates,
            forced=[*inputs.same, *reasons],
            scores={one.label: part for one, part in zip(scored, parts, strict=False)},
            pairs={one.label: part for one, part in zip(paired, parts[len(scored) :], strict=True)},
            axes=self.axes,
            settings=self.config["roles"][JUDGE],
            prompts=self.config["prompts"],
            models=self.calls.models(JUDGE),
            dates=self.calls.dates,
            counts=self.counts,
            spent=self.calls.spent,
            retries=self.calls.retries,
            seconds=time.time() - self.started,
        )

    @property
    def config(self) -> dict[str, Any]:
        """Everything that the calls depend on beside their own content."""
        return {
            "seed": self.cfg.seed,
            "inventory": self.inputs.inventory.name,
            "roles": {JUDGE: describe_role(self.cfg.llm.judge, self.calls.clients[JUDGE])},
            "axes": [asdict(axis) for axis in self.axes],
            "prompts": judge_fingerprint(self.inputs.inventory, self.axes),
        }

    def _roles(self, journal: Journal) -> Roles:
        send = partial(self.calls.send, journal)
        seeker = SeekerProfile("")
        return Roles(self.inputs.inventory, seeker, self.cfg.llm, self.calls.scoring, send, self.counts, self.cfg.seed)

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
                gates.append(await rubric_gate(self.roles.score, *limits))
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
