"""The thread that runs a loaded model for the roles of a search: requests in, answers out.

What is waiting joins the next pass of the model (`models.engine`). Replies are sampled; a question is answered with the
probabilities of its options: that the model goes on with this option after the lead, and not with a longer one, so that
"1" does not stand for "10".
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from esc_lab.errors import UserError
from esc_lab.models.engine import Engine, EngineLimits, ReplyTask, ScoreTask, Task
from esc_lab.models.generate import Sampling
from esc_lab.models.load import LoadedModel
from esc_lab.models.row_adapters import BASE, RowAdapters
from esc_lab.prompts import Message, Prompt
from esc_lab.search.requests import Answer, Question, Request, TooLongError
from esc_lab.search.reward_reader import RewardReader
from esc_lab.tokens.encode import ChatEncoder, IntArray
from esc_lab.tokens.trie import shared_prefix

log = logging.getLogger(__name__)

# An idle model begins when no new request has come for so many seconds.
_PAUSE = 0.002
_DECIMALS = 6
# Probabilities below this one count as this one: JSON has no infinite logarithms.
_MIN_PROBABILITY = 1e-30


@dataclass(frozen=True)
class Job:
    """A request with the adapter that it goes through and, of a reward model, its reader; and where its answer goes.

    Attributes:
        name: of the model.
        tasks: of the engine, which are all to be finished for the answer.
    """

    request: Request
    answer: Future[Answer]
    name: str
    adapter: int
    reader: RewardReader | None = None
    tasks: list[Task] = field(default_factory=list)


class ModelWorker:
    """The thread that runs a model.

    Log-probabilities are rounded to `_DECIMALS`.

    Args:
        loaded: is put into evaluation mode and must not change while the worker is open.
        name: of the model, for messages.
        adapters: of the model.

    Attributes:
        specials_removed: special tokens of the tokenizer that were taken out of messages where they were spelled out.
    """

    def __init__(self, loaded: LoadedModel, name: str, limits: EngineLimits | None, adapters: RowAdapters) -> None:
        self.specials_removed = 0
        self.model, self._loaded, self._name = loaded.model, loaded, name
        self._options = lru_cache(maxsize=256)(lambda question: encode_options(loaded.encoder, question))
        self._lead = lru_cache(maxsize=256)(lambda lead: encode_reply(loaded.encoder, [lead])[0])
        self._engine = Engine(loaded.model, loaded.encoder.stop_tokens, limits, adapters)
        self._jobs: dict[Task, Job] = {}
        self._queue: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._closed = False
        self._failure: Exception | None = None  # what ended the thread before it was asked to end
        self._thread = threading.Thread(target=self._work, name=f"local client {name}", daemon=True)
        self._thread.start()

    async def answer(self, job: Job) -> Answer:
        """The answer; raises what `LocalClient.answer` does."""
        if self._closed:
            raise RuntimeError("the client is closed")
        self._queue.put(job)
        if self._failure:  # after it is in the queue, which the thread empties after it has noted its failure
            raise self._failure
        return await asyncio.wrap_future(job.answer)

    async def close(self) -> None:
        """End the thread. Requests that are not answered yet are cancelled."""
        self._closed = True
        self._queue.put(None)
        await asyncio.to_thread(self._thread.join)

    # What follows runs in the thread.

    def _work(self) -> None:
        self._loaded.model.eval()
        try:
            while self._receive():
                self._drop_cancelled()
                if not self._engine.idle:
                    self._step()
        except Exception as error:  # nobody shall wait for a thread that is no more
            self._failure = error
            while not self._queue.empty():
                if job := self._queue.get_nowait():
                    _settle(job, error)
            for job in self._jobs.values():
                _settle(job, error)
        for job in self._jobs.values():
            job.answer.cancel()

    def _drop_cancelled(self) -> None:
        for task in [task for task, job in self._jobs.items() if job.answer.cancelled()]:
            self._engine.drop(task)
            del self._jobs[task]

    def _receive(self) -> bool:
        """Take on what is waiting; an idle model waits for a request, and until no more come. False at the end."""
        idle = self._engine.idle
        wait = None if idle else 0.0
        while True:
            try:
                job = self._queue.get(timeout=wait) if idle else self._queue.get_nowait()
            except queue.Empty:
                return True
            if job is None:
                return False
            wait = _PAUSE
            try:
                job.tasks[:] = self._make_tasks(job)
                for task in job.tasks:
                    self._engine.add(task)
            except Exception as error:
                _settle(job, error)
            else:
                self._jobs |= dict.fromkeys(job.tasks, job)

    def _step(self) -> None:
        try:
            for task in self._engine.step():
                job = self._jobs[task]
                if not any(other in self._jobs for other in job.tasks if other is not task):
                    _settle(job, self._answer(job, *job.tasks))
                del self._jobs[task]  # now, so that an error above is told to this job too
        except Exception as error:
            for job in self._jobs.values():
                _settle(job, error)
            self._jobs.clear()
            self._engine.reset()

    def _make_tasks(self, job: Job) -> list[Task]:
        request, encoder = job.request, self._loaded.encoder
        messages = tuple(map(self._plain, request.messages))
        if job.reader:
            read = job.reader.encode(messages)
            tasks: list[Task] = [ScoreTask(read.talk, (), (), job.adapter, 0 if read.alone is None else read.scored)]
            if read.alone is not None:
                tasks.append(ScoreTask(read.alone, (), (), BASE, read.scored))
            self._check(job, tasks[0], 0)
            return tasks
        prompt = encoder.encode_prompt(encoder.adapt(Prompt(messages))).input_ids
        if request.questions:
            options = [self._options(question) for question in request.questions]
            # The lead is given, and so are the tokens that all options of a question begin with.
            first = [number for ids, number in options for _ in ids]
            task: Task = ScoreTask(prompt, [option for ids, _ in options for option in ids], first, job.adapter)
            longest = max(len(option) for ids, _ in options for option in ids)
        else:
            assert request.temperature is not None, "the configuration is checked for it"
            assert request.top_p is not None, "the configuration is checked for it"
            sampling = Sampling(request.max_tokens, request.temperature, request.top_p)
            if request.lead:
                prompt = np.concatenate([prompt, self._lead(request.lead)])
            # Models that are trained little often end a reply right after the label that it is to be one of.
            least = 1 if request.lead else 0
            task = ReplyTask(prompt, sampling, request.seed, job.adapter, least, request.no_repeat)
            longest = request.max_tokens
        self._check(job, task, longest)
        return [task]

    def _plain(self, message: Message) -> Message:
        """The message without special tokens, which would end a turn or begin another."""
        content, removed = message.content, 1
        while removed:  # what is left may come together to another special token
            content, removed = self._loaded.encoder.special_text.subn("", content)
            if removed and not self.specials_removed:
                log.warning("special tokens are taken out of messages to %s", self._name)
            self.specials_removed += removed
        return Message(message.role, content)

    def _check(self, job: Job, task: Task, reply: int) -> None:
        where, prompt = f"{job.name}, request of the {job.request.role}", len(task.prompt)
        context, working = self._loaded.context_tokens, self._engine.limits.working_tokens
        if prompt + reply > context:
            fix = "search shorter dialogues, lower max_tokens of the role, or use a model with a longer context"
            lengths = f"its prompt of {prompt} tokens and a reply of up to {reply}"
            raise TooLongError(f"{lengths} exceed the model's context of {context}", where=where, fix=fix)
        if prompt + task.room > working:
            message = f"it takes {prompt} + {task.room} tokens, and the client has room for {working}"
            raise UserError(message, where=where, fix="raise the client's working_tokens, or search shorter dialogues")

    def _answer(self, job: Job, task: Task, alone: Task | None = None) -> Answer:
        if isinstance(task, ReplyTask):
            text = self._loaded.encoder.decode(task.reply)
            return Answer(text, model=job.name, prompt_tokens=len(task.prompt), completion_tokens=len(task.reply))
        if job.reader:
            assert task.state is not None, "the engine has set it"
            assert alone is None or isinstance(alone, ScoreTask)
            given = task.prompt_log_probs
            before = alone.prompt_log_probs if alone else None
            shares = tuple(job.reader.read(task.state, given, before).round(_DECIMALS).tolist())
            return Answer(log_probs=(shares,), model=job.name, prompt_tokens=len(task.prompt))
        log_probs, values = [], iter(task.log_probs)
        for question in job.request.questions:
            ids, first = self._options(question)
            scores = normalize_options([option[first:] for option in ids], [next(values) for _ in ids])
            log_probs.append(tuple(scores.round(_DECIMALS).tolist()))
        return Answer(log_probs=tuple(log_probs), model=job.name, prompt_tokens=len(task.prompt))


def encode_options(encoder: ChatEncoder, question: Question) -> tuple[list[IntArray], int]:
    """Tokens of lead and option, for each option, as the model would write them; and how many they all begin with."""
    options = encode_reply(encoder, [question.lead + option for option in question.options])
    shortest = min(map(len, options))
    return options, min([shortest - 1, *(shared_prefix(options[0], ids) for ids in options)])


def encode_reply(encoder: ChatEncoder, texts: Sequence[str]) -> list[IntArray]:
    """Tokens of each text as the beginning of a reply, without the end of the turn."""
    # They do not depend on the messages before it.
    chats = [((Message("user", "-"), Message("assistant", text)), ()) for text in texts]
    encoded = encoder.encode_many(chats)
    return [chat.input_ids[chat.replies[1][0] : chat.replies[1][1] - 1] for chat in encoded]


def normalize_options(
    options: Sequence[IntArray], log_probs: Sequence[npt.NDArray[np.float64]]
) -> npt.NDArray[np.float64]:
    """Log-probability of each option, normalised over the options.

    An option that others go on from counts as written where none of these follows. Log-probabilities come for each
    token of each option.
    """
    tokens = [tuple(ids.tolist()) for ids in options]
    sums = []
    for ids, values in zip(tokens, log_probs, strict=True):
        end = len(ids)
        longer = {
            other[: end + 1]: float(np.exp(of[end]))
            for other, of in zip(tokens, log_probs, strict=True)
            if len(other) > end and other[:end] == ids
        }
        sums.append(values.sum() + np.log(max(1.0 - sum(longer.values()), _MIN_PROBABILITY)))
    scores = np.maximum(np.array(sums), np.max(sums) + np.log(_MIN_PROBABILITY))
    return np.asarray(scores - np.logaddexp.reduce(scores), dtype=np.float64)


def _settle(job: Job, result: Answer | Exception) -> None:
    """Hand over a result, unless nobody waits for it any more."""
    if job.answer.done() or not job.answer.set_running_or_notify_cancel():
        return
    if isinstance(result, Exception):
        job.answer.set_exception(result)
    else:
        job.answer.set_result(result)
