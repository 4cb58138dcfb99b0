"""How alike the words of a history and a reply are: the floor that a judge has to rise above.

Cosine of tf-idf vectors (Salton and Buckley 1988) with the smoothed idf of scikit-learn, `ln((1 + n) / (1 + df)) + 1`.
It is written here, since a few dictionaries do not need that library.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from esc_lab.data.dialogue import Turn

_WORD = re.compile(r"\w\w+")


class WordSimilarity:
    """The similarity, with document frequencies from these texts."""

    def __init__(self, texts: Iterable[str]) -> None:
        documents = [set(_words(text)) for text in texts]
        frequency = Counter(word for document in documents for word in document)
        self._all = len(documents)
        self._idf = {word: self._weight(count) for word, count in frequency.items()}

    def __call__(self, conversation: Sequence[Turn]) -> float:
        """Of the last message with all before it, from 0 to 1; 0 where one side has no words."""
        *history, last = (turn.reply.text for turn in conversation)
        before, reply = self._vector(" ".join(history)), self._vector(last)
        length = math.sqrt(_dot(before, before) * _dot(reply, reply))
        return _dot(before, reply) / length if length else 0.0

    def _vector(self, text: str) -> dict[str, float]:
        return {word: count * self._idf.get(word, self._weight(0)) for word, count in Counter(_words(text)).items()}

    def _weight(self, frequency: int) -> float:
        return math.log((1 + self._all) / (1 + frequency)) + 1


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _dot(one: Mapping[str, float], other: Mapping[str, float]) -> float:
    return sum(weight * other[word] for word, weight in one.items() if word in other)
