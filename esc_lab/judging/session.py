"""A judge at work: the calls, the check that it has to pass, the scores and pairs of all decisions."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from esc_lab.artifacts import fingerprint
from esc_lab.config import Config
from esc_lab.data.dialogue import Reply, Turn
from esc_lab.data.strategies import Inventory
from esc_lab.errors import UserError
from esc_lab.judge_check.check import JudgeCheck, check_pairwise, check_rubric
from esc_lab.judging.inputs import EvaluatedRun, JudgeInputs
from esc_lab.judging.results import Pair, Scores
from esc_lab.metrics.prediction_table import Key
from esc_lab.prompts import SeekerProfile
from esc_lab.runs.layout import JOURNAL_SUFFIX
from esc_lab.search.calls import Calls, gather_all
from esc_lab.search.journal import describe_role, take_over_journals
from esc_lab.search.role_prompts import RolePrompts, build_role_prompts, choose_axes
from esc_lab.search.roles import Roles, leave_out_too_long
from esc_lab.terminal import show_progress

log = logging.getLogger(__name__)
T = TypeVar("T")
JUDGE = "judge"


@dataclass(frozen=True)
class JudgeAnswers:
    """What the judge said.

    Attributes:
        gates: the checks of the judges.
        forced: reasons not to believe them that were overruled.
        scores: of each run's replies, by label, in the order of the decisions; empty without a rubric.
        pairs: of each run but the baseline, likewise.
    """

    gates: Sequence[JudgeCheck]
    forced: Sequence[str]
    scores: Mapping[str, Sequence[Scores | None]]
    pairs: Mapping[str, Sequence[Pair]]
    seconds: float


class JudgeSession:
    """One judge, and all that it is asked.

    Attributes:
        config: everything that the calls depend on beside their own content.
        settings: of that, how the judge is asked: client, sampling, attempts.
        counts: answers that were unusable, refused or missing, and questions that exceed the judge's context.
    """

    def __init__(self, cfg: Config, inputs: JudgeInputs, calls: Calls) -> None:
        self.cfg, self.inputs, self.calls = cfg, inputs, calls
        self.adherence = cfg.judge.question == "adherence"
        prompts = build_role_prompts(inputs.inventory, cfg.llm)
        self.axes = choose_axes(prompts, calls.scoring.get(JUDGE))
        self.counts: Counter[str] = Counter()
        self.settings = describe_role(cfg.llm.judge, calls.clients[JUDGE])
        self.config: dict[str, Any] = {
            "seed": cfg.seed,
            "inventory": inputs.inventory.name,
            "roles": {JUDGE: self.settings},
            "axes": [asdict(axis) for axis in self.axes],
            "prompts": fingerprint_prompts(prompts, adherence=self.adherence),
        }
        self._unchecked: list[str] = []

    async def judge(self) -> JudgeAnswers:
        """Check the judges, then have them judge.

        Raises:
            UserError: a judge fails its check and is not forced, an answer cannot be had, or the budget is spent.
        """
        cfg, inputs, started = self.cfg, self.inputs, time.time()
        self.roles = open_judge(cfg, self.calls, self.config, inputs.inventory, self.counts)
        gates = await self._check()
        failures = check_gates(gates, cfg.judge.force, self.counts["judge/too_long"], self._unchecked)
        scored = inputs.runs if cfg.judge.rubric else []
        paired = inputs.candidates if cfg.judge.pairwise else []
        questions: list[Awaitable[Any]] = [self._score(run, key) for run in scored for key in inputs.keys]
        questions += [self._pair(run, key) for run in paired for key in inputs.keys]
        with show_progress("judging", len(questions)) as update:
            gathered = await gather_all(questions, lambda number: update(number, self.calls.spent.text))
        answers = iter(gathered)
        return JudgeAnswers(
            gates=gates,
            forced=[*inputs.conflicts, *failures],
            scores={run.label: [next(answers) for _ in inputs.keys] for run in scored},
            pairs={run.label: [next(answers) for _ in inputs.keys] for run in paired},
            seconds=time.time() - started,
        )

    async def _check(self) -> list[JudgeCheck]:
        """The checks of the judges; empty where there are not two dialogues whose replies could be exchanged."""
        settings = self.cfg.judge
        dialogues = [self.inputs.dialogues[name] for name in sorted(self.inputs.dialogues)]
        if len({dialogue.tree_id for dialogue in dialogues if any(dialogue.decisions())}) < 2:
            return []
        asked = (dialogues, settings.check, self.roles.claim, self.cfg.seed, settings.min_auc)
        gates = []
        if settings.rubric:
            gates.append(await check_rubric(lambda talk: self._answer(self.roles.score(talk)), *asked))
        if settings.pairwise and self.inputs.candidates:
            given = {name for d in dialogues for turn in d.decisions() for name in d.turns[turn].reply.strategies}
            if self.adherence and len(given) < 2:
                what = f"given replies of the test set have no strategies of {self.inputs.inventory.name}"
                self._unchecked.append(f"the judge of adherence cannot be checked: {what}")
            else:
                gates.append(await check_pairwise(self._prefer, *asked, adherence=self.adherence))
        for gate in gates:
            log.log(logging.INFO if gate.believed else logging.WARNING, "%s", gate.verdict)
        return gates

    async def _answer(self, question: Awaitable[T]) -> T | None:
        return await leave_out_too_long(question, JUDGE, self.counts)

    async def _prefer(self, history: Sequence[Turn], reply: Turn, other: Turn) -> float | None:
        return (await self._compare(history, reply, other)).outcome

    async def _compare(self, history: Sequence[Turn], reply: Turn, other: Turn) -> Pair:
        """Both orders of two replies; identical ones are not asked. By adherence it is that to the first's strategy."""
        (strategy,) = reply.reply.strategies[:1] if self.adherence else (None,)
        one, two = (" ".join(turn.reply.text.split()) for turn in (reply, other))
        difference = len(reply.reply.text) - len(other.reply.text)

        async def prefer(a: str, b: str) -> float | None:
            return await self._answer(self.roles.prefer(history, a, b, strategy))

        return await compare_both_ways(prefer, one, two, difference, same=one == two)

    async def _score(self, run: EvaluatedRun, key: Key) -> Scores | None:
        return await self._answer(self.roles.judge([*self.inputs.history(key), run.replies[key].turn]))

    async def _pair(self, run: EvaluatedRun, key: Key) -> Pair:
        reply, other = run.replies[key], self.inputs.baseline.replies[key]
        pair = await self._compare(self.inputs.history(key), reply.turn, other.turn)
        return replace(pair, difference=len(reply.text) - len(other.text))  # an empty one is shown in words


def open_judge(
    cfg: Config, calls: Calls, config: Mapping[str, Any], inventory: Inventory, counts: Counter[str], name: str = JUDGE
) -> Roles:
    """The role of a judge with the journal of this run, which goes on from what `cfg.resume` names.

    Args:
        config: everything that the calls depend on beside their own content.
        name: of the journal, without ending.
    """
    take_over_journals(cfg, Path(cfg.run_dir), {name: config})
    send = partial(calls.send, calls.open_journal(Path(cfg.run_dir) / f"{name}{JOURNAL_SUFFIX}", config))
    return Roles(inventory, SeekerProfile(""), cfg.llm, calls.scoring, send, counts, cfg.seed, calls.watch)


async def compare_both_ways(
    prefer: Callable[[T, T], Awaitable[float | None]], one: T, two: T, difference: int, same: bool
) -> Pair:
    """Two things in both orders; nobody is asked about those that are the same.

    Args:
        prefer: the probability that the first is the better one.
        difference: see `Pair`.
    """
    if same:
        return Pair(None, None, difference, identical=True)
    first, second = await prefer(one, two), await prefer(two, one)
    return Pair(first, None if second is None else 1 - second, difference)


class Gate(Protocol):
    """The check of a judge: whether it is believed, and that with its reasons in a line."""

    @property
    def believed(self) -> bool: ...

    @property
    def verdict(self) -> str: ...


def check_gates(gates: Sequence[Gate], force: bool, too_long: int = 0, unchecked: Sequence[str] = ()) -> list[str]:
    """Why judges should not be believed: sentences on those that are not; empty gates: no check was made.

    Args:
        too_long: questions that exceed the judge's context.
        unchecked: sentences on judges that cannot be checked.

    Raises:
        UserError: there are reasons, and the judge is not forced.
    """
    failures = [*unchecked, *(gate.verdict for gate in gates if not gate.believed)]
    if not (gates or unchecked):
        failures = ["the judges cannot be checked: that takes two dialogues"]
    if failures and too_long:
        failures.append(f"{too_long} of its questions exceed the judge's context")
    if failures and not force:
        some = "; judge.rubric=false or judge.pairwise=false leaves one out" if any(g.believed for g in gates) else ""
        fix = f"a larger model as judge{some}; judge.force=true judges all the same, and says so"
        raise UserError("; ".join(failures), where="judge", fix=fix)
    return failures


def fingerprint_prompts(prompts: RolePrompts, *, adherence: bool = False) -> str:
    """Hash of all words of the judge's prompts, on a fixed conversation; `adherence`: those of that question, too."""
    history = (Turn("seeker", Reply("First.")), Turn("supporter", Reply("Second.", prompts.inventory.names[:1])))
    requests = []
    for json in (False, True):
        requests.append(prompts.judge_request(json=json))
        requests.append(prompts.prefer_request("Third.", "Fourth.", json=json))
        if adherence:
            strategy = prompts.inventory.names[0]
            requests.append(prompts.prefer_request("Third.", "Fourth.", json=json, strategy=strategy))
    messages = prompts.support_messages(history, "\n".join(requests))
    return fingerprint([message.content for message in messages])
