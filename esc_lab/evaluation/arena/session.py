"""Whole talks with the seekers of all cards: the calls, the journals, many talks at a time."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import zip_longest
from pathlib import Path
from statistics import fmean
from typing import Any

from esc_lab.config import Config
from esc_lab.config.search import ASKED
from esc_lab.data.cards import Card
from esc_lab.data.corpora import read_dialogues
from esc_lab.data.dialogue import Dialogue
from esc_lab.data.strategies import build_inventory
from esc_lab.errors import UserError, list_names
from esc_lab.evaluation.arena.measures import measure_emotion
from esc_lab.evaluation.arena.persona import build_words
from esc_lab.evaluation.arena.supporter import ROLE, Supporter
from esc_lab.evaluation.arena.talk import Talk
from esc_lab.prompts import SeekerProfile, build_layout
from esc_lab.prompts.trained import SupporterPrompts
from esc_lab.runs.layout import JOURNAL_SUFFIX, TALKS, TALKS_FILE
from esc_lab.search.calls import Calls
from esc_lab.search.clients.replay import find_recordings
from esc_lab.search.journal import describe_role
from esc_lab.search.progress import CallProgress
from esc_lab.search.role_prompts import build_role_prompts
from esc_lab.search.roles import Roles
from esc_lab.search.spending import BudgetError
from esc_lab.search.work_journals import WorkJournals
from esc_lab.search.work_results import WorkResult
from esc_lab.seeds import derive_seed

log = logging.getLogger(__name__)
# Texts of the search's roles that talks use.
_ROLE_TEXTS = (
    "seeker_system", "seeker_situation", "seeker_problem", "seeker_emotion", "conversation", "answer", "answer_end",
    "answer_form", "ends", "correction",
)  # fmt: skip


class ConverseSession:
    """Has the supporter under test talk with each card, with the journals of a run directory.

    Where clients replay a recording, its journals are taken over, and answer for all: each talk has to come out as it
    stands there, and those that a spent budget stopped are unfinished again.
    """

    def __init__(self, cfg: Config, cards: Sequence[Card], calls: Calls) -> None:
        self.cfg, self.settings, self.calls = cfg, cfg.converse, calls
        self.inventory = build_inventory(cfg.inventory)
        self.words = build_words(cfg.converse.wording)
        template = cfg.prompt.eval
        self.prompts = SupporterPrompts(self.inventory, template, build_layout(template))
        self.work = [(card, number) for card in cards for number in range(self.settings.talks)]
        self._talks: list[Talk] = []
        self._recording: str | None = None
        self._recorded: dict[str, Dialogue] = {}  # none: there is nothing to check a replay against
        self._finished = 0

    async def converse(self) -> WorkResult[Dialogue]:
        """Hold all talks."""
        result: WorkResult[Dialogue] = WorkResult(self.calls)
        shared = self._shared_config()
        configs = {_name(card, number): {"card": card.record(), "talk": number, **shared} for card, number in self.work}
        journals = WorkJournals(self._find_recording(configs), self.calls, Path(self.cfg.run_dir) / TALKS, configs)
        self._recorded = self._read_recorded()
        progress = CallProgress(
            "converse: supporter turns",
            len(self.work) * self.settings.max_turns,
            self._count_turns,
            parts=("talks", len(self.work)),
            finished=lambda: self._finished,
            calls=self.calls,
            measure=self._measure,
        )
        at_once = asyncio.Semaphore(self.cfg.search.concurrency)
        await result.collect((self._hold(*work, journals, at_once, result.counts) for work in self.work), progress)
        return result

    async def _hold(
        self, card: Card, number: int, journals: WorkJournals, at_once: asyncio.Semaphore, counts: Counter[str]
    ) -> Dialogue:
        async with at_once, journals.open(_name(card, number)) as journal:
            of_talk: Counter[str] = Counter()
            roles = Roles(
                self.inventory,
                SeekerProfile(card.situation),
                self.cfg.llm,
                {**self.calls.scoring, ROLE: self.prompts.record()},
                partial(self.calls.send, journal, group=_name(card, number)),
                of_talk,
                self._seed(card, number),
                self.calls.watch,
            )
            client = self.calls.clients[ROLE]
            chooses = client.scores and "ratings" not in client.identity  # an endpoint writes its strategy
            supporter = Supporter(roles, self.settings.strategies, self.cfg.prompt.inference, scores=chooses)
            talk = Talk(card, number, supporter, self.words, self.settings, knows_card="seeker" not in roles.trained)
            self._talks.append(talk)
            self._check_finished(_name(card, number))
            await talk.hold()
            self._finished += 1
            counts.update(of_talk)
            return self._check_replay(talk.dialogue(self.inventory.name))

    def _count_turns(self) -> int:
        """Turns that are there, or that no longer come since their talk has ended."""
        return sum(self.settings.max_turns if talk.ends else talk.replies for talk in self._talks)

    def _measure(self) -> dict[str, float]:
        """Of the talks that have ended: their mean turns, and, where it is asked, what became of the emotion."""
        ended = [talk for talk in self._talks if talk.ends]
        success, most = self.settings.success, self.settings.max_turns
        rows = [
            {"turns": float(talk.replies)} | measure_emotion(talk.intensity, success=success, max_turns=most)
            for talk in ended
        ]
        names = ("turns", "intensity_start", "intensity_end", "relief", "success")
        known = {name: [row[name] for row in rows if name in row] for name in names}
        return {name: fmean(values) for name, values in known.items() if values}

    def _seed(self, card: Card, number: int) -> int:
        """Of a talk: the same for every supporter, so that talks are paired."""
        return derive_seed(self.settings.seed, "talk", card.id, number)

    def _find_recording(self, configs: Mapping[str, Any]) -> Config:
        """The configuration with the run whose journals are taken over: a recording, where clients replay one.

        Raises:
            UserError: the recording lacks a talk.
        """
        played = (getattr(self.cfg.llm, role) for role in ASKED["converse"])
        recording = next((role.recording for role in played if role.client == "replay"), None)
        if recording is None:
            return self.cfg
        known = {path.name.removesuffix(JOURNAL_SUFFIX) for path in find_recordings(Path(recording))}
        missing = [name for name in configs if name not in known]
        if missing:
            what = f"the recording has no talk {list_names(missing, 3)}"
            fix = "use the cards and converse.talks of the recording"
            raise UserError(what, where=f"recording={recording}", fix=fix)
        self._recording = recording
        return replace(self.cfg, resume=str(recording))

    def _read_recorded(self) -> dict[str, Dialogue]:
        """The talks of the recorded run by name, once its journals are known to be of this configuration."""
        if self._recording is None:
            return {}
        if not (path := Path(self._recording, TALKS_FILE)).exists():
            log.warning("%s: there is no such file, so that nobody knows whether the journals were changed", path)
            return {}
        return {talk.tree_id: talk for talk in read_dialogues(path, "jsonl", inventory=self.inventory)}

    def _check_finished(self, name: str) -> None:
        """A BudgetError of a talk that the recorded run did not finish."""
        if self._recorded and name not in self._recorded:
            what = "its budget was spent before the end of every talk; those that it finished are repeated"
            raise BudgetError(what, where=f"recording={self._recording}")

    def _check_replay(self, talk: Dialogue) -> Dialogue:
        """The talk; a UserError if the recorded run has another one: somebody changed the journal or the talks."""
        recorded = self._recorded.get(talk.tree_id)
        if recorded and recorded != talk:
            path = Path(self._recording or "", TALKS, f"{talk.tree_id}{JOURNAL_SUFFIX}")
            pairs = zip_longest(recorded.turns, talk.turns)
            turn = next((number for number, (one, other) in enumerate(pairs) if one != other), None)
            where = "its end or the intensity of the emotion" if turn is None else f"turn {turn}"
            what = f"the talk that these answers make is not that of {TALKS_FILE}: {where} differs"
            fix = "somebody changed one of them: take the recording as it was published"
            raise UserError(what, where=str(path), fix=fix)
        return talk

    def _shared_config(self) -> dict[str, Any]:
        """Everything that the calls of talks depend on beside their card and their own content, in plain words: what
        differs in a replay is named.
        """
        cfg, prompts = self.cfg, self.prompts.record()["template"]
        words = build_role_prompts(self.inventory, cfg.llm).wording
        return {
            "seed": self.settings.seed,
            "min_turns": self.settings.min_turns,
            "max_turns": self.settings.max_turns,
            "schedule": list(self.settings.strategies),
            "intensity": self.settings.intensity,
            "inventory": asdict(self.inventory)["strategies"],
            "prompt": {**prompts, "layout": {**prompts["layout"], "baselines": self._baseline()}},
            "persona": dict(self.words.wording),
            "wording": {name: words[name] for name in _ROLE_TEXTS},
            "roles": {
                role: describe_role(getattr(cfg.llm, role), self.calls.clients[role]) for role in ASKED["converse"]
            },
        }

    def _baseline(self) -> dict[str, Any]:
        """The prompting baseline by its name; nothing for the first answer, as it was before talks had baselines."""
        name = self.cfg.prompt.inference
        return {} if name == "direct" else {name: asdict(self.prompts.layout.baseline(name))}


def _name(card: Card, number: int) -> str:
    return f"{card.id}-{number}"
