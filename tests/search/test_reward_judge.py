"""A reward model as judge: what it is asked, what becomes of its answers, and that they are the reward model's own."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from esc_lab.config import Config
from esc_lab.config.data import InventoryConfig
from esc_lab.config.files import read_option
from esc_lab.config.search import JudgeConfig, LLMConfig, LocalConfig
from esc_lab.data.dialogue import Reply, Turn, merge_turns
from esc_lab.data.strategies import load_inventory
from esc_lab.errors import UserError
from esc_lab.prompts import Message, SeekerProfile
from esc_lab.prompts.trained import RewardPrompts, restore_trained_prompts
from esc_lab.scorers.reward_files import load_reward, save_reward
from esc_lab.scorers.reward_model import Calibration
from esc_lab.search.clients.reward import build_client
from esc_lab.search.requests import Answer, Request, TooLongError
from esc_lab.search.roles import Roles
from tests.conftest import CACHE, model_config
from tests.scorers.test_reward_model import build_reward, talks

ESCONV = load_inventory("esconv")
LLAMA = model_config("tiny_llama")
TALK = (
    Turn("seeker", Reply("I lost my job.")),
    Turn("supporter", Reply("That hurts.", ("Reflection of feelings", "Others"))),
    Turn("seeker", Reply("It does.")),
    Turn("supporter", Reply("Since when?", ("Question",))),
)


def configure(path: Path, **model) -> Config:
    llm = LLMConfig(name="test", local=LocalConfig(replace(LLAMA, **model)))
    llm.judge = JudgeConfig(client="reward", checkpoint=str(path))
    inventory = InventoryConfig(**read_option("inventory", "esconv"))
    return Config(stage="search", llm=llm, inventory=inventory, cache_dir=str(CACHE))


@pytest.fixture(scope="module", params=[(False, False), (True, False), (True, True)], ids=["text", "label", "ratio"])
def saved(request, tmp_path_factory):
    """The directory of a reward model, whether it reads strategies, and what it is. The last has a likelihood."""
    path = tmp_path_factory.mktemp("reward")
    strategy_text, likelihood = request.param
    built = build_reward(adapter=2, strategy_text=strategy_text, likelihood=likelihood)
    save_reward(replace(built, calibration=Calibration(1.5, 0.25)), LLAMA, ESCONV, path)
    return path, strategy_text, load_reward(path, ESCONV, CACHE)


def ask(client, conversations, together: bool) -> list[Answer]:
    """The answers to the judge's requests, in their order."""

    async def answer_all() -> list[Answer]:
        requests: list[Request] = []

        async def send(request: Request) -> Answer:
            requests.append(request)
            return Answer(log_probs=((math.log(0.5),) * 2,))

        roles = Roles(ESCONV, SeekerProfile(""), LLMConfig(), {"judge": client.identity["asked"]}, send, Counter())
        for talk in conversations:
            await roles.judge(talk)
        if together:
            return await asyncio.gather(*map(client.answer, requests))
        return [await client.answer(request) for request in requests]

    return asyncio.run(answer_all())


@pytest.mark.parametrize("together", [True, False])
def test_scores_are_the_reward_models_own(saved, sample_dialogues, together):
    """All turns of dialogues with candidates of each, however many are computed at once and whatever is cached."""
    path, _, reward = saved
    conversations = [talk for each in sample_dialogues[:2] for talk in talks(merge_turns(each, "set"))]
    expected = reward.score(conversations)
    client = build_client(configure(path), "judge", {})
    found = ask(client, conversations, together)
    asyncio.run(client.close())
    logits = np.array([better - worse for ((better, worse),) in (answer.log_probs for answer in found)])
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    assert all(math.isclose(sum(map(math.exp, answer.log_probs[0])), 1, abs_tol=1e-5) for answer in found)
    assert min(answer.prompt_tokens for answer in found) > 10


def test_one_base_model_plays_it_beside_others(saved):
    shared: dict = {}
    cfg = configure(saved[0])
    client = build_client(cfg, "judge", shared)
    (base,) = shared.values()
    assert client._worker is base._worker
    assert client.identity != base.identity
    assert client.identity == build_client(cfg, "judge", shared).identity
    asyncio.run(base.close())


def test_its_score_is_the_probability_to_beat_a_middling_reply():
    """Logits of 1 and -1: 4 times the logistic; in pairs the logistic of their difference, in any order."""
    logits = {"That hurts.": 1.0, "Cheer up!": -1.0}
    requests = []

    async def send(request: Request) -> Answer:
        requests.append(request)
        logit = logits[request.messages[-1].content]
        return Answer(log_probs=((-math.log1p(math.exp(-logit)), -math.log1p(math.exp(logit))),))

    asked = {"judge": RewardPrompts(False).record()}
    roles = Roles(ESCONV, SeekerProfile(""), LLMConfig(), asked, send, Counter())
    assert asyncio.run(roles.judge(TALK[:2])) == {"reward": pytest.approx(4 / (1 + math.exp(-1)), abs=1e-3)}
    assert asyncio.run(roles.score(TALK[:2])) == pytest.approx(2.924, abs=1e-3)
    preferred = asyncio.run(roles.prefer(TALK[:1], *logits)), asyncio.run(roles.prefer(TALK[:1], *reversed(logits)))
    assert preferred == (pytest.approx(1 / (1 + math.exp(-2))), pytest.approx(1 / (1 + math.exp(2))))
    assert {request.key({}) for request in requests} == {requests[0].key({}), requests[3].key({})}  # two calls in all
    assert requests[0].messages == (Message("user", "I lost my job."), Message("assistant", "That hurts."))
    assert "empathy: 4" in roles.claim


def test_a_share_of_its_score_is_of_the_strategy_alone():
    logits = {"That hurts.": 1.0, "(Reflection of feelings)": -2.0}

    async def send(request: Request) -> Answer:
        logit = logits[request.messages[-1].content]
        return Answer(log_probs=((-math.log1p(math.exp(-logit)), -math.log1p(math.exp(logit))),))

    asked = {"judge": RewardPrompts(False, 0.7, {"Reflection of feelings": -0.5}).record()}
    roles = Roles(ESCONV, SeekerProfile(""), LLMConfig(), asked, send, Counter())
    expected = 4 * (0.3 / (1 + math.exp(-1)) + 0.7 / (1 + math.exp(1.5)))
    assert asyncio.run(roles.judge(TALK[:2])) == {"reward": pytest.approx(expected, abs=1e-3)}
    unlabelled = (TALK[0], Turn("supporter", Reply("That hurts.")))
    assert asyncio.run(roles.score(unlabelled)) == pytest.approx(4 / (1 + math.exp(-1)), abs=1e-3)


def test_strategies_are_shown_where_it_reads_them():
    for shows in (True, False):
        prompts = restore_trained_prompts(RewardPrompts(shows).record(), ESCONV)
        texts = [message.content for message in prompts.ask(TALK)]
        label = "(Reflection of feelings) " if shows else ""
        assert texts[1] == f"{label}That hurts."
        assert texts[3].endswith("Since when?")


def test_special_tokens_are_taken_out(saved):
    client = build_client(configure(saved[0]), "judge", {})
    end = client.encoder.tokenizer.eos_token
    plain, spelled = (
        (Turn("seeker", Reply("I am sad.")), Turn("supporter", Reply(f"Why{mark}?"))) for mark in ("", end)
    )
    first, second = ask(client, [plain, spelled], together=True)
    asyncio.run(client.close())
    assert first.log_probs == second.log_probs
    assert client.specials_removed == 1


def test_a_talk_that_leaves_no_room_is_set_aside(saved):
    client = build_client(configure(saved[0]), "judge", {})
    talk = (Turn("seeker", Reply("sad " * 3000)), Turn("supporter", Reply("Why?")))
    with pytest.raises(TooLongError, match="above the"):
        ask(client, [talk], together=True)
    assert ask(client, [TALK], together=True)  # others are answered
    asyncio.run(client.close())


def test_what_does_not_fit_is_refused(saved, tmp_path):
    with pytest.raises(UserError, match="no reward model in it"):
        build_client(configure(tmp_path), "judge", {})
    with pytest.raises(UserError, match=r"it was trained on tiny-llama .*, not on other"):
        build_client(configure(saved[0], name="other"), "judge", {})
    cfg = configure(saved[0])
    cfg.inventory = InventoryConfig(**read_option("inventory", "cso"))
    with pytest.raises(UserError, match=r"it is for the strategies .* not those of cso"):
        build_client(cfg, "judge", {})
