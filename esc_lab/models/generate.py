"""Generation as growth of a token tree: prompts share their prefixes, and each reply is a branch that gets longer.

All prompts of a call are laid out as one trie and run once. Then every step adds one token to each unfinished branch in
a single forward pass whose queries see their own ancestors in the trie and their own branch. The key-value cache holds
each shared token once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from esc_lab.models.attention_boost import AttentionBoost, BoostedPass, split_tree
from esc_lab.models.attention_probe import AttentionProbe
from esc_lab.models.devices import move
from esc_lab.models.forward import base_model, head_logits, tree_hidden_states
from esc_lab.models.slots import BranchGroup, KeyValueSlots, run_pass
from esc_lab.tokens.encode import IntArray
from esc_lab.tokens.trie import build_tree

# Most probable tokens among which those of `top_p` are looked for before all are sorted.
_NUCLEUS = 512


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn: `temperature` 0 is greedy; `top_p` keeps the smallest set of tokens with that mass.

    `generate` writes no run of `no_repeat` tokens twice in a reply; 0 = any. An engine's tasks have their own setting.
    """

    max_new_tokens: int = 96
    temperature: float = 0.0
    top_p: float = 1.0
    no_repeat: int = 0


@torch.inference_mode()
def generate(
    model: Any,
    prompts: Sequence[IntArray],
    stop: frozenset[int],
    sampling: Sampling,
    seeds: Sequence[int],
    on_step: Callable[[int], None] | None = None,
    probe: AttentionProbe | None = None,
    boost: AttentionBoost | None = None,
) -> list[list[int]]:
    """The ids that continue each prompt until a stop token (which is no part of them) or `max_new_tokens`.

    Args:
        prompts: token ids; shared prefixes are computed once.
        stop: ids that end a reply.
        seeds: one per prompt; a reply depends on its own seed only, not on the prompts beside it.
        on_step: called with the number of tokens that a step generated.
        probe: measures the attention of the query that predicts each returned token, with the prompts as branches. The
            row that predicts a stop token is dropped: it belongs to no token of the reply.
        boost: of attention on the tokens that are marked in the prompts (see `attention_boost.mark`).
    """
    inner = base_model(model)
    tree, steer = split_tree(build_tree(prompts), boost)
    group = BranchGroup(0, len(tree) + len(prompts) * (sampling.max_new_tokens - 1))
    cache = KeyValueSlots(group.width)
    cache.write_to(group.take(tree.position_ids), inner.device)
    paths = list(tree.paths)
    last = np.array([path[-1] for path in paths])
    if probe is not None:
        probe.watch_tree(tree, np.arange(len(last)), last, inner.device, cached=True)
    states = tree_hidden_states(model, tree.input_ids, tree.position_ids, tree.leave, cache, probe, steer)
    states = states[move(last, states.device)]
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    replies: list[list[int]] = [[] for _ in prompts]
    active = list(range(len(prompts)))
    for step in range(sampling.max_new_tokens):
        if step:
            for branch in active:
                paths[branch], _ = group.compute(paths[branch], np.array(replies[branch][-1:]))
            if probe is not None:
                probe.watch(move(group.visible(), inner.device), active, range(len(active)), cached=True)
            states = run_pass(inner, cache, [group], probe, steer and _boost_next(steer, group, last[active]))
        logits = head_logits(inner, states)
        for row, branch in enumerate(active if sampling.no_repeat else ()):
            repeating = find_repeating(prompts[branch][:0], replies[branch], sampling.no_repeat)
            logits[row, move(np.setdiff1d(repeating, [*stop]), logits.device)] = -torch.inf
        tokens = draw(logits, [sampling] * len(active), [generators[branch] for branch in active])
        unfinished = [row for row, token in enumerate(tokens) if token not in stop]
        for row in unfinished:
            replies[active[row]].append(tokens[row])
        if probe is not None:
            probe.keep(unfinished)
        active = [active[row] for row in unfinished]
        if on_step:
            on_step(len(active))
        if not active:
            break
    if probe is not None:
        probe.settle()
    return replies


def _boost_next(prompts: BoostedPass, group: BranchGroup, last: IntArray) -> BoostedPass:
    """The boost of a pass after that over the prompts; `last` are the last tokens of those that are not finished.

    A generated token is none of its keys, and a query of it where the last token of its prompt is one or a key.
    """
    keys = np.zeros((1, group.width), dtype=bool)
    keys[:, : prompts.keys.shape[1]] = prompts.keys
    return BoostedPass(prompts.boost, keys, (prompts.queries | prompts.keys)[:, last])


def find_repeating(prompt: IntArray, reply: Sequence[int], size: int) -> IntArray:
    """Tokens that would end a run of `size` tokens of the reply that is in prompt or reply already.

    As in *A Deep Reinforced Model for Abstractive Summarization* (arXiv 1705.04304), section 2.5, with the prompt.
    """
    if not size or len(reply) < size - 1:
        return prompt[:0]
    text = np.concatenate([prompt, np.array(reply, dtype=np.int64)])
    starts = np.ones(len(text) - size + 1, dtype=np.bool_)
    for place, token in enumerate(reply[len(reply) - size + 1 :]):
        starts &= text[place : place + len(starts)] == token
    return np.unique(text[np.flatnonzero(starts) + size - 1])


def draw(logits: Tensor, samplings: Sequence[Sampling], generators: Sequence[torch.Generator]) -> list[int]:
    """One token from each row of logits [rows, vocabulary]: by its own sampling and generator.

    Each inverts the distribution at one uniform number, so that small changes of the logits hardly ever change it. The
    numbers come from the CPU. All tokens are drawn together; a GPU is waited for once.
    """
    tokens = logits.argmax(dim=-1)
    drawn = [row for row, sampling in enumerate(samplings) if sampling.temperature > 0]
    together = [[row for row in drawn if (samplings[row].top_p < 1) == cut] for cut in (False, True)]
    for rows in together:
        if rows:
            numbers = [torch.rand(1, dtype=torch.float64, generator=generators[row]) for row in rows]
            place = move(np.array(rows), logits.device)
            tokens[place] = _draw(logits[place], [samplings[row] for row in rows], torch.cat(numbers))
    found: list[int] = tokens.tolist()
    return found


def _draw(logits: Tensor, samplings: Sequence[Sampling], numbers: Tensor) -> Tensor:
    """The tokens [rows] of logits [rows, vocabulary] where their mass passes the shares `numbers` [rows] of it.

    The rows are cut to their nucleus if the first is.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    settings = np.array([(sampling.temperature, sampling.top_p) for sampling in samplings])
    temperature, top_p = move(settings, logits.device).to(logits.dtype)[:, :, None].unbind(dim=1)
    probs = torch.softmax(logits / temperature, dim=-1)
    probs, order = _keep_nucleus(probs, top_p) if samplings[0].top_p < 1 else (probs, None)
    mass = probs.double().cumsum(dim=-1)
    shares = move(numbers.numpy(), logits.device)[:, None] * mass[:, -1:]
    place = torch.searchsorted(mass, shares, right=True).clamp(max=mass.shape[1] - 1)
    return (place if order is None else order.gather(1, place))[:, 0]


def _keep_nucleus(probs: Tensor, top_p: Tensor) -> tuple[Tensor, Tensor | None]:
    """The probabilities of the smallest set of tokens with mass `top_p` [rows, 1], 0 for others, and their tokens.

    They are in the order of the vocabulary, and all of it if there are no tokens beside them: in that of their
    probabilities, two that are all but equal would change places, and the draw with them, where the logits are rounded
    in another way.
    """
    highest, order = probs.topk(min(_NUCLEUS, probs.shape[1]))
    if probs.is_cuda:  # it sorts sooner than it would be waited for
        highest, order = probs.sort(dim=-1, descending=True)
    elif (flat := highest.sum(dim=-1) < top_p[:, 0]).any():
        kept = torch.zeros_like(probs).scatter_(1, order, _cut(highest, top_p))
        # Only these rows: equal ones have another order then, and no row may depend on the others.
        highest, order = probs[flat].sort(dim=-1, descending=True)
        kept[flat] = torch.zeros_like(highest).scatter_(1, order, _cut(highest, top_p[flat]))
        return kept, None
    order, place = order.sort(dim=-1)
    return _cut(highest, top_p).gather(1, place), order


def _cut(highest: Tensor, top_p: Tensor) -> Tensor:
    """Descending probabilities, with 0 from where those before them have the mass `top_p` [rows, 1]."""
    return highest.masked_fill(highest.cumsum(dim=-1) - highest >= top_p, 0.0)
