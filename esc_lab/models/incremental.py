"""One talk after another continued by a model that keeps what it has computed: a turn costs its new tokens only.

All prompts and replies are paths through the slots of one group (`slots.BranchGroup`). A prompt starts from the longest
beginning that any of them has had. Where attention was boosted, keys and values are others, so such tokens are found
again only under the same boost.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from esc_lab.models.attention_boost import AttentionBoost, BoostedPass, BoostedSpan
from esc_lab.models.attention_probe import AttentionProbe
from esc_lab.models.devices import move
from esc_lab.models.forward import base_model, head_logits
from esc_lab.models.generate import Sampling, draw
from esc_lab.models.log_probs import token_log_probs
from esc_lab.models.row_adapters import BASE, RowAdapters
from esc_lab.models.slots import BranchGroup, KeyValueSlots, run_pass
from esc_lab.statistics.intervals import FloatArray
from esc_lab.tokens.encode import IntArray

_BOOSTED = 1 << 40  # times the number of the boost: above all ids of tokens


class IncrementalModel:
    """A model with a cache that grows with a talk. When it is full, only the beginning that is in use stays.

    Args:
        model: in evaluation mode.
        stop: ids that end a reply.
        slots: tokens that are kept; the longest prompt, continuations or reply included.
        adapters: of the model, if it goes through one, and `adapter` its number.

    Attributes:
        computed: tokens that were computed so far.
    """

    def __init__(
        self, model: Any, stop: frozenset[int], slots: int, adapters: RowAdapters | None = None, adapter: int = BASE
    ) -> None:
        self._inner, self._stop, self._adapters = base_model(model), stop, adapters
        self._cache, self._group = KeyValueSlots(slots), BranchGroup(0, slots, adapter)
        self._boosts: dict[object, int] = {}
        self.computed = 0

    @torch.inference_mode()
    def score(self, prompt: IntArray, continuations: Sequence[IntArray]) -> list[FloatArray]:
        """Log-probabilities of the tokens of each continuation of a prompt.

        Raises:
            ValueError: there are not as many slots.
        """
        path = self._find(prompt, len(prompt) + sum(map(len, continuations)))
        new = len(prompt) - len(path)
        path, first = self._group.compute(path, prompt[len(path) :])
        mark, rows = self._group.mark(), []
        for ids in continuations:  # nothing comes after the last token, so it is not computed
            _, row = self._group.compute(path, ids[:-1])
            rows.append(np.append(first + new - 1, row + np.arange(len(ids) - 1)))
        states = self._run()
        self._group.cut(mark)
        self._group.paths.append((prompt, path))
        values = token_log_probs(self._inner, states, np.concatenate(rows), np.concatenate(continuations))
        return np.split(values.double().cpu().numpy(), np.cumsum([len(ids) for ids in continuations])[:-1])

    @torch.inference_mode()
    def stream(
        self,
        prompt: IntArray,
        sampling: Sampling,
        seed: int,
        *,
        probe: AttentionProbe | None = None,
        boost: tuple[AttentionBoost, BoostedSpan] | None = None,
    ) -> Iterator[int]:
        """The ids that continue a prompt, one at least, as they are drawn, until a stop token or `max_new_tokens`.

        Args:
            probe: measures the attention of the queries that predict the ids, as branch 0, once they are all drawn.
            boost: of attention on tokens of the prompt.

        Raises:
            ValueError: there are not as many slots.
        """
        ids = self._mark(prompt, boost)
        number = ids[-1] - prompt[-1]  # of the boost
        path = self._find(ids, len(prompt) + sampling.max_new_tokens)
        missing, generator = prompt[len(path) :], torch.Generator().manual_seed(seed)
        try:
            for _ in range(sampling.max_new_tokens):
                start = len(path)
                path, _ = self._group.compute(path, missing)
                if probe is not None:
                    seen = np.zeros((1, max(self._cache.end, int(path[-1]) + 1)), dtype=np.bool_)
                    seen[0, path] = True
                    visible = move(seen, self._inner.device)
                    probe.watch(visible, [0], [len(missing) - 1], cached=True)
                states = self._run(probe, None if boost is None else self._boost(*boost, path, start))
                logits = head_logits(self._inner, states[-1:])
                if len(ids) == len(prompt):  # a reply has words
                    logits[:, sorted(self._stop)] = -torch.inf
                (token,) = draw(logits, [sampling], [generator])
                if token in self._stop:
                    if probe is not None:
                        probe.keep([])
                    return
                missing = np.array([token])
                ids = np.append(ids, token + number)
                yield token
        finally:
            self._group.paths.append((ids[: len(path)], path))
            if probe is not None:
                probe.settle()

    def _find(self, ids: IntArray, tokens: int) -> IntArray:
        """The path of what is known of a prompt, without its last token, whose output is needed; and room for the rest.

        Args:
            tokens: of the prompt and of what comes after it.
        """
        if tokens > self._group.width:
            raise ValueError(f"{tokens} tokens, of {self._group.width} at most")
        path = self._group.find_prefix(ids[:-1])
        if tokens - len(path) <= self._group.free:
            return path
        group = BranchGroup(0, self._group.width, self._group.adapter)
        kept = group.extend(path[:0], len(path))
        self._cache.copy(path, kept)
        group.paths.append((ids[: len(kept)], kept))
        self._group = group
        return kept

    def _run(self, probe: AttentionProbe | None = None, boost: BoostedPass | None = None) -> Tensor:
        self.computed += self._group.rows
        if self._adapters:
            self._adapters.use([(self._group.adapter, self._group.rows)])
        return run_pass(self._inner, self._cache, [self._group], probe, boost)

    def _boost(self, boost: AttentionBoost, span: BoostedSpan, path: IntArray, start: int) -> BoostedPass:
        """The boost of a pass over the tokens of a path from `start` on."""
        keys = np.zeros((1, self._group.width), dtype=np.bool_)
        keys[0, path[span.keys]] = True
        return BoostedPass(boost, keys, (np.arange(start, len(path)) >= span.first_query)[None])

    def _mark(self, prompt: IntArray, boost: tuple[AttentionBoost, BoostedSpan] | None) -> IntArray:
        """The tokens by which keys and values are found again: from the first boosted query on they are others."""
        if boost is None:
            return prompt
        how, span = boost
        known = (how.mode, how.amount, how.heads.numpy().tobytes(), span.keys.tobytes(), span.first_query)
        marked = prompt.copy()
        marked[span.first_query :] += _BOOSTED * self._boosts.setdefault(known, len(self._boosts) + 1)
        return marked
