"""Boosted attention against a brute-force computation of one sequence at a time, through whole models."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.masking_utils import eager_mask

from esc_lab.models import tree_attention
from esc_lab.models.attention_boost import AttentionBoost, BoostedPass, BoostedSpan, LayerBoost, mark, split_tree
from esc_lab.models.attention_probe import AttentionProbe
from esc_lab.models.forward import base_model, head_logits, tree_hidden_states
from esc_lab.models.generate import Sampling, generate
from esc_lab.models.log_probs import score_rows
from esc_lab.models.tree_attention import IMPLEMENTATION, block_mask
from esc_lab.tokens import ReplyTokens, TokenSequence, build_tree, pack_rows
from tests.models.test_tree_attention import random_sequences

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
NEVER = frozenset({-1})
CASES = (("add", 1.5, "all"), ("add", 1.5, "some"), ("share", 0.6, "all"), ("share", 0.6, "some"), ("block", 0, "some"),
         ("block", 0, "all"))  # fmt: skip


def brute_force(
    module, query, key, value, mask, scaling=None, softcap=None, dropout=0.0, brute=None, seen=None, **kwargs
):
    """Attention of one sequence by the definitions, one head after another."""
    groups, size = query.shape[1] // key.shape[1], query.shape[2]
    visible = torch.ones(size, size, dtype=torch.bool).tril() & (True if mask is None else mask[0, 0] == 0)
    weights = torch.zeros(query.shape[1], size, size, dtype=torch.float64)
    for head in range(query.shape[1]):
        scores = query[0, head].double() @ key[0, head // groups].double().T * scaling
        scores = softcap * torch.tanh(scores / softcap) if softcap else scores
        odds = torch.exp(scores) * visible  # before they are renormalised
        if brute is not None and brute["heads"][module.layer_idx, head]:
            rows = slice(brute["first"], size)
            own = odds[rows, brute["keys"]]
            share = own.sum(dim=1) / odds[rows].sum(dim=1)
            if brute["mode"] == "share":
                target, below = brute["amount"], (share > 0) & (share < brute["amount"])
                factor = torch.where(below, target * (1 - share) / (share * (1 - target)), 1.0)[:, None]
            else:
                factor = math.exp(brute["amount"]) if brute["mode"] == "add" else 0.0
            odds[rows, brute["keys"]] = own * factor
        weights[head] = odds / odds.sum(dim=1, keepdim=True)
    if seen is not None:
        seen.append(weights)
    output = weights @ value[0].double().repeat_interleave(groups, dim=0)
    return output.transpose(0, 1)[None].to(query.dtype), None


AttentionInterface.register("brute_force", brute_force)
AttentionMaskInterface.register("brute_force", eager_mask)


def expected_of(model, sequence, boost, span):
    """Logits [T, vocabulary] and weights [layers, heads, T, T] of one sequence."""
    brute, seen = None, []
    if span is not None:
        brute = {"mode": boost.mode, "amount": boost.amount, "heads": boost.heads}
        brute |= {"keys": span.keys, "first": span.first_query}
    base_model(model).set_attn_implementation("brute_force")
    try:
        with torch.no_grad():
            logits = model(input_ids=torch.from_numpy(sequence)[None], use_cache=False, brute=brute, seen=seen).logits
    finally:
        base_model(model).set_attn_implementation(IMPLEMENTATION)
    return logits[0], torch.stack(seen)


def shape(model):
    text = base_model(model).config.get_text_config()
    return text.num_hidden_layers, text.num_attention_heads


def chosen_heads(model, which):
    heads = torch.ones(shape(model), dtype=torch.bool)
    if which == "some":
        heads[1::2] = False
        heads[0, 1:] = False
    return heads


def case(seed=0, trunk=80):
    """Sequences that share prefixes, longer than the windows of the tiny Gemmas, and spans that disagree on these."""
    sequences = [sequence for sequence in random_sequences(seed, trunk=trunk) if len(sequence) > 12]
    spans: list[BoostedSpan | None] = []
    for number, sequence in enumerate(sequences):
        # Some are out of the window of the last tokens, some of the first ones; some queries are of the shared prefix.
        start = [3, len(sequence) - 9, 1][number % 3]
        spans.append(BoostedSpan(np.arange(start, start + 4), [start + 4, len(sequence) - 3][number % 2]))
    spans[-1] = None
    return sequences, spans


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}-{case[2]}")
def boost_of(request):
    """`boost_of(model)`: a boost by one mode, of all of its heads or of some."""
    mode, amount, which = request.param
    return lambda model: AttentionBoost(mode, amount, chosen_heads(model, which))


def test_trees_equal_brute_force(exact_models, family, boost_of):
    model = exact_models(family)
    boost = boost_of(model)
    sequences, spans = case()
    tree, steer = split_tree(build_tree(mark(sequences, spans)), boost)
    plain = build_tree(sequences)
    assert len(tree) > len(plain)  # spans that differ on a shared prefix are kept apart
    with torch.no_grad():
        hidden = tree_hidden_states(model, tree.input_ids, tree.position_ids, tree.leave, boost=steer)
    moved = 0.0
    for sequence, span, path in zip(sequences, spans, tree.paths, strict=True):
        np.testing.assert_array_equal(tree.input_ids[path], sequence)
        expected, _ = expected_of(model, sequence, boost, span)
        found = head_logits(base_model(model), hidden[torch.from_numpy(path)])
        torch.testing.assert_close(found, expected, **CLOSE)
        moved = max(moved, float((expected - expected_of(model, sequence, boost, None)[0]).abs().max()))
    assert moved > 1e-3  # the comparison above could fail


def test_flex_attention_gives_the_same(tiny_models, family, boost_of, monkeypatch):
    """What CUDA runs, uncompiled on the CPU and in the float32 that it computes in."""
    model = tiny_models(family).model
    sequences, spans = case(4)
    tree, steer = split_tree(build_tree(mark(sequences, spans)), boost_of(model))
    arguments = (model, tree.input_ids, tree.position_ids, tree.leave)
    with torch.no_grad():
        expected = tree_hidden_states(*arguments, boost=steer)
        monkeypatch.setattr(tree_attention, "query_blocks", block_mask)
        found = tree_hidden_states(*arguments, boost=steer)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)


def test_generation_and_probe_equal_brute_force(exact_models, family, boost_of):
    """Each token of greedy replies, and the attention that the probe measures on the way."""
    model = exact_models(family)
    boost = boost_of(model)
    trunk, other = random_sequences(21, trunk=75)[0], random_sequences(22, trunk=75)[0]
    prompts = [trunk, trunk[:74], np.concatenate([trunk[:50], other[50:73]]), trunk]
    places = [[np.arange(60, 65), np.arange(2, 9)]] * 4
    spans = [
        BoostedSpan(np.arange(60, 65), 65), BoostedSpan(np.arange(2, 7), 73), BoostedSpan(np.arange(30, 35), 40), None
    ]  # fmt: skip
    probe = AttentionProbe(places)
    replies = generate(model, mark(prompts, spans), NEVER, Sampling(5), [0] * 4, probe=probe, boost=boost)
    measured = probe.result()
    plain = generate(model, prompts, NEVER, Sampling(5), [0] * 4)
    assert replies[3] == plain[3]
    for branch, (prompt, reply, span) in enumerate(zip(prompts, replies, spans, strict=True)):
        sequence = np.concatenate([prompt, reply])
        logits, weights = expected_of(model, sequence, boost, span)
        rows = np.arange(len(prompt) - 1, len(sequence) - 1)
        assert logits[rows].argmax(dim=-1).tolist() == reply
        found = measured.mass[:, :, measured.branch == branch]
        masses = torch.stack([weights[:, :, rows][..., place].sum(-1) for place in places[branch]], dim=-1)
        torch.testing.assert_close(found.double(), masses, **CLOSE)


def test_a_boost_of_nothing_is_nothing_to_the_last_bit(exact_models, family):
    model, sequence = exact_models(family), random_sequences(3, trunk=60)[0]
    tree, steer = split_tree(
        build_tree(mark([sequence], [BoostedSpan(np.arange(20, 26), 26)])),
        AttentionBoost("add", 0.0, chosen_heads(model, "all")),
    )
    arguments = (model, tree.input_ids, tree.position_ids, tree.leave)
    with torch.no_grad():
        assert torch.equal(tree_hidden_states(*arguments), tree_hidden_states(*arguments, boost=steer))


def test_doses_share_a_compiled_kernel(tiny_models):
    """FlexAttention compiles what a `score_mod` holds of Python's numbers into the kernel."""
    heads = chosen_heads(tiny_models("llama").model, "all")
    boosted = BoostedPass(AttentionBoost("add", 2.0, heads), np.ones((1, 8), bool), np.ones((1, 8), bool))
    adjust = LayerBoost(boosted, None).score_mod(None, None, heads.device)
    held = [cell.cell_contents for cell in adjust.__closure__]
    assert not any(isinstance(value, (int, float)) for value in held)


def test_prompts_that_end_with_a_boosted_key(exact_models):
    """What is written after it is boosted, though no token of the prompt is."""
    model, prompt = exact_models("llama"), random_sequences(5, trunk=40)[0][:30]
    boost, span = AttentionBoost("add", 4.0, chosen_heads(model, "all")), BoostedSpan(np.arange(26, 30), 30)
    (reply,) = generate(model, mark([prompt], [span]), NEVER, Sampling(4), [0], boost=boost)
    logits, _ = expected_of(model, np.concatenate([prompt, reply]), boost, span)
    assert logits[29:-1].argmax(dim=-1).tolist() == reply


def test_a_share_is_reached_and_no_more(exact_models, family):
    """Each head has at least the target wherever it sees the span and something else; above it, what it had."""
    model = exact_models(family)
    sequence, keys = random_sequences(3, trunk=60)[0], np.arange(20, 26)
    boost, marked = AttentionBoost("share", 0.3, chosen_heads(model, "all")), mark([sequence], [BoostedSpan(keys, 26)])
    probes = {}
    for name in ("plain", "boosted"):
        tree, steer = split_tree(build_tree(marked), boost)
        probe = probes[name] = AttentionProbe([[keys]])
        rows = np.arange(26, 60)
        probe.watch_tree(tree, np.zeros_like(rows), rows, model.device)
        with torch.no_grad():
            steered = steer if name == "boosted" else None
            tree_hidden_states(model, tree.input_ids, tree.position_ids, tree.leave, probe=probe, boost=steered)
    before, after = (probe.result().mass[..., 0] for probe in probes.values())
    assert after.min() > 0.3 - 1e-5
    below = before[0] < 0.3  # later layers see other hidden states
    assert below.any()
    torch.testing.assert_close(after[0][below], torch.full_like(after[0][below], 0.3), **CLOSE)
    torch.testing.assert_close(after[0][~below], before[0][~below], **CLOSE)


def test_packed_replies_equal_brute_force(exact_models, boost_of):
    """Teacher forcing of replies in packed rows."""
    model = exact_models("gemma2")
    boost = boost_of(model)
    sequences, spans = case(8)
    trees = [
        [TokenSequence(ids, (ReplyTokens(number, len(ids) - 3, len(ids)),))]
        for number, ids in enumerate(mark(sequences, spans))
    ]
    found = dict(score_rows(model, pack_rows(trees, 150), boost))
    for number, (sequence, span) in enumerate(zip(sequences, spans, strict=True)):
        logits, _ = expected_of(model, sequence, boost, span)
        log_probs = logits[-4:-1].log_softmax(dim=-1)[torch.arange(3), torch.from_numpy(sequence[-3:])]
        torch.testing.assert_close(torch.from_numpy(found[number]), log_probs, **CLOSE)


def test_padded_batches_and_caches_that_crop(exact_models, family, boost_of):
    """Without a tree: a padded batch, and then token by token with transformers' own cache.

    Its layers with a sliding window hold the last keys alone, so the places of the boosted keys shift.
    """
    model = exact_models(family)
    boost = boost_of(model)
    sequences = [random_sequences(seed, trunk=length)[0] for seed, length in ((1, 90), (2, 78))]
    spans = [BoostedSpan(np.arange(50, 55), 60), BoostedSpan(np.arange(2, 6), 6)]
    ids, flags = torch.zeros(2, 90, dtype=torch.long), np.zeros((2, 2, 90), dtype=bool)
    padding = torch.zeros(2, 90, dtype=torch.long)
    for entry, (sequence, span) in enumerate(zip(sequences, spans, strict=True)):
        offset = 90 - len(sequence)
        ids[entry, offset:], padding[entry, offset:] = torch.from_numpy(sequence), 1
        flags[0, entry, offset + span.keys], flags[1, entry, offset + span.first_query :] = True, True
    keys, queries = flags
    positions = torch.clamp(padding.cumsum(-1) - 1, min=0)
    expected = [expected_of(model, sequence, boost, span)[0] for sequence, span in zip(sequences, spans, strict=True)]
    with torch.no_grad():
        together = BoostedPass(boost, keys, queries)
        whole = model(input_ids=ids, attention_mask=padding, position_ids=positions, use_cache=False, boost=together)
        cache, last = DynamicCache(config=model.config), []
        for start, stop in ((0, 80), *((place, place + 1) for place in range(80, 90))):
            step = BoostedPass(boost, keys[:, :stop], queries[:, start:stop])
            output = model(
                input_ids=ids[:, start:stop], attention_mask=padding[:, :stop], past_key_values=cache,
                position_ids=positions[:, start:stop], use_cache=True, boost=step,
            )  # fmt: skip
            last.append(output.logits)
    for entry, logits in enumerate(expected):
        torch.testing.assert_close(whole.logits[entry, 90 - len(logits) :], logits, **CLOSE)
        torch.testing.assert_close(torch.cat(last, dim=1)[entry, 90 - len(logits) :], logits, **CLOSE)


def test_half_precision(tiny_models, family, boost_of):
    model = copy.deepcopy(tiny_models(family).model)
    sequences, spans = case(2)
    tree, steer = split_tree(build_tree(mark(sequences, spans)), boost_of(model))
    arguments = (tree.input_ids, tree.position_ids, tree.leave)
    with torch.no_grad():
        expected = tree_hidden_states(model, *arguments, boost=steer)
        found = tree_hidden_states(model.to(torch.bfloat16), *arguments, boost=steer)
    assert (found.float() - expected).abs().mean() < 0.05 * expected.abs().mean()


def test_misuse_is_refused(tiny_models):
    model = copy.deepcopy(tiny_models("llama").model)
    heads = chosen_heads(model, "all")
    for mode, amount in (("more", 1.0), ("add", math.inf), ("share", 0.0), ("share", 1.0)):
        with pytest.raises(ValueError, match="boost"):
            AttentionBoost(mode, amount, heads)
    with pytest.raises(ValueError, match="queries from 4 on"):
        BoostedSpan(np.arange(2, 5), 4)
    ids = torch.arange(10)[None]
    keys, queries = np.arange(10)[None] < 3, np.arange(10)[None] > 4
    boost = BoostedPass(AttentionBoost("add", 1.0, heads), keys, queries)
    with torch.no_grad():
        model(input_ids=ids, boost=boost)
    model.requires_grad_(True)
    with pytest.raises(ValueError, match="inference only"):
        model(input_ids=ids, boost=boost)
    with torch.no_grad():
        with pytest.raises(ValueError, match="of 9 and 10"):
            model(input_ids=ids, use_cache=False, boost=BoostedPass(boost.boost, keys[:, :9], queries))
        with pytest.raises(ValueError, match="1 layers"):
            model(input_ids=ids, boost=BoostedPass(AttentionBoost("add", 1.0, heads[:1]), keys, queries))
