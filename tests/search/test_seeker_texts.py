"""Figures of what seekers say: by hand, and perplexity against the model's own forward."""

from __future__ import annotations

import asyncio
import copy
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from esc_lab.config import Config
from esc_lab.config.prompt import PromptConfig, collect_seeker_words
from esc_lab.data.dialogue import Dialogue, Reply, Turn
from esc_lab.prompts import Message, SeekerProfile, seeker_messages
from esc_lab.search.clients.local import LocalClient
from esc_lab.search.seeker_texts import (
    Talk,
    compare_seekers,
    draw_talks,
    find_real_turns,
    find_search_turns,
    measure_texts,
)

WORDS = collect_seeker_words(PromptConfig(), {})


def talk(*texts: str, seed_turns: tuple[int, ...] | None = None, tree: str = "") -> Dialogue:
    """The seeker begins; supporter turns are decisions of a search where seed turns are given."""
    searched = seed_turns is not None
    turns = tuple(
        Turn("supporter", Reply(text, ("Others",), None, 1 if searched else None))
        if n % 2
        else Turn("seeker", Reply(text))
        for n, text in enumerate(texts)
    )
    meta = {"search": {"seed_turns": list(seed_turns or ())}} if searched else {}
    return Dialogue(turns, "esconv", tree_id=tree, situation="A flood.", meta=meta)


def test_only_turns_that_the_search_wrote_are_its_own():
    dialogue = talk("a", "b", "c", "d", "e", "f", seed_turns=(1,))
    assert find_search_turns(dialogue).turns == (4,)  # 2 answers a seed turn
    assert find_search_turns(talk("a", "b", "c", seed_turns=(1,))).turns == ()


def test_real_turns_are_those_that_answer():
    assert find_real_turns(talk("a", "b", "c", "d", "e")).turns == (2, 4)


def test_a_turn_that_dialogues_of_a_tree_share_counts_once():
    first = talk("a", "b", "c", "d", "e", seed_turns=(), tree="t")
    other = talk("a", "b", "c", "x", "y", seed_turns=(), tree="t")
    apart = replace(other, tree_id="u")
    for seed in range(3):
        drawn = draw_talks(map(find_search_turns, (first, other)), 100, seed)
        assert sum(len(one.turns) for one in drawn) == 3
    assert sum(len(one.turns) for one in draw_talks(map(find_search_turns, (first, apart)), 100, 1)) == 4
    assert sum(len(one.turns) for one in draw_talks(map(find_search_turns, (first, apart)), 1, 1)) == 2


def test_repetition_by_hand():
    dialogue = talk(
        "I lost my job today.", "You lost my JOB today?", "Yes, I lost my job today. It hurts.", "Oh.", "It hurts."
    )
    figures = measure_texts([Talk(dialogue, (2, 4))], None, WORDS)
    # yes-i-lost-my, i-lost-my-job, lost-my-job-today, my-job-today-it, job-today-it-hurts; "It hurts." has none.
    assert figures.repeated == pytest.approx(2 / 5)
    # yes-i i-lost lost-my my-job job-today today-it it-hurts, and it-hurts again
    assert figures.distinct == pytest.approx(7 / 8)
    assert (figures.turns, figures.words, figures.perplexity) == (2, 5.0, None)
    assert measure_texts([], None, WORDS) is None
    assert figures.metrics("real")["search/seeker/real/turns"] == 2.0
    assert figures.row("real")[:3] == ("real", "2", "-")


def test_perplexity_is_that_of_the_turns_after_the_talk(tiny_models):
    loaded = tiny_models("llama")
    loaded = replace(loaded, model=copy.deepcopy(loaded.model).double())
    client = LocalClient(loaded, "base")
    asyncio.run(client.close())
    dialogue = talk("My boat sank.", "When?", "On Monday.", "And now?", "Now I swim.")
    found = measure_texts([Talk(dialogue, (2, 4))], client, WORDS).perplexity
    losses = []
    for turn in (2, 4):
        asked = seeker_messages(WORDS, SeekerProfile.of(dialogue), dialogue.turns[:turn])
        chat = loaded.encoder.encode((*asked, Message("assistant", dialogue.turns[turn].reply.text)))
        start, end = chat.replies[len(asked)]
        ids = torch.from_numpy(chat.input_ids[:end])
        with torch.no_grad():
            steps = torch.log_softmax(loaded.model(input_ids=ids[None]).logits[0], dim=-1)
        losses += (-steps[torch.arange(start - 1, end - 1), ids[start:end]]).tolist()
    assert found == pytest.approx(np.exp(np.mean(losses)), rel=1e-9)


def test_both_sides_are_compared():
    calls = SimpleNamespace(clients={})
    searched = talk("a", "b", "c", "d", "e", seed_turns=())
    real = talk("a", "b", "c")
    cfg = Config()
    found = compare_seekers(cfg, calls, [searched], {"train": [searched], "val": [], "test": [real]})
    assert {name: figures.turns for name, figures in found.items()} == {"searched": 2, "real": 1}
    assert list(compare_seekers(cfg, calls, [], {"train": [real]})) == []
    cfg.search.seeker_check = 0
    assert compare_seekers(cfg, calls, [searched], {"train": [], "val": [real]}) == {}
