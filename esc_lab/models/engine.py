"""Many prompts answered together, as they come: continuous batching over a cache of prefixes.

Every pass computes what there is to compute: the next token of each reply that is being written, new prompts, and
continuations that are only scored. A prompt that begins like an earlier one starts from the keys and values kept of
that (`slots.PrefixIndex`); prompts that are worked on at the same time share the slots of their common beginning
(`slots.BranchGroup`). What is answered to a prompt does not depend on the others, up to rounding. Tasks may go through
different adapters of one base model; they are computed in the same pass, and share no keys and values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from esc_lab.models.devices import move
from esc_lab.models.forward import base_model, head_logits
from esc_lab.models.generate import Sampling, draw, find_repeating
from esc_lab.models.log_probs import token_log_probs
from esc_lab.models.row_adapters import BASE, RowAdapters
from esc_lab.models.slots import BranchGroup, KeyValueSlots, PrefixIndex, find_start, run_pass
from esc_lab.tokens.encode import IntArray

# Tokens of a beginning that are worth a place beside another prompt with it, as long as they are not kept.
_UNKNOWN = 64


@dataclass(eq=False)
class ReplyTask:
    """A prompt to be continued until a stop token or `max_new_tokens`; the draws depend on `seed` alone.

    Attributes:
        adapter: number of the adapter that it goes through; 0 is the base model.
        min_tokens: the reply does not end before it has so many tokens.
        no_repeat: the reply writes no run of so many tokens that prompt or reply have already; 0 = any. This never
            keeps it from coming to its end.
        reply: the tokens so far, without the stop token.
    """

    prompt: IntArray
    sampling: Sampling
    seed: int
    adapter: int = BASE
    min_tokens: int = 0
    no_repeat: int = 0
    reply: list[int] = field(default_factory=list)

    @property
    def room(self) -> int:
        """Most tokens that come after the prompt."""
        return self.sampling.max_new_tokens

    @property
    def reusable(self) -> IntArray:
        """The tokens of the prompt of which no output is needed."""
        return self.prompt[:-1]


@dataclass(eq=False)
class ScoreTask:
    """A prompt with continuations (of one token or more) whose probabilities are asked for.

    Attributes:
        first: for each continuation the number of the first token that is scored.
        adapter: number of the adapter that it goes through; 0 is the base model.
        scored: how many of the prompt's own last tokens are scored too.
        log_probs: for each continuation those of its tokens from there on.
        prompt_log_probs: [scored] those of the prompt's last tokens.
        state: [hidden] final hidden state of the prompt's last token, for a head on it.
    """

    prompt: IntArray
    continuations: Sequence[IntArray]
    first: Sequence[int]
    adapter: int = BASE
    scored: int = 0
    log_probs: list[npt.NDArray[np.float64]] = field(default_factory=list)
    prompt_log_probs: npt.NDArray[np.float64] | None = None
    state: npt.NDArray[np.float64] | None = None

    @property
    def room(self) -> int:
        """Most tokens that come after the prompt."""
        return sum(map(len, self.continuations))

    @property
    def reusable(self) -> IntArray:
        """The tokens of the prompt of which no output is needed."""
        return self.prompt[: len(self.prompt) - 1 - self.scored]


Task = ReplyTask | ScoreTask


@dataclass(frozen=True)
class EngineLimits:
    """What an engine does at once and what it keeps.

    Attributes:
        batch: most replies that are written at once.
        row_tokens: most new tokens of a pass; a single prompt may have more.
        working_tokens: tokens of prompts and replies that are worked on at the same time. Longer tasks are refused.
        cache_tokens: tokens of earlier prompts whose keys and values are kept. Those of a working token or one that is
            kept take 23 kB in SmolLM2 (bfloat16), 131 kB in Llama 3.1 8B.
    """

    batch: int = 32
    row_tokens: int = 1024
    working_tokens: int = 16384
    cache_tokens: int = 24576


@dataclass(eq=False)
class _Branch:
    """A task that is worked on: its group, its path there, and which of the group's rows its last token is."""

    task: Any
    group: BranchGroup
    path: IntArray
    row: int
    generator: torch.Generator = field(default_factory=torch.Generator)


class Engine:
    """Answers tasks with a model.

    Args:
        model: in evaluation mode.
        stop: ids that end a reply.
        adapters: of the model, if tasks go through any.
    """

    def __init__(
        self, model: Any, stop: frozenset[int], limits: EngineLimits | None = None, adapters: RowAdapters | None = None
    ) -> None:
        self.limits, self._adapters = limits or EngineLimits(), adapters
        self._inner, self._stop = base_model(model), stop
        self._cache = KeyValueSlots(self.limits.cache_tokens + self.limits.working_tokens)
        self.reset()

    def reset(self) -> None:
        """Drop all tasks and forget all prefixes, as is due after a pass that failed."""
        self._index = PrefixIndex(self.limits.cache_tokens)
        self._waiting: list[Task] = []
        self._replies: list[_Branch] = []
        self._groups: list[BranchGroup] = []
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
        if len(task.prompt) + task.room > (longest := self.limits.working_tokens):
            raise ValueError(f"a task of {len(task.prompt)} + {task.room} tokens, of {longest} at most")
        self._waiting.append(task)

    def drop(self, task: Task) -> None:
        """Leave a task unanswered."""
        self._waiting = [other for other in self._waiting if other is not task]
        for reply in [reply for reply in self._replies if reply.task is task]:
            self._close(reply)

    @torch.inference_mode()
    def step(self) -> list[Task]:
        """One pass; the tasks that it finishes."""
        self._index.tick()
        self._new = 0
        for reply in self._replies:
            reply.group.reserved -= 1
            reply.path, reply.row = reply.group.compute(reply.path, np.array(reply.task.reply[-1:]))
        new = [] if self._crowded else self._begin(ReplyTask)
        for reply in new:
            reply.generator.manual_seed(reply.task.seed)
        # Slots of what is scored are free again after the pass.
        marks = [(group, group.mark()) for group in self._groups]
        scored = self._begin(ScoreTask)
        self._crowded = any(isinstance(task, ScoreTask) for task in self._waiting)
        rows = [_add_continuations(branch) for branch in scored]
        groups = sorted((group for group in self._groups if group.rows), key=lambda group: group.adapter)
        if self._adapters:
            self._adapters.use([(group.adapter, group.rows) for group in groups])
        states = run_pass(self._inner, self._cache, groups)
        self._keep([(branch, branch.task.prompt[:-1]) for branch in (*new, *scored)])
        for branch, queries in zip(scored, rows, strict=True):
            branch.group.reserved -= branch.task.room
            branch.task.state = states[branch.group.first_row + branch.row].double().cpu().numpy()
            branch.task.log_probs = self._score(branch, states, queries) if queries else []
            if scored_tokens := branch.task.scored:
                query = branch.group.first_row + branch.row + np.arange(-scored_tokens, 0)
                values = token_log_probs(self._inner, states, query, branch.task.prompt[-scored_tokens:])
                branch.task.prompt_log_probs = values.double().cpu().numpy()
        for group, mark in marks:
            group.cut(mark)
        self._replies += new
        finished = [branch.task for branch in scored] + self._draw(states)
        self._groups = [group for group in self._groups if group.branches]
        return finished

    def _begin(self, kind: type[Task]) -> list[_Branch]:
        """Put waiting tasks of a kind into the pass, in their order and as far as there is room."""
        branches: list[_Branch] = []
        for task in [task for task in self._waiting if isinstance(task, kind)]:
            if kind is ReplyTask and len(self._replies) + len(branches) == self.limits.batch:
                break
            place = self._place(task)
            if place is None:
                break
            group, path = place
            missing = task.prompt[len(path) :]
            self._new += len(missing) + (task.room if kind is ScoreTask else 0)
            path, row = group.compute(path, missing)
            group.paths.append((task.prompt, path))
            group.branches += kind is ReplyTask
            group.reserved += task.room  # before the next task looks for room
            branches.append(_Branch(task, group, path, row + len(missing) - 1))
            self._waiting.remove(task)
        return branches

    def _place(self, task: Task) -> tuple[BranchGroup, IntArray] | None:
        """A group for a task, and the path of the part of its prompt that is there; None if there is no room.

        Tokens whose output is needed, the last one at least, are always computed.
        """
        ids = task.reusable
        known = self._index.find(ids, task.adapter)
        shared, home = ids[:0], None
        for group in (group for group in self._groups if group.adapter == task.adapter):
            path = group.find_prefix(ids)
            fits = group.free >= len(task.prompt) - len(path) + task.room
            saves = 2 * len(path) >= len(ids) or len(path) >= len(known) + _UNKNOWN
            if fits and len(path) > len(shared) and saves:
                shared, home = path, group
        new = self._new + len(task.prompt) - max(len(known), len(shared))
        new += task.room if isinstance(task, ScoreTask) else 0
        if self._new and new > self.limits.row_tokens:
            return None
        home = home or self._open(len(task.prompt), task.room, task.adapter)
        if home is None:
            return None
        if len(known) <= len(shared):
            return home, shared
        path = home.extend(shared, len(known) - len(shared))
        self._cache.copy(known[len(shared) :], home.start + path[len(shared) :])
        return home, path

    def _open(self, prompt: int, room: int, adapter: int) -> BranchGroup | None:
        """A group for a task, if possible with room for more tasks with a prompt like this."""
        for width in (2 * prompt + 6 * room, prompt + room):
            start = find_start(self._groups, width, self.limits.cache_tokens, self._cache.slots)
            if start is not None:
                self._groups.append(BranchGroup(start, width, adapter))
                return self._groups[-1]
        return None

    def _keep(self, branches: Sequence[tuple[_Branch, IntArray]]) -> None:
        """Keep the keys and values of these first tokens of branches for later prompts."""
        sources, targets = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.int64)]
        for branch, ids in branches:
            known, slots = self._index.add(ids, branch.task.adapter)
            sources.append(branch.group.start + branch.path[known : known + len(slots)])
            targets.append(slots)
        self._cache.copy(np.concatenate(sources), np.concatenate(targets))

    def _score(self, branch: _Branch, states: Tensor, queries: Sequence[IntArray]) -> list[npt.NDArray[np.float64]]:
        """Log-probabilities of the continuations of a task that is scored; `queries` predict their tokens."""
        task: ScoreTask = branch.task
        query = np.concatenate([own[first:] for own, first in zip(queries, task.first, strict=True)])
        targets = [ids[first:] for ids, first in zip(task.continuations, task.first, strict=True)]
        values = token_log_probs(self._inner, states, branch.group.first_row + query, np.concatenate(targets))
        return np.split(values.double().cpu().numpy(), np.cumsum([len(ids) for ids in targets])[:-1])

    def _draw(self, states: Tensor) -> list[Task]:
        """Give every reply its next token; the tasks whose replies have come to their end."""
        if not self._replies:
            return []
        rows = move(np.array([reply.group.first_row + reply.row for reply in self._replies]), states.device)
        samplings = [reply.task.sampling for reply in self._replies]
        logits = head_logits(self._inner, states[rows])
        banned = [(row, token) for row, reply in enumerate(self._replies) for token in self._find_banned(reply.task)]
        if banned:
            row, token = move(np.array(banned).T, logits.device)
            logits[row, token] = -torch.inf
        tokens = draw(logits, samplings, [reply.generator for reply in self._replies])
        finished: list[Task] = []
        for reply, token in zip(list(self._replies), tokens, strict=True):
            task: ReplyTask = reply.task
            if token not in self._stop:
                task.reply.append(token)
            if token in self._stop or len(task.reply) == task.room:
                # As prompts are: the next prompt of its dialogue begins with it.
                self._keep([(reply, np.append(task.prompt, task.reply)[: len(reply.path)])])
                self._close(reply)
                finished.append(task)
        return finished

    def _find_banned(self, task: ReplyTask) -> set[int]:
        """The tokens that a reply may not go on with."""
        repeating = {*find_repeating(task.prompt, task.reply, task.no_repeat).tolist()} - self._stop
        return repeating | self._stop if len(task.reply) < task.min_tokens else repeating

    def _close(self, reply: _Branch) -> None:
        """Give back the room of a reply."""
        written = len(reply.path) - len(reply.task.prompt)
        reply.group.reserved -= reply.task.room - written
        reply.group.branches -= 1
        self._replies.remove(reply)


def _add_continuations(branch: _Branch) -> list[IntArray]:
    """Put the continuations of a task into the pass, as a trie; for each the group's rows that predict its tokens."""
    nodes: dict[tuple[int, ...], tuple[IntArray, int]] = {(): (branch.path, branch.row)}
    rows = []
    for ids in branch.task.continuations:
        tokens = tuple(ids.tolist())
        known = next(length for length in range(len(ids) - 1, -1, -1) if tokens[:length] in nodes)
        path, _ = nodes[tokens[:known]]
        if known < len(ids) - 1:  # nothing comes after the last token, so it is not computed
            longer, row = branch.group.compute(path, ids[known:-1])
            for length in range(known + 1, len(ids)):
                nodes[tokens[:length]] = (longer[: len(branch.path) + length], row + length - known - 1)
        rows.append(np.array([nodes[tokens[:length]][1] for length in range(len(ids))]))
    return rows
