"""One reply of a model in a chat: the strategies it could use, the reply as it is written, and where it looks."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

import numpy as np

from esc_lab.config import Config
from esc_lab.data.dialogue import Dialogue, Reply, Turn
from esc_lab.data.strategies import Inventory
from esc_lab.errors import UserError, list_names
from esc_lab.evaluation.arena.supporter import draw_strategy
from esc_lab.evaluation.boost import build_boost
from esc_lab.evaluation.reply_attention import UnmeasurableError, reply_sra, span_columns
from esc_lab.models.attention_boost import AttentionBoost, BoostedSpan
from esc_lab.models.attention_probe import AttentionProbe
from esc_lab.models.generate import Sampling
from esc_lab.models.incremental import IncrementalModel
from esc_lab.models.load import LoadedModel
from esc_lab.prompts import Prompt, build_prompt, parse_reply
from esc_lab.prompts.trained import SupporterPrompts
from esc_lab.search.model_worker import normalize_options
from esc_lab.statistics.intervals import FloatArray
from esc_lab.tokens import EncodedChat, encode_labels
from esc_lab.tokens.encode import IntArray

NOTHING = "..."  # the text of a reply without words


@dataclass(frozen=True)
class ReplySettings:
    """How a reply is asked for.

    Attributes:
        template: layout of the prompt.
        strategy: which it is to use; None: the model chooses.
        boost: amount of `evaluate.boost`; 0: attention is as it is.
    """

    template: str
    strategy: str | None = None
    boost: float = 0.0


@dataclass(frozen=True)
class TokenAttention:
    """Where a reply looks, as `report.attention_files.heat_map_page` shows it.

    Attributes:
        prompt, reply: texts of the tokens [P] and [R]; a label that the reply was begun with is of the prompt.
        rows: [R] of P + r values: attention on each earlier token, mean over layers and heads.
        spans: strategy-relevant ranges of the prompt.
        measures: log SRA and its net of the control, where they can be measured.
    """

    prompt: Sequence[str]
    reply: Sequence[str]
    rows: Sequence[Sequence[float]]
    spans: Sequence[tuple[int, int, str]]
    measures: Mapping[str, float]


@dataclass
class Candidate:
    """A reply that is offered to the person.

    Attributes:
        model: number of the model that wrote it.
        picked: the person picked the strategy.
        shares: probability of each strategy if the model chooses; empty where no template has it choose.
        first_token_s: seconds from the request to the first token.
        computed: tokens that were computed for it, its own and those of labels included.
        cut_off: it ends at the token limit.
        attention: is not kept in files.
    """

    strategy: str
    picked: bool
    template: str
    boost: float
    shares: dict[str, float]
    text: str = ""
    model: int = 0
    first_token_s: float = 0.0
    computed: int = 0
    cut_off: bool = False
    measures: dict[str, float] = field(default_factory=dict)
    attention: TokenAttention | None = None

    @property
    def reply(self) -> Reply:
        return Reply(self.text, (self.strategy,))

    @property
    def is_whole(self) -> bool:
        """Whether it is written to its end."""
        return self.computed > 0


class ChatModel:
    """A model that replies in a chat.

    Args:
        cache: what computes for it; it keeps the talk between turns.
        templates: by name. The first that leaves the choice of a strategy to the model is asked for it where a prompt
            names the strategy.
    """

    def __init__(
        self, cfg: Config, loaded: LoadedModel, cache: IncrementalModel, templates: Mapping[str, SupporterPrompts]
    ) -> None:
        self.cfg, self.loaded, self.encoder, self.cache, self.templates = cfg, loaded, loaded.encoder, cache, templates
        self.inventory: Inventory = next(iter(templates.values())).inventory
        settings = cfg.chat
        self.sampling = Sampling(settings.max_new_tokens, settings.temperature, settings.top_p)
        self._labels: list[IntArray] = []
        self._start = 0  # first turn of the talk that prompts show

    def prepare(self, history: Sequence[Turn], template: str) -> None:
        """Compute what the prompt of the next reply begins with, while the person writes."""
        talk = Dialogue((*history, Turn("seeker", Reply(NOTHING))), self.inventory.name)
        self.score_strategies(talk, template)

    def reply(self, history: Sequence[Turn], how: ReplySettings, seed: int, situation: str = "") -> Iterator[Candidate]:
        """The reply to a history that ends with the seeker's message, again after each token and once it is whole.

        Args:
            situation: of the seeker, for templates that show it.

        Raises:
            UserError: the message is too long or holds a special token, nobody chooses the strategy, or the prompt has
                nothing to boost.
        """
        started, before = time.monotonic(), self.cache.computed
        talk = Dialogue(tuple(history), self.inventory.name, situation=situation)
        log_probs = self.score_strategies(talk, how.template)
        names = self.inventory.names
        strategy = how.strategy
        if strategy is None:
            if log_probs is None:
                fix = "pick a strategy, or name a template that leaves the choice in chat.templates: cso"
                raise UserError(f"the template {how.template} leaves the model no choice", where="strategy", fix=fix)
            strategy = names[draw_strategy(log_probs, self.sampling.temperature, seed)]
        elif strategy not in names:
            raise UserError(f"no strategy '{strategy}'", where="strategy", fix=f"one of {list_names(names, 20)}")
        shares = {} if log_probs is None else dict(zip(names, np.exp(log_probs).round(6).tolist(), strict=True))
        candidate = Candidate(strategy, how.strategy is not None, how.template, how.boost, shares)
        chat = self._encode(talk, self.templates[how.template], strategy)
        prompt, reply, columns = self._lead(chat, how.template, strategy), [], span_columns(chat.spans)
        boost = self._boost(chat, how.boost, strategy, len(prompt), (talk.id, len(talk.turns)))
        probe = AttentionProbe([[*columns.values()]], keep_tokens=True)
        for token in self.cache.stream(prompt, self.sampling, seed, probe=probe, boost=boost):
            candidate.first_token_s = candidate.first_token_s or time.monotonic() - started
            reply.append(token)
            candidate.text = self.encoder.decode(reply)
            yield candidate
        candidate.text = parse_reply(candidate.text, self.inventory)[1] or NOTHING
        candidate.computed = self.cache.computed - before
        candidate.cut_off = len(reply) == self.sampling.max_new_tokens
        if reply:
            candidate.attention = self._describe_attention(probe, prompt, reply, chat, strategy)
            candidate.measures = dict(candidate.attention.measures)
        yield candidate

    def score_strategies(self, talk: Dialogue, template: str) -> FloatArray | None:
        """Log-probability of each strategy for the next reply, by its complete label; None if no template has the
        model choose.
        """
        choosing = [prompts for prompts in self.templates.values() if prompts.layout.chooses_strategy]
        own = [prompts for prompts in choosing if prompts.template.template == template]
        if not choosing:
            return None
        chat = self._encode(talk, (own or choosing)[0], None)
        return normalize_options(self._labels, self.cache.score(chat.input_ids, self._labels))

    def _encode(self, talk: Dialogue, prompts: SupporterPrompts, strategy: str | None) -> EncodedChat:
        """The prompt, without the first half of the talk where it is longer than there is room."""
        room = min(self.loaded.context_tokens, self.cfg.chat.cache_tokens) - self.sampling.max_new_tokens
        if self._start >= len(talk.turns) - 1:  # what is shown was taken back
            self._start = 0
        while True:
            prompt = build_prompt(
                prompts.layout, self.inventory, talk, len(talk.turns), strategy,
                history_labels=prompts.template.history_labels, situation=prompts.template.situation,
                start=self._start,
            )  # fmt: skip
            if prompts.layout.chooses_strategy and not self._labels:
                self._labels = encode_labels(self.encoder, self.inventory, Prompt(prompt.messages))
            chat = self.encoder.encode_prompt(self.encoder.adapt(prompt))
            if len(chat.input_ids) + sum(map(len, self._labels)) <= room:
                return chat
            later = [n for n, turn in enumerate(talk.turns) if turn.speaker == "seeker" and n > self._start]
            if not later:
                what = f"a prompt of {len(chat.input_ids)} tokens and its reply exceed the room of {room}"
                raise UserError(what, where="message", fix="write a shorter one, or raise chat.cache_tokens")
            self._start = later[len(later) // 2]  # so that the next turns need not shorten it again

    def _lead(self, chat: EncodedChat, template: str, strategy: str) -> IntArray:
        """The prompt with the label that the reply begins with."""
        if not self.templates[template].layout.chooses_strategy:
            return chat.input_ids
        return np.concatenate([chat.input_ids, self._labels[self.inventory.index(strategy)]])

    def _boost(
        self, chat: EncodedChat, amount: float, strategy: str, tokens: int, at: tuple[str, int]
    ) -> tuple[AttentionBoost, BoostedSpan] | None:
        settings = self.cfg.evaluate.boost
        if amount and settings.mode == "share" and not 0 < amount < 1:
            raise UserError(f"no share of attention: {amount}", where="boost", fix="above 0 and below 1; 0 = none")
        boost = build_boost(replace(settings, amount=amount), self.loaded.model, self.cfg.seed) if amount else None
        return None if boost is None else (boost.attention, boost.locate(chat.spans, strategy, tokens, at))

    def _describe_attention(
        self, probe: AttentionProbe, prompt: IntArray, reply: Sequence[int], chat: EncodedChat, strategy: str
    ) -> TokenAttention:
        attention, columns = probe.result(), span_columns(chat.spans)
        assert attention.tokens is not None
        texts = [self.encoder.tokenizer.decode([token]) for token in [*prompt.tolist(), *reply]]
        settings, measures = self.cfg.evaluate.sra, {}
        with suppress(UnmeasurableError):
            span = reply_sra(attention, [*columns], strategy).get(f"{settings.definition}/{settings.span}")
            if span is not None:
                measures = {"log SRA": math.log(span.sra), "sham-net": math.log(span.sra) - math.log(span.control)}
        spans = [
            (int(places[0]), int(places[-1]) + 1, "control" if name is None else name)
            for (kind, name), places in columns.items()
            if kind == "name" and len(places)
        ]
        rows = [row.tolist() for row in attention.tokens]
        return TokenAttention(texts[: len(prompt)], texts[len(prompt) :], rows, spans, measures)
