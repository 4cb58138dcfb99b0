"""Predictions of evaluations as arrays: the decisions of a test set, and what was measured at each of them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from esc_lab.artifacts import fingerprint
from esc_lab.errors import UserError

IntArray = npt.NDArray[np.intp]
FloatArray = npt.NDArray[Any]  # float64 or float32

Key: TypeAlias = tuple[str, int]  # dialogue id, turn
_Record: TypeAlias = tuple[int, tuple[int, ...], str, str, str]  # first and all gold strategies, tree, problem, emotion

UNPARSABLE, NOT_ASKED = -1, -2
PAIRS = "pairs.jsonl"
_MEASURED = ("log_prob", "tokens", "label_mass", "adheres", "sra", "control", "relative")
_TEXT = ("rouge_l", "reply_length")
_BLEU = ("match_1", "match_2", "match_3", "match_4", "bleu_tokens", "reference_tokens")
_WORD = re.compile(r"[a-z0-9]+")
_TOKEN = re.compile(r"\w+(?:['\u2019]\w+)*|[^\w\s]")


@dataclass(frozen=True)
class TestSet:
    """The decisions of an evaluation, sorted by dialogue and turn.

    Attributes:
        identity: hash of the decisions' dialogue ids, turns and gold strategies.
        strategies: names of the inventory; their order gives the class indices.
        keys: dialogue id and turn of each decision.
        gold: bool [decisions, strategies], all that are right.
        first: [decisions], the gold strategy that counts where the prediction is none of them.
        cluster: [decisions], which tree the dialogue is from. Dialogues of one search tree share their beginnings, so
            they are drawn together; in other corpora each dialogue is a tree of its own.
        clusters, dialogues: number of each.
        turn: [decisions], turns before the reply.
        problem, emotion: [decisions], as the corpus names them.
    """

    __test__ = False  # not a test, whatever its name begins with

    identity: str
    strategies: tuple[str, ...]
    keys: tuple[Key, ...]
    gold: npt.NDArray[np.bool_]
    first: IntArray
    cluster: IntArray
    clusters: int
    dialogues: int
    turn: IntArray
    problem: npt.NDArray[np.str_]
    emotion: npt.NDArray[np.str_]


@dataclass(frozen=True)
class Predictions:
    """What an evaluation measured, a row for each decision and prompt.

    Attributes:
        test: the decisions.
        decision: [rows], which decision.
        chosen: [rows], the most probable strategy; NOT_ASKED where the model has no choice.
        written: [rows], the strategy of the generated reply; UNPARSABLE if it names none, NOT_ASKED without a reply or
            where the prompt names the strategy.
        values: [rows] each, nan where it was not measured: `log_prob` and `tokens` of the gold reply, `label_mass`,
            `adheres`, `sra` and its logarithm and controls (`log_sra`, `control`, `relative`, `sham_net`,
            `log_relative`), and of a generated reply to the gold strategy `rouge_l`, `reply_length` and what BLEU is
            summed from: `match_1` to `match_4`, `bleu_tokens`, `reference_tokens`.
        sample: [rows], number of the reply among those to its prompt.
        words: [2, tokens], the words of the replies to the gold strategy, as numbers, and the row of each.
        pairs: [3, pairs], cluster of each preference pair, and whether the chosen reply was the more probable one and
            whether it had the higher reward: 1, 0, or -1 where that is not known.
    """

    test: TestSet
    decision: IntArray
    chosen: IntArray
    written: IntArray
    values: Mapping[str, FloatArray]
    sample: IntArray
    words: npt.NDArray[np.int32]
    pairs: IntArray


def read_predictions(path: Path, strategies: Sequence[str], *, sra: str, texts: bool) -> Predictions:
    """The predictions in a `predictions.jsonl`, with the preference pairs in a `pairs.jsonl` beside it.

    Args:
        path: the file.
        strategies: names of the inventory.
        sra: which Strategy-Relevant Attention, e.g. `paper/name`.
        texts: compare the texts of the replies too, which takes as long as all the rest.

    Raises:
        UserError: a file cannot be read, a line is not a prediction or is there twice, or a strategy is not in the
            inventory.
    """
    numbers = {name: number for number, name in enumerate(strategies)}
    decisions: dict[Key, _Record] = {}
    lines: dict[tuple[Key, str | None, int], int] = {}
    chosen: list[int] = []
    written: list[int] = []
    measured: list[tuple[float, ...]] = []
    words = _Words()
    try:
        for number, line in enumerate(path.read_bytes().splitlines()):
            row = json.loads(line)
            key = (row["dialogue"], row["turn"])
            if lines.setdefault((key, row["prompted"], row.get("sample", 0)), number) != number:
                raise ValueError("which is there twice")
            gold = tuple(numbers[name] for name in row["gold"])
            decisions[key] = (gold[0], gold, row["tree"], row["problem"], row["emotion"])
            chosen.append(_most_probable(row["distribution"], numbers))
            written.append(_written(row, numbers))
            measured.append((*_measured(row, sra), *(_overlap(row, number, words) if texts else ())))
    except (OSError, ValueError, TypeError, LookupError) as error:
        where = f"{path}:{len(measured) + 1}"
        message = f"not a prediction with the strategies {', '.join(strategies)}: {type(error).__name__} {error}"
        raise UserError(message, where=where, fix="evaluate the run again") from error
    if not lines:
        raise UserError("there are no predictions", where=str(path), fix="evaluate the run again")
    test = _test_set(decisions, strategies)
    place = {key: position for position, key in enumerate(test.keys)}
    names = (*_MEASURED, *((*_TEXT, *_BLEU) if texts else ()))
    values = dict(zip(names, np.array(measured, dtype=np.float64).T, strict=True))
    values["log_sra"], values["log_relative"] = np.log(values["sra"]), np.log(values["relative"])
    values["sham_net"] = values["log_sra"] - np.log(values["control"])
    return Predictions(
        test,
        decision=np.array([place[key] for key, _, _ in lines], np.intp),
        chosen=np.array(chosen, np.intp),
        written=np.array(written, np.intp),
        values=values,
        sample=np.array([sample for _, _, sample in lines], np.intp),
        words=words.array(),
        pairs=_pairs(path.with_name(PAIRS), test),
    )


def _test_set(decisions: Mapping[Key, _Record], strategies: Sequence[str]) -> TestSet:
    keys = sorted(decisions)
    firsts, golds, trees, problems, emotions = zip(*(decisions[key] for key in keys), strict=True)
    marks = np.zeros((len(keys), len(strategies)), dtype=bool)
    for row, gold in zip(marks, golds, strict=True):
        row[[*gold]] = True
    number = {tree: position for position, tree in enumerate(sorted(set(trees)))}
    return TestSet(
        identity=fingerprint([keys, golds]),
        strategies=tuple(strategies),
        keys=tuple(keys),
        gold=marks,
        first=np.array(firsts, np.intp),
        cluster=np.array([number[tree] for tree in trees], np.intp),
        clusters=len(number),
        dialogues=len({dialogue for dialogue, _ in keys}),
        turn=np.array([turn for _, turn in keys], np.intp),
        problem=np.array(problems, dtype=np.str_),
        emotion=np.array(emotions, dtype=np.str_),
    )


def _most_probable(distribution: Mapping[str, float], numbers: Mapping[str, int]) -> int:
    if not distribution:
        return NOT_ASKED
    if len(distribution) != len(numbers):
        raise KeyError(f"a distribution over {', '.join(distribution)}")
    return numbers[max(distribution, key=distribution.__getitem__)]


def _written(row: Mapping[str, Any], numbers: Mapping[str, int]) -> int:
    if row["reply"] is None or row["prompted"] is not None:
        return NOT_ASKED
    return UNPARSABLE if row["strategy"] is None else numbers[row["strategy"]]


def _measured(row: Mapping[str, Any], sra: str) -> tuple[float, ...]:
    likely, adheres, found = row["tokens"] > 0, row.get("adheres"), row.get("sra")
    return (
        row["log_prob"] if likely else math.nan,
        row["tokens"] if likely else math.nan,
        math.nan if row["label_mass"] is None else row["label_mass"],
        math.nan if adheres is None else float(adheres),
        *((found[sra]["sra"], found[sra]["control"], found[sra]["relative"]) if found else (math.nan,) * 3),
    )


def _overlap(row: Mapping[str, Any], number: int, words: _Words) -> tuple[float, ...]:
    """ROUGE-L and length in words of a generated reply to the gold strategy, and its part of BLEU's sums."""
    if row["reply"] is None or (row["prompted"] is not None and row["prompted"] not in row["gold"]):
        return (math.nan,) * (len(_TEXT) + len(_BLEU))
    found = _TOKEN.findall(row["reply"].lower())
    words.add(found, number)
    bleu = row.get("bleu") or (math.nan,) * len(_BLEU)
    return rouge_l(row["reply"], row["gold_reply"]), float(len(found)), *bleu


class _Words:
    """Words as numbers, in the order in which they were first seen."""

    def __init__(self) -> None:
        self.known: dict[str, int] = {}
        self.numbers: list[int] = []
        self.rows: list[int] = []

    def add(self, words: Sequence[str], row: int) -> None:
        known = self.known
        self.numbers += [known.setdefault(word, len(known)) for word in words]
        self.rows += [row] * len(words)

    def array(self) -> npt.NDArray[np.int32]:
        return np.array([self.numbers, self.rows], dtype=np.int32)


def _pairs(path: Path, test: TestSet) -> IntArray:
    """Preference pairs as `Predictions.pairs` has them; none if some are of dialogues without a decision."""
    if not path.exists():
        return np.empty((3, 0), np.intp)
    cluster = {dialogue: int(number) for (dialogue, _), number in zip(test.keys, test.cluster, strict=True)}
    found: list[tuple[int, int, int]] = []
    try:
        for line in path.read_bytes().splitlines():
            row = json.loads(line)
            rewarded = -1 if row["rewards"] is None else int(row["rewards"][0] > row["rewards"][1])
            found.append((cluster.get(row["dialogue"], -1), int(row["log_probs"][0] > row["log_probs"][1]), rewarded))
    except (OSError, ValueError, TypeError, LookupError) as error:
        message = f"not a preference pair: {type(error).__name__} {error}"
        raise UserError(message, where=f"{path}:{len(found) + 1}", fix="evaluate the run again") from error
    pairs = np.array(found, np.intp).reshape(-1, 3).T
    return pairs if (pairs[0] >= 0).all() else pairs[:, :0]


def rouge_l(reply: str, reference: str) -> float:
    """ROUGE-L (F-measure; Lin 2004) of a reply against its reference, as `TextOverlap` has it.

    The longest common subsequence is found with one whole number as a row of bits: about five operations for each word
    of the reply (Hyyro 2004).

    >>> round(rouge_l("The cat sat on the mat.", "the cat is on the mat."), 3)
    0.833
    """
    places, count = _places(reference)
    words = _WORD.findall(reply.lower())
    row = everything = (1 << count) - 1
    for word in words:
        matches = row & places.get(word, 0)
        row = ((row + matches) | (row - matches)) & everything
    common = count - row.bit_count()
    return 2 * common / (len(words) + count) if common else 0.0


@lru_cache(maxsize=1 << 14)  # runs of one test set share their references
def _places(reference: str) -> tuple[dict[str, int], int]:
    """Where each word stands, as bits, and how many words there are."""
    words = _WORD.findall(reference.lower())
    places: dict[str, int] = {}
    for number, word in enumerate(words):
        places[word] = places.get(word, 0) | 1 << number
    return places, len(words)
