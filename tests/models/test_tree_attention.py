"""Token trees give the same numbers as separate sequences, for every model family, through the model's own logits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import esc_lab.models.checks as checks
import esc_lab.models.tree_attention as tree_attention
from esc_lab.errors import UserError
from esc_lab.models.checks import check_probe, check_tree_attention
from esc_lab.models.forward import base_model, head_logits, layer_windows, tree_hidden_states
from esc_lab.models.generate import Sampling, generate
from esc_lab.models.load import load_model
from esc_lab.models.tree_attention import _attend, additive, block_mask, query_blocks, token_tree_attention
from esc_lab.tokens import build_tree
from tests.conftest import model_config


def random_sequences(seed: int, trunk: int = 90, branches: int = 4, vocabulary: int = 1000) -> list[np.ndarray]:
    """Branches that leave a trunk at random places, some of them branching again."""
    draw = np.random.default_rng(seed)
    base = draw.integers(0, vocabulary, trunk)
    sequences = [base]
    for _ in range(branches):
        parent = sequences[draw.integers(len(sequences))]
        cut = int(draw.integers(1, len(parent)))
        sequences.append(np.concatenate([parent[:cut], draw.integers(0, vocabulary, int(draw.integers(1, 40)))]))
    return sequences


@pytest.mark.parametrize("block", [7, 64, 256])
def test_tree_logits_equal_separate_sequences(exact_models, family, block, monkeypatch):
    # The tiny Gemmas have a window of 64 tokens, less than the trunk.
    monkeypatch.setattr(tree_attention, "BLOCK", block)
    model = exact_models(family)
    sequences = random_sequences(seed=block)
    tree = build_tree(sequences)
    with torch.no_grad():
        hidden = tree_hidden_states(model, tree.input_ids, tree.position_ids, tree.leave)
        for sequence, path in zip(sequences, tree.paths, strict=True):
            expected = model(input_ids=torch.from_numpy(sequence)[None]).logits[0]
            found = head_logits(base_model(model), hidden[torch.from_numpy(path)])
            torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)


def test_windows_matter_here(exact_models, monkeypatch):
    """The comparison above could fail on sliding windows: without them the logits are others."""
    model = exact_models("gemma3")
    assert layer_windows(model) == {"full_attention": None, "sliding_attention": 64}
    sequence = random_sequences(0)[0]
    positions, leave = np.arange(len(sequence)), np.full(len(sequence), len(sequence))
    original = tree_attention.query_blocks
    monkeypatch.setattr(
        tree_attention, "query_blocks", lambda leave, position, window, *rest: original(leave, position, None, *rest)
    )
    with torch.no_grad():
        hidden = tree_hidden_states(model, sequence, positions, leave)
        expected = model(input_ids=torch.from_numpy(sequence)[None]).logits[0]
    difference = (head_logits(model, hidden) - expected).abs().max(dim=-1).values
    assert difference[:64].max() < 1e-4
    assert difference[64:].max() > 1e-3


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.integers(1, 50), st.sampled_from([None, 5, 20]), st.sampled_from([3, 8, 64]))
def test_blocks_allow_exactly_the_ancestors(seed, trunk, window, block):
    tree = build_tree(random_sequences(seed, trunk=trunk + 1, vocabulary=3))
    size = len(tree)
    expected = np.zeros((size, size), dtype=bool)
    for node in range(size):
        ancestor = node
        while ancestor >= 0:
            near = window is None or tree.position_ids[node] - tree.position_ids[ancestor] < window
            expected[node, ancestor] = near
            ancestor = tree.parent[ancestor]
    before = tree_attention.BLOCK
    tree_attention.BLOCK = block
    try:
        blocks = query_blocks(tree.leave, tree.position_ids, window, torch.float32, torch.device("cpu"))
    finally:
        tree_attention.BLOCK = before
    found = np.zeros_like(expected)
    for part in blocks:
        allowed = (part.mask[0, 0] == 0).numpy()
        found[part.start : part.stop, part.keys.numpy()] = allowed
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("flex", [False, True])
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_attention_function_equals_brute_force(softcap, flex):
    """In float64; FlexAttention (whose backward pass needs CUDA) in the float32 that it computes in."""
    draw = torch.Generator().manual_seed(0)
    tree = build_tree(random_sequences(3, trunk=40))
    size, heads, groups, dim = len(tree), 2, 3, 8
    query = torch.randn(1, heads * groups, size, dim, generator=draw, dtype=torch.float64)
    key, value = (torch.randn(1, heads, size, dim, generator=draw, dtype=torch.float64) for _ in range(2))
    make = block_mask if flex else query_blocks
    masks = make(tree.leave, tree.position_ids, None, torch.float64, torch.device("cpu"))
    found, _ = token_tree_attention(None, query, key, value, None, scaling=0.3, softcap=softcap, tree={None: masks})
    tolerance = {"atol": 1e-6, "rtol": 1e-5} if flex else {"atol": 1e-12, "rtol": 1e-10}
    for head in range(heads * groups):
        for node in range(size):
            path = [node]
            while tree.parent[path[-1]] >= 0:
                path.append(int(tree.parent[path[-1]]))
            scores = key[0, head // groups, path] @ query[0, head, node] * 0.3
            if softcap:
                scores = softcap * torch.tanh(scores / softcap)
            expected = torch.softmax(scores, 0) @ value[0, head // groups, path]
            torch.testing.assert_close(found[0, node, head], expected, **tolerance)


@pytest.mark.parametrize("window", [16, None])
@pytest.mark.parametrize("kind", ["mistral", "phi3", "starcoder2"])
def test_one_window_for_all_layers_needs_no_types(kind, window, tmp_path):
    """Configurations with `sliding_window` and without `layer_types`: trees, the probe and generation."""
    settings = model_config("tiny_llama")
    settings.shape = settings.shape | {"model_type": kind, "sliding_window": window, "num_hidden_layers": 2}
    model = load_model(settings, tmp_path).model.double()
    assert not hasattr(model.config, "layer_types")
    assert set(layer_windows(model).values()) == {window}
    check_probe(model)
    sequences = random_sequences(seed=1)
    tree = build_tree(sequences)
    with torch.no_grad():
        hidden = tree_hidden_states(model, tree.input_ids, tree.position_ids, tree.leave)
        for sequence, path in zip(sequences, tree.paths, strict=True):
            expected = model(input_ids=torch.from_numpy(sequence)[None]).logits[0]
            found = head_logits(model, hidden[torch.from_numpy(path)])
            torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)
        prompts = [sequence[:40] for sequence in sequences[:2]]
        replies = generate(model, prompts, frozenset(), Sampling(max_new_tokens=8), seeds=[0, 0])
        for prompt, reply in zip(prompts, replies, strict=True):
            ids = torch.from_numpy(np.concatenate([prompt, reply]))
            logits = model(input_ids=ids[None]).logits[0]
            assert logits[len(prompt) - 1 : -1].argmax(dim=-1).tolist() == reply


def test_padded_batches_still_get_their_mask(exact_models, family):
    """The registered function must not lose the padding mask of ordinary calls."""
    model = exact_models(family)
    ids = torch.from_numpy(random_sequences(5)[0][:20])[None]
    padded = torch.cat([torch.zeros(1, 5, dtype=torch.long), ids], dim=1)
    mask = torch.cat([torch.zeros(1, 5, dtype=torch.long), torch.ones_like(ids)], dim=1)
    positions = torch.clamp(mask.cumsum(-1) - 1, min=0)
    with torch.no_grad():
        expected = model(input_ids=ids).logits[0]
        found = model(input_ids=padded, attention_mask=mask, position_ids=positions).logits[0, 5:]
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)


def test_check_on_load_rejects_wrong_attention(tiny_models, monkeypatch):
    model = tiny_models("llama").model

    def every_token_sees_all(model, input_ids, position_ids, leave):
        return tree_hidden_states(model, input_ids, np.arange(len(leave)), np.full(len(leave), len(leave)))

    check_tree_attention(model)
    monkeypatch.setattr(checks, "tree_hidden_states", every_token_sees_all)
    with pytest.raises(UserError, match="differ from separate sequences"):
        check_tree_attention(model)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3"])
def test_flex_attention_gives_the_same_hidden_states(tiny_models, family, monkeypatch):
    """The CUDA path, forward only, without compilation."""
    model = tiny_models(family).model
    tree = build_tree(random_sequences(7, trunk=100))
    with torch.no_grad():
        expected = tree_hidden_states(model, tree.input_ids, tree.position_ids, tree.leave)
        monkeypatch.setattr(tree_attention, "query_blocks", block_mask)
        found = tree_hidden_states(model, tree.input_ids, tree.position_ids, tree.leave)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("unfused_rows", [1, 1000])
def test_attention_in_half_precision(unfused_rows, monkeypatch):
    monkeypatch.setattr(tree_attention, "UNFUSED_ROWS", unfused_rows)
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(1, heads, length, 16, generator=generator) for heads, length in ((6, 40), (2, 90), (2, 90))
    )
    allowed = torch.ones(40, 90).tril(50).bool()
    weights = torch.softmax(
        (query.double() @ key.double().repeat_interleave(3, 1).mT / 4).masked_fill(~allowed, -torch.inf), dim=-1
    )
    expected = weights @ value.double().repeat_interleave(3, 1)
    mask = additive(allowed, torch.bfloat16).repeat(1, 1, 3, 1)
    halves = [part.bfloat16().requires_grad_() for part in (query, key, value)]
    found = _attend(*halves, mask, 0.0, None, None)
    torch.testing.assert_close(found.double(), expected, atol=0.03, rtol=0.0)
    wholes = [part.double().requires_grad_() for part in (query, key, value)]
    outcome = torch.randn(found.shape, generator=generator)
    (_attend(*wholes, mask.double(), 0.0, None, None) * outcome).sum().backward()
    (found * outcome).sum().backward()
    for half, whole in zip(halves, wholes, strict=True):
        torch.testing.assert_close(half.grad.double(), whole.grad, atol=0.06, rtol=0.0)
