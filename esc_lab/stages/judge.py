"""Stage `judge`: a language model judges the replies of evaluations, by a rubric and in pairs against a baseline; or
whole talks of stage `converse`, by a rubric, or in pairs with how strong the seeker's emotion is in them.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from esc_lab.config import Config
from esc_lab.config.compare import TalkRubricConfig
from esc_lab.errors import UserError
from esc_lab.judging.files import write_results
from esc_lab.judging.inputs import JudgeInputs, read_inputs
from esc_lab.judging.session import JUDGE, JudgeSession
from esc_lab.judging.talk_files import write_talk_results
from esc_lab.judging.talk_pair_files import write_pair_results
from esc_lab.judging.talk_pair_session import TalkPairSession, check_talk_settings
from esc_lab.judging.talk_rubric import build_rubric
from esc_lab.judging.talk_session import TalkJudgeSession
from esc_lab.judging.talks import holds_talks, read_talk_runs
from esc_lab.search.calls import open_calls
from esc_lab.search.clients.replay import take_sampling
from esc_lab.training.trainer import prepare

log = logging.getLogger(__name__)


def run(cfg: Config) -> dict[str, float]:
    """Judge; judgements.jsonl, judge.json, judge.md and the journal of all calls go into the run directory.

    Raises:
        UserError: the runs cannot be judged together, the judge must not be trusted and is not forced, an answer cannot
            be had, or the budget is spent.
    """
    cfg = take_sampling(cfg)
    prepare(cfg)
    by_rubric = cfg.judge.talk_rubric != TalkRubricConfig()
    if holds_talks(cfg.judge.runs):
        return _rate_talks(cfg) if by_rubric else _judge_talks(cfg)
    for name, given in {"intensity": cfg.judge.intensity, "talk_rubric": by_rubric}.items():
        if given:
            fix = "name runs of stage=converse, or leave it out"
            raise UserError(f"the {name.split('_')[-1]} is asked of whole talks", where=f"judge.{name}", fix=fix)
    inputs = read_inputs(cfg)
    _check_roles(cfg, inputs)
    calls = open_calls(cfg, (JUDGE,))
    log.info("judging %d decisions of %d runs", len(inputs.keys), len(inputs.runs))
    session = JudgeSession(cfg, inputs, calls)
    answers = calls.run(session.judge(), cfg.run_dir)
    return write_results(session, answers)


def _judge_talks(cfg: Config) -> dict[str, float]:
    talks = read_talk_runs(cfg)
    check_talk_settings(cfg, talks)
    calls = open_calls(cfg, (JUDGE,))
    log.info("judging %d talks of %d runs", len(talks.keys), len(talks.runs))
    session = TalkPairSession(cfg, talks, calls)
    answers = calls.run(session.judge(), cfg.run_dir)
    return write_pair_results(session, answers)


def _rate_talks(cfg: Config) -> dict[str, float]:
    if cfg.llm.judge.client == "reward":
        what = "a reward model knows which reply is better, and answers no questions"
        raise UserError(what, where="llm.judge.client", fix="another client for whole talks")
    if cfg.judge.intensity:
        raise UserError("it is not asked by a rubric", where="judge.intensity", fix="ask it without rubric=")
    rubric = build_rubric(cfg.judge.talk_rubric)
    talks = read_talk_runs(cfg, rubric.min_severity)
    _check_conflicts(cfg, talks.conflicts)
    calls = open_calls(cfg, (JUDGE,))
    log.info("judging %d talks of %d runs by rubric %s", len(talks.keys), len(talks.runs), rubric.name)
    session = TalkJudgeSession(cfg, talks, rubric, calls)
    answers = calls.run(session.judge(), cfg.run_dir)
    return write_talk_results(session, answers)


def _check_roles(cfg: Config, inputs: JudgeInputs) -> None:
    """Whether the judge is not the one that the runs were made for, and there is something to judge."""
    _check_conflicts(cfg, inputs.conflicts)
    if not (cfg.judge.rubric or inputs.candidates):
        raise UserError("one run makes no pair", where="judge.runs", fix="name a second one, or judge.rubric=true")


def _check_conflicts(cfg: Config, conflicts: Sequence[str]) -> None:
    if conflicts and not cfg.judge.force:
        fix = "another model as judge, or judge.force=true, which is said with the results"
        raise UserError("; ".join(conflicts), where="llm.judge", fix=fix)
