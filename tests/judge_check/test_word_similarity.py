"""The similarity of words, by hand."""

from __future__ import annotations

import math

import pytest

from esc_lab.data.dialogue import Reply, Turn
from esc_lab.judge_check.word_similarity import WordSimilarity


def talk(*texts: str) -> tuple[Turn, ...]:
    return tuple(Turn("seeker", Reply(text)) for text in texts)


def test_it_is_the_cosine_of_tf_idf_vectors() -> None:
    """The vectors of scikit-learn's `TfidfVectorizer(norm=None)` fitted on the same three texts."""
    similarity = WordSimilarity(["my boss shouts", "your boss", "a walk"])
    boss, rare = math.log(4 / 3) + 1, math.log(4 / 2) + 1
    unseen = math.log(4 / 1) + 1
    history = {"my": rare, "boss": 2 * boss, "shouts": rare}
    reply = {"boss": boss, "resigns": unseen}
    lengths = [math.sqrt(sum(weight**2 for weight in vector.values())) for vector in (history, reply)]
    expected = history["boss"] * reply["boss"] / lengths[0] / lengths[1]
    assert similarity(talk("My boss shouts.", "Boss!", "Boss resigns, I ...")) == pytest.approx(expected)


def test_without_words_nothing_is_alike() -> None:
    similarity = WordSimilarity(["some words"])
    assert similarity(talk("some", "!")) == 0
    assert similarity(talk("other")) == 0
    assert similarity(talk("some words", "some words")) == pytest.approx(1)
