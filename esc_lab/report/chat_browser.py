"""A chat in the browser: a page that this process serves, for one person."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from nicegui import app, run, ui
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import HTMLResponse, Response

from esc_lab.config import Config
from esc_lab.errors import UserError
from esc_lab.evaluation.arena.chat import ChatSession, Exchange
from esc_lab.evaluation.arena.chat_reply import Candidate, ReplySettings
from esc_lab.report.attention_files import heat_map_page
from esc_lab.report.chat_terminal import BANNER, SAME_WORDS, list_facts, order_shares
from esc_lab.report.page import TEMPLATES

log = logging.getLogger(__name__)

_VOTES = {"left": "Left is better", "right": "Right is better", "tie": "Alike", "bad": "Both are bad"}
_WAIT = "A reply is being written; wait for its end."
_PATIENCE_S = 60  # that a page waits for a machine that is busy with a reply
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def talk_in_browser(session: ChatSession, cfg: Config) -> None:
    """Serve the page until the person ends the chat, there or by Ctrl-C."""
    host, port = cfg.chat.host, cfg.chat.port
    if host in _LOOPBACK:  # no other name: a page elsewhere cannot pass itself off as this one
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=[*_LOOPBACK, "[::1]"])
    else:
        log.warning("chat.host=%s: whoever reaches it reads the talk and can write in it", host)
    desk = Desk(session, ReplySettings(next(iter(session.models[0].templates)), boost=cfg.evaluate.boost.amount))
    app.get("/where_it_looks/{turn}/{place}")(lambda turn, place: _show_map(session, int(turn), int(place)))
    log.info("the chat is at http://%s:%d; its button or Ctrl-C ends it", host, port)
    with suppress(KeyboardInterrupt):
        ui.run(
            lambda: ChatPage(desk, cfg).draw(), host=host, port=port, title="Chat with a model", dark=None,
            language="en-US", reload=False, show=False, show_welcome_message=False, tailwind=False,
            reconnect_timeout=_PATIENCE_S, timeout_graceful_shutdown=2,
        )  # fmt: skip


def _show_map(session: ChatSession, turn: int, place: int) -> Response:
    """Where a reply looks, as a page."""
    candidates = session.exchanges[turn].candidates if turn < len(session.exchanges) else []
    attention = candidates[place].attention if place < len(candidates) else None
    if attention is None:
        return HTMLResponse("It is not kept with a session.", 404)
    facts = {name: f"{value:+.2f}" for name, value in attention.measures.items()}
    facts = {"strategy": candidates[place].strategy, "template": candidates[place].template, **facts}
    page = heat_map_page(
        "Where the reply looks", attention.prompt, attention.reply, attention.rows, spans=attention.spans, facts=facts
    )
    return HTMLResponse(page)


@dataclass
class Desk:
    """What all pages of a chat share.

    Attributes:
        how: the next reply is asked for.
        shows_map: the person has opened where the last reply looks.
        writing: is held while a model writes.
        stops: the person wants the reply that is being written to stop.
    """

    session: ChatSession
    how: ReplySettings
    shows_map: bool = False
    writing: threading.Lock = field(default_factory=threading.Lock)
    stops: bool = False

    def set_how(self, **changes: Any) -> None:
        self.how = replace(self.how, **changes)


class ChatPage:
    """The page as one browser shows it."""

    def __init__(self, desk: Desk, cfg: Config) -> None:
        self.desk, self.session, self.cfg = desk, desk.session, cfg

    def draw(self) -> None:
        """All of it."""
        ui.add_css(TEMPLATES / "chat.css")
        ui.colors(primary="#2f6fc4")
        with ui.element("main").classes("chat"):
            ui.label(BANNER).classes("banner").props("role=note")
            with ui.element("section").classes("talk"):
                self.log = ui.element("div").classes("log").props('role=log aria-label="Talk"')
                self.error = ui.label().classes("error").props("role=alert")
                with ui.element("div").classes("say"):
                    self.message = ui.textarea("What you say, as the seeker").props("autogrow outlined dense rows=1")
                    self.message.on("keydown.enter.exact.prevent", self._send)
                    self.send = ui.button("Send", on_click=self._send)
                    self.stop = ui.button("Stop", on_click=self._stop)
                    self._show_stop(writing=self.desk.writing.locked())
            with ui.element("section").classes("next"):
                self._draw_settings()
        self._draw_talk()

    def _draw_settings(self) -> None:
        model, boost, how = self.session.models[0], self.cfg.evaluate.boost, self.desk.how
        ui.label("Next reply").classes("heading").props("role=heading aria-level=2")
        ui.label("Strategy").classes("who")
        names = {"": "the model's choice", **{name: name for name in model.inventory.names}}
        strategy = ui.radio(names, value=how.strategy or "").props('dense aria-label="Strategy"')
        strategy.on_value_change(lambda event: self.desk.set_how(strategy=event.value or None))
        ui.label("Template").classes("who")
        template = ui.radio([*model.templates], value=how.template).props('dense inline aria-label="Template"')
        template.on_value_change(lambda event: self.desk.set_how(template=event.value))
        amount = ui.label().classes("who")
        most = 0.9 if boost.mode == "share" else 4.0
        slider = ui.slider(min=0, max=most, step=most / 40, value=min(how.boost, most))
        slider.props('aria-label="Boost of attention on the strategy"')
        slider.on_value_change(lambda event: self.desk.set_how(boost=float(event.value)))
        amount.bind_text_from(slider, "value", lambda value: f"Attention on the strategy: {_describe(value)}")
        with ui.element("div").classes("buttons"):
            self.again = _plain_button("Another reply", self._again)
            self.undo = _plain_button("Take back", self._undo)
            _plain_button("End the chat", self._end)

    def _draw_talk(self, *, answering: bool = False) -> None:
        """The talk so far; `answering`: its last exchange is over, too."""
        self.log.clear()
        last = -1 if answering else len(self.session.exchanges) - 1
        with self.log:
            for exchange in self.session.exchanges if answering else self.session.exchanges[:-1]:
                _draw_turn("You", exchange.message, "seeker")
                strategy = exchange.turns[1].reply.strategies[0]
                _draw_turn("Supporter", exchange.turns[1].reply.text, "supporter", strategy)
            if last >= 0:
                self._draw_last(last, self.session.exchanges[last])
            elif not answering:
                ui.label("Say what weighs on you, or on somebody you imagine.").classes("soft")
        self.again.set_enabled(last >= 0 and self.session.exchanges[last].takes_another)
        self.undo.set_enabled(last >= 0)

    def _draw_last(self, turn: int, exchange: Exchange) -> None:
        """The last exchange: all that was on offer, and what one can do with it."""
        self._top = _draw_turn("You", exchange.message, "seeker")
        given = exchange.turns[1].reply
        with ui.element("div").classes("offers"):
            for place, candidate in enumerate(exchange.candidates):
                name = _name_place(place, len(exchange.candidates))
                chosen = bool(exchange.verdict) and candidate is exchange.preferred and not exchange.edited
                with _draw_card(name, candidate, chosen=chosen):
                    self._draw_facts(turn, place, candidate)
        if len(exchange.candidates) > 1:
            with ui.element("div").classes("buttons").props('role=group aria-label="Which is better?"'):
                for verdict, label in _VOTES.items():
                    vote, pressed = partial(self._act, self.session.vote, verdict), exchange.verdict == verdict
                    button = ui.button(label, on_click=vote) if pressed else _plain_button(label, vote)
                    button.props(f"aria-pressed={str(pressed).lower()}")
            if exchange.same_words:
                ui.label(SAME_WORDS).classes("soft")
            elif not exchange.verdict:
                ui.label("Without a vote the talk goes on with the reply on the left.").classes("soft")
        if exchange.edited:
            _draw_turn("Supporter, edited", given.text, "supporter", given.strategies[0])
        with ui.expansion("Edit the reply").classes("edit"):
            text = ui.textarea("The reply as it should be", value=given.text).props("autogrow outlined dense")
            names = [*self.session.models[0].inventory.names]
            strategy = ui.select(names, label="Its strategy", value=given.strategies[0]).props("outlined dense")
            ui.button("Save", on_click=lambda: self._act(self.session.edit, text.value or "", strategy.value))

    def _draw_facts(self, turn: int, place: int, candidate: Candidate) -> None:
        ui.label(" · ".join(list_facts(candidate))).classes("soft")
        with ui.element("ul").classes("bars").props('aria-label="Probability of each strategy"'):
            for name, share in order_shares(candidate):
                with ui.element("li").classes("used" if name == candidate.strategy else ""):
                    ui.label(name)
                    ui.label(f"{share:.0%}")
                    ui.element("span").classes("bar").style(f"--share: {share:.4f}")
        if candidate.attention is None:
            return
        place_of_map = f"/where_it_looks/{turn}/{place}#prompt"  # beside the reply there is little room
        with ui.expansion("Where it looks", value=self.desk.shows_map).classes("map") as box:
            frame = ui.element("iframe").props('title="Where the reply looks" sandbox=allow-scripts')

        def open_map() -> None:
            self.desk.shows_map = bool(box.value)
            if box.value:
                frame.props(f"src={place_of_map}")

        open_map()
        box.on_value_change(open_map)

    async def _send(self) -> None:
        text = str(self.message.value or "")
        self.message.value = ""
        if not await self._write(self.session.send(text, self.desk.how), text):
            self.message.value = text

    async def _again(self) -> None:
        await self._write(self.session.reply_again(self.desk.how))

    async def _write(self, stream: Iterator[Exchange], message: str = "") -> bool:
        """Show replies as they are written; whether they came to their end."""
        if not self.desk.writing.acquire(blocking=False):
            self.error.set_text(_WAIT)
            return False
        self.error.set_text("")
        self.desk.stops = False
        self._show_stop(writing=True)
        try:
            said: list[ui.label] = []
            first = 0 if message else 1  # those that were there before
            if message:
                self._draw_talk(answering=True)
            with self.log:
                if message:
                    self._show(_draw_turn("You", message, "seeker"))
                offers = ui.element("div").classes("offers")
            while (exchange := await run.io_bound(next, stream, None)) is not None:
                for place, candidate in enumerate(exchange.candidates[first:]):
                    if place == len(said):
                        name = _name_place(place + first, max(len(self.session.models), 1 + first))
                        with offers, _draw_card(name, candidate) as card:
                            said.append(card.said)
                    said[place].set_text(candidate.text)
                if self.desk.stops:  # between two tokens
                    return False
        except UserError as error:
            self.error.set_text(str(error))
            return False
        finally:
            self.desk.writing.release()
            self._show_stop(writing=False)
            self._draw_talk()
        self._show(self._top)
        return True

    def _stop(self) -> None:
        self.desk.stops = True

    def _show_stop(self, *, writing: bool) -> None:
        self.send.set_visibility(not writing)
        self.stop.set_visibility(writing)

    def _act(self, act: Any, *arguments: Any) -> None:
        """Do something to the last exchange."""
        if self.desk.writing.locked():
            self.error.set_text(_WAIT)
            return
        self.error.set_text("")
        try:
            act(*arguments)
        except UserError as error:
            self.error.set_text(str(error))
        self._draw_talk()

    def _undo(self) -> None:
        def take_back() -> None:
            self.message.value = self.session.undo()

        self._act(take_back)

    def _end(self) -> None:
        metrics, names = self.session.measure(), self.session.names
        ui.query("body").classes("ended")
        self._draw_talk(answering=True)
        with self.log:
            told = f"The chat has ended. It is kept in {self.session.directory}, and goes on with resume=auto."
            end = ui.label(told).props("role=status")
            if len(names) > 1:
                for number, name in enumerate(names, 1):
                    wins = int(metrics[f"chat/wins_{number}"])
                    ui.label(f"{name} was better {'once' if wins == 1 else f'{wins} times'}.")
        self._show(end)
        ui.timer(0.5, app.shutdown, once=True)

    def _show(self, element: ui.element) -> None:
        ui.run_javascript(f"getHtmlElement({element.id})?.scrollIntoView({{block: 'start'}})")


def _draw_turn(who: str, text: str, kind: str, strategy: str = "") -> ui.element:
    with ui.element("div").classes(f"turn {kind}") as turn:
        with ui.element("div").classes("head"):
            ui.label(who).classes("who")
            if strategy:
                ui.label(strategy).classes("tag")
        ui.label(text).classes("said")
    return turn


class _Card(ui.element):
    said: ui.label


def _draw_card(name: str, candidate: Candidate, *, chosen: bool = False) -> _Card:
    card = _Card("article").classes("card chosen" if chosen else "card").props(f'aria-label="{name}"')
    with card:
        with ui.element("div").classes("head"):
            ui.label(name + (", better" if chosen else "")).classes("who")
            ui.label(candidate.strategy).classes("tag")
        card.said = ui.label(candidate.text).classes("said")
    return card


def _plain_button(label: str, act: Callable[[], Any]) -> ui.button:
    return ui.button(label, on_click=act, color=None).props("outline")


def _name_place(place: int, count: int) -> str:
    return ("Left", "Right")[place] if count > 1 else "Supporter"


def _describe(boost: float) -> str:
    return f"boosted by {boost:g}" if boost else "as it is"
