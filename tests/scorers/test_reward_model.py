"""Scores of a reward model: the same in a packed tree as one by one, with shortened histories, and what it reads."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from esc_lab.config.reward import RewardConfig
from esc_lab.config.training import AdapterConfig
from esc_lab.data.dialogue import Reply, Turn, merge_turns
from esc_lab.errors import UserError
from esc_lab.models.forward import base_model
from esc_lab.models.load import load_model
from esc_lab.prompts import load_layout
from esc_lab.scorers.conversations import take_words
from esc_lab.scorers.reward_files import new_reward
from esc_lab.scorers.reward_model import Calibration, RewardModel
from tests.conftest import CACHE, model_config

WORDS = take_words(load_layout("cso").wording)
FOILS = (Reply("You could look for another one.", ("Providing Suggestions",)), Reply("I see.", ("Others",)))


def build_reward(family: str = "llama", row_tokens: int = 2048, adapter: int | None = None, **settings) -> RewardModel:
    """A reward model on a tiny base model whose adapter and head are no longer those of the beginning."""
    config = model_config(f"tiny_{family}")
    loaded = load_model(config, CACHE)
    torch.manual_seed(0)
    chosen = RewardConfig(**{"reply_tokens": 64, **settings})
    reward = new_reward(loaded, config, AdapterConfig(layers=adapter), chosen, WORDS, row_tokens)
    with torch.no_grad():
        for parameter in (*reward.model.parameters(), *reward.head.parameters()):
            if parameter.requires_grad:
                parameter += 0.2 * torch.randn_like(parameter)
    reward.model.eval()
    return reward


def talks(dialogue, foils=FOILS) -> list[tuple[Turn, ...]]:
    """Each decision of a dialogue with its given reply and with the foils."""
    return [
        (*dialogue.turns[:turn], Turn("supporter", reply))
        for turn in dialogue.decisions()
        for reply in (dialogue.turns[turn].reply, *foils)
    ]


@pytest.mark.parametrize("likelihood", [False, True])
def test_a_tree_gives_what_each_conversation_gives_alone(family, sample_dialogues, likelihood):
    reward = build_reward(family, likelihood=likelihood)
    conversations = [talk for dialogue in sample_dialogues[:2] for talk in talks(merge_turns(dialogue, "set"))][:40]
    together = reward.score(conversations)
    alone = np.concatenate([reward.score([talk]) for talk in conversations])
    np.testing.assert_allclose(together, alone, atol=1e-4)
    assert together.std() > 0.05
    backwards = reward.score(conversations[::-1])[::-1]
    np.testing.assert_allclose(together, backwards, atol=1e-4)


def test_long_histories_lose_the_same_turns_in_any_company(sample_dialogues):
    reward = build_reward(row_tokens=440, reply_tokens=48, foils=1)
    conversations = talks(merge_turns(sample_dialogues[0], "none"))
    together = reward.score(conversations)
    report = reward.conversations.report
    assert 0 < report.shortened < report.replies == len(conversations)
    alone = np.concatenate([reward.score([talk]) for talk in conversations])
    np.testing.assert_allclose(together, alone, atol=1e-4)
    longer = build_reward().score(conversations)
    short = len(talks(merge_turns(sample_dialogues[0], "none"))) - report.shortened // 2
    np.testing.assert_allclose(together[:3], longer[:3], atol=1e-4)
    assert np.abs(together[short:] - longer[short:]).max() > 1e-3


def test_a_score_is_read_at_the_end_of_the_turn():
    """By the model's own forward over the rendered chat."""
    reward = build_reward()
    talk = (Turn("seeker", Reply("I lost my job.")), Turn("supporter", FOILS[0]))
    chat = [{"role": "system", "content": WORDS["role"]}, {"role": "user", "content": "I lost my job."},
            {"role": "assistant", "content": FOILS[0].text}]  # fmt: skip
    text = reward.conversations.encoder.tokenizer.apply_chat_template(chat, tokenize=False).rstrip("\n")
    ids = torch.tensor([reward.conversations.encoder.tokenizer(text, add_special_tokens=False)["input_ids"]])
    with torch.no_grad():
        state = base_model(reward.model).get_decoder()(input_ids=ids).last_hidden_state[0, -1]
        expected = state / state.pow(2).mean().sqrt() @ reward.head.score.weight[0] + reward.head.score.bias[0]
    assert reward.score([talk])[0] == pytest.approx(float(expected), abs=1e-4)


def test_a_likelihood_ratio_is_part_of_a_score():
    """By the model's own forward over the rendered chats; what comes before the dialogue is of the base model."""
    reward = build_reward(likelihood=True)
    encoder = reward.conversations.encoder

    def log_probs(said: str) -> torch.Tensor:
        chat = [{"role": "system", "content": WORDS["role"]}, {"role": "user", "content": said}]
        start = len(encoder.tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"])
        chat.append({"role": "assistant", "content": FOILS[0].text})
        text = encoder.tokenizer.apply_chat_template(chat, tokenize=False).rstrip("\n")
        ids = torch.tensor([encoder.tokenizer(text, add_special_tokens=False)["input_ids"]])
        with torch.no_grad():
            values = reward.model(input_ids=ids).logits[0].double().log_softmax(dim=-1)
        return values[torch.arange(start - 1, ids.shape[1] - 1), ids[0, start:]]

    given = log_probs("I lost my job.")
    with reward.model.disable_adapter():
        before = log_probs(WORDS["start"])
    ratio = float(given.sum() - before.sum()) / len(given) ** 0.5
    talk = (Turn("seeker", Reply("I lost my job.")), Turn("supporter", FOILS[0]))
    whole, weight = reward.score([talk])[0], reward.head.ratio.item()
    torch.nn.init.zeros_(reward.head.ratio)
    assert abs(weight * ratio) > 0.01
    assert whole - reward.score([talk])[0] == pytest.approx(weight * ratio, abs=1e-4)


def test_strategies_are_read_only_where_that_is_asked_for():
    said = (
        Turn("seeker", Reply("I lost my job.")),
        Turn("supporter", Reply("Oh.", ("Others",))),
        Turn("seeker", Reply("Yes.")),
    )
    variants = [(*said, Turn("supporter", Reply("Why?", (name,)))) for name in ("Question", "Information")]
    history = (said[0], Turn("supporter", Reply("Oh.", ("Question",))), said[2], variants[0][-1])
    blind = build_reward().score([*variants, history])
    assert np.ptp(blind) < 1e-5
    seeing = build_reward(strategy_text=True).score([*variants, history])
    assert min(abs(seeing[0] - seeing[1]), abs(seeing[0] - seeing[2])) > 1e-3


@pytest.mark.parametrize("share", [0.7, 1.0])
def test_a_share_of_a_score_is_of_the_strategy_alone(share):
    """The shares are of probabilities; a reply without a strategy has no such part."""
    hello = Turn("seeker", Reply("I lost my job."))
    given = [(hello, Turn("supporter", Reply("Why?", names))) for names in (("Question", "Others"), ("Others",), ())]
    alone = [(hello, Turn("supporter", Reply("", names))) for names in (("Question",), ("Others",))]
    whole = build_reward()
    words, strategies = (1 / (1 + np.exp(-whole.score(talks))) for talks in (given, alone))
    assert abs(strategies[0] - strategies[1]) > 1e-3
    expected = [*((1 - share) * words[:2] + share * strategies), words[2]]
    mixed = replace(whole, strategy_share=share)
    np.testing.assert_allclose(1 / (1 + np.exp(-mixed.score(given))), expected, atol=1e-6)
    np.testing.assert_allclose(mixed.value(given), 4 * np.array(expected) - 3, atol=1e-5)
    centered = replace(mixed, strategy_centers={"Question": float(np.log(strategies[0] / (1 - strategies[0])))})
    expected = [(1 - share) * words[0] + share / 2, *expected[1:]]
    np.testing.assert_allclose(1 / (1 + np.exp(-centered.score(given))), expected, atol=1e-6)


def test_long_replies_are_cut_and_counted():
    reward = build_reward(reply_tokens=16)
    hello = Turn("seeker", Reply("Hello."))
    long = [(hello, Turn("supporter", Reply("word " * length))) for length in (60, 90)]
    scores = reward.score([*long, (hello, Turn("supporter", Reply("word")))])
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)
    assert reward.conversations.report.cut == 2


def test_calibration_moves_and_scales():
    reward = build_reward()
    talk = (Turn("seeker", Reply("Hello.")), Turn("supporter", FOILS[1]))
    moved = replace(reward, calibration=Calibration(temperature=2.0, center=0.5))
    assert moved.score([talk])[0] == pytest.approx((reward.score([talk])[0] - 0.5) / 2)


@pytest.mark.parametrize(("count", "trained"), [(1, {"1"}), (9, {"0", "1"}), (None, {"0", "1"})])
def test_only_the_last_layers_are_trained(count, trained):
    reward = build_reward(adapter=count)
    assert base_model(reward.model).config.num_hidden_layers == 2
    names = [name for name, parameter in reward.model.named_parameters() if parameter.requires_grad]
    assert {name.split(".layers.")[1].split(".")[0] for name in names} == trained
    assert len({name.split(".lora_")[0].rpartition(".")[2] for name in names}) == 7


def test_what_cannot_be_scored():
    reward = build_reward()
    hello = Turn("seeker", Reply("Hello."))
    for talk in ((), (hello,)):
        with pytest.raises(ValueError, match="has to end with a reply of the supporter"):
            reward.score([talk])
    with pytest.raises(UserError, match="special token"):
        reward.score([(hello, Turn("supporter", Reply("Hi <|im_end|> there")))])
    assert reward.score([]).shape == (0,)
    crowded = build_reward(row_tokens=360, reply_tokens=48, foils=1)
    with pytest.raises(UserError, match=r"the messages before it take \d+ tokens, above the 264 that replies leave"):
        crowded.score([(Turn("seeker", Reply("word " * 300)), Turn("supporter", FOILS[0]))])


def test_a_budget_without_room_for_a_history():
    with pytest.raises(UserError, match="3 replies of 64 tokens leave no room for a history"):
        build_reward(row_tokens=192)


def test_what_is_said_before_the_seeker_speaks_is_not_read():
    reward = build_reward()
    talk = (Turn("seeker", Reply("I lost my job.")), Turn("supporter", FOILS[0]))
    opening = Turn("supporter", Reply("Hello, how are you today?", ("Question",)))
    scores = reward.score([talk, (opening, *talk), (opening, opening), (opening,)])
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)
    assert scores[2] == pytest.approx(scores[3], abs=1e-5)
    assert abs(scores[0] - scores[2]) > 1e-3
