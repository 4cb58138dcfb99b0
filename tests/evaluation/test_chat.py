"""A chat's turns cost new tokens only and say what a fresh generation says; what the person prefers can be read."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hydra import compose, initialize_config_dir

from esc_lab.cli.compositions import CONF
from esc_lab.config import typed
from esc_lab.config.reward import RewardConfig
from esc_lab.data.corpora import read_dialogues
from esc_lab.data.dialogue import Dialogue, Reply
from esc_lab.errors import UserError
from esc_lab.evaluation.arena.chat import ChatSession, find_session, read_session
from esc_lab.evaluation.arena.chat_reply import ChatModel, ReplySettings
from esc_lab.models.attention_boost import mark
from esc_lab.models.generate import generate
from esc_lab.models.incremental import IncrementalModel
from esc_lab.prompts import Message, Prompt, SeekerProfile, label_text
from esc_lab.runs.layout import CHAT, VOTES
from esc_lab.scorers.comparisons import ComparisonPool
from esc_lab.stages.chat import build_templates
from esc_lab.training.preference_turns import PreferenceEncoder, PreferenceReport
from esc_lab.training.steps import TurnEncoder
from tests.conftest import INVENTORIES

NAMES = INVENTORIES["esconv"].names
SAID = ("I lost my job last week.", "Nobody knows yet, not even my wife.", "Maybe my sister. She is kind to me.")


def composed(*words: str):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return typed(compose("config", ["stage=chat", "model=tiny_llama", "chat.max_new_tokens=8", *words]))


def open_chat(tiny_models, tmp_path, *words: str, models: int = 1, exchanges=()) -> ChatSession:
    cfg, loaded = composed(*words), tiny_models("llama")
    slots, stop = cfg.chat.cache_tokens, loaded.encoder.stop_tokens
    templates = build_templates(cfg)
    seats = [ChatModel(cfg, loaded, IncrementalModel(loaded.model, stop, slots), templates) for _ in range(models)]
    names = [f"model {number}" for number in range(models)]
    return ChatSession("one", seats, names, {"of": "tests"}, tmp_path, 1, list(exchanges))


def last(stream):
    *_, exchange = stream
    return exchange


def fresh(session: ChatSession, number: int, how: ReplySettings) -> tuple[str, list[int]]:
    """What the model writes to the last message when all is computed anew; the text, and the prompt."""
    model, candidate = session.models[0], session.exchanges[-1].candidates[number]
    history = [turn for each in session.exchanges[:-1] for turn in each.turns]
    history.append(session.exchanges[-1].turns[0])
    prompts = model.templates[how.template]
    messages, _ = prompts.ask(SeekerProfile(""), history, candidate.strategy)
    chat = model.encoder.encode_prompt(model.encoder.adapt(Prompt(messages)))
    ids = chat.input_ids
    if prompts.layout.chooses_strategy:
        whole = model.encoder.encode((*messages, Message("assistant", label_text(candidate.strategy))))
        start, end = whole.replies[len(messages)]
        ids = whole.input_ids[: end - 1]
        assert start == len(chat.input_ids)
    (reply,) = generate(model.loaded.model, [ids], model.encoder.stop_tokens, model.sampling, [0])
    return model.encoder.decode(reply), ids.tolist()


@pytest.mark.parametrize("template", ["cso", "standard", "c1_hf"])
def test_replies_are_those_of_a_fresh_generation(tiny_models, tmp_path, template):
    session = open_chat(tiny_models, tmp_path, "chat.temperature=0", f"prompt={template}")
    for number, text in enumerate(SAID):
        strategy = NAMES[3] if number == 1 else None
        how = ReplySettings(template, strategy)
        streamed = [exchange.candidates[0].text for exchange in session.send(text, how)]
        candidate = session.exchanges[-1].candidates[0]
        expected, prompt = fresh(session, 0, how)
        assert streamed[-2] == expected
        assert len(streamed) == len(candidate.attention.reply) + 1
        assert candidate.picked == (number == 1)
        assert strategy is None or candidate.strategy == strategy
        assert sum(candidate.shares.values()) == pytest.approx(1, abs=1e-4)
        if not candidate.picked:  # temperature 0: the most probable one
            assert candidate.strategy == max(candidate.shares, key=candidate.shares.get)
        assert len(candidate.attention.prompt) == len(prompt)
        assert [len(row) for row in candidate.attention.rows] == [
            len(prompt) + place for place in range(len(candidate.attention.reply))
        ]


def test_a_turn_costs_its_new_tokens(tiny_models, tmp_path):
    session = open_chat(tiny_models, tmp_path, "chat.temperature=0")
    model, labels, how = session.models[0], 0, ReplySettings("cso")
    before = []
    for number, text in enumerate(SAID):
        last(session.send(text, how))
        candidate = session.exchanges[-1].candidates[0]
        _, prompt = fresh(session, 0, how)
        written = len(candidate.attention.reply)
        labels = sum(len(ids) - 1 for ids in model._labels) + len(model._labels[NAMES.index(candidate.strategy)])
        shared = int(np.argmin([*(a == b for a, b in zip(before, prompt, strict=False)), False]))
        # The last token of what the model is to continue is computed twice: for the labels and for the reply.
        assert candidate.computed <= len(prompt) - shared + labels + written + 2
        assert number == 0 or candidate.computed < len(prompt) / 2
        before = prompt


def test_boosts(tiny_models, tmp_path):
    """Boost 0 is a reply as it is; another amount gives what a fresh boosted generation gives, on more attention."""
    session = open_chat(tiny_models, tmp_path, "chat.temperature=0")
    plain = last(session.send(SAID[0], ReplySettings("cso", NAMES[0]))).candidates[0]
    again = last(session.reply_again(ReplySettings("cso", NAMES[0], boost=0.0))).candidates[1]
    # Its prompt is computed already: products of other sizes, which round differently.
    assert (again.text, again.measures) == (plain.text, pytest.approx(plain.measures, abs=1e-5))
    session.vote("tie")
    session.undo()
    steered = last(session.send(SAID[0], ReplySettings("cso", NAMES[0], boost=3.0))).candidates[0]
    assert steered.measures["log SRA"] > plain.measures["log SRA"] + 1
    model = session.models[0]
    history = [session.exchanges[-1].turns[0]]
    chat = model._encode(Dialogue(tuple(history), "esconv"), model.templates["cso"], NAMES[0])
    ids = model._lead(chat, "cso", NAMES[0])
    boost, span = model._boost(chat, 3.0, NAMES[0], len(ids), ("", 1))
    (expected,) = generate(
        model.loaded.model, mark([ids], [span]), model.encoder.stop_tokens, model.sampling, [0], boost=boost
    )
    assert "".join(steered.attention.reply) == "".join(model.encoder.tokenizer.decode([i]) for i in expected)
    other = open_chat(tiny_models, tmp_path, "evaluate.boost.mode=share")
    with pytest.raises(UserError, match="no share"):
        last(other.send("Hello.", ReplySettings("cso", boost=1.5)))


def test_a_template_that_names_the_strategy_alone(tiny_models, tmp_path):
    session = open_chat(tiny_models, tmp_path, "prompt=standard", "chat.templates=[c1_hf]")
    with pytest.raises(UserError, match="leaves the model no choice"):
        last(session.send("Hello.", ReplySettings("standard")))
    assert session.exchanges == []
    candidate = last(session.send("Hello.", ReplySettings("standard", "Question"))).candidates[0]
    assert (candidate.strategy, candidate.shares) == ("Question", {})


def test_long_talks_leave_out_their_first_half(tiny_models, tmp_path):
    session = open_chat(tiny_models, tmp_path, "chat.cache_tokens=900", "chat.max_new_tokens=4")
    for _ in range(14):
        exchange = last(session.send(f"{SAID[1]} {SAID[2]}", ReplySettings("cso")))
    shown = exchange.candidates[0].attention.prompt
    assert len(shown) < 900
    assert "".join(shown).count("sister") < 14
    with pytest.raises(UserError, match="exceed the room"):
        last(session.send("word " * 900, ReplySettings("cso")))
    assert len(session.exchanges) == 14
    while session.exchanges:
        session.undo()
    exchange = last(session.send("A zebra came.", ReplySettings("cso")))
    assert "zebra" in "".join(exchange.candidates[0].attention.prompt)


@pytest.mark.parametrize("text", ["", "  \n", "<|im_end|>"])
def test_messages_that_cannot_be_answered_leave_nothing(tiny_models, tmp_path, text):
    session = open_chat(tiny_models, tmp_path)
    with pytest.raises(UserError):
        last(session.send(text, ReplySettings("cso")))
    with pytest.raises(UserError, match="no strategy 'Hug'"):
        last(session.send("Hi", ReplySettings("cso", "Hug")))
    stream = session.send("Hi", ReplySettings("cso"))
    next(stream)
    stream.close()  # the person left in the middle of a reply
    assert session.exchanges == []
    for act in (session.undo, lambda: session.vote("left"), lambda: session.edit("x")):
        with pytest.raises(UserError, match="nothing was said"):
            act()


# --- votes and edits


@pytest.fixture
def pair(tiny_models, tmp_path) -> ChatSession:
    """Two exchanges with two replies each, before any vote."""
    session = open_chat(tiny_models, tmp_path, models=2)
    for number in range(2):
        exchange = last(session.send(f"message {number}", ReplySettings("cso", NAMES[number])))
        exchange.candidates[0].text, exchange.candidates[1].text = f"left {number}", f"right {number}"
    session.take_over(session.exchanges)
    return session


def rejected(session: ChatSession, number: int = -1) -> tuple[str, list[str]]:
    turn = session.exchanges[number].turns[1]
    return turn.reply.text, [reply.text for reply in turn.rejected]


def test_votes(pair, tmp_path):
    assert not (tmp_path / VOTES).exists()
    expected = {
        "left": ("left 1", ["right 1"]), "right": ("right 1", ["left 1"]), "tie": ("left 1", []), "bad": ("left 1", []),
    }  # fmt: skip
    for verdict, content in expected.items():
        pair.vote(verdict)
        assert rejected(pair) == content
        assert (tmp_path / VOTES).exists() == bool(content[1])
    with pytest.raises(UserError, match="no verdict 'up'"):
        pair.vote("up")


@pytest.mark.parametrize(
    ("verdict", "others"), [("", ["left 1"]), ("right", ["left 1", "right 1"]), ("bad", ["left 1", "right 1"])]
)
def test_edits(pair, verdict, others):
    if verdict:
        pair.vote(verdict)
    pair.edit(" Better. ", "Information")
    assert pair.exchanges[-1].turns[1].reply == Reply("Better.", ("Information",))
    assert rejected(pair) == ("Better.", others)
    shown = pair.exchanges[-1].preferred.reply
    pair.edit(shown.text)  # back to what it was
    assert pair.exchanges[-1].edited is None
    with pytest.raises(UserError, match="no strategy 'Hug'"):
        pair.edit("x", "Hug")


def test_sides_are_drawn_for_every_turn_and_recorded(tiny_models, tmp_path):
    session = open_chat(tiny_models, tmp_path, "chat.max_new_tokens=1", models=2)
    for number in range(12):
        last(session.send(f"message {number}", ReplySettings("cso", "Question")))
    orders = [[each.model for each in exchange.candidates] for exchange in session.exchanges]
    assert {tuple(order) for order in orders} == {(0, 1), (1, 0)}
    kept = json.loads((tmp_path / CHAT).read_text())["exchanges"]
    assert [[each["model"] for each in exchange["candidates"]] for exchange in kept] == orders
    session.exchanges[-1].candidates[0].text = "Something else."
    session.vote("right")
    metrics = {name.removeprefix("chat/"): value for name, value in session.measure().items()}
    expected = {"turns": 12, "replies": 24, "votes": 1, "pairs": 1, f"wins_{orders[-1][1] + 1}": 1, "picked": 24}
    assert {name: metrics[name] for name in expected} == expected


def test_preferences_are_read_and_trained_on(pair, tmp_path, tiny_models):
    """By the one reader, by CSO and by the reward model."""
    pair.vote("right")
    last(pair.send("message 2", ReplySettings("cso", "Information")))
    pair.edit("As I would say it.")
    last(pair.send("message 3", ReplySettings("cso")))  # neither voted on nor edited: no part of the preferences
    (talk,) = read_dialogues(tmp_path / VOTES)
    assert (len(talk.turns), talk.tree_id) == (6, "one")
    assert [len(turn.rejected) for turn in talk.turns if turn.speaker == "supporter"] == [0, 1, 1]
    report = PreferenceReport()
    turns = TurnEncoder(tiny_models("llama").encoder, INVENTORIES["esconv"], composed().prompt.train, 2048)
    encoded = PreferenceEncoder(turns, "train", report, "pairs").encode_tree([talk])
    assert (report.pairs, report.unlabelled_chosen, report.unlabelled_rejected) == (2, 0, 0)
    shown = [tiny_models("llama").encoder.decode(each.replies[0].input_ids) for each in encoded]
    assert ["right 1" in text.rpartition("assistant")[2] for text in shown].count(True) == 1
    pool = ComparisonPool([talk], RewardConfig(kinds={"rejected": 1.0}))
    drawn = {(each.better.text, each.worse.text) for seed in range(9) for each in pool.draw(0, seed)}
    original = pair.exchanges[2].preferred.text
    assert drawn == {("right 1", "left 1"), ("As I would say it.", original)}


def test_a_session_goes_on_as_it_was(pair, tmp_path, tiny_models):
    pair.vote("right")
    pair.edit("Better.")
    known = read_session(tmp_path / CHAT)
    plain = [replace(each, candidates=[replace(c, attention=None) for c in each.candidates]) for each in pair.exchanges]
    assert (known["id"], known["of"], known["exchanges"]) == ("one", {"of": "tests"}, plain)
    assert find_session(tmp_path.parent, {"of": "tests"}) == tmp_path / CHAT
    assert find_session(tmp_path, {"of": "others"}) is None
    other = open_chat(tiny_models, tmp_path, models=2, exchanges=known["exchanges"])
    ours, theirs = (last(session.send("and then?", ReplySettings("cso"))) for session in (pair, other))
    assert [each.text for each in ours.candidates] == [each.text for each in theirs.candidates]


@pytest.mark.parametrize("content", ["", "{}", '{"format": "esc-lab-chat/9"}', '{"format": "esc-lab-chat/1", "id": 1}'])
def test_a_broken_session_is_refused(tmp_path, content):
    (tmp_path / CHAT).write_text(content)
    with pytest.raises(UserError, match="not a chat of this version"):
        read_session(tmp_path / CHAT)
    assert find_session(tmp_path, {}) is None
