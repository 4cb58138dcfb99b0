"""Masks of FlexAttention are those that PyTorch finds by trying every pair; one kernel serves rows of any length."""

from __future__ import annotations

import tracemalloc

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounter
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

import esc_lab.models.block_masks as block_masks
from esc_lab.models import forward, tree_attention
from esc_lab.models.block_masks import block_mask, compare_blocks, flex_kernel, pad_row, uses_flex
from esc_lab.models.forward import tree_hidden_states
from esc_lab.tokens import build_tree
from tests.models.test_tree_attention import random_sequences

CPU = torch.device("cpu")


def random_tree(seed: int, trunk: int, branches: int):
    """A tree with some long branches: whole blocks attend to whole blocks."""
    draw = np.random.default_rng(seed)
    sequences = random_sequences(seed, trunk=trunk, branches=branches)
    sequences += [np.append(sequence, draw.integers(0, 1000, trunk)) for sequence in sequences[:2]]
    return build_tree(sequences)


@settings(max_examples=25)
@given(
    st.integers(0, 10_000), st.integers(2, 200), st.integers(0, 8), st.sampled_from([None, 1, 5, 60, 150]),
    st.sampled_from([8, 16, 128]), st.booleans(),
)  # fmt: skip
def test_equal_to_trying_every_pair(seed, trunk, branches, window, size, padded):
    tree = random_tree(seed, trunk, branches)
    leave, position = tree.leave, tree.position_ids
    before, block_masks.SIZE = block_masks.SIZE, size
    try:
        if padded:
            _, position, leave = pad_row(tree.input_ids, position, leave)
        found = block_mask(leave, position, window, torch.float32, CPU)
    finally:
        block_masks.SIZE = before
    expected = create_block_mask(found.mask_mod, None, None, len(leave), len(leave), device="cpu", BLOCK_SIZE=size)
    for key in ("kv_num_blocks", "kv_indices", "full_kv_num_blocks", "full_kv_indices",
                "q_num_blocks", "q_indices", "full_q_num_blocks", "full_q_indices"):  # fmt: skip
        ours, theirs = getattr(found, key), getattr(expected, key)
        torch.testing.assert_close(ours, theirs, atol=0, rtol=0, msg=key)
    assert found.shape == expected.shape


def test_whole_and_empty_blocks_are_found():
    """The comparison above has something to compare."""
    some, every = compare_blocks(np.full(1024, 1024), np.arange(1024), 400)
    assert every.sum() == 7 + 6  # up to two blocks back
    assert some.sum() == 8 + 5 + 4  # themselves, and as far as the window begins
    assert not (some & every).any()


def test_nothing_is_as_large_as_tokens_times_tokens():
    size = 16_384
    tracemalloc.start()
    block_mask(np.full(size, size), np.arange(size), 4096, torch.bfloat16, CPU)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < size * size / 50


def test_padded_rows_come_in_few_lengths():
    def padded(size):
        return len(pad_row(*[np.zeros(size, dtype=np.int64)] * 3)[0])

    lengths = {size: padded(size) for size in range(1, 16_385, 7)}
    assert len(set(lengths.values())) < 70
    assert all(length % 128 == 0 and length >= 256 for length in lengths.values())
    assert all(size <= length <= max(size * 17 / 16 + 1, size + 255) for size, length in lengths.items())


def test_padded_flex_rows_give_the_same_states(tiny_models, family, monkeypatch):
    """What a GPU computes of a row, without compilation: two windows in the Gemmas, soft-capping in one."""
    model, kernels = tiny_models(family).model, []

    def counted(*args, **kwargs):
        kernels.append(args[0].shape[2])
        return flex_attention(*args, **kwargs)

    tree = build_tree(random_sequences(7, trunk=300))
    with torch.no_grad():
        expected = tree_hidden_states(model, tree.input_ids, tree.position_ids, tree.leave)
        for module in (forward, tree_attention):
            monkeypatch.setattr(module, "uses_flex", lambda *_: True)
        monkeypatch.setattr(tree_attention, "flex_kernel", lambda _: counted)
        found = tree_hidden_states(model, tree.input_ids, tree.position_ids, tree.leave)
    assert set(kernels) == {384}
    assert len(tree) % 128
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)


def test_one_kernel_serves_rows_of_all_lengths(monkeypatch):
    """On a GPU each further one costs seconds. Dynamo decides that, whatever compiles its graphs."""
    counter, compile_ = CompileCounter(), torch.compile
    monkeypatch.setattr(torch, "compile", lambda *args, **options: compile_(*args, **options, backend=counter))
    kernel = flex_kernel.__wrapped__("cuda")
    monkeypatch.undo()
    for size in (40, 700, 300, 129):
        tree = random_tree(size, size // 2, 3)
        _, position, leave = pad_row(tree.input_ids, tree.position_ids, tree.leave)
        mask = block_mask(leave, position, 300, torch.float32, CPU)
        # As many heads as blocks would be taken for the same size, until they differ.
        query, key = torch.randn(1, 6, len(leave), 16), torch.randn(1, 3, len(leave), 16)
        kernel(query, key, key, block_mask=mask, scale=0.25, enable_gqa=True)
    assert counter.frame_count == 1


def test_float64_has_no_kernel():
    cuda = torch.device("cuda")
    assert uses_flex(torch.bfloat16, cuda)
    assert not uses_flex(torch.float64, cuda)
    assert not uses_flex(torch.bfloat16, CPU)
