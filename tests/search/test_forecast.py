"""What a search will take against what it took, with a model whose endings are known."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from esc_lab.cli.compositions import CONF
from esc_lab.config import typed
from esc_lab.config.search import ROLES
from esc_lab.search import forecast
from esc_lab.search.calls import Calls
from esc_lab.search.forecast import forecast_search
from esc_lab.search.requests import Answer, Request
from esc_lab.search.seed_dialogue import build_seed
from esc_lab.search.session import SearchSession
from esc_lab.search.stand_in import CHARACTERS
from esc_lab.seeds import derive_seed

WORDS = ["that", "sounds", "like", "a", "lot", "to", "carry", "and", "I", "am", "glad", "you", "told", "me", "today"]


class LoadedModel:
    """Plays all roles as a model that is loaded: probabilities of options, and replies of ten words.

    Args:
        ending: probability that the seeker ends the talk.
    """

    scores = True
    retries: Mapping[str, int] = {}

    def __init__(self, ending: float) -> None:
        self.identity: Mapping[str, Any] = {"kind": "local"}
        self.ending, self.written = ending, 0

    async def answer(self, request: Request) -> Answer:
        texts = [message.content for message in request.messages]
        draw = random.Random(derive_seed(request.seed, request.sample, *texts))
        read = sum(map(len, texts)) // CHARACTERS * 2  # its tokens are half as long as English ones
        if request.questions:
            rows = [[draw.random() + 0.01 for _ in question.options] for question in request.questions]
            if request.questions[0].name == "end":
                rows = [[self.ending, 1 - self.ending]]
            shares = tuple(tuple(math.log(value / sum(row)) for value in row) for row in rows)
            return Answer(log_probs=shares, prompt_tokens=read)
        self.written += 25
        return Answer(" ".join(draw.choices(WORDS, k=10)), prompt_tokens=read, completion_tokens=25)

    async def close(self) -> None: ...


@pytest.mark.parametrize("ending", [0.02, 0.5, 0.98])
def test_a_model_that_is_loaded_is_asked_how_often_it_ends_talks(tmp_path, monkeypatch, sample_dialogues, ending):
    words = ("stage=search", "mcts=quick", "search.cache=false", "search.judge_check=4")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = typed(compose("config", [*words]))
    cfg.run_dir = str(tmp_path)
    seeds = [build_seed(dialogue) for dialogue in sample_dialogues[:8]]
    models = []

    def load(*_: object) -> Calls:
        models.append(LoadedModel(ending))
        return Calls(dict.fromkeys(ROLES, models[-1]), cfg.search.concurrency)

    monkeypatch.setattr(forecast, "open_calls", load)
    expected = forecast_search(cfg, seeds, [])
    calls = load()
    took = calls.run(SearchSession(cfg, seeds, calls).search(), cfg.run_dir).calls.spent
    assert not list(Path(tmp_path).glob("judge_check"))
    assert expected.total.calls == pytest.approx(took.calls, rel=0.25)
    assert expected.total.prompt_tokens == pytest.approx(took.prompt_tokens, rel=0.3)
    assert expected.total.completion_tokens == pytest.approx(took.completion_tokens, rel=0.4)
    by_role = {role.role: role for role in expected.roles}
    assert by_role["strategist"].completion_tokens == by_role["judge"].completion_tokens == 0  # they only read
    assert f"seekers end the talk in {ending:.0%} of their turns, as their model did when asked" in expected.notes[2]
    assert "4 of 8 trees" in expected.notes[2]


def test_what_is_announced_before_the_first_silence():
    with initialize_config_dir(str(CONF), version_base="1.3"):
        words = ["stage=search", "mcts=quick", "llm.judge.client=openai", "llm.judge.model=big"]
        cfg = typed(compose("config", words))
    told = forecast.announce_forecast(cfg, 12)
    assert told.startswith("a dry run of a search from 12 dialogues with mcts=quick and strategist: SmolLM2-135M; ")
    assert "judge: openai big. 4 trees are grown with stand-ins" in told
    calls = 3 * forecast.TIMED + forecast.ENDINGS
    assert f"then up to {calls} calls of strategist, supporter, seeker are made and timed" in told
    assert told.endswith(" Endpoints are not asked.")
