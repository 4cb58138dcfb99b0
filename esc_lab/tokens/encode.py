"""Chat messages to token ids, with exact token boundaries of replies and spans.

The chat template is rendered once per sequence of roles with placeholders for the contents; what stands between the
placeholders is the template's own text. Contents are put in between, so the character position of every message is
known, and one tokenisation of the whole text with offsets gives its tokens. Nothing is tokenised on its own.

A token belongs to a character range if it overlaps it by one character or more. A reply is all that a model writes
after the generation prompt: its text and the end-of-turn token, with blanks that the template puts around the text
(Llama 2), without what the template writes after that. Templates of models of reasoning are rendered with reasoning
turned off (`enable_thinking=False`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from esc_lab.data.strategies import Inventory
from esc_lab.errors import UserError
from esc_lab.prompts import Message, Prompt, Role, Span, label_text, without_system_role

IntArray = npt.NDArray[np.int64]

# Private-use characters that no corpus has, around the number of the message.
_MARK = "\ue0f1{}\ue0f2"


@dataclass(frozen=True)
class TokenSpan:
    """Tokens `start:end` that a character span covers."""

    span: Span
    start: int
    end: int


@dataclass(frozen=True)
class EncodedChat:
    """A chat as tokens.

    Attributes:
        input_ids: [T].
        replies: message index -> (start, end) tokens of each assistant message, end-of-turn token included.
        spans: those of the prompt.
        turn_starts: [messages] first token of each message's content.
    """

    input_ids: IntArray
    replies: dict[int, tuple[int, int]]
    spans: tuple[TokenSpan, ...]
    turn_starts: IntArray


class ChatEncoder:
    """Encodes chats with the chat template of a fast Hugging Face tokenizer, which error messages call `name`.

    Attributes:
        system_role: whether the template takes a system message.
        prefix_stable: whether a rendered history is a token prefix of the rendered longer history. If it is not, each
            reply is encoded by itself.
        end_of_turn: id of the token that ends a reply.
        special_text: finds special tokens that a text spells out.

    Raises:
        UserError: the tokenizer is not a fast one, or the template is missing or cannot render a dialogue.
    """

    def __init__(self, tokenizer: Any, name: str = "tokenizer") -> None:
        self.tokenizer = tokenizer
        self._name = name
        if not tokenizer.is_fast:
            fix = "use a model with tokenizer.json"
            raise UserError("no fast tokenizer, so no character offsets", where=name, fix=fix)
        if not tokenizer.chat_template:
            raise self._unusable("the tokenizer has no chat template")
        special = {id_: token.content for id_, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._special = set(special)
        self.special_text = re.compile("|".join(map(re.escape, special.values())) or "(?!)")
        self._pieces = lru_cache(maxsize=4096)(self._render_pieces)
        self.system_role = self._takes_system()
        self.end_of_turn = -1
        self._lead = 0  # blanks that the template writes between the generation prompt and a reply
        self.prefix_stable = self._check()

    @property
    def stop_tokens(self) -> frozenset[int]:
        """Ids that end what a model writes: the end of a turn, and of the text."""
        return frozenset({self.end_of_turn, self.tokenizer.eos_token_id})

    def adapt(self, prompt: Prompt) -> Prompt:
        """The prompt as this template can render it (a system message only where there is a system role)."""
        has_system = prompt.messages[0].role == "system"
        return prompt if self.system_role or not has_system else without_system_role(prompt)

    def encode(self, messages: Sequence[Message], spans: Sequence[Span] = (), where: str = "") -> EncodedChat:
        return self.encode_many([(messages, spans)], [where])[0]

    def encode_many(
        self, chats: Sequence[tuple[Sequence[Message], Sequence[Span]]], places: Sequence[str] = ()
    ) -> list[EncodedChat]:
        """Encode complete chats (the last message may be an assistant's) in one call of the tokenizer.

        Args:
            places: where each chat comes from, for error messages.

        Raises:
            UserError: a message holds a special token of the tokenizer.
        """
        if not chats:
            return []
        named = zip(chats, places or [""] * len(chats), strict=True)
        laid_out = [self._lay_out(messages, where=where) for (messages, _), where in named]
        batch = self.tokenizer([text for text, _ in laid_out], add_special_tokens=False)
        return [
            self._locate(encoding, starts, messages, spans)
            for encoding, (_, starts), (messages, spans) in zip(batch.encodings, laid_out, chats, strict=True)
        ]

    def encode_prompt(self, prompt: Prompt) -> EncodedChat:
        """Encode a prompt up to and including the generation prompt: what a model continues with its reply."""
        text, starts = self._lay_out(prompt.messages, generation=True)
        encoding = self.tokenizer(text, add_special_tokens=False).encodings[0]
        return self._locate(encoding, starts, prompt.messages, prompt.spans)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of generated ids without special tokens, be they tokens or spelled out."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        return self.special_text.sub("", text).strip()

    def render_pieces(self, roles: tuple[Role, ...], *, generation: bool = False) -> tuple[str, ...]:
        """What the template writes before, between and after the contents of messages with these roles: one text more
        than there are messages.

        Args:
            generation: whether the reply comes next.

        Raises:
            UserError: the template cannot render them, or drops one.
        """
        return self._pieces(roles, generation)

    def _render_pieces(self, roles: tuple[Role, ...], generation: bool) -> tuple[str, ...]:
        """What the template writes before, between and after the contents of messages with these roles."""
        chat = [{"role": role, "content": _MARK.format(number)} for number, role in enumerate(roles)]
        rest = self._render(chat, generation)
        pieces = []
        for number in range(len(roles)):
            before, mark, rest = rest.partition(_MARK.format(number))
            if not mark:
                raise self._unusable(f"the chat template drops message {number + 1} ({roles[number]})")
            pieces.append(before)
        return (*pieces, rest)

    def _render(self, chat: list[dict[str, str]], generation: bool) -> str:
        from jinja2.exceptions import TemplateError

        try:
            # Templates of models of reasoning write an empty reasoning block then; others take no notice of it.
            text: str = self.tokenizer.apply_chat_template(
                chat, tokenize=False, add_generation_prompt=generation, enable_thinking=False
            )
        except (TemplateError, TypeError, ValueError) as error:
            raise self._unusable(f"the chat template cannot render a dialogue: {error}") from error
        return text

    def _unusable(self, message: str) -> UserError:
        return UserError(message, where=self._name, fix="set model.chat_template to a bundled template or a file")

    def _lay_out(
        self, messages: Sequence[Message], *, generation: bool = False, where: str = ""
    ) -> tuple[str, list[int]]:
        """The rendered text and the character offset of each message's content in it.

        Raises:
            UserError: a message holds a special token of the tokenizer.
        """
        pieces = self._pieces(tuple(message.role for message in messages), generation)
        parts, starts, length = [], [], 0
        for piece, message in zip(pieces, messages, strict=False):
            special = self.special_text.search(message.content)
            if special:  # it would end the turn or open another one
                what, fix = f"a message holds the special token {special[0]!r}", "take it out of the data"
                begin = max(special.start() - 30, 0)
                excerpt = f"{where}: {message.content[begin : begin + 60]!r}".removeprefix(": ")
                raise UserError(what, where=excerpt, fix=f"{fix}, or use another model")
            starts.append(length + len(piece))
            parts += [piece, message.content]
            length += len(piece) + len(message.content)
        return "".join([*parts, pieces[-1]]), starts

    def _locate(
        self, encoding: Any, starts: list[int], messages: Sequence[Message], spans: Sequence[Span]
    ) -> EncodedChat:
        ids = np.array(encoding.ids, dtype=np.int64)
        offsets = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
        # Both columns are non-decreasing, so the tokens that overlap [a, b) are a run: end > a and start < b.
        begins, ends = offsets[:, 0], offsets[:, 1]
        if (np.diff(begins) < 0).any() or (np.diff(ends) < 0).any():
            raise UserError("the tokenizer's character offsets are out of order", fix="use another tokenizer")

        def run(message: int, start: int, end: int) -> tuple[int, int]:
            first, last = starts[message] + start, starts[message] + end
            return int(np.searchsorted(ends, first, side="right")), int(np.searchsorted(begins, last, side="left"))

        replies = {}
        for number, message in enumerate(messages):
            if message.role == "assistant":
                first, last = run(number, -self._lead, len(message.content))
                replies[number] = (first, self._end_of_reply(ids, last))
        located = tuple(TokenSpan(span, *run(span.message, span.start, span.end)) for span in spans)
        return EncodedChat(ids, replies, located, np.searchsorted(ends, np.array(starts), side="right"))

    def _end_of_reply(self, ids: IntArray, last: int) -> int:
        """One past the end-of-turn token that follows the reply's text."""
        for index in range(last, min(last + 8, len(ids))):
            if int(ids[index]) in self._special:
                return index + 1
        raise self._unusable("the chat template writes no end-of-turn token after a reply")

    def _takes_system(self) -> bool:
        with suppress(UserError):
            return bool(self._render_pieces(("system", "user"), True))
        return False

    def _check(self) -> bool:
        """Render a small dialogue; learn how replies begin and end and whether histories are prefixes of each other.

        It is also rendered with real contents: if that differs from the pieces put together, the template rewrites
        contents and positions in it cannot be known.
        """
        head = (Message("system", "Be kind."),) if self.system_role else ()
        chat = (
            *head,
            Message("user", 'My "safe" job & my flat are gone.'),
            Message("assistant", "(Question) How long were you there?"),
            Message("user", "Nine years\nand a half."),
            Message("assistant", "(Others) Thank you."),
        )
        text, starts = self._lay_out(chat)
        if text != self._render([{"role": m.role, "content": m.content} for m in chat], False):
            raise self._unusable("the chat template rewrites message contents")
        before, _ = self._lay_out(chat[:-1], generation=True)
        lead = text[len(before) : starts[-1]]
        if not text.startswith(before) or lead.strip():
            raise self._unusable("the chat template's generation prompt does not lead into its replies")
        self._lead = len(lead)
        encoded = self.encode(chat)
        stable = []
        for number, (start, end) in encoded.replies.items():
            prompt = self.encode_prompt(Prompt(chat[:number]))
            stable.append(np.array_equal(prompt.input_ids, encoded.input_ids[:start]))
            self.end_of_turn = int(encoded.input_ids[end - 1])
        if not stable[-1]:
            raise self._unusable("the last tokens of the chat template's generation prompt change with the reply")
        return all(stable)


def encode_labels(encoder: ChatEncoder, inventory: Inventory, prompt: Prompt) -> list[IntArray]:
    """Token ids of each complete label, `(<strategy>)`, in the order of the inventory, after a prompt.

    Raises:
        UserError: a label's tokens depend on the text after it, so its probability cannot be read off a prefix.
    """
    messages = encoder.adapt(prompt).messages
    chats = []
    for name in inventory.names:
        label = label_text(name)
        span = Span("name", len(messages), 0, len(label), name)
        chats += [([*messages, Message("assistant", text)], [span]) for text in (label, f"{label} I see.")]
    encoded = encoder.encode_many(chats)
    labels = []
    for name, alone, followed in zip(inventory.names, encoded[::2], encoded[1::2], strict=True):
        start, _ = alone.replies[len(messages)]
        ids = alone.input_ids[start : alone.spans[0].end]
        if not np.array_equal(ids, followed.input_ids[start : followed.spans[0].end]):
            raise UserError(f"the tokens of the label '({name})' change with the text after it", where="tokenizer")
        labels.append(ids)
    return labels
