"""A chat in the terminal: messages, and commands that begin with a slash."""

from __future__ import annotations

import math
import re
import signal
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace

from esc_lab.config import Config
from esc_lab.errors import UserError, nearest
from esc_lab.evaluation.arena.chat import VERDICTS, ChatSession, Exchange
from esc_lab.evaluation.arena.chat_reply import Candidate, ReplySettings, TokenAttention
from esc_lab.terminal import console, show_controls

BANNER = (
    "You talk with a language model under study. It is no counsellor, and nothing it says is advice. "
    "If you or somebody else is in danger, call your local emergency services."
)
_HELP = """\
/strategy NAME   use this strategy from now on (a part of its name will do); /strategy auto: the model chooses
/template NAME   the prompt layout from now on
/boost AMOUNT    attention on the strategy from now on (evaluate.boost); 0: as it is
/again           another reply to the last message, to vote between the two
/vote left|right|tie|bad
/edit TEXT       the last reply as it should be; `/edit (Strategy) text` for another strategy
/bars            the probabilities of all strategies
/map             where the last replies look
/undo            take the last message back
/quit            end the chat (also Ctrl-D); it can go on later with resume=auto
Ctrl-C           stop the reply that is being written, and take the message back; between replies: as /quit"""
SAME_WORDS = "Both say the same; another strategy or template would change that."
_BAR, _SHOWN = 24, 3


class TerminalChat:
    """A chat in the terminal.

    Args:
        templates: names of those that one can switch to.
    """

    def __init__(self, session: ChatSession, how: ReplySettings, templates: Sequence[str]) -> None:
        self.session, self.how, self.templates, self.screen = session, how, templates, console()
        self._commands: dict[str, Callable[[str], None]] = {
            "strategy": self._pick, "template": self._switch, "boost": self._boost, "again": self._again,
            "vote": self._vote, "edit": self._edit, "bars": self._bars, "map": self._map, "undo": self._undo,
            "help": lambda _: self._say(_HELP),
        }  # fmt: skip

    def talk(self) -> None:
        """Until `/quit` or the end of the input."""
        self._say(BANNER, "bold yellow")
        self._say("/help for what there is beside talking.", "dim")
        for exchange in self.session.exchanges:
            self._say(f"\nyou> {exchange.message}")
            self._say(f"supporter> {exchange.turns[1].reply.text}", "cyan")
        while True:
            self._say("")
            try:
                line = input("you> ").strip()
            except (EOFError, KeyboardInterrupt):
                self._say("")
                return
            if line == "/quit":
                return
            try:
                self._obey(line)
            except UserError as error:
                self._say(str(error), "red")

    def _obey(self, line: str) -> None:
        name, _, rest = line.removeprefix("/").partition(" ")
        if not line.startswith("/"):
            if line:
                self._show(self.session.send(line, self.how))
        elif name in self._commands:
            self._commands[name](rest.strip())
        else:
            raise UserError(f"no command /{name}{nearest(name, self._commands)}", where="chat", fix="/help")

    def _show(self, stream: Iterator[Exchange], place: int = 0) -> None:
        """Replies as they are written, from the one at a place on."""
        shown: str | None = None
        exchange = Exchange("")
        for exchange in stop_at_interrupt(stream):
            candidate = exchange.candidates[place]
            if shown is None:
                head = ("left", "right")[place] if len(self.session.models) > 1 or place else "supporter"
                self._say(f"{head} ({candidate.strategy})> ", "bold cyan", end="")
            shown = self._continue(shown or "", candidate)
            if candidate.is_whole:
                most = [f"{name} {share:.0%}" for name, share in order_shares(candidate)[:_SHOWN]]
                self._say(f"\n[{'; '.join([*most, *list_facts(candidate)])}]", "dim")
                place, shown = place + 1, None
        if shown is not None:
            self._say("\n[stopped; it is as it was before]", "dim")
        elif len(exchange.candidates) > 1:
            if exchange.same_words:
                self._say(SAME_WORDS, "dim")
            self._say("Which is better? /vote left, right, tie or bad. Without a vote it goes on with the left.", "dim")

    def _continue(self, shown: str, candidate: Candidate) -> str:
        """What is shown of a reply by now; a character may take several tokens."""
        text = candidate.text.rstrip("\ufffd")
        if text.startswith(shown):
            self._say(text[len(shown) :], "cyan", end="")
            return text
        if candidate.is_whole:  # without a label or a name before it
            self._say(f"\n{text}", "cyan", end="")
        return shown

    def _pick(self, name: str) -> None:
        names = self.session.models[0].inventory.names
        if name in ("", "auto"):
            self.how = replace(self.how, strategy=None)
            self._say("The model chooses its strategy." if name else f"auto, or one of: {', '.join(names)}")
            return
        self.how = replace(self.how, strategy=_find(name, names, "strategy"))
        self._say(f"From now on: {self.how.strategy}.")

    def _switch(self, name: str) -> None:
        self.how = replace(self.how, template=_find(name, self.templates, "template"))
        self._say(f"From now on: template {self.how.template}.")

    def _boost(self, amount: str) -> None:
        try:
            boost = float(amount)
        except ValueError:
            boost = math.nan
        if not math.isfinite(boost):
            raise UserError(f"'{amount}' is no number", where="/boost", fix="/boost 1.5, or /boost 0")
        self.how = replace(self.how, boost=boost)
        self._say(f"From now on: boost {self.how.boost:g}.")

    def _again(self, _: str) -> None:
        self._show(self.session.reply_again(self.how), 1)

    def _vote(self, verdict: str) -> None:
        self.session.vote(_find(verdict, VERDICTS, "vote"))
        self._say("Noted.")

    def _edit(self, text: str) -> None:
        label = re.match(r"\(([^()]*)\)\s*", text)
        names = self.session.models[0].inventory.names
        strategy = _find(label[1], names, "strategy") if label else None
        self.session.edit(text[label.end() :] if label else text, strategy)
        self._say("Noted; the talk goes on with it.")

    def _undo(self, _: str) -> None:
        self._say(f"Taken back: {self.session.undo()}")

    def _bars(self, _: str) -> None:
        for candidate in self._last():
            self._name(candidate)
            for name, share in order_shares(candidate):
                chosen = "*" if name == candidate.strategy else " "
                self._say(f"{chosen} {name:<32.32} {share:4.0%} {'█' * round(share * _BAR)}")
            self._say("")

    def _map(self, _: str) -> None:
        from rich.text import Text

        for candidate in self._last():
            if candidate.attention is None:
                raise UserError("it is not kept with a session", where="/map", fix="send a message first")
            self._name(candidate)
            text = Text()
            for token, heat in mean_heat(candidate.attention):
                shade = round(255 * (1 - heat))
                text.append(show_controls(token), style=f"black on #ff{shade:02x}{shade:02x}")
            self.screen.print(text)
            weights = sorted(mean_heat(candidate.attention)[1:], key=lambda each: -each[1])
            self._say(f"most: {', '.join(repr(token) for token, _ in weights[:12])}", "dim")

    def _name(self, candidate: Candidate) -> None:
        """Which of two replies comes."""
        if len(self._last()) > 1:
            self._say(("left", "right")[candidate is not self._last()[0]], "bold")

    def _last(self) -> list[Candidate]:
        return self.session.exchanges[-1].candidates if self.session.exchanges else []

    def _say(self, text: str, style: str = "", end: str = "\n") -> None:
        self.screen.print(show_controls(text), style=style, end=end, markup=False, highlight=False, soft_wrap=True)


def mean_heat(attention: TokenAttention) -> list[tuple[str, float]]:
    """The tokens of the prompt with the reply's mean attention on each, from 0 to 1: on a square-root scale to the
    largest value beside that of the first token, which takes the null attention.
    """
    columns = zip(*(row[: len(attention.prompt)] for row in attention.rows), strict=True)
    means = [sum(column) / len(attention.rows) for column in columns]
    top = max(means[1:], default=0.0) or 1.0
    heat = [0.0, *(min(1.0, (value / top) ** 0.5) for value in means[1:])]
    return list(zip(attention.prompt, heat, strict=True))


@contextmanager
def _note_interrupt() -> Generator[list[bool], None, None]:
    """Ctrl-C is noted in the list instead of raised."""
    noted: list[bool] = []
    before = signal.signal(signal.SIGINT, lambda *_: noted.append(True))
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, before)


def stop_at_interrupt(stream: Iterator[Exchange]) -> Iterator[Exchange]:
    """Until Ctrl-C, which takes effect between two tokens: a model that is stopped within one has half a token kept."""
    with _note_interrupt() as noted:
        for exchange in stream:
            yield exchange
            if noted and not exchange.candidates[-1].is_whole:
                return


def talk_in_terminal(session: ChatSession, cfg: Config) -> None:
    """Have a chat in the terminal until the person ends it."""
    with suppress(ImportError):
        import readline  # noqa: F401  # gives `input` its keys
    templates = [*session.models[0].templates]
    TerminalChat(session, ReplySettings(templates[0], boost=cfg.evaluate.boost.amount), templates).talk()


def list_facts(candidate: Candidate) -> list[str]:
    """What is said of a reply beside its strategies."""
    measures = [f"{name} {value:+.2f}" for name, value in candidate.measures.items()]
    boost = [f"boost {candidate.boost:g}"] if candidate.boost else []
    return [*measures, candidate.template, *boost, *(["cut off at the token limit"] if candidate.cut_off else [])]


def order_shares(candidate: Candidate) -> list[tuple[str, float]]:
    """The probability of each strategy, the most probable first."""
    return sorted(candidate.shares.items(), key=lambda item: -item[1])


def _find(word: str, names: Sequence[str], what: str) -> str:
    """The name that a word is, or that it alone begins or is in."""
    lowered = word.lower()
    for fits in (str.__eq__, str.startswith, str.__contains__):
        found = [name for name in names if fits(name.lower(), lowered)]
        if len(found) == 1:
            return found[0]
    raise UserError(f"no {what} '{word}'", where=f"/{what}", fix=f"one of {', '.join(names)}")
