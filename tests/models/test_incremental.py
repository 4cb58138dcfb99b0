"""A model that keeps what it has computed writes what one does that computes everything anew, and computes less."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from esc_lab.models.attention_boost import AttentionBoost, BoostedSpan, mark
from esc_lab.models.attention_probe import AttentionProbe
from esc_lab.models.forward import base_model
from esc_lab.models.generate import Sampling, generate
from esc_lab.models.incremental import IncrementalModel
from esc_lab.models.log_probs import score_rows
from esc_lab.tokens import ReplyTokens, TokenSequence, pack_rows
from tests.models.test_tree_attention import random_sequences

NEVER: frozenset[int] = frozenset()
SPAN = BoostedSpan(np.arange(5, 9), 9)


def turns(seed: int, count: int = 4) -> list[np.ndarray]:
    """Prompts of a talk that grows, past the tiny Gemmas' window of 64."""
    longest = max(random_sequences(seed, trunk=90), key=len)
    return [longest[:length] for length in np.linspace(30, len(longest), count).astype(int)]


def whole(model, shape) -> AttentionBoost:
    return AttentionBoost("add", 1.5, torch.ones(shape, dtype=torch.bool))


def head_shape(model) -> tuple[int, int]:
    config = base_model(model).config.get_text_config()
    return config.num_hidden_layers, config.num_attention_heads


@pytest.mark.parametrize("slots", [4000, 140])
@pytest.mark.parametrize("boosted", [False, True])
def test_a_growing_talk_is_continued_as_if_it_were_new(exact_models, family, slots, boosted):
    model = exact_models(family)
    boost = whole(model, head_shape(model)) if boosted else None
    kept = IncrementalModel(model, NEVER, slots)
    for number, prompt in enumerate(turns(3)):
        sampling = Sampling(5, temperature=0.7 * (number % 2))
        steer = boost and (boost, SPAN)
        (expected,) = generate(model, mark([prompt], [SPAN if boost else None]), NEVER, sampling, [number], boost=boost)
        assert list(kept.stream(prompt, sampling, number, boost=steer)) == expected
        before = kept.computed
        longer = np.append(prompt, [*expected, 3])
        assert len(list(kept.stream(longer, Sampling(1), 0, boost=steer))) == 1
        assert kept.computed - before == 2  # the last token drawn was not computed yet


def test_under_another_boost_only_what_comes_before_it_is_known(exact_models):
    model = exact_models("llama")
    boost, (prompt,) = whole(model, head_shape(model)), turns(4, 1)
    for first, known in ((SPAN.first_query, SPAN.first_query), (len(prompt) - 1, len(prompt) - 1)):
        kept = IncrementalModel(model, NEVER, 500)
        steer = (boost, BoostedSpan(SPAN.keys, first))
        plain = list(kept.stream(prompt, Sampling(4), 0))
        before = kept.computed
        steered = list(kept.stream(prompt, Sampling(4), 0, boost=steer))
        assert kept.computed - before == len(prompt) - known + 3
        assert list(kept.stream(prompt, Sampling(4), 0)) == plain
        alone = IncrementalModel(model, NEVER, 500)
        assert list(alone.stream(prompt, Sampling(4), 0, boost=steer)) == steered


@pytest.mark.parametrize("slots", [4000, 160])
def test_scores_of_continuations(exact_models, family, slots):
    model = exact_models(family)
    kept = IncrementalModel(model, NEVER, slots)
    tails = [np.array(ids) for ids in ([5], [5, 6, 7], [8, 9])]
    for prompt in turns(5):
        list(kept.stream(prompt[:-2], Sampling(2), 0))
        sequences = [
            TokenSequence(np.append(prompt, ids), (ReplyTokens(number, len(prompt), len(prompt) + len(ids)),))
            for number, ids in enumerate(tails)
        ]
        expected = dict(score_rows(model, pack_rows([sequences], 4096)))
        before = kept.computed
        found = kept.score(prompt, tails)
        assert kept.computed - before == 2 + sum(len(ids) - 1 for ids in tails)
        for number, values in enumerate(found):
            np.testing.assert_allclose(values, expected[number], atol=1e-8)


@pytest.mark.parametrize("boosted", [False, True])
def test_attention_is_that_of_a_fresh_generation(exact_models, family, boosted):
    model = exact_models(family)
    boost = whole(model, head_shape(model)) if boosted else None
    kept = IncrementalModel(model, NEVER, 4000)
    for prompt in turns(6, 3):
        kept.score(prompt, [np.array([4, 5, 6])])  # leaves slots behind that no row sees
        probes = [AttentionProbe([[SPAN.keys]], keep_tokens=True) for _ in range(2)]
        list(kept.stream(prompt, Sampling(4), 0, probe=probes[0], boost=boost and (boost, SPAN)))
        generate(
            model, mark([prompt], [SPAN if boost else None]), NEVER, Sampling(4), [0], probe=probes[1], boost=boost
        )
        own, fresh = (probe.result() for probe in probes)
        torch.testing.assert_close(own.mass, fresh.mass)
        assert [len(row) for row in own.tokens] == [len(prompt) + number for number in range(4)]
        for row, other in zip(own.tokens, fresh.tokens, strict=True):
            torch.testing.assert_close(row, other)


def test_stopping_in_the_middle_and_at_a_stop_token(exact_models):
    model = exact_models("llama")
    (prompt,) = turns(7, 1)
    (expected,) = generate(model, [prompt], NEVER, Sampling(6), [0])
    kept = IncrementalModel(model, NEVER, 500)
    stream = kept.stream(prompt, Sampling(6), 0)
    assert [next(stream), next(stream)] == expected[:2]
    stream.close()
    assert list(kept.stream(prompt, Sampling(6), 0)) == expected
    stop = next(number for number in range(1, 6) if expected[number] not in expected[:number])
    kept = IncrementalModel(model, frozenset({expected[stop]}), 500)
    probe = AttentionProbe([[SPAN.keys]], keep_tokens=True)
    assert list(kept.stream(prompt, Sampling(6), 0, probe=probe)) == expected[:stop]
    assert len(probe.result().tokens) == stop


def test_a_prompt_that_is_too_long_is_refused(exact_models):
    kept = IncrementalModel(exact_models("llama"), NEVER, 40)
    with pytest.raises(ValueError, match="41 tokens, of 40"):
        list(kept.stream(np.arange(31) + 3, Sampling(10), 0))


def test_a_reply_has_a_token_at_least(exact_models):
    """The most probable one that does not end it; later ones may."""
    model = exact_models("llama")
    (prompt,) = turns(5, 1)
    with torch.inference_mode():
        logits = model(torch.tensor(prompt)[None]).logits[0, -1]
    first, second = logits.topk(2).indices.tolist()
    stream = IncrementalModel(model, frozenset({first}), 500).stream(prompt, Sampling(3), 0)
    assert next(stream) == second
    assert not list(
        IncrementalModel(model, frozenset({*range(len(logits))} - {second}), 500).stream(prompt, Sampling(3), 0)
    )[1:]
