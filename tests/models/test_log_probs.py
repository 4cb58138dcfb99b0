"""Reply log-probabilities and their gradients against plain autograd over separate sequences."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import esc_lab.models.log_probs as log_probs
from esc_lab.models.log_probs import reply_log_probs, score_rows, token_log_probs
from esc_lab.tokens import ReplyTokens, TokenSequence, pack_rows
from tests.models.test_tree_attention import random_sequences


def with_replies(sequences):
    """Every sequence ends in a reply of a few tokens; the first one has another reply in its middle."""
    found = []
    for number, ids in enumerate(sequences):
        replies = [ReplyTokens(number, max(len(ids) - 6, 1), len(ids))]
        if number == 0:
            replies.insert(0, ReplyTokens("middle", 20, 31))
        found.append(TokenSequence(ids, tuple(replies)))
    return found


def one_at_a_time(model, sequences):
    """key -> log-probability of the reply, by the model's own forward on one sequence at a time."""
    found = {}
    for sequence in sequences:
        logits = model(input_ids=torch.from_numpy(sequence.input_ids)[None]).logits[0]
        steps = torch.log_softmax(logits, dim=-1)
        for reply in sequence.replies:
            targets = torch.from_numpy(sequence.input_ids[reply.start : reply.end])
            found[reply.key] = steps[reply.start - 1 : reply.end - 1].gather(1, targets[:, None]).sum()
    return found


@pytest.mark.parametrize("budget", [140, 4096])
def test_packed_loss_and_gradients_equal_one_at_a_time(exact_models, family, budget, monkeypatch):
    monkeypatch.setattr(log_probs, "CHUNK_LOGITS", 1024 * 5)  # several chunks even here
    model = copy.deepcopy(exact_models(family)).requires_grad_(True)
    sequences = with_replies(random_sequences(11, trunk=100))
    expected = one_at_a_time(model, sequences)
    tokens = sum(reply.end - reply.start for sequence in sequences for reply in sequence.replies)
    (-sum(expected.values()) / tokens).backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    found = {}
    for row in pack_rows([sequences], budget):
        values = reply_log_probs(model, row)
        (-values.sum() / tokens).backward()
        found |= {key: log_probs.sum() for key, log_probs in score_rows(model, [row])}
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key] == pytest.approx(value.item(), abs=1e-4, rel=1e-5)
    scale = max(float(gradient.abs().max()) for gradient in gradients.values())
    for name, parameter in model.named_parameters():
        assert (parameter.grad - gradients[name]).abs().max() < 1e-5 * max(scale, 1.0), name


@pytest.mark.parametrize("cap", [None, 4.0])
@pytest.mark.parametrize("bias", [False, True])
def test_token_log_probs_in_float64(cap, bias, monkeypatch):
    monkeypatch.setattr(log_probs, "CHUNK_LOGITS", 11 * 3)
    torch.manual_seed(0)
    head = torch.nn.Linear(6, 11, bias=bias).double()
    config = SimpleNamespace(final_logit_softcapping=cap, get_text_config=lambda: config)
    inner = SimpleNamespace(get_output_embeddings=lambda: head, config=config)
    hidden = torch.randn(9, 6, dtype=torch.float64, requires_grad=True)
    query, target = np.array([4, 1, 4, 8, 0, 4, 7, 2, 3]), np.array([3, 10, 0, 2, 3, 3, 9, 1, 0])
    weight = torch.randn(len(query), dtype=torch.float64)

    def direct(hidden, matrix):
        logits = hidden @ matrix.T + (head.bias if bias else 0)
        logits = cap * torch.tanh(logits / cap) if cap else logits
        return torch.log_softmax(logits, -1)[torch.from_numpy(query), torch.from_numpy(target)]

    found = token_log_probs(inner, hidden, query, target)
    torch.testing.assert_close(found, direct(hidden, head.weight), atol=1e-12, rtol=1e-12)
    (found * weight).sum().backward()
    expected = torch.autograd.grad((direct(hidden, head.weight) * weight).sum(), (hidden, head.weight))
    torch.testing.assert_close(hidden.grad, expected[0], atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(head.weight.grad, expected[1], atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_under_autocast_are_those_of_its_own_forward(dtype):
    """Against autograd over the logits that autocast makes; they are large, so that those of float32 are far off."""
    torch.manual_seed(0)
    head = torch.nn.Linear(64, 50, bias=False).requires_grad_(True)
    torch.nn.init.normal_(head.weight, std=5)
    config = SimpleNamespace(final_logit_softcapping=None, get_text_config=lambda: config)
    inner = SimpleNamespace(get_output_embeddings=lambda: head, config=config)
    hidden = torch.randn(30, 64).to(dtype).requires_grad_(True)
    query, target = np.arange(30), np.arange(30)
    with torch.autocast("cpu", torch.bfloat16):
        values = token_log_probs(inner, hidden, query, target)
        logits = torch.nn.functional.linear(hidden, head.weight)
        expected = torch.log_softmax(logits.float(), dim=-1).diagonal()
    assert logits.dtype == torch.bfloat16
    assert values.dtype == torch.float32
    torch.testing.assert_close(values, expected)
    found, wanted = (torch.autograd.grad(result.sum(), [hidden, head.weight]) for result in (values, expected))
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.dtype == theirs.dtype
        assert float((ours - theirs).norm() / theirs.norm()) < 0.01


def test_logits_of_the_whole_row_never_exist(tiny_models, monkeypatch):
    monkeypatch.setattr(log_probs, "CHUNK_LOGITS", 1024 * 4)
    seen = []
    original = log_probs._TokenLogProbs._logits
    monkeypatch.setattr(
        log_probs._TokenLogProbs, "_logits", staticmethod(lambda *a: seen.append(original(*a)) or seen[-1])
    )
    model = copy.deepcopy(tiny_models("llama").model).requires_grad_(True)
    (row,) = pack_rows([with_replies(random_sequences(2))], 4096)
    reply_log_probs(model, row).sum().backward()
    assert len(seen) > 4
    assert max(len(logits) for logits in seen) <= 4


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_gradient_checkpointing_changes_nothing(exact_models, name):
    (row,) = pack_rows([with_replies(random_sequences(4))], 4096)
    gradients = []
    for checkpointing in (False, True):
        model = copy.deepcopy(exact_models(name)).requires_grad_(True).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        reply_log_probs(model, row).sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed, atol=1e-5, rtol=1e-4)
