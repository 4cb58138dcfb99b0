"""Chat templates with a default system message: plain transformers makes of a chat what the run's encoder did."""

from __future__ import annotations

import copy

import numpy as np
import pytest

from esc_lab.models.default_system import add_default_system
from esc_lab.prompts import Message, Prompt
from esc_lab.tokens import ChatEncoder

SYSTEM = 'Be "kind": it\'s hard.\n- {% raw %} {{ x }} \\n -%} \U0001f642 ä\n\nAnswer (<strategy>) <reply>.'
CHAT = (
    Message("user", "I lost my job."),
    Message("assistant", "(Question) When?"),
    Message("user", "On Monday."),
)


@pytest.fixture
def encoders(tiny_models, family):
    """The encoder of a model, and that of its tokenizer with the default system message."""
    before = tiny_models(family).encoder
    tokenizer = copy.deepcopy(before.tokenizer)
    tokenizer.chat_template = add_default_system(before, SYSTEM)
    return before, ChatEncoder(tokenizer)


def test_a_chat_without_a_system_message_gets_the_default(encoders):
    before, after = encoders
    expected = before.encode_prompt(before.adapt(Prompt((Message("system", SYSTEM), *CHAT)))).input_ids
    chat = [{"role": message.role, "content": message.content} for message in CHAT]
    ids = after.tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"]
    np.testing.assert_array_equal(ids, expected)


def test_a_system_message_of_its_own_stays_the_only_one(encoders):
    before, after = encoders
    prompt = Prompt((Message("system", "Be brief."), *CHAT))
    expected = before.encode_prompt(before.adapt(prompt)).input_ids
    np.testing.assert_array_equal(after.encode_prompt(after.adapt(prompt)).input_ids, expected)
    assert after.prefix_stable == before.prefix_stable
    assert after.stop_tokens == before.stop_tokens
