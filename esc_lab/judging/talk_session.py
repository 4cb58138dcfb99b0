"""A judge of whole talks at work: the planted talks that it has to tell apart, then every question of every talk."""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from esc_lab.config import Config
from esc_lab.data.dialogue import Turn
from esc_lab.errors import UserError
from esc_lab.judge_check.planted import TalkCheck, check_talks, read_planted
from esc_lab.judge_check.planted_files import find_planted
from esc_lab.judging.session import JUDGE, check_gates, open_judge
from esc_lab.judging.talk_rubric import REASON, TalkRubric
from esc_lab.judging.talks import TalkPairInputs, TalkRun, find_severity
from esc_lab.metrics.prediction_table import Key
from esc_lab.search.calls import Calls, gather_all
from esc_lab.search.journal import describe_role
from esc_lab.search.requests import Answer, Question
from esc_lab.search.role_answers import parse_scores, parse_yes_no
from esc_lab.search.roles import BEST_SCORE, DECIMALS, leave_out_too_long
from esc_lab.search.spending import BudgetError
from esc_lab.terminal import show_progress

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TalkJudgement:
    """What a judge says of a talk: by question its score, or the probability of yes; and why, where it says so."""

    scores: Mapping[str, float]
    reason: str = ""


@dataclass(frozen=True)
class TalkAnswers:
    """What the judge said.

    Attributes:
        gate: its check; None where the rubric has no planted talks.
        forced: reasons not to believe it that were overruled.
        judgements: of each run's talks, by label, in the order of the keys; None where the judge gave none.
    """

    gate: TalkCheck | None
    forced: Sequence[str]
    judgements: Mapping[str, Sequence[TalkJudgement | None]]
    seconds: float


class TalkJudgeSession:
    """One judge, and all that it is asked; see `JudgeSession`. `severity`: by card, 0 for none."""

    def __init__(self, cfg: Config, inputs: TalkPairInputs, rubric: TalkRubric, calls: Calls) -> None:
        self.cfg, self.inputs, self.rubric, self.calls = cfg, inputs, rubric, calls
        self.severity = {key[0]: find_severity(inputs.baseline.talks[key]) for key in inputs.keys}
        self.planted = read_planted(find_planted(rubric.planted)) if rubric.planted else []
        self.counts: Counter[str] = Counter()
        self.settings = describe_role(cfg.llm.judge, calls.clients[JUDGE])
        self.config: dict[str, Any] = {"seed": cfg.seed, "roles": {JUDGE: self.settings}, "rubric": rubric.record()}

    async def judge(self) -> TalkAnswers:
        """Check the judge, then have it judge.

        Raises:
            UserError: it fails its check and is not forced, an answer cannot be had, or the budget is spent.
        """
        cfg, inputs, rubric, started = self.cfg, self.inputs, self.rubric, time.time()
        self.roles = open_judge(cfg, self.calls, self.config, inputs.inventory, self.counts)
        gate = None
        if self.planted:
            least = cfg.judge.min_auc
            gate = await check_talks(self._rate, self.planted, rubric.names, yes_no=rubric.yes_no, min_auc=least)
            log.log(logging.INFO if gate.believed else logging.WARNING, "%s", gate.verdict)
        unchecked = [] if gate else ["the judge of talks cannot be checked: the rubric has no planted talks"]
        failures = check_gates([gate] if gate else [], cfg.judge.force, self.counts["judge/too_long"], unchecked)
        questions = [self._judge(run, key) for run in inputs.runs for key in inputs.keys]
        with show_progress("judging talks", len(questions)) as update:
            answers = iter(await gather_all(questions, lambda number: update(number, self.calls.spent.text)))
        return TalkAnswers(
            gate=gate,
            forced=[*inputs.conflicts, *failures],
            judgements={run.label: [next(answers) for _ in inputs.keys] for run in inputs.runs},
            seconds=time.time() - started,
        )

    async def _rate(self, talk: Sequence[Turn]) -> dict[str, float] | None:
        judgement = await leave_out_too_long(self._ask(talk), JUDGE, self.counts)
        return self.rubric.rate(judgement.scores) if judgement else None

    async def _judge(self, run: TalkRun, key: Key) -> TalkJudgement | None:
        try:
            return await leave_out_too_long(self._ask(run.talks[key].turns), JUDGE, self.counts)
        except UserError as error:
            if self.cfg.llm.judge.client != "replay" or isinstance(error, BudgetError):
                raise
            # Of a recording of other talks it is to be said which one it lacks.
            where = f"talk {key[0]}-{key[1]} of {run.directory}"
            raise UserError(f"{where}: {error.message}", where=error.where, fix=error.fix) from error

    async def _ask(self, talk: Sequence[Turn]) -> TalkJudgement | None:
        """All questions at once: read off probabilities where the client scores, else from what it writes."""
        roles, rubric, names = self.roles, self.rubric, self.rubric.names
        scores = JUDGE in roles.scoring
        request = roles.request(JUDGE, rubric.messages(talk, json=not scores))
        if not rubric.yes_no:
            values = await roles.numbers(request, names, BEST_SCORE, partial(parse_scores, axes=names))
            return TalkJudgement(values) if values and len(values) == len(names) else None
        if scores:
            questions = tuple(Question(name, f"{name}: ", ("yes", "no")) for name in names)
            answer = await roles.send(replace(request, questions=questions))
            roles.note_seen(request, answer)
            if not all(answer.log_probs):  # an endpoint that tells nothing of the options of a question
                return None
            chances = zip(names, answer.log_probs, strict=True)
            return TalkJudgement({name: round(math.exp(yes), DECIMALS) for name, (yes, _) in chances})
        return await roles.ask_until_usable(replace(request, schema=rubric.schema()), self._read)

    def _read(self, answer: Answer) -> TalkJudgement:
        answers, reason = parse_yes_no(answer.text, self.rubric.names, REASON)
        return TalkJudgement({name: float(yes) for name, yes in answers.items()}, reason)
