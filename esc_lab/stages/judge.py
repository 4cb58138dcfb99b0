"""Stage `judge`: a language model judges the replies of evaluations, by a rubric and in pairs against a baseline; or
whole talks of stage `converse`, in pairs, and how strong the seeker's emotion is in them.
"""

from __future__ import annotations

import logging

from esc_lab.config import Config
from esc_lab.errors import UserError
from esc_lab.judging.files import write_results
from esc_lab.judging.inputs import JudgeInputs, read_inputs
from esc_lab.judging.session import JUDGE, JudgeSession
from esc_lab.judging.talk_pair_files import write_pair_results
from esc_lab.judging.talk_pair_session import TalkPairSession, check_talk_settings
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
    if holds_talks(cfg.judge.runs):
        return _judge_talks(cfg)
    if cfg.judge.intensity:
        fix = "name runs of stage=converse, or leave it out"
        raise UserError("the intensity is asked of whole talks", where="judge.intensity", fix=fix)
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


def _check_roles(cfg: Config, inputs: JudgeInputs) -> None:
    """Whether the judge is not the one that the runs were made for, and there is something to judge."""
    if inputs.conflicts and not cfg.judge.force:
        fix = "another model as judge, or judge.force=true, which is said with the results"
        raise UserError("; ".join(inputs.conflicts), where="llm.judge", fix=fix)
    if not (cfg.judge.rubric or inputs.candidates):
        raise UserError("one run makes no pair", where="judge.runs", fix="name a second one, or judge.rubric=true")
