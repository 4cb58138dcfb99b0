"""The attention probe against the weights that transformers' eager attention returns for one sequence at a time."""

from __future__ import annotations

import copy
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model

from esc_lab.errors import UserError
from esc_lab.models import attention_probe, tree_attention
from esc_lab.models.attention_probe import AttentionProbe
from esc_lab.models.checks import check_probe
from esc_lab.models.forward import base_model, layer_windows, tree_hidden_states
from esc_lab.models.generate import Sampling, generate
from esc_lab.models.span_attention import head_attention
from esc_lab.models.tree_attention import IMPLEMENTATION
from esc_lab.tokens import ReplyTokens, TokenSequence, build_tree, pack_rows
from tests.models.test_tree_attention import random_sequences

CLOSE = {"atol": 1e-5, "rtol": 1e-5}


@contextmanager
def eager(model):
    base_model(model).set_attn_implementation("eager")
    try:
        yield
    finally:
        base_model(model).set_attn_implementation(IMPLEMENTATION)


def joined(prompt, reply):
    return np.concatenate([prompt, np.array(reply, dtype=np.int64)])


def attention(model, sequence):
    """Full attention [layers, heads, T, T] of one sequence."""
    ids = torch.from_numpy(sequence)[None]
    with eager(model), torch.no_grad():
        layers = model(input_ids=ids, use_cache=False, output_attentions=True).attentions
    return torch.stack([layer[0].float() for layer in layers])


def row_attention(found, definition):
    return head_attention(found, definition).mean(dim=(0, 1))


def random_spans(draw, length, count=3):
    """Runs anywhere in the first `length` tokens, the first of them empty."""
    cuts = [np.sort(draw.integers(1, length + 1, 2)) for _ in range(count - 1)]
    return [np.empty(0, dtype=np.int64), *(np.arange(start, stop) for start, stop in cuts)]


def assert_rows_equal(found, rows, sequences, spans, full, tolerance):
    """Compare with `full[b]`, the attention of sequence b; `rows` lists (branch, position of the predicting token)."""
    assert found.branch.tolist() == [branch for branch, _ in rows]
    for number, (branch, position) in enumerate(rows):
        weights = full[branch][:, :, position]
        for name, span in enumerate(spans[branch]):
            torch.testing.assert_close(found.mass[:, :, number, name], weights[..., span].sum(-1), **tolerance)
            assert found.length[number, name] == len(span)
            assert bool(found.holds_null[number, name]) == (0 in span)
        torch.testing.assert_close(found.null[:, :, number], weights[..., 0], **tolerance)


def visible_keys(model, position):
    text = base_model(model).config.get_text_config()
    kinds = getattr(text, "layer_types", None) or ["full_attention"] * text.num_hidden_layers
    windows = layer_windows(model)
    return [min(position + 1, windows[kind] or position + 1) for kind in kinds]


def probed_tree(model, sequences, spans, last=4, **options):
    tree = build_tree(sequences)
    rows = [(branch, len(path) - last + k) for branch, path in enumerate(tree.paths) for k in range(last)]
    query = np.array([tree.paths[branch][position] for branch, position in rows])
    probe = AttentionProbe(spans, **options)
    with torch.no_grad():
        probe.watch_tree(tree, np.array([branch for branch, _ in rows]), query, base_model(model).device)
        hidden = tree_hidden_states(model, tree.input_ids, tree.position_ids, tree.leave, probe=probe)
        unprobed = tree_hidden_states(model, tree.input_ids, tree.position_ids, tree.leave)
    torch.testing.assert_close(hidden, unprobed, atol=0, rtol=0)
    return probe.result(), rows


def tree_case(seed=0, trunk=90):
    sequences = [sequence for sequence in random_sequences(seed, trunk=trunk) if len(sequence) > 8]
    draw = np.random.default_rng(seed)
    return sequences, [random_spans(draw, len(sequence) - 4) for sequence in sequences]


@pytest.mark.parametrize("chunk", [1, 2**24])
def test_tree_masses_equal_separate_sequences(exact_models, family, chunk, monkeypatch):
    # The tiny Gemmas have a window of 64 tokens, less than the trunk.
    monkeypatch.setattr(attention_probe, "CHUNK_WEIGHTS", chunk)
    model = exact_models(family)
    sequences, spans = tree_case()
    found, rows = probed_tree(model, sequences, spans)
    full = [attention(model, sequence) for sequence in sequences]
    assert_rows_equal(found, rows, sequences, spans, full, CLOSE)
    assert found.visible.T.tolist() == [visible_keys(model, position) for _, position in rows]
    assert found.tokens is None


def test_several_trees_in_one_packed_row(exact_models):
    """Spans are positions in the reply's own sequence, wherever its tree lies in the row."""
    model = exact_models("gemma3")
    trees = [
        [
            TokenSequence(sequence, (ReplyTokens((seed, n), len(sequence) - 3, len(sequence)),))
            for n, sequence in enumerate(tree_case(seed, trunk=40)[0])
        ]
        for seed in (1, 2)
    ]
    by_key = {sequence.replies[0].key: sequence.input_ids for tree in trees for sequence in tree}
    (row,) = pack_rows(trees, budget=2000)
    sequences = [by_key[keys[0]] for keys in row.keys]
    draw = np.random.default_rng(0)
    spans = [random_spans(draw, len(sequence) - 3) for sequence in sequences]
    probe = AttentionProbe(spans)
    with torch.no_grad():
        probe.watch_tree(row, row.reply, row.query, model.device)
        tree_hidden_states(model, row.input_ids, row.position_ids, row.leave, probe=probe)
    full = [attention(model, sequence) for sequence in sequences]
    rows = [(branch, len(sequence) - 4 + k) for branch, sequence in enumerate(sequences) for k in range(3)]
    assert_rows_equal(probe.result(), rows, sequences, spans, full, CLOSE)


@pytest.mark.parametrize("temperature", [0.0, 2.0])
def test_generation_equals_teacher_forcing(exact_models, family, temperature):
    """Every token of the replies, of different lengths, from prompts that share prefixes and pass the window."""
    model = exact_models(family)
    prompts, spans = tree_case(21, trunk=70)
    prompts, spans = [*prompts, prompts[0]], [*spans, random_spans(np.random.default_rng(5), len(prompts[0]))]
    seeds, sampling = list(range(len(prompts))), Sampling(10, temperature)
    free = generate(model, prompts, frozenset({-1}), sampling, seeds)
    stop = frozenset({free[0][3], free[1][0], free[2][6]})
    expected = generate(model, prompts, stop, sampling, seeds)
    probe = AttentionProbe(spans)
    replies = generate(model, prompts, stop, sampling, seeds, probe=probe)
    assert replies == expected
    # Greedy replies of a random model may repeat one token.
    assert len({len(reply) for reply in replies}) > (2 if temperature else 1)
    assert replies[1] == []
    found = probe.result()
    sequences = [joined(prompt, reply) for prompt, reply in zip(prompts, replies, strict=True)]
    full = [attention(model, sequence) for sequence in sequences]
    rows = [(b, len(prompt) - 1 + k) for b, prompt in enumerate(prompts) for k in range(len(replies[b]))]
    assert_rows_equal(found, rows, sequences, spans, full, CLOSE)
    assert found.visible.T.tolist() == [visible_keys(model, position) for _, position in rows]


def test_definitions_step_by_step(exact_models, family):
    model = exact_models(family)
    prompt = random_sequences(4, trunk=80)[0]
    span = np.arange(30, 37)
    probe = AttentionProbe([[span]])
    (reply,) = generate(model, [prompt], frozenset({-1}), Sampling(6), [0], probe=probe)
    full = attention(model, joined(prompt, reply))
    rows = [len(prompt) - 1 + k for k in range(6)]
    aggregate = full.double().mean(dim=(0, 1))
    paper = sum(float(aggregate[row, token]) for row in rows for token in span) / (len(span) * len(rows))
    reference = []
    for row in rows:
        layers = []
        for layer in full.double():
            last = layer[:, row].mean(dim=0)
            last[0] = 0
            layers.append(last / last.sum())
        reference.append(torch.stack(layers).mean(dim=0)[span].mean())
    found = probe.result()
    np.testing.assert_allclose(row_attention(found, "paper").mean(), paper, rtol=1e-5)
    np.testing.assert_allclose(row_attention(found, "reference").mean(), torch.stack(reference).mean(), rtol=1e-5)


def test_spans_that_hold_the_null_token_or_nothing(exact_models):
    model = exact_models("llama")
    sequence = random_sequences(4, trunk=20)[0]
    whole, empty = np.arange(17), np.empty(0, dtype=np.int64)
    found, _ = probed_tree(model, [sequence], [[whole, whole[1:], empty]])
    rows = attention(model, sequence)[:, :, 16:20].double().mean(dim=1)
    null = rows[..., :1]
    expected = (rows[..., 1:17].sum(-1) / (1 - null[..., 0])).mean(dim=0)
    torch.testing.assert_close(row_attention(found, "reference")[:, 0], expected / 17, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(row_attention(found, "reference")[:, 1], expected / 16, atol=1e-6, rtol=1e-5)
    assert (found.mass[..., 2] == 0).all()
    assert row_attention(found, "paper")[:, 2].isnan().all()
    assert row_attention(found, "reference")[:, 2].isnan().all()


def test_uniform_attention_in_closed_form(exact_models):
    """Queries of zero look at all visible keys alike."""
    model = copy.deepcopy(exact_models("llama"))
    for name, parameter in model.named_parameters():
        if "q_proj" in name:
            parameter.data.zero_()
    sequences, spans = tree_case(6)
    found, rows = probed_tree(model, sequences, [own[2:] for own in spans])
    visible = torch.tensor([position + 1 for _, position in rows], dtype=torch.float64)
    torch.testing.assert_close(row_attention(found, "paper")[:, 0], 1 / visible, atol=1e-7, rtol=1e-5)
    torch.testing.assert_close(row_attention(found, "reference")[:, 0], 1 / (visible - 1), atol=1e-7, rtol=1e-5)


def test_bfloat16(tiny_models, family):
    model = copy.deepcopy(tiny_models(family).model).to(torch.bfloat16)
    sequences, spans = tree_case(2)
    found, rows = probed_tree(model, sequences, spans)
    assert found.mass.dtype == torch.float32
    for number, (branch, position) in enumerate(rows):
        weights = attention(model, sequences[branch])[:, :, position]
        expected = torch.stack([weights[..., span].sum(-1) for span in spans[branch]], dim=-1)
        difference = (found.mass[:, :, number] - expected).abs()
        # The two kernels round differently, by 2**-8 of each product; later layers see other hidden states.
        assert difference[0].max() < 5e-2
        assert difference.mean(dim=1).max() < 5e-2
        assert (found.mass[:, :, number] - expected).mean(dim=(0, 1)).abs().max() < 2e-2


def test_adapter_is_measured_too(exact_models):
    base = copy.deepcopy(exact_models("qwen2"))
    sequences, spans = tree_case(3)
    without, _ = probed_tree(base, sequences, spans)
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear")).eval()
    draw = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.2, generator=draw)
    found, rows = probed_tree(model, sequences, spans)
    full = [attention(model, sequence) for sequence in sequences]
    assert_rows_equal(found, rows, sequences, spans, full, CLOSE)
    assert (found.mass - without.mass).abs().max() > 1e-2
    check_probe(model)


def test_kept_tokens(exact_models, family):
    model = exact_models(family)
    prompts, spans = tree_case(9, trunk=70)
    found, rows = probed_tree(model, prompts, spans, keep_tokens=True)
    probe = AttentionProbe(spans, keep_tokens=True)
    replies = generate(model, prompts, frozenset({-1}), Sampling(3), [0] * len(prompts), probe=probe)
    for tokens, (branch, position) in zip(found.tokens, rows, strict=True):
        expected = attention(model, prompts[branch])[:, :, position, : position + 1].mean(dim=(0, 1))
        torch.testing.assert_close(tokens, expected, **CLOSE)
    tokens = iter(probe.result().tokens)
    for prompt, reply in zip(prompts, replies, strict=True):
        full = attention(model, joined(prompt, reply)).mean(dim=(0, 1))
        for position in range(len(prompt) - 1, len(prompt) + 2):
            row = next(tokens)
            torch.testing.assert_close(row, full[position, : position + 1], **CLOSE)
            assert float(row.sum()) == pytest.approx(1, abs=1e-5)


def test_left_padded_batch(exact_models, family):
    """A plain teacher-forced pass: each entry as its own sequence, without its padding."""
    model = exact_models(family)
    sequences = [random_sequences(seed, trunk=length)[0] for seed, length in ((1, 80), (2, 68), (3, 75))]
    padding = torch.zeros(3, 80, dtype=torch.long)
    ids = torch.zeros(3, 80, dtype=torch.long)
    for entry, sequence in enumerate(sequences):
        padding[entry, -len(sequence) :] = 1
        ids[entry, -len(sequence) :] = torch.from_numpy(sequence)
    spans = [random_spans(np.random.default_rng(entry), 60) for entry in range(3)]
    batch, query = torch.tensor([0, 0, 1, 1, 2, 2]), torch.tensor([78, 79] * 3)
    probe = AttentionProbe(spans)
    visible = padding[batch].bool() & (torch.arange(80) <= query[:, None])
    probe.watch(visible, batch.tolist(), query.tolist(), batch=batch.tolist())
    positions = torch.clamp(padding.cumsum(-1) - 1, min=0)
    with torch.no_grad():
        model(input_ids=ids, attention_mask=padding, position_ids=positions, use_cache=False, probe=probe)
    rows = [(entry, len(sequences[entry]) - back) for entry in range(3) for back in (2, 1)]
    full = [attention(model, sequence) for sequence in sequences]
    assert_rows_equal(probe.result(), rows, sequences, spans, full, CLOSE)


def test_beside_flex_attention(tiny_models, family, monkeypatch):
    """What CUDA runs, uncompiled on the CPU: the probe measures the same."""

    monkeypatch.setattr(tree_attention, "query_blocks", tree_attention.block_mask)
    model = tiny_models(family).model
    sequences, spans = tree_case(11)
    found, rows = probed_tree(model, sequences, spans)
    full = [attention(model, sequence) for sequence in sequences]
    assert_rows_equal(found, rows, sequences, spans, full, CLOSE)


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.integers(6, 60), st.integers(1, 4))
def test_spans_that_cover_a_path_hold_all_attention(exact_models, seed, trunk, pieces):
    model = exact_models("gemma2")
    sequences = random_sequences(seed, trunk=trunk, vocabulary=4)
    tree = build_tree(sequences)
    parts = [np.array_split(np.arange(len(sequence)), pieces) for sequence in sequences]
    probe = AttentionProbe(parts)
    last = np.array([path[-1] for path in tree.paths])
    with torch.no_grad():
        probe.watch_tree(tree, np.arange(len(last)), last, model.device)
        tree_hidden_states(model, tree.input_ids, tree.position_ids, tree.leave, probe=probe)
    mass = probe.result().mass
    torch.testing.assert_close(mass.sum(-1), torch.ones(mass.shape[:-1]), **CLOSE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_check_accepts_the_supported_families(tiny_models, family, dtype):
    model = copy.deepcopy(tiny_models(family).model).to(dtype)
    check_probe(model)
    assert model.config._attn_implementation == IMPLEMENTATION


@pytest.mark.parametrize("wrong", ["scaling", "window", "keys"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_check_rejects_wrong_attention(tiny_models, family, dtype, wrong, monkeypatch):
    model = copy.deepcopy(tiny_models(family).model).to(dtype)
    if wrong == "window" and not any(layer_windows(model).values()):
        pytest.skip("no sliding window")
    original = AttentionProbe.observe

    def observe(self, module, query, key, scaling, softcap, window, boost):
        if wrong == "scaling":
            scaling = 1.5 * scaling
        if wrong == "keys":
            key = key.roll(1, dims=2)
        original(self, module, query, key, scaling, softcap, None if wrong == "window" else window)

    monkeypatch.setattr(AttentionProbe, "observe", observe)
    with pytest.raises(UserError, match=model.config.model_type):
        check_probe(model)


def test_misuse_is_refused(tiny_models):
    model = tiny_models("llama").model
    span = [np.arange(2, 4)]
    with pytest.raises(ValueError, match="same number of spans"):
        AttentionProbe([span, []])
    probe = AttentionProbe([span])
    with pytest.raises(ValueError, match="past a probed row"):
        probe.watch(torch.ones(1, 3, dtype=torch.bool), [0], [2])
    with pytest.raises(ValueError, match="no attention was observed"):
        probe.result()
    ids = torch.arange(10).reshape(2, 5)
    with pytest.raises(ValueError, match="needs a call of watch"):
        model(input_ids=ids, probe=probe)
    probe.watch(torch.ones(1, 5, dtype=torch.bool), [0], [4])
    with pytest.raises(ValueError, match="batch"):
        model(input_ids=ids, probe=probe)
    with pytest.raises(ValueError, match="10 keys"):
        model(input_ids=ids.reshape(1, 10), probe=probe)
    with eager(model):
        model(input_ids=ids[:1], probe=probe)
    with pytest.raises(ValueError, match="no attention was observed"):
        probe.result()
