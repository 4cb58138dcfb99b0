"""Generation as growth of a token tree: prompts share their prefixes, and each reply is a branch that gets longer.

All prompts of a call are laid out as one trie and run once. Then every step adds one token to each unfinished branch in
a single forward pass whose queries see their own ancestors in the trie and their own branch. The key-value cache holds
each shared token once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from esc_lab.models.attention_probe import AttentionProbe
from esc_lab.models.draw import Sampling as Sampling
from esc_lab.models.draw import draw
from esc_lab.models.log_probs import head_logits, tree_hidden_states
from esc_lab.models.tree_attention import additive, base_model, by_layer_type, layer_windows
from esc_lab.tokens.encode import IntArray
from esc_lab.tokens.trie import TokenTree, build_tree


@torch.inference_mode()
def generate(
    model: Any,
    prompts: Sequence[IntArray],
    stop: frozenset[int],
    sampling: Sampling,
    seeds: Sequence[int],
    on_step: Callable[[int], None] | None = None,
    probe: AttentionProbe | None = None,
) -> list[list[int]]:
    """Continue each prompt until a stop token or `max_new_tokens`.

    Args:
        prompts: token ids; shared prefixes are computed once.
        stop: ids that end a reply; not part of the result.
        seeds: one per prompt; a reply depends on its own seed only, not on the prompts beside it.
        on_step: called with the number of tokens that a step generated.
        probe: measures the attention of the query that predicts each returned token, with the prompts as branches. The
            row that predicts a stop token is dropped: it belongs to no token of the reply.

    Returns:
        The generated ids of each prompt, without the stop token.
    """
    inner = base_model(model)
    tree = build_tree(prompts)
    cache = DynamicCache()  # without a config, so that no layer crops its keys: windows are in the mask
    hidden = _prompt_states(model, tree, cache, probe)
    draws = [torch.Generator().manual_seed(seed) for seed in seeds]
    replies: list[list[int]] = [[] for _ in prompts]
    branches = _Branches(inner, tree.paths, tree.position_ids, inner.device)
    active = list(range(len(prompts)))
    for step in range(sampling.max_new_tokens):
        tokens = _draw(head_logits(inner, hidden), sampling, [draws[number] for number in active])
        going = [index for index, token in enumerate(tokens) if token not in stop]
        for index in going:
            replies[active[index]].append(tokens[index])
        if probe is not None:
            probe.keep(going)
        active = [active[index] for index in going]
        if on_step:
            on_step(len(active))
        if not active or step + 1 == sampling.max_new_tokens:
            break
        next_tokens = [tokens[index] for index in going]
        hidden = _next_states(inner, branches, active, next_tokens, cache, probe)
    if probe is not None:
        probe.settle()
    return replies


def _prompt_states(model: Any, tree: TokenTree, cache: DynamicCache, probe: AttentionProbe | None) -> Tensor:
    """Final hidden states [prompts, hidden] at the end of each prompt."""
    last = np.array([path[-1] for path in tree.paths])
    if probe is not None:
        probe.watch_tree(tree, np.arange(len(last)), last, base_model(model).device, cached=True)
    hidden = tree_hidden_states(model, tree.input_ids, tree.position_ids, tree.leave, cache, probe)
    return hidden[torch.from_numpy(last).to(hidden.device)]


def _next_states(
    inner: Any,
    branches: _Branches,
    active: Sequence[int],
    tokens: Sequence[int],
    cache: DynamicCache,
    probe: AttentionProbe | None,
) -> Tensor:
    """Final hidden states [active, hidden] of one more token for each active branch."""
    mask, positions = branches.grow(active)
    arguments = {"position_ids": positions, "attention_mask": mask, "past_key_values": cache, "use_cache": True}
    if probe is not None:
        probe.watch(branches.visible[active], active, range(len(active)), cached=True)
        arguments["probe"] = probe
    output = inner.get_decoder()(input_ids=torch.tensor([tokens], device=inner.device), **arguments)
    states: Tensor = output.last_hidden_state[0]
    return states


class _Branches:
    """Which cached keys each growing branch may see: its prompt's path in the trie and its own tokens."""

    def __init__(self, inner: Any, paths: Sequence[IntArray], positions: IntArray, device: torch.device) -> None:
        self.windows = layer_windows(inner)
        self.dtype = inner.dtype
        self.visible = torch.zeros(len(paths), len(positions), dtype=torch.bool, device=device)
        for number, path in enumerate(paths):
            self.visible[number, torch.from_numpy(path).to(device)] = True
        self.key_position = torch.from_numpy(positions).to(device)
        self.length = torch.tensor([len(path) for path in paths], device=device)

    def grow(self, active: Sequence[int]) -> tuple[Any, Tensor]:
        """Add one key for each active branch; the mask [1, 1, active, keys] (or dict) and positions [1, active]."""
        rows = torch.tensor(active, device=self.visible.device)
        position = self.length[rows]
        own = torch.zeros(len(self.visible), len(rows), dtype=torch.bool, device=rows.device)
        own[rows, torch.arange(len(rows), device=rows.device)] = True
        self.visible = torch.cat([self.visible, own], dim=1)
        self.key_position = torch.cat([self.key_position, position])
        self.length[rows] += 1
        allowed = self.visible[rows]
        near = position[:, None] - self.key_position[None, :]
        masks = {
            kind: additive(allowed if window is None else allowed & (near < window), self.dtype)
            for kind, window in self.windows.items()
        }
        return by_layer_type(masks), position[None]


def _draw(logits: Tensor, sampling: Sampling, draws: Sequence[torch.Generator]) -> list[int]:
    """One token per row of logits [rows, vocabulary]."""
    if sampling.temperature == 0:
        return [int(token) for token in logits.argmax(dim=-1)]
    return [draw(row, sampling, generator) for row, generator in zip(logits.float().cpu(), draws, strict=True)]
