"""Replies to prompts, written by the model or gold, with the attention that they pay to their strategy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace

import numpy as np
import torch

from esc_lab.config.evaluate import EvaluateConfig
from esc_lab.config.prompt import PromptConfig
from esc_lab.data.strategies import Inventory
from esc_lab.evaluation.boost import build_boost
from esc_lab.evaluation.decisions import prompt_for
from esc_lab.evaluation.reply_attention import Column, UnmeasurableError, reply_sra, span_columns
from esc_lab.metrics.attention import ReplySRA
from esc_lab.metrics.predictions import Prediction
from esc_lab.models.attention_boost import AttentionBoost, BoostedSpan, mark, split_tree
from esc_lab.models.attention_probe import AttentionProbe
from esc_lab.models.forward import tree_hidden_states
from esc_lab.models.generate import Sampling, generate
from esc_lab.models.load import LoadedModel
from esc_lab.models.span_attention import SpanAttention
from esc_lab.prompts import Message, Prompt, build_layout, parse_reply, reply_content
from esc_lab.seeds import derive_seed
from esc_lab.tokens import EncodedChat, ReplyTokens, TokenSequence, TokenSpan, build_tree
from esc_lab.tokens.encode import IntArray
from esc_lab.tokens.packing import split_units
from esc_lab.training.datamodule import Decision


@dataclass
class PromptedReply:
    """A decision under one prompt, and what became of it.

    Attributes:
        prediction: is filled with reply, strategy and SRA.
        prompt_ids, reply_ids: tokens of prompt and reply (without an end-of-turn token), once there is a reply.
        spans: strategy-relevant tokens of the prompt.
        boosted: those whose attention is boosted.
        sra: None where it was not measured.
    """

    decision: Decision
    prediction: Prediction
    prompt_ids: IntArray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    reply_ids: Sequence[int] = ()
    spans: tuple[TokenSpan, ...] = ()
    boosted: BoostedSpan | None = None
    sra: ReplySRA | None = None


class PromptedReplies:
    """Writes replies to prompts of one template, or reads the gold ones, and measures SRA on them.

    Args:
        prompt: template, what it shows, and the prompting baseline. SRA is measured only where its one answer is the
            reply.
        settings: how replies are drawn, whether SRA is measured, and which attention is boosted.
        seed: the run's seed.

    Raises:
        UserError: what `build_boost` raises.
    """

    count = 1  # replies that are written for each that is asked for

    def __init__(
        self, loaded: LoadedModel, inventory: Inventory, prompt: PromptConfig, settings: EvaluateConfig, seed: int
    ) -> None:
        self.loaded, self.encoder, self.inventory = loaded, loaded.encoder, inventory
        self.prompt, self.inference, self.layout = prompt.eval, prompt.inference, build_layout(prompt.eval)
        self.baseline = self.layout.baseline(prompt.inference)
        drawn = settings.generation
        assert drawn.temperature is not None  # the configuration was checked
        assert drawn.top_p is not None
        self.sampling = Sampling(drawn.max_new_tokens, drawn.temperature, drawn.top_p, drawn.no_repeat)
        self.seed = seed
        self.measures = settings.sra.enabled and self.baseline.answers_once
        self.boost = build_boost(settings.boost, loaded.model, seed)

    def write(self, asked: Sequence[PromptedReply]) -> None:
        """Let the model answer all prompts in one token tree; prompts that share a beginning share its computation.

        A prompt that leaves no room for a reply in the model's context is left out, and says so in `unmeasured`.
        """
        chats = [self._prompt(reply) for reply in asked]
        encoded = [self.encoder.encode_prompt(chat) for chat in chats]
        room = self.loaded.context_tokens - self.sampling.max_new_tokens
        fitting = [number for number, chat in enumerate(encoded) if len(chat.input_ids) <= room]
        for number in set(range(len(asked))) - set(fitting):
            asked[number].prediction.unmeasured = "prompt too long"
        if not fitting:
            return
        asked, chats = [asked[number] for number in fitting], [chats[number] for number in fitting]
        encoded = [encoded[number] for number in fitting]
        attention = self._generate(asked, encoded, 0)
        texts = [self.encoder.decode(reply.reply_ids) for reply in asked]
        for number, follow_up in enumerate(self.baseline.follow_ups, 1):
            chats = [
                Prompt((*chat.messages, Message("assistant", text or "..."), Message("user", follow_up)), chat.spans)
                for chat, text in zip(chats, texts, strict=True)
            ]
            self._generate(asked, [self.encoder.encode_prompt(chat) for chat in chats], number)
            texts = [self.encoder.decode(reply.reply_ids) for reply in asked]
        for reply, text in zip(asked, texts, strict=True):
            prediction = reply.prediction
            prediction.raw = text
            prediction.cut_off = len(reply.reply_ids) >= self.sampling.max_new_tokens
            prediction.strategy, prediction.reply = parse_reply(text, self.inventory, self.baseline.reply_marker)
            prediction.sampling = {**asdict(self.sampling), "inference": self.inference}
        if attention is not None:
            self._measure(asked, attention)

    def _generate(
        self, asked: Sequence[PromptedReply], encoded: Sequence[EncodedChat], request: int
    ) -> SpanAttention | None:
        """One answer to each prompt, and its attention where that is measured; `request` counts the follow-ups."""
        seeds = []
        for reply, chat in zip(asked, encoded, strict=True):
            decision, sample = reply.decision, reply.prediction.sample
            purpose = ["generation", decision.dialogue.id, decision.turn, request]
            # Sample 0 is the reply of a run without further samples.
            seeds.append(derive_seed(self.seed, *purpose, *([sample] if sample else [])))
            reply.prompt_ids, reply.spans = chat.input_ids, chat.spans
            reply.boosted = self.locate_boosted(reply, chat.spans, len(chat.input_ids))
        probe = AttentionProbe([[*span_columns(chat.spans).values()] for chat in encoded]) if self.measures else None
        prompts = mark([chat.input_ids for chat in encoded], [reply.boosted for reply in asked])
        model, stop = self.loaded.model, self.encoder.stop_tokens
        replies = generate(model, prompts, stop, self.sampling, seeds, probe=probe, boost=self.attention_boost)
        for reply, ids in zip(asked, replies, strict=True):
            reply.reply_ids = ids
        return probe.result() if probe else None

    @torch.no_grad()
    def read_gold(self, asked: Sequence[PromptedReply], row_tokens: int) -> None:
        """Measure the gold replies, each after its prompt, in as few passes as the budget allows."""
        if not self.measures:
            return
        sequences = []
        for number, reply in enumerate(asked):
            chat, start, end = self._encode_given(reply)
            gold = reply.decision.dialogue.turns[reply.decision.turn].reply
            reply.prompt_ids, reply.reply_ids = chat.input_ids[:start], chat.input_ids[start : end - 1].tolist()
            reply.spans = chat.spans
            reply.prediction.strategy = gold.strategies[0] if self.layout.chooses_strategy else None
            if end > self.loaded.context_tokens:
                reply.prediction.unmeasured = "prompt too long"
            else:
                reply.boosted = self.locate_boosted(reply, chat.spans, start)
                (ids,) = mark([chat.input_ids[: end - 1]], [reply.boosted])
                sequences.append(TokenSequence(ids, (ReplyTokens(number, start, end - 1),)))
        model = self.loaded.model
        for group in split_units([(sequence,) for sequence in sequences], row_tokens + 64):
            tree, steer = split_tree(build_tree([sequence.input_ids for sequence in group]), self.attention_boost)
            members = [asked[sequence.replies[0].key] for sequence in group]
            probe = AttentionProbe([[*span_columns(reply.spans).values()] for reply in members])
            rows = [path[len(reply.prompt_ids) - 1 : -1] for path, reply in zip(tree.paths, members, strict=True)]
            branch = np.repeat(np.arange(len(rows)), [len(own) for own in rows])
            probe.watch_tree(tree, branch, np.concatenate(rows), model.device)
            tree_hidden_states(model, tree.input_ids, tree.position_ids, tree.leave, probe=probe, boost=steer)
            self._measure(members, probe.result())

    def add_given(self, reply: PromptedReply) -> PromptedReply:
        """The same with the sequence of its own prompt and the given reply, in place of that of the decision."""
        chat, start, end = self._encode_given(reply)
        key = reply.decision.example.key
        sequence = TokenSequence(chat.input_ids[:end], (ReplyTokens(key, start, end, chat.spans),))
        return replace(reply, decision=replace(reply.decision, sequence=sequence, start=start, end=end))

    def _encode_given(self, reply: PromptedReply) -> tuple[EncodedChat, int, int]:
        """A prompt with the given reply, and the first token of this and the one after its last."""
        prompt, given = self._prompt(reply), reply.decision.dialogue.turns[reply.decision.turn].reply
        content = reply_content(self.layout, given.text, given.strategies)
        chat = self.encoder.encode((*prompt.messages, Message("assistant", content)), prompt.spans)
        return chat, *chat.replies[len(prompt.messages)]

    @property
    def attention_boost(self) -> AttentionBoost | None:
        return None if self.boost is None else self.boost.attention

    def locate_boosted(
        self, reply: PromptedReply, spans: Sequence[TokenSpan], prompt_tokens: int
    ) -> BoostedSpan | None:
        """What is boosted of a prompt with these spans, if anything is."""
        if self.boost is None:
            return None
        at = (reply.decision.dialogue.id, reply.decision.turn)
        return self.boost.locate(spans, reply.prediction.prompted, prompt_tokens, at)

    def _prompt(self, reply: PromptedReply) -> Prompt:
        decision = reply.decision
        prompt = prompt_for(
            reply.prediction, decision.dialogue, self.layout, self.inventory, self.prompt, inference=self.inference,
            start=decision.example.first_turn,
        )  # fmt: skip
        return self.encoder.adapt(prompt)

    def _label_tokens(self, reply: PromptedReply) -> int:
        """How many of the reply's tokens it takes to name a strategy; 0 where the prompt has named it."""
        if not self.layout.chooses_strategy or reply.prediction.strategy is None:
            return 0
        heads = (self.encoder.decode(reply.reply_ids[:count]) for count in range(1, len(reply.reply_ids) + 1))
        return next(count for count, head in enumerate(heads, 1) if parse_reply(head, self.inventory)[0] is not None)

    def _measure(self, asked: Sequence[PromptedReply], attention: SpanAttention) -> None:
        for number, reply in enumerate(asked):
            columns: list[Column] = list(span_columns(reply.spans))
            prediction = reply.prediction
            try:
                if prediction.followed is None:
                    raise UnmeasurableError("no strategy named")
                rows = (attention.branch == number).nonzero()[self._label_tokens(reply) :, 0]
                reply.sra = reply_sra(attention.of(rows), columns, prediction.followed)
            except UnmeasurableError as error:
                prediction.unmeasured = str(error)
            else:
                prediction.sra = {
                    measure: {"sra": span.sra, "control": span.control, "relative": span.relative}
                    for measure, span in reply.sra.items()
                }
