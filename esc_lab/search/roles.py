"""The roles of the search: strategist, supporter, seeker and judge turn calls into requests, and answers into values.

An answer that cannot be used is asked for again with what was wrong with it. After the last attempt the result counts
as missing: the search has ways to go on without it, and nothing is made up.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import numpy as np

from esc_lab.config.search import LLMConfig, RoleConfig
from esc_lab.data.dialogue import Reply, Speaker, Turn
from esc_lab.data.strategies import Inventory
from esc_lab.prompts import Message, SeekerProfile, label_text
from esc_lab.prompts.trained import RewardPrompts, SeekerPrompts, SupporterPrompts, restore_trained_prompts
from esc_lab.search.answer_watch import AnswerWatch
from esc_lab.search.iteration import Call, Ratings, SeekerTurn, StrategyPriors
from esc_lab.search.requests import Answer, Question, Request, TooLongError, object_schema
from esc_lab.search.role_answers import (
    UnusableError,
    parse_message,
    parse_preference,
    parse_ratings,
    parse_scores,
    split_end,
)
from esc_lab.search.role_prompts import REWARD, add_correction, build_role_prompts, choose_axes
from esc_lab.search.role_scores import policy_priors, reward_share, score_turn
from esc_lab.seeds import derive_seed

T = TypeVar("T")
BEST_RATING, BEST_SCORE = 10, 4
DECIMALS = 3  # of expected ratings and scores: far below what they mean


class Roles:
    """Plays all roles for one seeker.

    Args:
        scoring: roles whose clients read ratings off probabilities; a mapping also says how those that were trained are
            asked (see `Calls.scoring`).
        send: makes a call.
        counts: of events, by `<role>/<event>`: `cut_off` answers, which end at max_tokens; `unusable` ones, those of
            them that were `refused` (by the model, or as `filtered` by the endpoint), `empty`, written as the
            `other_side` or about the roles (`meta`); and results that are `partly` there or `missing`.
        watch: of the answers of all that search together; it raises a UserError where none of a role can be used.
    """

    def __init__(
        self,
        inventory: Inventory,
        seeker: SeekerProfile,
        llm: LLMConfig,
        scoring: Collection[str] | Mapping[str, Any],
        send: Callable[[Request], Awaitable[Answer]],
        counts: Counter[str],
        seed: int = 0,
        watch: AnswerWatch | None = None,
    ) -> None:
        self.inventory, self.seeker, self.llm, self.scoring = inventory, seeker, llm, frozenset(scoring)
        asked = scoring if isinstance(scoring, Mapping) else {}
        self.trained = {role: restore_trained_prompts(how, inventory) for role, how in asked.items() if how}
        self.prompts = build_role_prompts(inventory, llm)
        self.axes = choose_axes(self.prompts, asked.get("judge"))
        self.counts, self.seed = counts, seed
        self.send, self._watch = send, watch or AnswerWatch()

    async def result(self, call: Call) -> Any:
        """What `Search.tell` takes for this call; None if there is no usable answer."""
        if call.kind == "rate":
            return await self.rate(call.history, call.sample)
        if call.kind == "reply":
            return await self.reply(call.history, call.strategy or "", call.sample)
        if call.kind == "answer":
            return await self.answer(call.history, call.sample)
        return await self.score(call.history, call.sample)

    async def rate(self, history: Sequence[Turn], sample: int = 0) -> Ratings | None:
        """The strategist's rating of each strategy, 0 to 10. Strategies that were not rated are left out.

        Where a policy plays it, its priors.
        """
        if isinstance(policy := self.trained.get("strategist"), SupporterPrompts):
            messages, _ = policy.ask(self.seeker, history, None)
            return await self._choose(messages)
        scores, discourage = "strategist" in self.scoring, self.llm.strategist.discourage
        asked = self.prompts.rate_request(json=not scores, discourage=discourage)
        request = self.request("strategist", self.prompts.support_messages(history, asked), sample=sample)
        parse = partial(parse_ratings, inventory=self.inventory)
        return await self.numbers(request, self.inventory.names, BEST_RATING, parse)

    async def reply(self, history: Sequence[Turn], strategy: str, sample: int = 0) -> str | None:
        """The supporter's message with a strategy."""
        if isinstance(trained := self.trained.get("supporter"), SupporterPrompts):
            request = self.request("supporter", *trained.ask(self.seeker, history, strategy), sample=sample)
        else:
            asked = self.prompts.reply_request(strategy)
            request = self.request("supporter", self.prompts.support_messages(history, asked), sample=sample)
        return await self.ask_until_usable(request, lambda answer: self._message(answer, request))

    async def answer(self, history: Sequence[Turn], sample: int = 0, *, may_end: bool = True) -> SeekerTurn | None:
        """The seeker's answer, or, unless it may not, that it ends the conversation.

        Where a client scores, the end is drawn with the probability that the model gives it; else the seeker writes it,
        perhaps after last words.
        """
        if isinstance(trained := self.trained.get("seeker"), SeekerPrompts):
            return await self._answer_as_trained(trained.ask(self.seeker, history), sample, may_end)
        scores = "seeker" in self.scoring
        if scores and may_end:
            messages = self.prompts.seeker_messages(self.seeker, history, self.prompts.text("ends"))
            question = Question("end", "", ("ends", "continues"))
            draw = np.random.default_rng(self._seed("seeker ends", messages, sample))
            ends = await self._first_probability("seeker", messages, question)
            if ends is not None and draw.random() < ends:
                return SeekerTurn("", True)
        asked = self.prompts.answer_request(marker=may_end and not scores)
        request = self.request("seeker", self.prompts.seeker_messages(self.seeker, history, asked), sample=sample)

        def parse(answer: Answer) -> SeekerTurn:
            if scores:
                return SeekerTurn(self._message(answer, request), False)
            return self._take_end(answer, request, may_end)

        return await self.ask_until_usable(request, parse)

    async def judge(self, history: Sequence[Turn], sample: int = 0) -> dict[str, float] | None:
        """The judge's score of the last reply on each axis, 0 to 4.

        Of a reward model, `reward`: 4 times the probability that the reply beats a middling one, which may in part be
        that of its strategy alone.
        """
        if isinstance(reward := self.trained.get("judge"), RewardPrompts):
            return {REWARD.name: round(BEST_SCORE * await self._reward_share(reward, history), DECIMALS)}
        names = [axis.name for axis in self.axes]
        asked = self.prompts.judge_request(json="judge" not in self.scoring)
        request = self.request("judge", self.prompts.support_messages(history, asked), sample=sample)
        scores = await self.numbers(request, names, BEST_SCORE, partial(parse_scores, axes=names))
        return scores if scores is None or len(scores) == len(names) else None

    @property
    def claim(self) -> str:
        """What a message may say to be scored high."""
        return ", ".join(f"{axis.name}: {BEST_SCORE}" for axis in self.prompts.axes)

    async def score(self, history: Sequence[Turn], sample: int = 0) -> float | None:
        """The judge's score of the last reply, weighted over its axes, 0 to 4."""
        scores = await self.judge(history, sample)
        return None if scores is None else score_turn(scores, self.axes)

    async def prefer(
        self, history: Sequence[Turn], first: str, second: str, strategy: str | None = None
    ) -> float | None:
        """The judge's probability that the first of two next messages is the better one; 0 or 1 if it says so in words.

        With a strategy that is the one which follows it more; a reward model is not asked that.

        The messages are shown without strategy labels, as a seeker sees them. Of a reward model it is the logistic of
        the difference of their logits, whatever their order.
        """
        if isinstance(reward := self.trained.get("judge"), RewardPrompts):
            talks = [(*history, Turn("supporter", Reply(text))) for text in (first, second)]
            (better, worse), (other_better, other_worse) = [await self._reward(reward, talk) for talk in talks]
            return float(np.exp(-np.logaddexp(0.0, (other_better - other_worse) - (better - worse))))
        asked = self.prompts.prefer_request(first, second, json="judge" not in self.scoring, strategy=strategy)
        return await self.prefer_first(self.prompts.support_messages(history, asked))

    async def prefer_first(self, messages: tuple[Message, ...]) -> float | None:
        """The judge's probability that A is better than B, which the messages show; 0 or 1 if it says so in words."""
        if "judge" in self.scoring:
            return await self._first_probability("judge", messages, Question("better", "better: ", ("A", "B")))
        schema = object_schema({"better": {"type": "string", "enum": ["A", "B"]}})
        request = replace(self.request("judge", messages), schema=schema)
        return await self.ask_until_usable(request, lambda answer: float(parse_preference(answer.text) == "A"))

    async def _reward_share(self, judge: RewardPrompts, history: Sequence[Turn]) -> float:
        """The probability that the last reply beats a middling one, as `RewardModel.score` puts it together."""
        better, _ = await self._reward(judge, history)
        *before, last = history
        if not (judge.strategy_share and last.reply.strategies):
            return math.exp(better)
        odds = await self._reward(judge, (*before, replace(last, reply=last.reply.without_words())))
        return reward_share(judge, last.reply.strategies[0], better, odds)

    async def _reward(self, judge: RewardPrompts, history: Sequence[Turn]) -> tuple[float, ...]:
        """Log-probabilities that the last reply beats a middling one, and that it does not."""
        question = Question(REWARD.name, "", ("better", "worse"))
        answer = await self.send(Request("judge", judge.ask(history), (question,), temperature=0.0))
        return answer.log_probs[0]

    def _seed(self, role: str, messages: Sequence[Message], sample: int, lead: str = "") -> int:
        """Of a draw: different for different prompts, the same for the same one. 31 bits, which endpoints take."""
        texts = [*(message.content for message in messages), *([lead] if lead else [])]
        return derive_seed(self.seed, role, sample, *texts) >> 32

    async def _first_probability(self, role: str, messages: tuple[Message, ...], question: Question) -> float | None:
        request = replace(self.request(role, messages), questions=(question,))
        answer = await self.send(request)
        self.note_seen(request, answer)
        return math.exp(answer.log_probs[0][0]) if answer.log_probs[0] else None

    async def _choose(self, messages: tuple[Message, ...]) -> StrategyPriors:
        settings, names = self.llm.strategist, self.inventory.names
        assert settings.temperature, "the configuration is checked for it"
        question = Question("strategy", "", tuple(map(label_text, names)))
        answer = await self.send(replace(self.request("strategist", messages), questions=(question,), temperature=0.0))
        return policy_priors(names, answer.log_probs[0], settings.temperature, settings.min_prior)

    async def _answer_as_trained(self, messages: tuple[Message, ...], sample: int, may_end: bool) -> SeekerTurn | None:
        request = self.request("seeker", messages, sample=sample)
        return await self.ask_until_usable(request, lambda answer: self._take_end(answer, request, may_end))

    def _take_end(self, answer: Answer, request: Request, may_end: bool) -> SeekerTurn:
        """What the seeker says, and whether it ends the conversation with it."""
        said, ended = split_end(answer.text)
        if ended and not said:
            return _end(may_end)
        words = replace(answer, text=said) if ended else answer
        return SeekerTurn(self._message(words, request), ended and may_end)

    def request(self, role: str, messages: tuple[Message, ...], lead: str = "", *, sample: int = 0) -> Request:
        """A request of a role with its sampling, and the seed of its content."""
        settings: RoleConfig = getattr(self.llm, role)
        return Request(
            role,
            messages,
            max_tokens=settings.max_tokens,
            temperature=settings.temperature,
            top_p=settings.top_p,
            sample=sample,
            seed=self._seed(role, messages, sample, lead),
            lead=lead,
            no_repeat=settings.no_repeat,
        )

    def _message(self, answer: Answer, request: Request) -> str:
        side: Speaker = "supporter" if request.role == "supporter" else "seeker"
        cut_off = answer.is_cut_off(request.max_tokens)
        return parse_message(answer.text, side, self.inventory, cut_off=cut_off)

    async def numbers(
        self,
        request: Request,
        names: Sequence[str],
        best: int,
        parse: Callable[[str], dict[str, float]],
        least: int = 0,
    ) -> dict[str, float] | None:
        """Each name's number, `least` to `best`: its expected value where the client scores, else what the answer says.

        Expected values are rounded, so that nothing depends on the last bits of probabilities.
        """
        if request.role not in self.scoring:
            number = {"type": "integer", "minimum": least, "maximum": best}
            request = replace(request, schema=object_schema(dict.fromkeys(names, number)))
            return await self.ask_until_usable(request, lambda answer: parse(answer.text))
        options = tuple(str(number) for number in range(least, best + 1))
        questions = tuple(Question(name, f"{name}: ", options) for name in names)
        answer = await self.send(replace(request, questions=questions))
        self.note_seen(request, answer)
        return {
            name: round(sum(math.exp(log_prob) * value for value, log_prob in enumerate(log_probs, least)), DECIMALS)
            for name, log_probs in zip(names, answer.log_probs, strict=True)
            if log_probs
        } or None

    async def ask_until_usable(self, request: Request, parse: Callable[[Answer], T]) -> T | None:
        """What a completion says, asking again with the error where it cannot be used."""
        partly: T | None = None
        for _ in range(getattr(self.llm, request.role).attempts):
            answer = await self.send(request)
            self._count(request, "cut_off", answer.is_cut_off(request.max_tokens))
            try:
                if answer.refusal:
                    raise UnusableError("the model refused")
                result = parse(answer)
                self._watch.note_usable(request.role)
                return result
            except UnusableError as error:
                self._note_unusable(request, answer, error)
                partly = error.partly or partly
                if request.role in self.trained:  # it never learned to be corrected: another draw
                    request = replace(request, seed=derive_seed(request.seed, "another draw") >> 32)
                else:
                    request = add_correction(request, answer, self.prompts.text("correction", error=str(error)))
        self._count(request, "missing" if partly is None else "partly")
        return partly

    def note_seen(self, request: Request, answer: Answer) -> None:
        """Whether anything of the options of questions was seen; with a model that is loaded here all is."""
        unseen = sum(not log_probs for log_probs in answer.log_probs)
        if unseen < len(answer.log_probs):
            self._watch.note_usable(request.role)
            self._count(request, "partly", unseen > 0)
        else:
            self._count(request, "missing")
            self._watch.note_unusable(request.role, answer, request.max_tokens, "no option among the alternatives")

    def _count(self, request: Request, event: str, happened: bool = True) -> None:
        if happened:
            self.counts[f"{request.role}/{event}"] += 1

    def _note_unusable(self, request: Request, answer: Answer, error: UnusableError) -> None:
        self._count(request, "unusable")
        self._count(request, error.kind, bool(error.kind))
        self._count(request, "refused", bool(answer.refusal))
        self._count(request, "filtered", answer.finish_reason == "content_filter")
        self._count(request, "empty", not answer.refusal and not answer.text.strip())
        if error.partly is not None:
            self._watch.note_usable(request.role)
        else:
            self._watch.note_unusable(request.role, answer, request.max_tokens, str(error))


def _end(may_end: bool) -> SeekerTurn:
    if not may_end:
        raise UnusableError("the talk is not to end here")
    return SeekerTurn("", True)


async def leave_out_too_long(question: Awaitable[T], role: str, counts: Counter[str]) -> T | None:
    """The answer to a question of a role; None, and counted, if its conversation exceeds the context of the model."""
    try:
        return await question
    except TooLongError:
        counts[f"{role}/too_long"] += 1
        return None
