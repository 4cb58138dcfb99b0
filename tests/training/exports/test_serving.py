"""What a model's card says of running it; its Modelfile, read as Ollama reads it."""

from __future__ import annotations

import re

import pytest
from tokenizers.processors import TemplateProcessing

from esc_lab.models.load import load_encoder
from esc_lab.tokens import ChatEncoder
from esc_lab.training.exports.serving import ServedModel, describe_serving, write_modelfile
from tests.conftest import CACHE, FAMILIES, model_config

SERVED = ServedModel("You are the supporter.\nChoose a strategy.", 2048, 64)
TALK = ["hi", "(Question) What happened?", "I lost my job.", "(Others) Oh.", "yes"]


def encoder_of(family: str) -> ChatEncoder:
    return load_encoder(model_config(f"tiny_{family}"), CACHE)


def instructions(modelfile: str) -> dict[str, str]:
    found = re.findall(r'^(TEMPLATE|SYSTEM) """(.*?)"""$|^(\w+) ([^\n]*)$', modelfile, re.M | re.S)
    return {name or other: text or rest for name, text, other, rest in found}


def render_as_ollama(template: str, system: str, talk: list[str]) -> str:
    """The template run for each exchange, the last time up to the reply: a system message is in the first alone."""

    def run(text: str, **values: str) -> str:
        condition = re.fullmatch(r"\{\{ if \.System \}\}(.*)\{\{ else \}\}(.*)\{\{ end \}\}(.*)", text, re.S)
        assert condition
        chosen = condition[1] if values["System"] else condition[2]
        return re.sub(r"\{\{ \.(\w+) \}\}", lambda found: values[found[1]], chosen + condition[3])

    exchanges = [*zip(talk[::2], [*talk[1::2], ""], strict=True)]
    parts = []
    for number, (prompt, response) in enumerate(exchanges):
        whole = template if number < len(exchanges) - 1 else template.partition("{{ .Response }}")[0]
        parts.append(run(whole, System=system if number == 0 else "", Prompt=prompt, Response=response))
    return "".join(parts)


def check(encoder: ChatEncoder, before: str = "") -> None:
    """Ollama's prompt is the chat template's, without what llama.cpp puts before it."""
    modelfile = write_modelfile(encoder, SERVED)
    assert modelfile is not None
    read = instructions(modelfile)
    assert read["SYSTEM"] == SERVED.system
    chat = [{"role": ("user", "assistant")[number % 2], "content": text} for number, text in enumerate(TALK)]
    if encoder.system_role:
        chat.insert(0, {"role": "system", "content": SERVED.system})
    else:
        chat[0]["content"] = f"{SERVED.system}\n\n{TALK[0]}"
    expected = encoder.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert before + render_as_ollama(read["TEMPLATE"], SERVED.system, TALK) == expected
    stops = set(re.findall(r'^PARAMETER stop "(.*)"$', modelfile, re.M))
    assert stops == {encoder.tokenizer.convert_ids_to_tokens(token) for token in encoder.stop_tokens}
    assert "PARAMETER num_ctx 2112\nPARAMETER num_predict 64" in modelfile


@pytest.mark.parametrize("family", FAMILIES)
def test_ollama_writes_the_prompt_that_the_chat_template_writes(family: str) -> None:
    check(encoder_of(family))


@pytest.mark.parametrize("added", [False, True])
def test_a_beginning_of_text_is_left_to_llama_cpp_only_where_the_tokenizer_adds_it(added: bool) -> None:
    """Some have the mark of a turn for it, and add none."""
    tokenizer = encoder_of("llama").tokenizer
    tokenizer.bos_token = "<|im_start|>"
    if added:
        pair = (tokenizer.bos_token, tokenizer.bos_token_id)
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"{pair[0]} $A", special_tokens=[pair])
        tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template
    check(ChatEncoder(tokenizer), tokenizer.bos_token if added else "")


# The first two write other things around later messages than around earlier ones.
MESSAGES = "{% for m in messages %}<{{ m.role }}BEFORE>{{ m.content }}{{ eos_token }}{% endfor %}"
GENERATION = "{% if add_generation_prompt %}<assistantBEFORE>{% endif %}"
LAST = "{% if m.role == 'assistant' and loop.last %}-last{% endif %}"
CHANGES = [
    MESSAGES.replace("BEFORE", "{{ loop.index }}") + GENERATION.replace("BEFORE", "{{ messages | length + 1 }}"),
    MESSAGES.replace("BEFORE", LAST) + GENERATION.replace("BEFORE", "-last"),
    (MESSAGES + GENERATION).replace("BEFORE", '"""'),
]


@pytest.mark.parametrize("template", CHANGES, ids=["numbers", "the last one", "quotation marks"])
def test_there_is_no_modelfile_where_the_two_templates_would_differ(template: str) -> None:
    tokenizer = encoder_of("llama").tokenizer
    tokenizer.chat_template = template
    assert write_modelfile(ChatEncoder(tokenizer), SERVED) is None


def test_the_card_says_how_the_model_is_run() -> None:
    text = describe_serving(SERVED, modelfile=True, gguf=False)
    assert "Chats without a system message get that of the training." in text
    for part in ("pipeline(", "vllm serve DIRECTORY", "convert_hf_to_gguf.py DIRECTORY", "ollama create NAME -f"):
        assert part in text
    other = describe_serving(ServedModel("", 10, 10), modelfile=False, gguf=True)
    assert "with `model.gguf` of this directory:\n\n    llama-server -m model.gguf" in other
    assert "convert_hf" not in other
    assert "Every chat needs a system message of its own" in other
    assert "there is no Modelfile" in other
