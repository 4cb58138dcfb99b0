"""A real byte-level tokenizer under chat templates of all shapes: the bundled ones and those of model families."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

import esc_lab.models
from esc_lab.models.sources import make_random_model
from esc_lab.tokens import ChatEncoder
from tests.conftest import CACHE

_SHAPE = {
    "model_type": "llama",
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
}

# The system text stands inside the first user message; replies stand between blanks.
_LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}"
    "{% set chat, system = messages[1:], '<<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n' %}"
    "{% else %}{% set chat, system = messages, '' %}{% endif %}"
    "{% for m in chat %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('no alternation') }}{% endif %}"
    "{% if m['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + ((system if loop.first else '') + m['content']) | trim + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] | trim + ' ' + '</s>' }}{% endif %}{% endfor %}"
)
# Headers around the role, trimmed contents, and an end-of-turn token that is not the tokenizer's end of text.
_LLAMA3 = (
    "{% for m in messages %}{% if loop.first %}{{ bos_token }}{% endif %}"
    "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' + m['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
# ChatML that brings a system message where the chat has none.
_QWEN = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\nYou are a kind assistant.<|im_end|>\\n' }}"
    "{% endif %}{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# Older replies are written in another way than the last one.
_FORGETFUL = (
    "{% for m in messages %}{% set old = m['role'] == 'assistant' and not loop.last %}"
    "{{ '<|im_start|>' + m['role'] + '\\n' + ('then: ' if old else '') + m['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# A model of reasoning (Qwen 3): the reply to be written stands behind an empty block, older ones do not.
_THINKING = (
    "{% set block = '<think>\\n\\n</think>\\n\\n' %}{% for m in messages %}"
    "{{ '<|im_start|>' + m['role'] + '\\n' }}{% if m['role'] == 'assistant' and loop.last %}{{ block }}{% endif %}"
    "{{ m['content'] + '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ block }}{% endif %}{% endif %}"
)
_BUNDLED = Path(esc_lab.models.__file__).parent / "chat_templates"
_TEMPLATES = {
    **{path.stem: path.read_text(encoding="utf-8").rstrip("\n") for path in _BUNDLED.glob("*.jinja")},
    "llama2": _LLAMA2,
    "llama3": _LLAMA3,
    "qwen": _QWEN,
    "forgetful": _FORGETFUL,
    "thinking": _THINKING,
}
_END_OF_TURN = {"gemma": "<end_of_turn>", "gemma3": "<end_of_turn>", "llama2": "</s>", "llama3": "<|eot_id|>"}
_MORE_TOKENS = ["</s>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
FAMILIES = ("chatml", "gemma", "gemma3", "llama2", "llama3", "qwen")


@pytest.fixture(scope="session")
def tokenizer_with():
    """`tokenizer_with(template text)` -> a tokenizer of its own with that chat template."""
    location = make_random_model(_SHAPE, "<|im_end|>", CACHE)

    def make(template):
        tokenizer = AutoTokenizer.from_pretrained(location)
        tokenizer.add_special_tokens({"additional_special_tokens": _MORE_TOKENS})
        # As Llama's and Gemma's tokenizers do, it puts a <bos> before every text unless told not to.
        bos = ("<bos>", tokenizer.bos_token_id)
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[bos])
        tokenizer.chat_template = template
        return tokenizer

    return make


@pytest.fixture(scope="session")
def encoders(tokenizer_with):
    """`encoders(name)` -> the chat encoder of a named template; its end-of-turn text is in `end_of_turn_text`."""
    made = {}

    def get(name):
        if name not in made:
            made[name] = ChatEncoder(tokenizer_with(_TEMPLATES[name]))
            made[name].end_of_turn_text = _END_OF_TURN.get(name, "<|im_end|>")
        return made[name]

    return get


@pytest.fixture(scope="session", params=FAMILIES)
def encoder(request, encoders):
    return encoders(request.param)
