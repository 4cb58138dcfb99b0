"""The local client against transformers, one request at a time, and what happens when something goes wrong."""

from __future__ import annotations

import asyncio
import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir

from esc_lab.cli.compositions import CONF
from esc_lab.config import typed
from esc_lab.errors import UserError
from esc_lab.models.engine import EngineLimits
from esc_lab.models.load import load_encoder
from esc_lab.prompts import Message, Prompt
from esc_lab.search.clients.local import LocalClient, build_client
from esc_lab.search.model_worker import encode_options, normalize_options
from esc_lab.search.requests import Answer, Question, Request
from tests.conftest import CACHE, model_config

SYSTEM = Message("system", "A seeker talks to a supporter, who may ask, comfort or advise. " * 3)
TALK = ["seeker: my flat is gone.", "supporter: Since when?", "seeker: nine days now", "supporter: Where do you sleep?"]
NUMBERS = Question("Empathy", "Empathy: ", tuple(map(str, range(11))))
END = Question("end", "", ("ends", "continues", "continues after that"))


def messages(turns: int, asked: str) -> tuple[Message, ...]:
    return SYSTEM, Message("user", "\n".join(TALK[:turns]) + f"\n\n{asked}")


def requests() -> list[Request]:
    """The calls of a growing talk, as a search makes them."""
    found = []
    for turns in range(1, len(TALK) + 1):
        said = messages(turns, "Write the supporter's next message.")
        found += [
            Request("supporter", said, max_tokens=6, temperature=0.0),
            Request("supporter", said, max_tokens=8, temperature=3.0, top_p=0.9, seed=turns),
            Request("supporter", said, max_tokens=8, temperature=3.0, top_p=0.9, seed=turns + 100),
            Request("strategist", messages(turns, "Rate it."), (NUMBERS, replace(NUMBERS, lead="Tact: "))),
            Request("seeker", messages(turns, "Does it end?"), (END,)),
        ]
    return found


def answers(client: LocalClient, asked: list[Request]) -> list[Answer]:
    """All at once."""

    async def run() -> list[Answer]:
        try:
            return list(await asyncio.gather(*map(client.answer, asked)))
        finally:
            await client.close()

    return asyncio.run(run())


def prompt_ids(loaded, request: Request) -> torch.Tensor:
    return torch.from_numpy(loaded.encoder.encode_prompt(loaded.encoder.adapt(Prompt(request.messages))).input_ids)


def test_all_at_once_as_one_at_a_time(tiny_models, family):
    loaded, asked = tiny_models(family), requests()
    together = answers(
        LocalClient(loaded, "tiny", limits=EngineLimits(batch=5, row_tokens=200, cache_tokens=300)), asked
    )
    for request, answer in zip(asked, together, strict=True):
        (alone,) = answers(LocalClient(loaded, "tiny"), [request])
        assert answer.text == alone.text
        assert answer.completion_tokens == alone.completion_tokens
        assert (answer.model, answer.prompt_tokens) == ("tiny", len(prompt_ids(loaded, request)))
        for ours, theirs in zip(answer.log_probs, alone.log_probs, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-5)
    texts = [answer.text for answer in together if answer.text]
    assert len(set(texts)) > len(texts) / 2  # draws with other seeds are others


def test_in_float64_answers_are_the_same_to_the_last_bit(tiny_models, family):
    """So is what `build_client` makes of a float32 model."""
    loaded, asked = tiny_models(family), requests()
    loaded = replace(loaded, model=copy.deepcopy(loaded.model).double())
    limits = EngineLimits(batch=5, row_tokens=200, cache_tokens=300)
    together = answers(LocalClient(loaded, "tiny", limits=limits), asked)
    alone = [answer for request in asked for answer in answers(LocalClient(loaded, "tiny"), [request])]
    assert together == alone


def test_a_float32_model_computes_in_float64_under_its_own_name():
    with initialize_config_dir(str(CONF), version_base="1.3"):
        words = ["stage=search", "model@llm.local.model=tiny_llama", f"cache_dir={CACHE}"]
        cfg = typed(compose("config", words))
    client = build_client(cfg, "judge", {})
    faster = build_client(
        replace(cfg, llm=replace(cfg.llm, local=replace(cfg.llm.local, repeatable=False))), "judge", {}
    )
    assert client.identity["dtype"] == faster.identity["dtype"] == "float32"
    assert client.identity != faster.identity
    assert client._worker._loaded.model.dtype == torch.float64
    assert faster._worker._loaded.model.dtype == torch.float32
    for each in (client, faster):
        asyncio.run(each.close())


def test_greedy_text_is_that_of_generate(tiny_models, family):
    loaded = tiny_models(family)
    asked = [request for request in requests() if request.temperature == 0]
    for request, answer in zip(asked, answers(LocalClient(loaded, "tiny"), asked), strict=True):
        ids = prompt_ids(loaded, request)[None]
        stop = [loaded.encoder.end_of_turn, loaded.encoder.tokenizer.eos_token_id]
        mask = torch.ones_like(ids)
        found = loaded.model.generate(ids, attention_mask=mask, max_new_tokens=6, do_sample=False, eos_token_id=stop)
        reply = [token for token in found[0, ids.shape[1] :].tolist() if token not in stop]
        assert answer.text == loaded.encoder.decode(reply)
        assert answer.completion_tokens == len(reply)


def test_options_by_brute_force(tiny_models, family):
    """Each option in a sequence of its own, in float64; "1" and "continues" without what belongs to longer options."""
    loaded = tiny_models(family)
    exact = copy.deepcopy(loaded.model).double()
    asked = [request for request in requests() if request.questions]
    for request, answer in zip(asked, answers(LocalClient(loaded, "tiny"), asked), strict=True):
        for question, found in zip(request.questions, answer.log_probs, strict=True):
            expected = brute_force(loaded, exact, request, question)
            np.testing.assert_allclose(found, expected, atol=2e-5)
            assert np.exp(found).sum() == pytest.approx(1)


def brute_force(loaded, exact, request: Request, question: Question) -> np.ndarray:
    prompt = Prompt(request.messages)
    start = len(prompt_ids(loaded, request))
    replies, probs = [], []
    for option in question.options:
        chat = (*loaded.encoder.adapt(prompt).messages, Message("assistant", question.lead + option))
        ids = loaded.encoder.encode(chat).input_ids
        end = loaded.encoder.encode(chat).replies[len(chat) - 1][1] - 1
        with torch.no_grad():
            kept = exact(torch.from_numpy(ids[:end])[None], logits_to_keep=end - start + 1)
            law = torch.softmax(kept.logits[0], dim=-1).numpy()
        replies.append(ids[start:end].tolist())
        probs.append(law)
    masses = []
    for reply, law in zip(replies, probs, strict=True):
        following = {other[len(reply)] for other in replies if len(other) > len(reply) and other[: len(reply)] == reply}
        others = sum(law[len(reply), token] for token in following)
        masses.append(np.prod([law[place, token] for place, token in enumerate(reply)]) * (1 - others))
    return np.log(np.array(masses) / sum(masses))


def test_a_longer_option_is_not_counted_for_a_shorter_one():
    # After the lead comes 1 (0.5), 2 (0.3) or something else; after 1 comes 0 (0.8), after 1 0 comes 5 (0.25).
    options = [np.array(ids) for ids in ([1], [1, 0], [1, 0, 5], [2])]
    log_probs = [np.log(values) for values in ([0.5], [0.5, 0.8], [0.5, 0.8, 0.25], [0.3])]
    masses = np.array([0.1, 0.3, 0.1, 0.3])
    np.testing.assert_allclose(np.exp(normalize_options(options, log_probs)), masses / masses.sum())
    certain = normalize_options(options[:2], [np.log([0.5]), np.log([0.5, 1.0])])
    assert np.isfinite(certain).all()
    np.testing.assert_allclose(np.exp(certain), [0, 1], atol=1e-12)


def test_options_are_tokens_as_the_model_writes_them(tiny_models, family):
    encoders = [tiny_models(family).encoder]
    if family == "llama":
        encoders.append(load_encoder(model_config("smollm2_135m"), CACHE))
    for encoder in encoders:
        prompt = encoder.adapt(Prompt(messages(3, "Rate it.")))
        for question in (NUMBERS, END, Question("", "Providing Suggestions: ", ("0", "10"))):
            found, shared = encode_options(encoder, question)
            for ids, option in zip(found, question.options, strict=True):
                chat = encoder.encode((*prompt.messages, Message("assistant", question.lead + option)))
                start, end = chat.replies[len(prompt.messages)]
                np.testing.assert_array_equal(ids, chat.input_ids[start : end - 1])
                assert ids[:shared].tolist() == found[0][:shared].tolist()
                assert shared < len(ids)
                assert encoder.decode(ids.tolist()) == question.lead + option


def test_special_tokens_in_messages_are_taken_out_and_counted(tiny_models):
    loaded = tiny_models("llama")
    special = loaded.encoder.tokenizer.convert_ids_to_tokens(loaded.encoder.end_of_turn)
    half = len(special) // 2
    plain = Request("seeker", (Message("user", "I am here. "),), max_tokens=5, temperature=0.0)
    spoiled = replace(
        plain, messages=(Message("user", f"I {special}am here{special[:half]}{special}{special[half:]}. "),)
    )
    client = LocalClient(loaded, "tiny")
    first, second = answers(client, [plain, spoiled])
    assert first == second
    assert client.specials_removed == 3


def test_requests_that_are_too_long(tiny_models):
    loaded = replace(tiny_models("llama"), context_tokens=400)
    short = Request("seeker", (Message("user", "Hello."),), max_tokens=4, temperature=0.0)
    long = replace(short, messages=(Message("user", "no " * 600),))
    greedy = replace(short, max_tokens=300)
    client = LocalClient(loaded, "tiny", limits=EngineLimits(working_tokens=200))

    async def run() -> list[Answer | BaseException]:
        found = await asyncio.gather(*map(client.answer, (long, short, greedy)), return_exceptions=True)
        await client.close()
        return found

    found = asyncio.run(run())
    assert isinstance(found[0], UserError)
    assert f"prompt of {len(prompt_ids(loaded, long))} tokens and a reply of up to 4 exceed" in str(found[0])
    assert isinstance(found[1], Answer)
    assert isinstance(found[2], UserError)
    assert "+ 300 tokens, and the client has room for 200" in str(found[2])
    assert "request of the seeker" in str(found[2])


def test_an_error_of_the_model_reaches_all_under_way_and_the_client_goes_on(tiny_models):
    loaded = tiny_models("qwen2")
    asked = [request for request in requests() if request.role == "supporter"]
    client = LocalClient(loaded, "tiny")
    passes = []

    def fail(*_) -> None:
        passes.append(1)
        if len(passes) == 3:
            raise MemoryError("no more")

    async def run() -> tuple[list[Answer | BaseException], list[Answer]]:
        hook = loaded.model.get_decoder().register_forward_pre_hook(fail)
        try:
            failed = await asyncio.gather(*map(client.answer, asked), return_exceptions=True)
        finally:
            hook.remove()
        again = await asyncio.gather(*map(client.answer, asked))
        await client.close()
        return failed, again

    failed, again = asyncio.run(run())
    assert {type(error) for error in failed} == {MemoryError}
    assert again == answers(LocalClient(loaded, "tiny"), asked)


async def begun(client: LocalClient) -> None:
    """Until the model has requests to work on."""
    while not client._worker._jobs:
        await asyncio.sleep(0.001)


def test_a_caller_that_gives_up_does_not_disturb_others(tiny_models):
    loaded = tiny_models("gemma2")
    first, second, *_ = requests()
    client = LocalClient(loaded, "tiny")

    async def run() -> Answer:
        given_up = asyncio.create_task(client.answer(replace(second, max_tokens=3000)))
        kept = asyncio.create_task(client.answer(first))
        await begun(client)
        given_up.cancel()
        answer = await kept
        with pytest.raises(asyncio.CancelledError):
            await given_up
        await client.close()
        return answer

    assert asyncio.run(run()) == answers(LocalClient(loaded, "tiny"), [first])[0]


def test_an_answer_that_cannot_be_put_together_is_told(tiny_models, monkeypatch):
    client = LocalClient(tiny_models("llama"), "tiny")

    def fail(*_) -> Answer:
        raise ValueError("no such state")

    async def run() -> list[Answer | BaseException]:
        with monkeypatch.context() as patch:
            patch.setattr(client._worker, "_answer", fail)
            told = await asyncio.gather(client.answer(requests()[0]), return_exceptions=True)
        told += await asyncio.gather(client.answer(requests()[0]))
        await client.close()
        return told

    failed, answered = asyncio.run(run())
    assert isinstance(failed, ValueError)
    assert isinstance(answered, Answer)


def test_nobody_waits_for_a_thread_that_failed(tiny_models, monkeypatch):
    """What a pass does not catch ends the thread: all who wait, and all who ask later, are told."""
    client = LocalClient(tiny_models("llama"), "tiny")

    async def run() -> list[Answer | BaseException]:
        waiting = [
            asyncio.create_task(client.answer(replace(request, max_tokens=3000))) for request in requests()[1:3] * 2
        ]
        await begun(client)
        monkeypatch.setattr(client._worker._engine, "drop", lambda task: {}["no such task"])
        waiting[0].cancel()
        told = await asyncio.gather(*waiting[1:], return_exceptions=True)
        told += await asyncio.gather(client.answer(requests()[0]), return_exceptions=True)
        await client.close()
        return told

    told = asyncio.run(run())
    assert [type(error) for error in told] == [KeyError] * 4
    assert not client._worker._thread.is_alive()


def test_closing_ends_the_thread_and_cancels_what_waits(tiny_models):
    client = LocalClient(tiny_models("llama"), "tiny")

    async def run() -> None:
        waiting = asyncio.create_task(client.answer(replace(requests()[1], max_tokens=3000)))
        await begun(client)
        await client.close()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        with pytest.raises(RuntimeError, match="closed"):
            await client.answer(requests()[0])
        await client.close()

    asyncio.run(run())
    assert not client._worker._thread.is_alive()


def test_identity_is_json_and_tells_models_apart(tiny_models):
    clients = [LocalClient(tiny_models("llama"), "tiny", identity={"weights": weights}) for weights in ("a", "b")]
    assert clients[0].scores
    assert json.loads(json.dumps(clients[0].identity)) == clients[0].identity
    assert requests()[0].key(clients[0].identity) != requests()[0].key(clients[1].identity)
    for client in clients:
        asyncio.run(client.close())
