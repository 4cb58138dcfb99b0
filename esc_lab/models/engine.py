"""Many prompts answered together, as they come: continuous batching over a cache of prefixes.

Every pass computes what there is to compute: the next token of each reply that is being written, new prompts, and
continuations that are only scored. A prompt that begins like an earlier one starts from the keys and values kept of
that (`prefix_cache`); prompts that are worked on at the same time share the slots of their common beginning
(`regions`). What is answered to a prompt does not depend on the others, up to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from esc_lab.models.draw import draw
from esc_lab.models.log_probs import head_logits, token_log_probs
from esc_lab.models.prefix_cache import KeyValues, PrefixIndex
from esc_lab.models.regions import Region, free_start, lay_out
from esc_lab.models.tasks import Scoring, Task, Writing
from esc_lab.models.tree_attention import base_model, by_layer_type, layer_windows
from esc_lab.tokens.encode import IntArray


@dataclass(eq=False)
class _Begun:
    """A task that is worked on: its region, its path there, and which of the region's rows its last token is."""

    task: Any
    region: Region
    path: IntArray
    row: int
    draws: torch.Generator = field(default_factory=torch.Generator)

    @property
    def place(self) -> int:
        """Row of the pass."""
        return self.region.first_row + self.row


class Engine:
    """Answers tasks with a model.

    Args:
        model: in evaluation mode.
        stop: ids that end a reply.
        batch: most replies that are written at once.
        row_tokens: most new tokens of a pass; a single prompt may have more.
        working_tokens: tokens of prompts and replies that are worked on at the same time; the longest prompt, with what
            follows it.
        cache_tokens: tokens of earlier prompts whose keys and values are kept.

    Attributes:
        computed, reused: prompt tokens that were computed, and that were there already.
    """

    def __init__(
        self,
        model: Any,
        stop: frozenset[int],
        *,
        batch: int = 32,
        row_tokens: int = 1024,
        working_tokens: int = 16384,
        cache_tokens: int = 24576,
    ) -> None:
        self._inner = base_model(model)
        self._windows = layer_windows(self._inner)
        self._stop, self._batch, self._row_tokens = stop, batch, row_tokens
        self.working_tokens, self._cache_tokens = working_tokens, cache_tokens
        self.computed = self.reused = 0
        self._states = KeyValues(cache_tokens + working_tokens)
        self.reset()

    def reset(self) -> None:
        """Drop all tasks and forget all prefixes, as is due after a pass that failed."""
        self._index = PrefixIndex(self._cache_tokens)
        self._waiting: list[Task] = []
        self._replies: list[_Begun] = []
        self._regions: list[Region] = []
        self._new = 0  # new tokens of the pass that is being put together
        self._crowded = False  # something to be scored did not fit into the last pass

    @property
    def idle(self) -> bool:
        return not self._waiting and not self._replies

    def add(self, task: Task) -> None:
        """Take on a task.

        Raises:
            ValueError: it is longer than `working_tokens`.
        """
        if len(task.prompt) + task.room > self.working_tokens:
            raise ValueError(f"a task of {len(task.prompt)} + {task.room} tokens, of {self.working_tokens} at most")
        self._waiting.append(task)

    def drop(self, task: Task) -> None:
        """Leave a task unanswered."""
        self._waiting = [other for other in self._waiting if other is not task]
        for reply in self._replies:
            if reply.task is task:
                self._close(reply)

    @torch.inference_mode()
    def step(self) -> list[Task]:
        """One pass; the tasks that it finishes."""
        self._index.tick()
        self._new = 0
        for reply in self._replies:
            reply.region.reserved -= 1
            reply.path, reply.row = reply.region.run(reply.path, np.array(reply.task.reply[-1:]))
        new = [] if self._crowded else self._begin(Writing)
        for reply in new:
            reply.draws.manual_seed(reply.task.seed)
        # Slots of what is scored are free again after the pass.
        marks = [(region, region.mark()) for region in self._regions]
        scored = self._begin(Scoring)
        self._crowded = any(isinstance(task, Scoring) for task in self._waiting)
        asked = [_continue(begun) for begun in scored]
        for begun in scored:
            begun.region.reserved -= begun.task.room
        hidden = self._pass()
        self._keep([*new, *scored])
        for begun, rows in zip(scored, asked, strict=True):
            self._read(begun, hidden, rows)
        for region, mark in marks:
            region.cut(mark)
        self._replies += new
        finished = [begun.task for begun in scored] + self._draw(hidden)
        self._regions = [region for region in self._regions if region.branches]
        for region in self._regions:
            region.clear()
        return finished

    def _begin(self, kind: type[Task]) -> list[_Begun]:
        """Put waiting tasks of a kind into the pass, in their order and as far as there is room."""
        begun: list[_Begun] = []
        for task in [task for task in self._waiting if isinstance(task, kind)]:
            if kind is Writing and len(self._replies) + len(begun) == self._batch:
                break
            place = self._place(task)
            if place is None:
                break
            region, path = place
            missing = task.prompt[len(path) :]
            self.computed += len(missing)
            self.reused += len(path)
            self._new += len(missing) + (task.room if kind is Scoring else 0)
            path, row = region.run(path, missing)
            region.remember(task.prompt, path)
            region.branches += kind is Writing
            region.reserved += task.room  # before the next task looks for room
            begun.append(_Begun(task, region, path, row + len(missing) - 1))
        chosen = {id(one.task) for one in begun}
        self._waiting = [task for task in self._waiting if id(task) not in chosen]
        return begun

    def _place(self, task: Task) -> tuple[Region, IntArray] | None:
        """A region for a task, and the path of the part of its prompt that is there; None if there is no room.

        The last token of a prompt is always computed, since its output is needed.
        """
        ids = task.prompt[:-1]
        known = self._index.find(ids)
        shared, home = ids[:0], None
        for region in self._regions:
            path = region.shared(ids)
            fits = region.room() >= len(task.prompt) - len(path) + task.room
            if fits and len(path) > len(shared) and 2 * len(path) >= len(ids):
                shared, home = path, region
        new = self._new + len(task.prompt) - max(len(known), len(shared))
        new += task.room if isinstance(task, Scoring) else 0
        if self._new and new > self._row_tokens:
            return None
        home = home or self._open(len(task.prompt), task.room)
        if home is None:
            return None
        if len(known) <= len(shared):
            return home, shared
        path = home.append(shared, len(known) - len(shared))
        self._states.copy(known[len(shared) :], home.start + path[len(shared) :])
        return home, path

    def _open(self, prompt: int, room: int) -> Region | None:
        """A region for a task, if possible with room for more tasks with a prompt like this."""
        for width in (2 * prompt + 6 * room, prompt + room):
            start = free_start(self._regions, width, self._cache_tokens, self._states.slots)
            if start is not None:
                self._regions.append(Region(start, width))
                return self._regions[-1]
        return None

    def _pass(self) -> Tensor:
        """Final hidden states [rows, hidden] of the pass that was put together."""
        inner, device = self._inner, self._inner.device
        regions = [region for region in self._regions if region.rows]
        tree = lay_out(regions, self._windows.values(), inner.dtype, device)
        ids = np.concatenate([part for region in regions for part in region.ids])
        positions = np.concatenate([region.positions() for region in regions])
        slots = np.concatenate([region.start + part for region in regions for part in region.slots])
        self._states.written = torch.from_numpy(slots).to(device)
        output = inner.get_decoder()(
            input_ids=torch.from_numpy(ids).to(device)[None],
            position_ids=torch.from_numpy(positions).to(device)[None],
            past_key_values=self._states,
            use_cache=True,
            # A 4-D tensor is passed on as it is, so that transformers does not make a mask that nobody reads.
            attention_mask=by_layer_type(dict.fromkeys(self._windows, torch.zeros(1, 1, 1, 1, device=device))),
            tree=tree,
        )
        hidden: Tensor = output.last_hidden_state[0]
        return hidden

    def _keep(self, new: Sequence[_Begun]) -> None:
        """Keep the keys and values of new prompts for later ones."""
        sources, targets = [], []
        for begun in new:
            known, slots = self._index.add(begun.task.prompt[:-1])
            sources.append(begun.region.start + begun.path[known : known + len(slots)])
            targets.append(slots)
        if new:
            self._states.copy(np.concatenate(sources), np.concatenate(targets))

    def _read(self, begun: _Begun, hidden: Tensor, rows: Sequence[IntArray]) -> None:
        """Note the log-probabilities of the continuations of a task that is scored; `rows` predict their tokens."""
        task: Scoring = begun.task
        wanted = [slice(first, None) for first in task.first]
        query = np.concatenate([own[part] for own, part in zip(rows, wanted, strict=True)])
        target = np.concatenate([ids[part] for ids, part in zip(task.continuations, wanted, strict=True)])
        values = token_log_probs(self._inner, hidden, begun.region.first_row + query, target).double().cpu().numpy()
        ends = np.cumsum([len(ids[part]) for ids, part in zip(task.continuations, wanted, strict=True)])
        task.log_probs = np.split(values, ends[:-1])

    def _draw(self, hidden: Tensor) -> list[Task]:
        """Give every reply its next token; the tasks whose replies have come to their end."""
        if not self._replies:
            return []
        rows = torch.tensor([reply.place for reply in self._replies], device=hidden.device)
        logits = head_logits(self._inner, hidden[rows])
        drawn = [draw(row, reply.task.sampling, reply.draws) for row, reply in zip(logits, self._replies, strict=True)]
        finished: list[Task] = []
        for reply, token in zip(list(self._replies), drawn, strict=True):
            task: Writing = reply.task
            if token not in self._stop:
                task.reply.append(token)
            if token in self._stop or len(task.reply) == task.sampling.max_new_tokens:
                self._close(reply)
                finished.append(task)
        return finished

    def _close(self, reply: _Begun) -> None:
        """Give back the room of a reply."""
        written = len(reply.path) - len(reply.task.prompt)
        reply.region.reserved -= reply.task.room - written
        reply.region.branches -= 1
        self._replies = [other for other in self._replies if other is not reply]


def _continue(begun: _Begun) -> list[IntArray]:
    """Put the continuations of a task into the pass, as a trie; for each the region's rows that predict its tokens."""
    nodes: dict[tuple[int, ...], tuple[IntArray, int]] = {(): (begun.path, begun.row)}
    rows = []
    for ids in begun.task.continuations:
        tokens = tuple(ids.tolist())
        known = next(length for length in range(len(ids) - 1, -1, -1) if tokens[:length] in nodes)
        path, _ = nodes[tokens[:known]]
        if known < len(ids) - 1:  # nothing comes after the last token, so it is not computed
            longer, row = begun.region.run(path, ids[known:-1])
            for length in range(known + 1, len(ids)):
                nodes[tokens[:length]] = (longer[: len(begun.path) + length], row + length - known - 1)
        rows.append(np.array([nodes[tokens[:length]][1] for length in range(len(ids))]))
    return rows
