"""What a judge of whole talks makes of answers that say too little, and which talks it is given."""

from __future__ import annotations

import asyncio
import math
from collections import Counter

import pytest

from esc_lab.config.compare import TalkRubricConfig
from esc_lab.config.files import read_option
from esc_lab.config.search import LLMConfig
from esc_lab.data.dialogue import Reply, Turn
from esc_lab.judging.talk_rubric import build_rubric
from esc_lab.judging.talk_session import TalkJudgeSession
from esc_lab.prompts import SeekerProfile
from esc_lab.search.requests import Answer, Request
from esc_lab.search.roles import Roles
from tests.conftest import INVENTORIES

TALK = (Turn("seeker", Reply("I feel lost.")), Turn("supporter", Reply("Where?")))


@pytest.mark.parametrize("name", ["axes", "safety"])
@pytest.mark.parametrize("unseen", [0, 1, "all"])
def test_questions_of_which_an_endpoint_tells_nothing(name, unseen):
    """Some unseen: no judgement, counted as one that is there in part; all unseen: as missing."""
    rubric = build_rubric(TalkRubricConfig(**read_option("rubric", name)))
    options = 2 if rubric.yes_no else 5
    hidden = len(rubric.names) if unseen == "all" else unseen
    seen = (math.log(0.75), *[math.log(0.25 / (options - 1))] * (options - 1))

    async def send(request: Request) -> Answer:
        return Answer(log_probs=tuple(() if n < hidden else seen for n in range(len(request.questions))))

    session = TalkJudgeSession.__new__(TalkJudgeSession)
    session.rubric, counts = rubric, Counter()
    session.roles = Roles(INVENTORIES["esconv"], SeekerProfile(""), LLMConfig(), {"judge"}, send, counts)
    judgement = asyncio.run(session._ask(TALK))
    if hidden:
        assert judgement is None
        assert counts == {"judge/missing" if unseen == "all" else "judge/partly": 1}
    else:
        assert {*judgement.scores} == {*rubric.names}
        assert set(judgement.scores.values()) == {0.75 if rubric.yes_no else 0.625}
        assert not counts
