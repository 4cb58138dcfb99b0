"""Generation along a token tree against transformers' own `generate`, and its seeds."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from esc_lab.models.generate import Sampling, draw, find_repeating, generate
from tests.models.test_tree_attention import random_sequences

NEVER = frozenset({-1})


@pytest.mark.parametrize("length", [12, 40])
def test_greedy_equals_transformers_one_prompt_at_a_time(exact_models, family, length):
    # Prompts reach past the tiny Gemmas' window of 64, and the replies move it on.
    model = exact_models(family)
    prompts = random_sequences(21, trunk=70)
    found = generate(model, prompts, NEVER, Sampling(length), [0] * len(prompts))
    for prompt, reply in zip(prompts, found, strict=True):
        ids = torch.from_numpy(prompt)[None]
        expected = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=length, do_sample=False, eos_token_id=None
        )
        assert reply == expected[0, len(prompt) :].tolist()


def test_a_reply_depends_on_its_own_seed_only(exact_models):
    model = exact_models("llama")
    prompts = random_sequences(3, trunk=30)
    sampling = Sampling(10, temperature=1.0, top_p=0.9)
    together = generate(model, prompts, NEVER, sampling, list(range(len(prompts))))
    alone = [generate(model, [prompt], NEVER, sampling, [seed])[0] for seed, prompt in enumerate(prompts)]
    assert together == alone
    assert generate(model, prompts[:1], NEVER, sampling, [99])[0] != together[0]


def test_stop_tokens_end_single_branches(exact_models):
    model = exact_models("qwen2")
    prompts = random_sequences(8, trunk=30)
    free = generate(model, prompts, NEVER, Sampling(12), [0] * len(prompts))
    stop = free[1][4]
    found = generate(model, prompts, frozenset({stop}), Sampling(12), [0] * len(prompts))
    for reply, unbounded in zip(found, free, strict=True):
        assert reply == (unbounded[: unbounded.index(stop)] if stop in unbounded else unbounded)


def test_tokens_that_would_repeat_a_run():
    prompt = np.array([1, 2, 3, 1, 2, 4, 9])
    assert find_repeating(prompt, [1, 2], 3).tolist() == [3, 4]
    assert find_repeating(prompt, [5, 1, 2], 3).tolist() == [3, 4]
    assert find_repeating(prompt, [1, 2], 0).tolist() == []
    assert find_repeating(prompt, [2], 3).tolist() == []  # a run of the reply alone counts
    assert find_repeating(prompt, [7, 8, 7, 8, 7], 3).tolist() == [8]
    assert find_repeating(prompt, [7, 8], 3).tolist() == []


def test_a_reply_writes_no_run_twice(exact_models):
    """A model that likes three tokens best has nine runs of two for 24 tokens: it has to write others."""
    model = exact_models("llama")
    prompts = random_sequences(4, trunk=30)
    hook = model.get_output_embeddings().register_forward_hook(lambda _head, _states, logits: prefer(logits, 3))
    try:
        seeds = [0] * len(prompts)
        free, held = (generate(model, prompts, NEVER, Sampling(24, no_repeat=n), seeds) for n in (0, 2))
    finally:
        hook.remove()
    for loose, reply in zip(free, held, strict=True):
        assert set(loose) <= {0, 1, 2}
        runs = [*pairwise(reply)]
        assert len(runs) == len(set(runs)) == 23


def prefer(logits, tokens):
    """Logits with which a model likes its first so many tokens best."""
    return logits + 100 * (torch.arange(logits.shape[-1]) < tokens)


def test_equal_prompts_are_separate_replies(exact_models):
    model = exact_models("gemma2")
    prompt = random_sequences(1, trunk=20)[0]
    found = generate(model, [prompt, prompt], NEVER, Sampling(8, temperature=1.5), [1, 2])
    assert found[0] != found[1]
    assert generate(model, [prompt, prompt], NEVER, Sampling(8), [1, 2])[0] == found_greedy(model, prompt)


def found_greedy(model, prompt):
    return generate(model, [prompt], NEVER, Sampling(8), [5])[0]


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
    monkeypatch.setattr("esc_lab.models.generate._NUCLEUS", 2)
    logits = torch.tensor([0.15, 0.5, 0.05, 0.3]).log().repeat(4000, 1)
    drawn = draw(logits, [sampling] * 4000, [torch.Generator().manual_seed(seed) for seed in range(4000)])
    np.testing.assert_allclose(np.bincount(drawn, minlength=4) / 4000, law, atol=0.03)
