"""An evaluation of a model at an endpoint: its replies to the prompts of all decisions, and what can be read off them.

Prompts, baselines and tables are those of models that are loaded here. What takes weights is left out, and so is blank:
attention, the probability of given replies, held-out pairs. Strategies are those that replies name, and, where the
endpoint serves the alternatives to tokens, have probabilities too.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from esc_lab.config import Config
from esc_lab.data.dialogue import Dialogue
from esc_lab.data.strategies import build_inventory
from esc_lab.errors import UserError
from esc_lab.evaluation.curve import ChoiceSoFar
from esc_lab.evaluation.decisions import draw_decisions, list_predictions, prompt_for
from esc_lab.evaluation.label_probabilities import read_label_probabilities
from esc_lab.metrics.predictions import Prediction, most_probable
from esc_lab.prompts import Message, build_layout, parse_reply
from esc_lab.runs.layout import REPLIES_JOURNAL
from esc_lab.search.calls import Calls, gather_all, open_calls
from esc_lab.search.clients.openai import serve_supporter
from esc_lab.search.journal import Journal, describe_role, take_over_journals
from esc_lab.search.progress import CallProgress
from esc_lab.search.requests import Answer, Request, TooLongError
from esc_lab.seeds import derive_seed
from esc_lab.training.datamodule import build_decisions

log = logging.getLogger(__name__)
ROLE = "supporter"
_JOURNAL = REPLIES_JOURNAL.partition(".")[0]
# Settings of the role, which errors name, by those of an evaluation.
_SETTINGS = {
    f"llm.{ROLE}.max_tokens": "evaluate.generation.max_new_tokens",
    f"llm.{ROLE}.temperature": "evaluate.generation.temperature",
    f"llm.{ROLE}.top_p": "evaluate.generation.top_p",
    "llm.<role>.": "evaluate.generation.",
    f"llm.{ROLE}": "model=endpoint",
}


def write_replies(cfg: Config, dialogues: Sequence[Dialogue]) -> tuple[list[Prediction], dict[str, float]]:
    """Have the endpoint reply at all decisions of the dialogues: the predictions, and what it took, as `evaluate/...`.

    Raises:
        UserError: there is no decision or no key, an answer cannot be had, or the budget is spent. The answers so far
            are in the run's journal.
    """
    calls = open_calls(serve_supporter(cfg, cfg.evaluate.generation), (ROLE,))
    session = ServedReplies(cfg, dialogues, calls)
    try:
        calls.run(session.write(), cfg.run_dir)
    except UserError as error:
        raise _name_settings(error) from error
    session.report()
    return session.predictions, session.metrics()


class ServedReplies:
    """The replies of an endpoint to the prompts of an evaluation, with their journal in its run directory.

    Attributes:
        predictions: of all decisions; those that get a reply are filled by `write`.
        counts: replies that were empty, refused, cut off, or not written as the prompt was too long.
    """

    def __init__(self, cfg: Config, dialogues: Sequence[Dialogue], calls: Calls) -> None:
        self.cfg, self.calls = cfg, calls
        self.player = serve_supporter(cfg, cfg.evaluate.generation).llm.supporter
        self.inventory, self.layout = build_inventory(cfg.inventory), build_layout(cfg.prompt.eval)
        self.baseline = self.layout.baseline(cfg.prompt.inference)
        self.scores = self.layout.chooses_strategy and self.baseline.answers_once and cfg.evaluate.likelihood
        self.counts: Counter[str] = Counter()
        self._dialogues = {dialogue.id: dialogue for dialogue in dialogues}
        self._answered, self._so_far = 0, ChoiceSoFar(self.inventory.names)
        decisions = build_decisions(dialogues, self.inventory, self.layout, cfg.prompt, cfg.evaluate)
        chosen = draw_decisions(
            ((example.key.dialogue, example.key.turn) for own in decisions for example in own),
            cfg.evaluate.generation,
        )
        self.predictions: list[Prediction] = []
        self._asked: list[Prediction] = []
        for dialogue, examples in zip(dialogues, decisions, strict=True):
            for example in examples:
                wanted = chosen is None or (dialogue.id, example.key.turn) in chosen
                own = list_predictions(dialogue, example, self.layout, self.inventory, cfg.evaluate, replies=wanted)
                self.predictions += own
                self._asked += own if wanted else []

    async def write(self) -> None:
        """Ask for all replies at the same time; raises what `gather_all` does."""
        path, config = Path(self.cfg.run_dir) / REPLIES_JOURNAL, self._journal_config()
        take_over_journals(self.cfg, path.parent, {_JOURNAL: config})
        journal = self.calls.open_journal(path, config)
        total = len(self._asked)
        progress = CallProgress(
            "evaluate: replies", total, self._count, parts=("replies", total), finished=self._count, calls=self.calls,
            measure=self._so_far.measure,
        )  # fmt: skip
        async with progress.shown():
            await gather_all([self._reply(journal, prediction) for prediction in self._asked])

    def _count(self) -> int:
        return self._answered

    def _journal_config(self) -> dict[str, Any]:
        """Everything that the calls depend on beside their own content."""
        roles = {ROLE: describe_role(self.player, self.calls.clients[ROLE])}
        return {"seed": self.cfg.seed, "inventory": self.inventory.name, "roles": roles}

    async def _reply(self, journal: Journal, prediction: Prediction) -> None:
        """One reply; where the baseline has follow-ups, the answer to the last of them."""
        prompt = prompt_for(
            prediction, self._dialogues[prediction.dialogue], self.layout, self.inventory, self.cfg.prompt.eval,
            inference=self.cfg.prompt.inference, start=prediction.turn - prediction.history,
        )  # fmt: skip
        messages = prompt.messages
        try:
            answer = await self.calls.send(journal, self._request(prediction, messages, 0), prediction.dialogue)
            for number, follow_up in enumerate(self.baseline.follow_ups, 1):
                messages += (Message("assistant", answer.text or "..."), Message("user", follow_up))
                request = self._request(prediction, messages, number)
                answer = await self.calls.send(journal, request, prediction.dialogue)
        except TooLongError:
            prediction.unmeasured = "prompt too long"
            self.counts["too_long"] += 1
            if self.counts["too_long"] == len(self._asked):
                raise
        else:
            self._fill(prediction, answer)
            self._so_far.add(prediction)
        self._answered += 1

    def _request(self, prediction: Prediction, messages: tuple[Message, ...], number: int) -> Request:
        """A request; `number` counts the follow-ups. It draws with the seed that a model which is loaded here has."""
        sample = prediction.sample
        purpose = ["generation", prediction.dialogue, prediction.turn, number, *([sample] if sample else [])]
        # Probabilities of strategies belong to the decision, and so to sample 0.
        alternatives = self.cfg.evaluate.generation.top_logprobs if self.scores and not sample else 0
        return Request(
            ROLE,
            messages,
            max_tokens=self.player.max_tokens,
            temperature=self.player.temperature,
            top_p=self.player.top_p,
            sample=sample,
            seed=derive_seed(self.cfg.seed, *purpose) >> 32,
            top_logprobs=alternatives,
        )

    def _fill(self, prediction: Prediction, answer: Answer) -> None:
        player = self.player
        prediction.raw = answer.text
        prediction.strategy, prediction.reply = parse_reply(answer.text, self.inventory, self.baseline.reply_marker)
        prediction.sampling = {
            "max_new_tokens": player.max_tokens, "temperature": player.temperature, "top_p": player.top_p,
            "inference": self.cfg.prompt.inference, "model": answer.model,
        }  # fmt: skip
        if answer.top_logprobs:
            shares, prediction.label_mass = read_label_probabilities(answer.top_logprobs, self.inventory.names)
            if shares:
                prediction.distribution, prediction.chosen = shares, most_probable(shares)
            else:
                self.counts["without_label"] += 1
        cut_off = prediction.cut_off = answer.is_cut_off(player.max_tokens)
        kinds = {"refused": bool(answer.refusal), "empty": not (answer.refusal or prediction.reply), "cut_off": cut_off}
        self.counts.update(kind for kind, holds in kinds.items() if holds)
        if prediction.reply:
            self.calls.watch.note_usable(ROLE)
        else:
            self.calls.watch.note_unusable(ROLE, answer, player.max_tokens, "there is no reply in it")

    def report(self) -> None:
        """Say who answered, and what is blank or of no use."""
        models = ", ".join(self.calls.models(ROLE))
        log.info("replies of %s; attention, perplexity and held-out pairs take weights, so they are blank", models)
        if self.counts:
            counts = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in sorted(self.counts.items()))
            log.warning("of %d replies: %s", len(self._asked), counts)
        top = self.cfg.evaluate.generation.top_logprobs
        if self.scores and top and not any(prediction.label_mass is not None for prediction in self.predictions):
            log.info("no log-probabilities are served: strategies are those that replies name (generated/...)")

    def metrics(self) -> dict[str, float]:
        """Flat, under `evaluate/`; what calls cost only where prices are known."""
        spent, openai = self.calls.spent, self.cfg.llm.openai
        names = ["calls", "from_cache", "prompt_tokens", "completion_tokens"]
        names += ["cost"] if openai.price_in or openai.price_out else []
        counts = {name: getattr(spent, name) for name in names} | dict(self.counts)
        counts |= {f"retries/{kind}": count for kind, count in self.calls.retries.items()}
        return {f"evaluate/{name}": float(value) for name, value in counts.items()}


def _name_settings(error: UserError) -> UserError:
    """The error, with settings of an evaluation in place of those of a role."""

    def renamed(text: str | None) -> str | None:
        for name, own in _SETTINGS.items() if text else ():
            text = str(text).replace(name, own)
        return text

    return UserError(renamed(error.message) or "", where=renamed(error.where), fix=renamed(error.fix))
