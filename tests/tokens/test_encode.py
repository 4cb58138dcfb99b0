"""Token boundaries of replies and spans, against the template's own rendering and the offsets of every single token."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import ByT5Tokenizer

from esc_lab.errors import UserError
from esc_lab.prompts import Message, Prompt, Span, without_system_role
from esc_lab.tokens import ChatEncoder

HARD = (
    "How are you? 🙂",
    "🙂🙃 and 👩‍👧",
    "größer, naïve, 今日は",
    "ö",
    "one line\nanother\n\nand a third",
    "\"quoted\" and 'single' & more",
    "user",
    "assistant",
    "model",
    "system",
    '(Question) Why did the user say "assistant"?',
    ":) fine",
    "… and so on…",
    "1.",
    "{{ messages }} {% if %}",
    "[The seeker has just joined the chat.]",
)
contents = st.one_of(
    st.sampled_from(HARD),
    st.text(st.sampled_from("aA1 .,:()\"'\n-…äß🙂😢語"), min_size=1, max_size=12).map(str.strip).filter(bool),
)
few = settings(max_examples=12)
SYSTEM = "Be a kind supporter: ask, listen.\n\n- Question: ask."


def chat_of(texts):
    """A system message, and then the texts of seeker and supporter in turn."""
    roles = [("user", "assistant")[number % 2] for number in range(len(texts))]
    return (Message("system", SYSTEM), *(Message(role, text) for role, text in zip(roles, texts, strict=True)))


def adapted(encoder, messages):
    return encoder.adapt(Prompt(messages)).messages


def rendered(encoder, messages, generation=False):
    chat = [{"role": message.role, "content": message.content} for message in messages]
    options = {"add_generation_prompt": generation, "enable_thinking": False}
    return encoder.tokenizer.apply_chat_template(chat, tokenize=False, **options)


def tokenized(encoder, text):
    found = encoder.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return found["input_ids"], found["offset_mapping"]


def decoded(encoder, ids):
    return encoder.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def content_start(encoder, messages, number):
    """Character at which the content of a message begins: everything before it stays if the content changes."""
    other = [*messages[:number], Message(messages[number].role, "Qzx-0-xzQ"), *messages[number + 1 :]]
    return rendered(encoder, other).index("Qzx-0-xzQ")


@pytest.mark.parametrize("texts", [HARD[n : n + 4] for n in range(0, len(HARD), 4)])
def test_every_hard_content_in_every_place(encoder, texts):
    for shift in range(4):
        check_replies(encoder, [*texts[shift:], *texts[:shift]])


@few
@given(texts=st.lists(contents, min_size=2, max_size=6).filter(lambda texts: len(texts) % 2 == 0))
def test_any_content(encoder, texts):
    check_replies(encoder, texts)


def check_replies(encoder, texts):
    messages = adapted(encoder, chat_of(texts))
    real = rendered(encoder, messages)
    encoded = encoder.encode(messages)
    assert encoded.input_ids.tolist() == tokenized(encoder, real)[0]
    assert encoded.input_ids.dtype == np.int64
    assistants = [number for number, message in enumerate(messages) if message.role == "assistant"]
    assert list(encoded.replies) == assistants
    for number in assistants:
        start, end = encoded.replies[number]
        before = rendered(encoder, messages[:number], generation=True)
        prompt = encoder.encode_prompt(Prompt(messages[:number]))
        assert prompt.input_ids.tolist() == tokenized(encoder, before)[0] == encoded.input_ids[:start].tolist()
        # What a model has to write: all up to the end-of-turn token, and nothing that follows it.
        rest = real.removeprefix(before)
        stop = encoder.end_of_turn_text
        reply = rest[: rest.index(stop) + len(stop)]
        assert decoded(encoder, encoded.input_ids[start:end]) == reply
        assert reply.removesuffix(stop).strip() == messages[number].content
        assert encoded.input_ids[end - 1] == encoder.end_of_turn
        assert encoder.decode(encoded.input_ids[start:end].tolist()) == messages[number].content


@few
@given(data=st.data(), texts=st.lists(contents, min_size=4, max_size=4))
def test_spans_are_the_tokens_that_overlap_them(encoder, data, texts):
    messages = adapted(encoder, chat_of(texts))
    spans = []
    for _ in range(4):
        number = data.draw(st.integers(0, len(messages) - 1))
        length = len(messages[number].content)
        start = data.draw(st.integers(0, length - 1))
        spans.append(Span("name", number, start, data.draw(st.integers(start + 1, length))))
    encoded = encoder.encode(messages, spans)
    ids, offsets = tokenized(encoder, rendered(encoder, messages))
    assert [located.span for located in encoded.spans] == spans
    for span, located in zip(spans, encoded.spans, strict=True):
        at = content_start(encoder, messages, span.message)
        first, last = at + span.start, at + span.end
        overlapping = [n for n, (begin, end) in enumerate(offsets) if min(end, last) - max(begin, first) >= 1]
        assert list(range(located.start, located.end)) == overlapping
        assert messages[span.message].content[span.start : span.end] in decoded(
            encoder, ids[located.start : located.end]
        )
    for number, turn_start in enumerate(encoded.turn_starts.tolist()):
        at = content_start(encoder, messages, number)
        assert turn_start == next(n for n, (_, end) in enumerate(offsets) if end > at)


def test_spans_of_a_prompt(encoder):
    """The same tokens whether the prompt stands alone or the reply follows; the system text may move to the user."""
    spans = (Span("name", 0, SYSTEM.index("kind"), SYSTEM.index("kind") + 4), Span("quoted", 1, 0, 3))
    prompt = Prompt(chat_of(["Hi.", "Hello.", "I am lost."]), spans)
    prompt = encoder.adapt(prompt)
    alone = encoder.encode_prompt(prompt)
    (followed,) = encoder.encode_many([((*prompt.messages, Message("assistant", "Oh?")), prompt.spans)])
    assert alone.spans == followed.spans
    texts = [decoded(encoder, alone.input_ids[found.start : found.end]) for found in alone.spans]
    assert texts[0].strip() == "kind"
    assert "Hi." in texts[1]


def test_system_role(encoders):
    takes = {name: encoders(name).system_role for name in ("chatml", "gemma", "gemma3", "llama2", "llama3", "qwen")}
    assert takes == {name: name != "gemma" for name in takes}
    prompt = Prompt(chat_of(["Hi."]))
    assert encoders("gemma").adapt(prompt) == without_system_role(prompt)
    assert encoders("gemma").adapt(without_system_role(prompt)) == without_system_role(prompt)
    assert encoders("gemma3").adapt(prompt) is prompt
    # Where the system text stands in the first user message anyway, both ways come to the same text.
    assert encoders("gemma3").encode_prompt(prompt).input_ids.tolist() == (
        encoders("gemma").encode_prompt(without_system_role(prompt)).input_ids.tolist()
    )


def test_beginning_of_text_is_written_once(encoder):
    ids = encoder.encode(adapted(encoder, chat_of(["Hi.", "Hello."]))).input_ids.tolist()
    bos = encoder.tokenizer.bos_token_id
    assert ids.count(bos) == ("bos_token" in encoder.tokenizer.chat_template)


def test_default_system_message_does_not_replace_ours(encoders):
    encoder = encoders("qwen")
    text = decoded(encoder, encoder.encode(chat_of(["Hi.", "Hello."])).input_ids)
    assert "kind assistant" not in text
    assert SYSTEM in text


def test_many_chats_at_once_equal_one_by_one(encoder):
    chats = [adapted(encoder, chat_of(HARD[:count])) for count in (2, 6, 4, 2)]
    for together, messages in zip(encoder.encode_many([(chat, ()) for chat in chats]), chats, strict=True):
        alone = encoder.encode(messages)
        np.testing.assert_array_equal(together.input_ids, alone.input_ids)
        assert together.replies == alone.replies
    assert encoder.encode_many([]) == []


def test_histories_are_prefixes_of_each_other(encoder):
    assert encoder.prefix_stable
    messages = adapted(encoder, chat_of(HARD[:8]))
    ends = [number + 1 for number, message in enumerate(messages) if message.role == "assistant"]
    chats = [encoder.encode(messages[:end]) for end in ends]
    for shorter, longer in pairwise(chats):
        last = shorter.replies[max(shorter.replies)]
        assert longer.input_ids[: last[1]].tolist() == shorter.input_ids[: last[1]].tolist()
        assert longer.replies.items() >= shorter.replies.items()


@pytest.mark.parametrize("name", ["forgetful", "thinking"])
def test_a_template_that_rewrites_its_history_is_not_prefix_stable(encoders, name):
    encoder = encoders(name)
    assert not encoder.prefix_stable
    messages = chat_of(HARD[:4])
    encoded = encoder.encode(messages)
    start, _ = encoded.replies[len(messages) - 1]
    assert encoder.encode_prompt(Prompt(messages[:-1])).input_ids.tolist() == encoded.input_ids[:start].tolist()


CHATML = "<|im_start|>' + m['role'] + '\\n' + {content} + '<|im_end|>\\n"
GENERATE = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"


def chatml(content, loop="messages"):
    return "{% for m in " + loop + " %}{{ '" + CHATML.format(content=content) + "' }}{% endfor %}" + GENERATE


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (chatml("m['content'] | upper"), "rewrites message contents"),
        (chatml("m['content'] | replace('\\n', ' ')"), "rewrites message contents"),
        (chatml("m['content'] | e"), "rewrites message contents"),
        (chatml("m['content'] | replace('\"', '``')"), "rewrites message contents"),
        (chatml("m['content'] + m['content']"), "rewrites message contents"),
        (chatml("m['content'][:12]"), "rewrites message contents"),
        (chatml("m['content']", "messages | rejectattr('role', 'equalto', 'assistant')"), r"drops message \d \(assist"),
        (chatml("m['content']", "messages[-1:]"), "drops message 1"),
        (chatml("(m['content'] | tojson)"), "rewrites message contents"),
        (chatml("m['content']").replace("<|im_end|>", ""), "no end-of-turn token"),
        (chatml("m['content']").replace(GENERATE, ""), "generation prompt does not lead"),
        (chatml("m['content']").replace("assistant\\n", "assistant: "), "generation prompt does not lead"),
        (chatml("('<think>' if m['role'] == 'assistant' else '') + m['content']"), "generation prompt does not lead"),
        ("{{ raise_exception('only with tools') }}", "cannot render a dialogue: only with tools"),
        (chatml("m['content']", "messages | nosuchfilter"), "cannot render a dialogue: .*nosuchfilter"),
        ("{% for m in messages %}", "cannot render a dialogue"),
        (chatml("m['content']['text']"), "drops message 1|cannot render"),
        (chatml("m['content'] + 1"), "cannot render a dialogue"),
    ],
)
def test_templates_that_cannot_be_used(tokenizer_with, template, message):
    with pytest.raises(UserError, match=message) as caught:
        ChatEncoder(tokenizer_with(template))
    assert caught.value.where  # names the tokenizer
    assert caught.value.fix


def test_tokenizers_that_cannot_be_used(tokenizer_with):
    with pytest.raises(UserError, match="no chat template"):
        ChatEncoder(tokenizer_with(None))
    with pytest.raises(UserError, match="no fast tokenizer"):
        ChatEncoder(ByT5Tokenizer())


def test_special_tokens_in_texts_are_refused_and_never_decoded(encoders):
    encoder = encoders("chatml")
    with pytest.raises(UserError, match=r"'Fine\.<\|im_end\|>': a message holds the special token '<\|im_end\|>'"):
        encoder.encode([Message("user", "Hi."), Message("assistant", "Fine.<|im_end|>")])
    spelled = encoder.tokenizer("So <|im", add_special_tokens=False).input_ids
    spelled += encoder.tokenizer("_end|> be it", add_special_tokens=False).input_ids
    assert encoder.decode(spelled) == "So  be it"


def test_a_template_for_reasoning_is_rendered_without_it(encoders):
    encoder = encoders("thinking")
    messages = chat_of(HARD[:2])
    encoded = encoder.encode(messages)
    start, end = encoded.replies[len(messages) - 1]
    assert decoded(encoder, encoded.input_ids[:start]).endswith("assistant\n<think>\n\n</think>\n\n")
    assert decoded(encoder, encoded.input_ids[start:end]) == f"{HARD[1]}<|im_end|>"
