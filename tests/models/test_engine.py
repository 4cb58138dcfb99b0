"""Tasks answered together, over a cache that is too small for all, equal those answered alone by transformers."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

import esc_lab.models.regions as regions
from esc_lab.models.draw import draw
from esc_lab.models.engine import Engine
from esc_lab.models.generate import Sampling
from esc_lab.models.tasks import Scoring, Writing
from esc_lab.models.tree_attention import _attend, _widened, additive
from tests.models.test_tree_attention import random_sequences

NEVER = frozenset({-1})
LIMITS = [
    {"batch": 32, "row_tokens": 1024, "working_tokens": 8192, "cache_tokens": 8192},
    {"batch": 3, "row_tokens": 60, "working_tokens": 300, "cache_tokens": 90},
    {"batch": 2, "row_tokens": 1, "working_tokens": 140, "cache_tokens": 0},
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
def test_writing_and_scoring_at_once(tiny_models, family, limits, monkeypatch):
    monkeypatch.setattr(regions, "BLOCK", 32)
    model = tiny_models(family).model
    prompts = growing_prompts(5)
    writings = [Writing(prompt, Sampling(6), 0) for prompt in prompts]
    tails = [sequence[:4] for sequence in random_sequences(8, trunk=3, branches=2)]
    tails += [tails[0][:2], np.append(tails[0][:2], 7)]
    scorings = [Scoring(prompt, tails, [0] * (len(tails) - 1) + [2]) for prompt in prompts]
    tasks = [task for pair in zip(writings, scorings, strict=True) for task in pair]
    engine = Engine(model, NEVER, **limits)
    run(engine, tasks, together=5)
    assert engine.idle
    for task in writings:
        assert task.reply == expected_reply(model, task.prompt, 6)
    exact = copy.deepcopy(model).double()
    for task in scorings:
        for ids, first, found in zip(tails, task.first, task.log_probs, strict=True):
            with torch.no_grad():
                whole = torch.from_numpy(np.concatenate([task.prompt, ids]))
                kept = exact(whole[None], logits_to_keep=len(ids) + 1)
                logits = torch.log_softmax(kept.logits[0, :-1], dim=-1)
            values = logits[torch.arange(len(ids)), torch.from_numpy(ids)].numpy()
            np.testing.assert_allclose(found, values[first:], atol=2e-5)


def test_many_tasks_with_one_prompt(tiny_models):
    """More than a region has room for."""
    model, prompt = tiny_models("llama").model, random_sequences(2, trunk=30)[0]
    writings = [Writing(prompt, Sampling(4), seed) for seed in range(15)]
    scorings = [Scoring(prompt, [np.arange(start, start + 9) for start in (0, 20)], [0, 0]) for _ in range(15)]
    run(Engine(model, NEVER), [*writings, *scorings])
    assert {tuple(task.reply) for task in writings} == {tuple(expected_reply(model, prompt, 4))}
    for task in scorings:
        np.testing.assert_allclose(task.log_probs, scorings[0].log_probs, atol=1e-5)


def test_what_was_computed_is_not_computed_again(tiny_models):
    engine = Engine(tiny_models("llama").model, NEVER)
    trunk, other = random_sequences(0, trunk=60, branches=1)[0], np.arange(30)
    run(engine, [Writing(trunk[:50], Sampling(2), 0), Writing(trunk[:50], Sampling(2), 0)])
    assert (engine.computed, engine.reused) == (51, 49)
    run(engine, [Writing(trunk, Sampling(2), 0)])
    assert (engine.computed, engine.reused) == (62, 98)  # the last token of a prompt is not kept
    run(engine, [Writing(other, Sampling(2), 0)])
    assert (engine.computed, engine.reused) == (92, 98)


def test_a_reply_depends_on_its_own_seed_only(tiny_models):
    model = tiny_models("qwen2").model
    prompts = growing_prompts(3)
    samplings = [Sampling(8, temperature=0.7 + 0.1 * (number % 4), top_p=0.9) for number in range(len(prompts))]
    together = [Writing(*task) for task in zip(prompts, samplings, range(len(prompts)), strict=True)]
    alone = [Writing(*task) for task in zip(prompts, samplings, range(len(prompts)), strict=True)]
    run(Engine(model, NEVER), together, together=3)
    for task in alone:
        run(Engine(model, NEVER), [task])
    assert [task.reply for task in together] == [task.reply for task in alone]
    again = Writing(prompts[0], samplings[0], 99)
    run(Engine(model, NEVER), [again])
    assert again.reply != together[0].reply


def test_stop_tokens_and_dropped_tasks(tiny_models):
    model = tiny_models("gemma2").model
    prompts = growing_prompts(1)[:4]
    free = [expected_reply(model, prompt, 8) for prompt in prompts]
    stop = free[1][3]
    tasks = [Writing(prompt, Sampling(8), 0) for prompt in prompts]
    engine = Engine(model, frozenset({stop}), batch=3)
    for task in tasks:
        engine.add(task)
    engine.step()
    engine.drop(tasks[0])  # is being written
    engine.drop(tasks[3])  # waits
    while not engine.idle:
        engine.step()
    for task, reply in list(zip(tasks, free, strict=True))[1:3]:
        assert task.reply == (reply[: reply.index(stop)] if stop in reply else reply)


def test_tasks_without_room_are_refused(tiny_models):
    engine = Engine(tiny_models("llama").model, NEVER, working_tokens=50)
    engine.add(Writing(np.arange(40), Sampling(10), 0))
    with pytest.raises(ValueError, match="41 \\+ 10 tokens, of 50"):
        engine.add(Writing(np.arange(41), Sampling(10), 0))


@pytest.mark.parametrize(
    ("sampling", "law"),
    [
        (Sampling(1, 1.0, 0.1), [0, 1, 0, 0]),
        (Sampling(1, 1.0, 0.75), [0, 0.625, 0, 0.375]),  # 0.5 alone is less than the mass asked for
        (Sampling(1, 1.0, 0.9), [0.15 / 0.95, 0.5 / 0.95, 0, 0.3 / 0.95]),
        (Sampling(1, 0.5, 1.0), np.array([0.0225, 0.25, 0.0025, 0.09]) / 0.365),
        (Sampling(1, 0.0), [0, 1, 0, 0]),
    ],
)
def test_draws_follow_the_distribution(sampling, law, monkeypatch):
    monkeypatch.setattr("esc_lab.models.draw._NUCLEUS", 2)
    logits = torch.tensor([0.15, 0.5, 0.05, 0.3]).log()
    drawn = [draw(logits, sampling, torch.Generator().manual_seed(seed)) for seed in range(4000)]
    np.testing.assert_allclose(np.bincount(drawn, minlength=4) / 4000, law, atol=0.03)


@pytest.mark.parametrize("inference", [False, True])
def test_attention_in_half_precision(inference):
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(1, heads, length, 16, generator=generator) for heads, length in ((6, 40), (2, 90), (2, 90))
    )
    allowed = torch.ones(40, 90).tril(50).bool()
    weights = torch.softmax(
        (query.double() @ key.double().repeat_interleave(3, 1).mT / 4).masked_fill(~allowed, -torch.inf), dim=-1
    )
    expected = weights @ value.double().repeat_interleave(3, 1)
    mask = _widened(additive(allowed, torch.bfloat16), 3)
    found = _attend(*(part.bfloat16() for part in (query, key, value)), mask, 0.0, None, None, inference)
    torch.testing.assert_close(found.double(), expected, atol=0.03, rtol=0.0)
