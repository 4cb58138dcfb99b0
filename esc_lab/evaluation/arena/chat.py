"""A chat of a person, as the seeker, with one model or two: messages, replies on offer, votes and edits; what is kept.

Pure but for the two files that are written after every change: the session, and the preferences in it as a dialogue
whose rejected replies are what the person did not prefer. An edited reply is preferred over what it was made from and,
where the person has voted, over all that was on offer.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from esc_lab.artifacts import READ_ERRORS, write_atomic
from esc_lab.data.corpora import write_dialogues
from esc_lab.data.dialogue import Dialogue, Reply, Turn
from esc_lab.errors import UserError, list_names
from esc_lab.evaluation.arena.chat_reply import Candidate, ChatModel, ReplySettings
from esc_lab.runs.layout import CHAT, VOTES
from esc_lab.seeds import derive_seed

FORMAT = "esc-lab-chat/1"
VERDICTS = ("left", "right", "tie", "bad")  # which of two replies is better; both are alike, or both are bad


@dataclass
class Exchange:
    """A message of the person and the replies to it, as they stand from left to right.

    Attributes:
        verdict: one of `VERDICTS`; empty: there is no vote.
        edited: the reply as the person would have it.
    """

    message: str
    candidates: list[Candidate] = field(default_factory=list)
    verdict: str = ""
    edited: Reply | None = None

    @property
    def preferred(self) -> Candidate:
        """The candidate that the talk goes on with: the better one, else that on the left."""
        return self.candidates[self.verdict == "right"]

    @property
    def same_words(self) -> bool:
        """Whether two replies are there and do not differ."""
        return len(self.candidates) > 1 and len({each.reply for each in self.candidates}) == 1

    @property
    def takes_another(self) -> bool:
        """Whether a second reply may stand beside the first."""
        return len(self.candidates) == 1 and self.edited is None

    @property
    def turns(self) -> tuple[Turn, Turn]:
        """The two turns of the talk, with the replies that the person rejected."""
        given, others = self.edited or self.preferred.reply, [] if self.edited is None else [self.preferred]
        if self.verdict in ("left", "right") or (self.edited and self.verdict):
            others = [each for each in self.candidates if self.edited or each is not self.preferred]
        rejected = dict.fromkeys(each.reply for each in others if each.reply != given)
        return Turn("seeker", Reply(self.message)), Turn("supporter", given, tuple(rejected))


@dataclass
class ChatSession:
    """A talk in progress.

    Args:
        id: sets it apart from others; all that is kept of it has this `tree_id`.
        models: one, or two whose replies stand side by side, blind: their sides are drawn for every turn.
        names: of the models, for the end.
        identity: what a session is of, JSON types: it goes on under the same alone.
        directory: where it is kept.
        seed: of the run.
    """

    id: str
    models: Sequence[ChatModel]
    names: Sequence[str]
    identity: Mapping[str, Any]
    directory: Path
    seed: int
    exchanges: list[Exchange] = field(default_factory=list)

    def take_over(self, exchanges: list[Exchange]) -> None:
        """Go on from exchanges of an earlier run."""
        self._keep(exchanges)

    def send(self, message: str, how: ReplySettings) -> Iterator[Exchange]:
        """Answer a message: the exchange again after each token. It counts once it is whole.

        Raises:
            UserError: there is no message, or what `ChatModel.reply` raises.
        """
        if not message.strip():
            raise UserError("there is no message", where="message", fix="say something")
        order = [*range(len(self.models))]
        random.Random(derive_seed(self.seed, "sides", self.id, len(self.exchanges))).shuffle(order)
        exchange = Exchange(message.strip())
        for number in order:
            yield from self._answer(exchange, self.exchanges, number, how)
        self._keep([*self.exchanges, exchange])

    def reply_again(self, how: ReplySettings) -> Iterator[Exchange]:
        """Another reply to the last message by the one model, to the right of the first.

        Raises:
            UserError: there is nothing to answer, there are two replies already, or what `ChatModel.reply` raises.
        """
        last = self._last()
        if not last.takes_another:
            what = "the reply was edited" if last.edited else "there are two replies already"
            raise UserError(what, where="the last reply", fix="vote, or send a message")
        exchange = replace(last, candidates=[*last.candidates])
        yield from self._answer(exchange, self.exchanges[:-1], last.candidates[0].model, how)
        self._keep([*self.exchanges[:-1], exchange])

    def vote(self, verdict: str) -> None:
        """Say which of the two last replies is better; the talk goes on with it.

        Raises:
            UserError: there is no such verdict, or there are no two replies.
        """
        last = self._last()
        if verdict not in VERDICTS:
            raise UserError(f"no verdict '{verdict}'", where="vote", fix=f"one of {', '.join(VERDICTS)}")
        if len(last.candidates) < 2:
            raise UserError("there is one reply alone", where="vote", fix="ask for another reply, or edit it")
        self._keep([*self.exchanges[:-1], replace(last, verdict=verdict)])

    def edit(self, text: str, strategy: str | None = None) -> None:
        """Have the last reply as the person writes it.

        Args:
            strategy: of the new text; None: that of the reply.

        Raises:
            UserError: there is no text or no such strategy.
        """
        last, names = self._last(), self.models[0].inventory.names
        if not text.strip():
            raise UserError("there is no text", where="edit", fix="write the reply as it should be")
        if strategy is not None and strategy not in names:
            raise UserError(f"no strategy '{strategy}'", where="edit", fix=f"one of {list_names(names, 20)}")
        edited = Reply(text.strip(), (strategy or last.preferred.strategy,))
        edited_or_not = None if edited == last.preferred.reply else edited
        self._keep([*self.exchanges[:-1], replace(last, edited=edited_or_not)])

    def undo(self) -> str:
        """Take the last message and its replies back; the message.

        Raises:
            UserError: there is none.
        """
        message = self._last().message
        self._keep(self.exchanges[:-1])
        return message

    def dialogue(self) -> Dialogue | None:
        """The talk up to its last preference, with the rejected replies; None without one."""
        turns = [turn for exchange in self.exchanges for turn in exchange.turns]
        while turns and not turns[-1].rejected:
            turns.pop()
        inventory = self.models[0].inventory.name
        return Dialogue(tuple(turns), inventory, tree_id=self.id, meta={"source": "chat"}) if turns else None

    def measure(self) -> dict[str, float]:
        """What a run says of it: turns, votes by model, edits, preference pairs, strategies, and what replies cost."""
        candidates = [each for exchange in self.exchanges for each in exchange.candidates]
        preferences = [turn for exchange in self.exchanges for turn in exchange.turns if turn.rejected]
        verdicts = Counter(exchange.verdict for exchange in self.exchanges)
        metrics: dict[str, float] = {
            "turns": len(self.exchanges),
            "replies": len(candidates),
            "votes": verdicts.total() - verdicts[""],
            "ties": verdicts["tie"],
            "both_bad": verdicts["bad"],
            "edits": sum(exchange.edited is not None for exchange in self.exchanges),
            "pairs": sum(len(turn.rejected) for turn in preferences),
            "picked": sum(each.picked for each in candidates),
        }
        if len(self.models) > 1:
            wins = Counter(each.preferred.model for each in self.exchanges if each.verdict in ("left", "right"))
            metrics |= {f"wins_{number + 1}": wins[number] for number in range(len(self.models))}
        strategies = Counter(each.strategy for each in candidates)
        metrics |= {f"strategy/{name}": count / len(candidates) for name, count in sorted(strategies.items())}
        if candidates:
            metrics["first_token_s"] = fmean(each.first_token_s for each in candidates)
            metrics["computed_tokens"] = fmean(each.computed for each in candidates)
        return {f"chat/{name}": float(value) for name, value in metrics.items()}

    def _answer(
        self, exchange: Exchange, before: Sequence[Exchange], number: int, how: ReplySettings
    ) -> Iterator[Exchange]:
        history = [turn for each in before for turn in each.turns] + [Turn("seeker", Reply(exchange.message))]
        seed = derive_seed(self.seed, "chat", self.id, len(before), len(exchange.candidates), number)
        place = len(exchange.candidates)
        for candidate in self.models[number].reply(history, how, seed):
            candidate.model = number
            exchange.candidates[place:] = [candidate]
            yield exchange

    def _last(self) -> Exchange:
        if not self.exchanges:
            raise UserError("nothing was said yet", where="the last reply", fix="send a message first")
        return self.exchanges[-1]

    def _keep(self, exchanges: list[Exchange]) -> None:
        """Take over a change and write it down."""
        self.exchanges = exchanges
        records = [
            {**asdict(replace(each, candidates=[])), "candidates": [_record(one) for one in each.candidates]}
            for each in exchanges
        ]
        content = {"format": FORMAT, "id": self.id, "of": self.identity, "exchanges": records}
        write_atomic(self.directory / CHAT, json.dumps(content, indent=1, ensure_ascii=False))
        talk = self.dialogue()
        if talk:
            write_dialogues([talk], self.directory / VOTES, inventory=self.models[0].inventory)
        else:
            (self.directory / VOTES).unlink(missing_ok=True)


def _record(candidate: Candidate) -> dict[str, Any]:
    record = asdict(replace(candidate, attention=None))
    del record["attention"]
    return record


def read_session(path: Path) -> dict[str, Any]:
    """`id`, `of` (its identity) and `exchanges` of a session that was kept.

    Raises:
        UserError: it is none.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']}")
        exchanges = []
        for each in content["exchanges"]:
            edited = each["edited"] and Reply(each["edited"]["text"], tuple(each["edited"]["strategies"]))
            candidates = [Candidate(**candidate) for candidate in each["candidates"]]
            if not candidates or each["verdict"] not in ("", *VERDICTS):
                raise ValueError("no exchange")
            exchanges.append(Exchange(each["message"], candidates, each["verdict"], edited))
        return {"id": str(content["id"]), "of": content["of"], "exchanges": exchanges}
    except READ_ERRORS as error:
        fix = "start anew without resume=, in another run directory"
        raise UserError(f"not a chat of this version: {error}", where=str(path), fix=fix) from error


def find_session(root: Path, identity: Mapping[str, Any]) -> Path | None:
    """The chat below a directory that was changed last among those of an identity; those that are broken are none."""
    same = []
    for path in root.glob(f"**/{CHAT}"):
        try:
            if read_session(path)["of"] == identity:
                same.append(path)
        except UserError:
            continue
    return max(same, key=lambda path: path.stat().st_mtime, default=None)
