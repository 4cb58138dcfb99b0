"""Strategy-conditioned continuations of many dialogues: the calls, what is kept of the answers, and the files.

Memory does not grow with the number of replies: a dialogue's are written when they are all there, in the order of the
dialogues, and only a few dialogues are worked on at a time.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from esc_lab.artifacts import fingerprint, remove_files
from esc_lab.config import Config
from esc_lab.config.search import ASKED
from esc_lab.data.corpora import stream_dialogues
from esc_lab.data.dialogue import Dialogue, Reply, Turn
from esc_lab.data.strategies import Exchange, build_inventory
from esc_lab.prompts import build_layout, build_prompt
from esc_lab.runs.layout import CONTEXTS, CONTINUATIONS
from esc_lab.scorers.classifier import StrategyClassifier, choose_strategies
from esc_lab.search.calls import Calls
from esc_lab.search.contexts import Context, CutDialogue, cut_splits, draw_contexts, draw_examples
from esc_lab.search.continuations import read_continuation
from esc_lab.search.extend_result import UNCONDITIONAL, ExtendResult, Written
from esc_lab.search.given_replies import draw_given, read_given
from esc_lab.search.journal import Journal, describe_role
from esc_lab.search.progress import CallProgress
from esc_lab.search.requests import Request
from esc_lab.search.role_answers import UnusableError
from esc_lab.search.roles import leave_out_too_long
from esc_lab.search.spending import BudgetError
from esc_lab.search.work_journals import WorkJournals
from esc_lab.seeds import derive_seed

log = logging.getLogger(__name__)
(ROLE,) = ASKED["extend"]
FILES = {"train": "train.jsonl", "val": "valid.jsonl", "test": "test.jsonl"}


class ExtendSession:
    """Continues the dialogues of splits, with the journals of a run directory.

    Args:
        classifier: only replies in which it finds the prompted strategy are kept; None = all.
    """

    def __init__(
        self,
        cfg: Config,
        splits: Mapping[str, Sequence[Dialogue]],
        calls: Calls,
        classifier: StrategyClassifier | None = None,
    ) -> None:
        self.cfg, self.settings, self.calls, self.classifier = cfg, cfg.extend, calls, classifier
        self.inventory = build_inventory(cfg.inventory)
        self.layout = build_layout(cfg.extend.template_config())
        self.player = cfg.llm.supporter
        shown = self.settings.examples
        examples = [shown, [asdict(exchange) for exchange in self.inventory.examples]] if shown else []
        self._shown: list[Any] = [self.settings.layout, self.settings.situation, *examples]
        self.directory = Path(cfg.run_dir)
        self.asks = cfg.extend.source == "model"
        draw = (
            partial(draw_contexts, settings=cfg.extend, names=self.inventory.names)
            if self.asks
            else partial(draw_given, settings=cfg.extend, inventory=self.inventory)
        )
        self.work, self.without_context = cut_splits(splits, self.settings, draw)
        self._finished = self._done = 0
        self._stopped = False  # the budget is spent: no dialogue is begun any more
        self._journals: WorkJournals | None = None

    async def extend(self) -> ExtendResult:
        """Write all continuations into `continuations/`."""
        started = time.time()
        if self.asks:
            configs = {cut.dialogue.id: self._journal_config(cut) for cut in self.work}
            self._journals = WorkJournals(self.cfg, self.calls, self.directory / CONTEXTS, configs)
        result = ExtendResult(self.calls, len(self.work), self.without_context)
        progress = CallProgress(
            "extend: replies",
            sum(cut.replies for cut in self.work),
            lambda: self._done,
            parts=("dialogues", len(self.work)),
            finished=lambda: self._finished,
            calls=self.calls,
        )
        remove_files(self.directory / CONTINUATIONS)
        async with progress.shown():
            await self._write_all(result)
        result.seconds = time.time() - started
        return result

    async def _write_all(self, result: ExtendResult) -> None:
        """Continue the dialogues, a few at a time, and write each in its turn."""
        left, window = iter(self.work), deque[tuple[CutDialogue, asyncio.Task[Written]]]()
        splits = dict.fromkeys(cut.split for cut in self.work)
        with ExitStack() as files:
            write = {
                split: files.enter_context(
                    stream_dialogues(self.directory / CONTINUATIONS / FILES[split], self.inventory)
                )
                for split in splits
            }
            try:
                while self._fill(window, left):
                    cut, task = window.popleft()
                    written = await self._await(task, result)
                    if written is None:
                        result.unfinished += 1
                        continue
                    await self._confirm(written)
                    write[cut.split]([self._record(*reply) for reply in written.replies])
                    self._count(result, cut, written)
            finally:
                for _, task in window:
                    task.cancel()
                await asyncio.gather(*(task for _, task in window), return_exceptions=True)
            result.unfinished += sum(1 for _ in left)

    def _fill(self, window: deque[tuple[CutDialogue, asyncio.Task[Written]]], left: Iterator[CutDialogue]) -> bool:
        """Begin with as many dialogues as keep the clients busy; whether there is any in the window."""
        under_way = sum(cut.replies for cut, _ in window)
        while under_way < 2 * self.cfg.search.concurrency and not self._stopped:
            cut = next(left, None)
            if cut is None:
                break
            window.append((cut, asyncio.create_task(self._continue(cut))))
            under_way += cut.replies
        return bool(window)

    async def _await(self, task: asyncio.Task[Written], result: ExtendResult) -> Written | None:
        """What was written for a dialogue; None where the budget did not last for it."""
        try:
            return await task
        except BudgetError as error:
            result.stopped, self._stopped = result.stopped or error, True
            return None

    async def _continue(self, cut: CutDialogue) -> Written:
        """All replies of a dialogue, at the same time.

        Raises:
            UserError: an answer cannot be had. What was under way is waited for: it is paid for.
        """
        written = Written()
        if self._journals is None:
            self._take_given(cut, written)
            return written
        asked = [(context, strategy) for context in cut.contexts for strategy in context.strategies]
        async with self._journals.open(cut.dialogue.id) as journal:
            replies = await asyncio.gather(
                *(self._reply(journal, *prompt, written.counts) for prompt in asked), return_exceptions=True
            )
        for (context, strategy), reply in zip(asked, replies, strict=True):
            if isinstance(reply, BaseException):
                raise reply
            if reply is not None:
                written.replies.append((context, strategy, reply))
        return written

    def _take_given(self, cut: CutDialogue, written: Written) -> None:
        for context in cut.contexts:
            replies = [(context, name, read_given(context, name, self.inventory)) for name in context.strategies]
            written.replies += [reply for reply in replies if reply[2]]
        written.counts["asked"] += cut.replies
        written.counts["missing"] += cut.replies - len(written.replies)
        self._done += cut.replies

    async def _reply(
        self, journal: Journal, context: Context, strategy: str | None, counts: Counter[str]
    ) -> str | None:
        """A reply under a strategy, drawn again until it can be used; None if no draw can."""
        counts["asked"] += 1
        try:
            reply = await leave_out_too_long(self._draw_usable(journal, context, strategy, counts), ROLE, counts)
        finally:
            self._done += 1
        counts["missing"] += reply is None
        return reply

    async def _draw_usable(
        self, journal: Journal, context: Context, strategy: str | None, counts: Counter[str]
    ) -> str | None:
        examples = draw_examples(self.inventory, context, strategy, self.settings)
        request = self._request(context, strategy, examples)
        known = [turn.reply.text for turn in context.dialogue.turns[: context.turns]]
        known += [text for exchange in examples for text in (exchange.seeker, exchange.supporter)]
        # The name with its definition: a reply may say the few words of a name.
        told = [f"{strategy}: {self.inventory.definition(strategy)}"] if strategy else []
        draws = self.player.attempts if self.player.temperature != 0 else 1
        for draw in range(draws):
            seed = derive_seed(self.settings.seed, context.dialogue.id, context.turns, strategy, draw) >> 32
            request = replace(request, sample=draw, seed=seed)
            answer = await self.calls.send(journal, request)
            try:
                reply, removed = read_continuation(
                    answer,
                    known,
                    self.inventory,
                    max_tokens=request.max_tokens,
                    max_copied=self.settings.max_copied,
                    told=told,
                )
            except UnusableError as error:
                counts.update(["unusable", error.kind])
                self.calls.watch.note_unusable(ROLE, answer, request.max_tokens, str(error))
            else:
                counts.update(removed)
                self.calls.watch.note_usable(ROLE)
                return reply
        return None

    def _request(self, context: Context, strategy: str | None, examples: Sequence[Exchange]) -> Request:
        prompt = build_prompt(
            self.layout, self.inventory, context.dialogue, context.turns, strategy,
            history_labels=False, situation=self.settings.situation, unconditional=strategy is None,
            examples=examples,
        )  # fmt: skip
        played = self.player
        return Request(
            ROLE,
            prompt.messages,
            max_tokens=played.max_tokens,
            temperature=played.temperature,
            top_p=played.top_p,
            no_repeat=played.no_repeat,
        )

    async def _confirm(self, written: Written) -> None:
        """Drop the replies in which the classifier finds another strategy than the prompted one."""
        prompted = [reply for reply in written.replies if reply[1] is not None]
        if self.classifier is None or not prompted:
            return
        scores = await asyncio.to_thread(self.classifier.predict, [text for _, _, text in prompted])
        names = [*self.inventory.names, None]  # -1: no word
        found = [names[number] for number in choose_strategies(scores).tolist()]
        wrong = [reply for reply, name in zip(prompted, found, strict=True) if name != reply[1]]
        written.counts["unconfirmed"] += len(wrong)
        written.replies = [reply for reply in written.replies if reply not in wrong]

    def _record(self, context: Context, strategy: str | None, text: str) -> Dialogue:
        """The context with its reply; the last reply's strategy is the prompted one."""
        last = Turn("supporter", Reply(text, (strategy,) if strategy else ()))
        source = context.dialogue
        history = tuple(replace(turn, rejected=()) for turn in source.turns[: context.turns])
        template = self.layout.name if self.asks else None
        meta = {"prompted": strategy, "template": template, "dialogue": source.id, "turns": context.turns}
        return replace(source, turns=(*history, last), meta=meta, survey=None)

    def _count(self, result: ExtendResult, cut: CutDialogue, written: Written) -> None:
        self._finished += 1
        names = [strategy or UNCONDITIONAL for _, strategy, _ in written.replies]
        result.kept.setdefault(cut.split, Counter()).update(names)
        result.contexts.update({context.turns: 1 for context, _, _ in written.replies})
        result.counts += written.counts

    def _journal_config(self, cut: CutDialogue) -> dict[str, Any]:
        """Everything that the calls in a dialogue's journal depend on beside their own content."""
        return {
            "dialogue": cut.dialogue.id,
            "seed": self.settings.seed,
            "inventory": self.inventory.name,
            "template": self.settings.template,
            "words": fingerprint(self._shown),
            "strategies": fingerprint([asdict(strategy) for strategy in self.inventory.strategies]),
            "roles": {ROLE: describe_role(self.player, self.calls.clients[ROLE])},
        }
