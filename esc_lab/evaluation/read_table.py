"""`predictions.jsonl` as arrays, with the preference pairs beside it."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from esc_lab.artifacts import READ_ERRORS, fingerprint
from esc_lab.errors import UserError
from esc_lab.metrics.attention import DEFINITIONS, span_measures
from esc_lab.metrics.prediction_table import (
    NO_GOLD,
    NOT_ASKED,
    PAIR_MEASURES,
    UNPARSABLE,
    FloatArray,
    Key,
    PredictionTable,
    TestSet,
)
from esc_lab.metrics.predictions import FIX, Prediction, read_predictions
from esc_lab.metrics.records import metrics_of_replies
from esc_lab.metrics.text import BLEU_COUNTS, MAX_COPIED, repetition, split_words
from esc_lab.runs.layout import PAIRS


def read_table(path: Path, strategies: Sequence[str], *, sra: str, texts: bool) -> PredictionTable:
    """The predictions in a file as arrays, with the preference pairs in a `pairs.jsonl` beside it.

    Args:
        path: the file.
        strategies: names of the inventory.
        sra: which Strategy-Relevant Attention, e.g. `paper/name`.
        texts: read the words of the replies too, which takes as long as all the rest.

    Raises:
        UserError: a file cannot be read, a line is not a prediction or is there twice, or a strategy is not in the
            inventory.
    """
    rows = _Rows(strategies, sra, texts=texts)
    for prediction in read_predictions(path):  # not all at once: there may be many
        try:
            rows.add(prediction)
        except READ_ERRORS as error:
            message = f"not a prediction with the strategies {', '.join(strategies)}: {type(error).__name__} {error}"
            raise UserError(message, where=f"{path}:{len(rows.decision) + 1}", fix=FIX) from error
    test = rows.test_set()
    return rows.table(test, _read_pairs(path.with_name(PAIRS), test))


_NO_SRA = {"sra": math.nan}
_NO_SPAN, _NO_BLEU = (math.nan,) * 3, (math.nan,) * len(BLEU_COUNTS)
_Decision: TypeAlias = tuple[tuple[int, ...], str, str, str]  # gold strategies, tree, problem, emotion


class _Rows:
    """The rows of a table while they are read."""

    def __init__(self, strategies: Sequence[str], sra: str, *, texts: bool) -> None:
        self.strategies, self.sra, self.span = tuple(strategies), sra, sra.partition("/")[2]
        self.replies = metrics_of_replies() if texts else {}
        self.texts = texts
        self.classes = {name: number for number, name in enumerate(strategies)}
        self.no_choice = [math.nan] * len(strategies)
        self.decisions: dict[Key, _Decision] = {}
        self.prompts: set[tuple[Key, str | None, int]] = set()
        self.decision: list[Key] = []
        self.choices: list[tuple[int, int, int, int]] = []  # sample, prompted, chosen, written
        self.distributions: list[list[float]] = []
        self.values: list[tuple[float, ...]] = []
        self.vocabulary: defaultdict[str, int] = defaultdict()
        self.vocabulary.default_factory = self.vocabulary.__len__  # the next number
        self.words: list[int] = []
        self.word_rows: list[int] = []
        self.sampling: dict[str, float] = {}
        self.unmeasured: Counter[str] = Counter()
        self.phrases: dict[str, int] = {}  # neutral phrases of prompts, numbered

    def add(self, p: Prediction) -> None:
        key = (p.dialogue, p.turn)
        if (key, p.prompted, p.sample) in self.prompts:
            raise ValueError("which is there twice")
        if not (p.gold or p.prompted):
            raise ValueError("without a gold strategy")
        gold = tuple(map(self.classes.__getitem__, p.gold))
        distribution = self.no_choice
        if p.distribution:
            if p.distribution.keys() != self.classes.keys():
                raise KeyError(f"a distribution over {', '.join(p.distribution)}")
            distribution = [*map(p.distribution.__getitem__, self.classes)]
        prompted = NOT_ASKED if p.prompted is None else self.classes[p.prompted]
        chosen = NOT_ASKED if p.chosen is None else self.classes[p.chosen]
        written = NOT_ASKED
        if p.reply is not None and p.prompted is None:
            written = UNPARSABLE if p.strategy is None else self.classes[p.strategy]
        self.values.append((*self._measured(p), *(self._texts(p) if self.texts else ())))
        self.prompts.add((key, p.prompted, p.sample))
        self.decisions[key] = (gold, p.tree, p.problem, p.emotion)
        self.choices.append((p.sample, prompted, chosen, written))
        self.distributions.append(distribution)
        self.decision.append(key)
        if p.sampling and not self.sampling:
            drawn = {name: p.sampling[name] for name in ("temperature", "top_p", "max_new_tokens")}
            drawn["no_repeat"] = p.sampling.get("no_repeat") or None
            self.sampling = {name: float(value) for name, value in drawn.items() if value is not None}
        if p.unmeasured:
            self.unmeasured[p.unmeasured] += 1

    def _measured(self, p: Prediction) -> tuple[float, ...]:
        span = p.sra[self.sra] if p.sra else {}
        return (
            p.log_prob if p.tokens > 0 else math.nan,
            p.tokens if p.tokens > 0 else math.nan,
            math.nan if p.label_mass is None else p.label_mass,
            math.nan if p.adheres is None else float(p.adheres),
            math.nan if p.cut_off is None else float(p.cut_off),
            math.nan if p.copied is None else p.copied,
            math.nan if p.adheres is None or p.copied is None else float(p.adheres and p.copied <= MAX_COPIED),
            *((span["sra"], span["control"], span["relative"]) if span else _NO_SPAN),
            *((p.sra or {}).get(f"{each}/{self.span}", _NO_SRA)["sra"] for each in DEFINITIONS),
            self.classes[p.followed] if p.followed else math.nan,
            self.phrases.setdefault(p.neutral["phrase"], len(self.phrases)) if p.neutral else math.nan,
            *(p.bleu or _NO_BLEU),
        )

    def _texts(self, p: Prediction) -> tuple[float, ...]:
        """Repetition of a generated reply; of one to the gold strategy its length in words and metrics of replies."""
        repeated = math.nan if p.reply is None else repetition(p.reply)
        if p.reply is None or not p.to_gold:
            return (repeated, *(math.nan,) * (1 + len(self.replies)))
        words = split_words(p.reply)
        self.words += map(self.vocabulary.__getitem__, words)
        self.word_rows += [len(self.decision)] * len(words)
        known = p.values
        values = [known[n] if n in known else of(p.reply, p.gold_reply) for n, of in self.replies.items()]
        return (repeated, float(len(words)), *values)

    def test_set(self) -> TestSet:
        keys = sorted(self.decisions)
        golds, trees, problems, emotions = zip(*(self.decisions[key] for key in keys), strict=True)
        marks = np.zeros((len(keys), len(self.strategies)), dtype=bool)
        for row, gold in zip(marks, golds, strict=True):
            row[[*gold]] = True
        number = {tree: position for position, tree in enumerate(sorted(set(trees)))}
        return TestSet(
            identity=fingerprint([keys, golds]),
            strategies=self.strategies,
            keys=tuple(keys),
            gold=marks,
            first=np.array([gold[0] if gold else NO_GOLD for gold in golds], np.intp),
            cluster=np.array([number[tree] for tree in trees], np.intp),
            clusters=len(number),
            dialogues=len({dialogue for dialogue, _ in keys}),
            turn=np.array([turn for _, turn in keys], np.intp),
            problem=np.array(problems, dtype=np.str_),
            emotion=np.array(emotions, dtype=np.str_),
        )

    def table(self, test: TestSet, pairs: FloatArray) -> PredictionTable:
        place = {key: position for position, key in enumerate(test.keys)}
        sample, prompted, chosen, written = np.array(self.choices, np.intp).T
        sampling = self.sampling and {**self.sampling, "samples": 1.0 + float(sample.max())}
        return PredictionTable(
            test,
            decision=np.array([place[key] for key in self.decision], np.intp),
            sample=sample,
            prompted=prompted,
            chosen=chosen,
            written=written,
            distribution=np.array(self.distributions, np.float64),
            values=self._columns(),
            words=np.array([self.words, self.word_rows], np.int32),
            pairs=pairs,
            sampling=sampling,
            unmeasured=self.unmeasured,
        )

    def _columns(self) -> Mapping[str, FloatArray]:
        names = ["log_prob", "tokens", "label_mass", "adheres", "cut_off", "copied", "own_words", "sra"]
        names += ["control", "relative", *DEFINITIONS, "followed", "phrase", *BLEU_COUNTS]
        names += ["repetition", "reply_length", *self.replies] if self.texts else []
        values = dict(zip(names, np.array(self.values, np.float64).T, strict=True))
        logs = {f"log_sra_{each}": np.log(values.pop(each)) for each in DEFINITIONS}
        return {**values, **logs, **span_measures(values["sra"], values["control"], values["relative"])}


def _read_pairs(path: Path, test: TestSet) -> FloatArray:
    """Preference pairs as `PredictionTable.pairs` has them; none if some are of dialogues without a decision."""
    nothing = np.empty((1 + len(PAIR_MEASURES), 0))
    if not path.exists():
        return nothing
    cluster = {dialogue: int(number) for (dialogue, _), number in zip(test.keys, test.cluster, strict=True)}
    rows: list[list[float]] = []
    try:
        for line in path.read_bytes().splitlines():
            row = json.loads(line)
            rows.append([cluster.get(row["dialogue"], -1), *measure_pair(row).values()])
    except READ_ERRORS as error:
        message = f"not a preference pair: {type(error).__name__} {error}"
        raise UserError(message, where=f"{path}:{len(rows) + 1}", fix=FIX) from error
    if not rows or min(row[0] for row in rows) < 0:
        return nothing
    return np.array(rows).T


def measure_pair(pair: Mapping[str, Any]) -> dict[str, float]:
    """`PAIR_MEASURES` of a line of pairs.jsonl, which in older runs has neither `tokens` nor `log_ratios`; else nan."""
    (chosen, rejected), rewards = pair["log_probs"], pair["rewards"]
    tokens, ratios = pair.get("tokens"), pair.get("log_ratios")
    measures = dict.fromkeys(PAIR_MEASURES, math.nan) | {"accuracy": float(chosen > rejected)}
    if rewards is not None:
        measures["reward_accuracy"] = float(rewards[0] > rewards[1])
    if tokens is not None:
        measures["accuracy_per_token"] = float(chosen / tokens[0] > rejected / tokens[1])
        measures["shorter"] = (float(tokens[0] < tokens[1]) + float(tokens[0] <= tokens[1])) / 2
        if ratios is not None:
            measures["reward_accuracy_per_token"] = float(ratios[0] / tokens[0] > ratios[1] / tokens[1])
    return measures
