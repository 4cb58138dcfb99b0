"""Tasks answered together, over a cache that is too small for all, equal those answered alone by transformers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import esc_lab.models.slots as slots
from esc_lab.models.engine import Engine, EngineLimits, ReplyTask, ScoreTask
from esc_lab.models.generate import Sampling
from tests.models.test_generate import prefer
from tests.models.test_tree_attention import random_sequences

NEVER = frozenset({-1})
LIMITS = [
    EngineLimits(batch=32, row_tokens=1024, working_tokens=8192, cache_tokens=8192),
    EngineLimits(batch=3, row_tokens=60, working_tokens=300, cache_tokens=90),
    EngineLimits(batch=2, row_tokens=1, working_tokens=140, cache_tokens=0),
]


def run(engine: Engine, tasks, together: int = 100) -> None:
    """Answer tasks; no more than `together` new ones join a pass."""
    tasks, finished = list(tasks), []
    count = len(tasks)
    while tasks or not engine.idle:
        for task in tasks[:together]:
            engine.add(task)
        tasks = tasks[together:]
        finished += engine.step()
    assert len(set(finished)) == len(finished) == count


def expected_reply(model, prompt, length: int) -> list[int]:
    ids = torch.from_numpy(prompt)[None]
    mask = torch.ones_like(ids)
    found = model.generate(ids, attention_mask=mask, max_new_tokens=length, do_sample=False, eos_token_id=None)
    return found[0, len(prompt) :].tolist()


def growing_prompts(seed: int) -> list[np.ndarray]:
    """Talks that branch, and their beginnings; past the tiny Gemmas' window of 64. Some are equal."""
    longest = random_sequences(seed, trunk=80)
    prompts = [sequence[:length] for sequence in longest for length in (20, 66, 90) if length <= len(sequence)]
    return [*prompts, prompts[1], prompts[0][:1], longest[0]]


@pytest.mark.parametrize("limits", LIMITS)
def test_writing_and_scoring_at_once(exact_models, family, limits, monkeypatch):
    monkeypatch.setattr(slots, "BLOCK", 32)
    model = exact_models(family)
    prompts = growing_prompts(5)
    writings = [ReplyTask(prompt, Sampling(6), 0) for prompt in prompts]
    tails = [sequence[:4] for sequence in random_sequences(8, trunk=3, branches=2)]
    tails += [tails[0][:2], np.append(tails[0][:2], 7)]
    scorings = [ScoreTask(prompt, tails, [0] * (len(tails) - 1) + [2]) for prompt in prompts]
    tasks = [task for pair in zip(writings, scorings, strict=True) for task in pair]
    engine = Engine(model, NEVER, limits)
    run(engine, tasks, together=5)
    assert engine.idle
    for task in writings:
        assert task.reply == expected_reply(model, task.prompt, 6)
    for task in scorings:
        for ids, first, found in zip(tails, task.first, task.log_probs, strict=True):
            with torch.no_grad():
                whole = torch.from_numpy(np.concatenate([task.prompt, ids]))
                kept = model(whole[None], logits_to_keep=len(ids) + 1)
                logits = torch.log_softmax(kept.logits[0, :-1], dim=-1)
            values = logits[torch.arange(len(ids)), torch.from_numpy(ids)].numpy()
            np.testing.assert_allclose(found, values[first:], atol=2e-5)


def test_many_tasks_with_one_prompt(exact_models):
    """More than a region has room for."""
    model, prompt = exact_models("llama"), random_sequences(2, trunk=30)[0]
    writings = [ReplyTask(prompt, Sampling(4), seed) for seed in range(15)]
    scorings = [ScoreTask(prompt, [np.arange(start, start + 9) for start in (0, 20)], [0, 0]) for _ in range(15)]
    run(Engine(model, NEVER), [*writings, *scorings])
    assert {tuple(task.reply) for task in writings} == {tuple(expected_reply(model, prompt, 4))}
    for task in scorings:
        np.testing.assert_allclose(task.log_probs, scorings[0].log_probs, atol=1e-5)


def test_what_was_computed_is_not_computed_again(tiny_models):
    model = tiny_models("llama").model
    engine, computed = Engine(model, NEVER), []
    trunk, other = random_sequences(0, trunk=60, branches=1)[0], np.arange(30)

    def count(_, __, kwargs) -> None:
        computed[-1] += kwargs["input_ids"].shape[1]

    hook = model.get_decoder().register_forward_pre_hook(count, with_kwargs=True)
    try:
        for prompts in ([trunk[:50], trunk[:50]], [trunk], [other]):
            computed.append(0)
            run(engine, [ReplyTask(prompt, Sampling(1), 0) for prompt in prompts])
        replied = ReplyTask(other, Sampling(12), 0)
        computed.append(0)
        run(engine, [replied])
        computed.append(0)
        run(engine, [ReplyTask(np.append(other, [*replied.reply, 7, 8]), Sampling(1), 0)])
        shared = random_sequences(1, trunk=100, branches=1)[0]
        ends = [np.concatenate([shared, random_sequences(seed, trunk=150, branches=1)[0]]) for seed in (2, 3, 4)]
        computed.append(0)
        run(engine, [ReplyTask(prompt, Sampling(40), 0) for prompt in ends])
    finally:
        hook.remove()
    assert computed[:3] == [51, 10, 30]  # of a prompt that is still worked on the last token is not kept
    assert computed[3:5] == [1 + 11, 1 + 2]  # a reply is but for its last token, which was drawn and not computed
    assert computed[5] == 100 + 3 * (150 + 39)  # though none shares half of its prompt


def test_a_reply_depends_on_its_own_seed_only(exact_models):
    model = exact_models("qwen2")
    prompts = growing_prompts(3)
    samplings = [Sampling(8, temperature=0.7 + 0.1 * (number % 4), top_p=0.9) for number in range(len(prompts))]
    together = [ReplyTask(*task) for task in zip(prompts, samplings, range(len(prompts)), strict=True)]
    alone = [ReplyTask(*task) for task in zip(prompts, samplings, range(len(prompts)), strict=True)]
    run(Engine(model, NEVER), together, together=3)
    for task in alone:
        run(Engine(model, NEVER), [task])
    assert [task.reply for task in together] == [task.reply for task in alone]
    again = ReplyTask(prompts[0], samplings[0], 99)
    run(Engine(model, NEVER), [again])
    assert again.reply != together[0].reply


def test_stop_tokens_and_dropped_tasks(exact_models):
    model = exact_models("gemma2")
    prompts = growing_prompts(1)[:4]
    free = [expected_reply(model, prompt, 8) for prompt in prompts]
    stop = free[1][3]
    tasks = [ReplyTask(prompt, Sampling(8), 0) for prompt in prompts]
    engine = Engine(model, frozenset({stop}), EngineLimits(batch=3))
    for task in tasks:
        engine.add(task)
    for _ in range(2):
        engine.step()
    engine.drop(tasks[0])  # is being written
    engine.drop(tasks[3])  # waits
    while not engine.idle:
        engine.step()
    for task, reply in list(zip(tasks, free, strict=True))[1:3]:
        assert task.reply == (reply[: reply.index(stop)] if stop in reply else reply)


def test_tasks_without_room_are_refused(tiny_models):
    engine = Engine(tiny_models("llama").model, NEVER, EngineLimits(working_tokens=50))
    engine.add(ReplyTask(np.arange(40), Sampling(10), 0))
    with pytest.raises(ValueError, match="41 \\+ 10 tokens, of 50"):
        engine.add(ReplyTask(np.arange(41), Sampling(10), 0))


@pytest.mark.parametrize("size", [2, 3])
def test_a_reply_repeats_no_run(exact_models, size):
    """A model that likes three tokens best has 27 runs of three for 60: it has to repeat some, or write others."""
    model = exact_models("llama")
    prompt = growing_prompts(5)[2]
    free, held = (ReplyTask(prompt, Sampling(60), 0, no_repeat=n) for n in (0, size))
    hook = model.get_output_embeddings().register_forward_hook(lambda _head, _states, logits: prefer(logits, 3))
    try:
        run(Engine(model, NEVER), [free, held])
    finally:
        hook.remove()
    assert repeats(prompt.tolist(), free.reply, size)
    assert not repeats(prompt.tolist(), held.reply, size)
    assert len(held.reply) == 60


def repeats(prompt: list[int], reply: list[int], size: int) -> bool:
    """Whether a run within the reply is in prompt or reply before."""
    text = prompt + reply
    runs = [tuple(text[place : place + size]) for place in range(len(text) - size + 1)]
    return any(runs[place] in runs[:place] for place in range(len(prompt), len(runs)))


def test_a_reply_may_end_with_a_run_that_was_there(exact_models):
    model = exact_models("llama")
    prompt = growing_prompts(5)[2]
    free = ReplyTask(prompt, Sampling(60), 0)
    run(Engine(model, NEVER), [free])
    first = free.reply[0]
    again = ReplyTask(np.append(prompt, [5, first, 5]), Sampling(60), 0, no_repeat=1)
    run(Engine(model, frozenset(range(2000))), [again])  # whatever it writes ends it
    assert again.reply == []


def test_a_reply_has_the_tokens_that_it_needs(exact_models):
    """Where the model would rather end at once, the tokens that it likes best among those that do not end it."""
    model = exact_models("llama")
    prompt = growing_prompts(5)[2]
    hook = model.get_output_embeddings().register_forward_hook(lambda _head, _states, logits: prefer(logits, 3))
    at_once, two, drawn = (
        ReplyTask(prompt, Sampling(6, *how), 0, min_tokens=n) for n, how in ((0, ()), (2, ()), (2, (1.0, 0.5)))
    )
    try:
        run(Engine(model, frozenset(range(3))), [at_once, two, drawn])
    finally:
        hook.remove()
    assert at_once.reply == []
    for reply in (two.reply, drawn.reply):
        assert len(reply) == 2
        assert min(reply) >= 3


def test_what_is_kept_is_small_beside_the_model(tiny_models, family):
    """Their keys and values, as an engine holds them, take at most 0.7 of the memory of the weights."""
    model = tiny_models(family).model
    tokens = slots.choose_cache_tokens(model, 10**9)
    engine = Engine(model, NEVER, EngineLimits(working_tokens=10, cache_tokens=0))
    run(engine, [ScoreTask(np.arange(5), [np.arange(2)], [0])])
    token = sum(states.nbytes for layer in engine._cache._states for states in layer) / 10
    weights = sum(weight.nbytes for weight in model.parameters())
    assert 0.7 * weights - token < tokens * token <= 0.7 * weights
    assert slots.choose_cache_tokens(model, 3) == 3
