"""Rejected replies that the model writes, against forward passes and generation of one sequence at a time."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch

from esc_lab.config import DataConfig, TemplateConfig
from esc_lab.data.dialogue import Dialogue, Reply, Turn
from esc_lab.data.strategies import load_inventory
from esc_lab.errors import UserError
from esc_lab.models.generate import Sampling
from esc_lab.models.load import model_identity
from esc_lab.prompts import Message
from esc_lab.training.negatives import NegativesReport, write_negatives
from esc_lab.training.steps import TurnEncoder
from tests.training.modules import data_module

INVENTORY = load_inventory("esconv")
GREEDY = Sampling(6)


def negatives(
    loaded,
    dialogues,
    root,
    *,
    kind="gold_contrast",
    per_turn=2,
    sampling=GREEDY,
    seed=1,
    template="cso",
    row_tokens=2048,
    **more,
):
    data = DataConfig(
        negatives=kind, negatives_per_turn=per_turn, negatives_tokens=sampling.max_new_tokens,
        negatives_temperature=sampling.temperature,
    )  # fmt: skip
    turns = TurnEncoder(loaded.encoder, INVENTORY, TemplateConfig(template), row_tokens)
    return write_negatives(loaded, dialogues, turns, data, seed, root, **more)


def decisions(loaded, dialogue, row_tokens=2048):
    """The decisions as evaluation sees them."""
    data = data_module({"test": [dialogue]}, loaded.encoder, row_tokens=row_tokens)
    data.setup("test")
    return [decision for group in data.decisions for decision in group]


def labelled_prompts(loaded, decision):
    """For each strategy the ids of prompt and label, and the label's length."""
    messages = loaded.encoder.adapt(decision.example.prompt).messages
    for name in INVENTORY.names:
        chat = loaded.encoder.encode([*messages, Message("assistant", f"({name})")])
        start, end = chat.replies[len(messages)]
        yield name, torch.from_numpy(chat.input_ids[: end - 1]), end - 1 - start


def label_scores(loaded, decision):
    scores = {}
    for name, ids, length in labelled_prompts(loaded, decision):
        with torch.no_grad():
            logits = loaded.model(input_ids=ids[None], logits_to_keep=length + 1).logits[0]
            steps = torch.log_softmax(logits[:-1].double(), dim=-1)
        scores[name] = float(steps.gather(1, ids[-length:, None]).sum())
    return scores


def greedy_text(loaded, decision, strategy, tokens):
    ids = next(ids for name, ids, _ in labelled_prompts(loaded, decision) if name == strategy)[None]
    stop = [loaded.encoder.end_of_turn, loaded.encoder.tokenizer.eos_token_id]
    found = loaded.model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False, eos_token_id=stop
    )
    return loaded.encoder.decode(found[0, ids.shape[1] :].tolist())


def without_rejected(dialogue):
    return dataclasses.replace(dialogue, turns=tuple(dataclasses.replace(turn, rejected=()) for turn in dialogue.turns))


def rejected(dialogue):
    return [(number, turn.rejected) for number, turn in enumerate(dialogue.turns) if turn.rejected]


def strategies(dialogues):
    return [[reply.strategies[0] for reply in turn.rejected] for dialogue in dialogues for turn in dialogue.turns]


@pytest.fixture(scope="module")
def several_gold(sample_dialogues):
    """A dialogue with a turn that carries two strategies."""
    return next(d for d in sample_dialogues if any(len(turn.reply.strategies) > 1 for turn in d.turns))


def short_dialogue(*strategies_of_turns):
    turns = []
    for number, names in enumerate(strategies_of_turns):
        turns += [
            Turn("seeker", Reply(f"It is the {number}. bad day.")),
            Turn("supporter", Reply("I hear you.", names)),
        ]
    return Dialogue(tuple(turns), "esconv", tree_id="tree", meta={"from": "a test"})


def test_strategies_and_greedy_replies_equal_one_by_one(tiny_models, family, several_gold, tmp_path):
    loaded = tiny_models(family)
    (found,), report = negatives(loaded, [several_gold], tmp_path, sampling=GREEDY)
    expected = {}
    for decision in decisions(loaded, several_gold)[::2]:
        scores = label_scores(loaded, decision)
        given = several_gold.turns[decision.turn].reply
        best = sorted((name for name in scores if name not in given.strategies), key=lambda name: -scores[name])[:2]
        expected[decision.turn] = tuple(Reply(greedy_text(loaded, decision, name, 6), (name,)) for name in best)
    assert any(len(several_gold.turns[turn].reply.strategies) > 1 for turn in expected)
    assert {turn: replies for turn, replies in rejected(found) if turn in expected} == expected
    turns = len(decisions(loaded, several_gold))
    assert report.turns == turns
    assert report.replies == report.truncated == 2 * turns  # random models do not stop


def test_only_rejected_replies_change(tiny_models, several_gold, tmp_path):
    assert rejected(several_gold)
    (found,), report = negatives(tiny_models("llama"), [several_gold], tmp_path)
    assert without_rejected(found) == without_rejected(several_gold)
    assert found.tree_id == several_gold.tree_id
    assert found.id != several_gold.id
    assert report.recorded_dropped == sum(len(replies) for _, replies in rejected(several_gold))


def test_histories_are_shortened_as_in_evaluation(tiny_models, sample_dialogues, tmp_path):
    loaded, dialogue = tiny_models("gemma2"), sample_dialogues[0]
    labels = [length for _, _, length in labelled_prompts(loaded, decisions(loaded, dialogue)[0])]
    room = max(sum(labels), max(labels) + GREEDY.max_new_tokens)
    (found,), report = negatives(loaded, [dialogue], tmp_path, row_tokens=900 + room)
    expected = decisions(loaded, dialogue, row_tokens=900)
    shortened = [decision for decision in expected if decision.sequence.replies[0].first_turn]
    assert 0 < report.shortened == len(shortened) < len(expected)
    for decision in shortened:
        for reply in found.turns[decision.turn].rejected:
            assert reply.text == greedy_text(loaded, decision, reply.strategies[0], 6)


@pytest.mark.parametrize("kind", ["gold_contrast", "random"])
def test_given_strategies_are_never_among_them(tiny_models, kind, tmp_path):
    names = INVENTORY.names
    dialogue = short_dialogue(names[:1], names[1:4], (), names[2:], names)
    (found,), report = negatives(tiny_models("llama"), [dialogue], tmp_path, kind=kind, per_turn=7)
    chosen = [{name for reply in turn.rejected for name in reply.strategies} for turn in found.turns[1::2]]
    assert chosen == [set(names[1:]), set(names) - set(names[1:4]), set(), set(names[:2]), set()]
    assert report.turns == 4
    assert report.replies == 7 + 5 + 2
    assert report.not_enough_strategies == 2 + 5 + 7


def test_random_strategies_follow_from_the_seed_alone(tiny_models, sample_dialogues, tmp_path):
    def drawn(family, seed, dialogues):
        found, _ = negatives(tiny_models(family), dialogues, tmp_path, kind="random", seed=seed, sampling=Sampling(1))
        return strategies(found)

    dialogues = sample_dialogues[:3]
    first = drawn("llama", 1, dialogues)
    assert drawn("gemma2", 1, dialogues) == first
    assert drawn("llama", 2, dialogues) != first
    assert drawn("llama", 1, dialogues[1:]) == first[len(dialogues[0].turns) :]
    counts = np.unique([name for names in first for name in names], return_counts=True)[1]
    assert len(counts) == len(INVENTORY)  # all of them are drawn somewhere


def test_replies_do_not_depend_on_those_beside_them(tiny_models, sample_dialogues, tmp_path):
    loaded, sampling = tiny_models("gemma2"), Sampling(4, temperature=1.0)
    dialogues = sample_dialogues[:2]
    together, _ = negatives(loaded, dialogues, tmp_path / "a", sampling=sampling)
    alone, _ = negatives(loaded, dialogues, tmp_path / "b", sampling=sampling, parallel_replies=1)
    assert alone == together
    other, _ = negatives(loaded, dialogues, tmp_path / "a", sampling=sampling, seed=2)
    assert other != together
    assert strategies(other) == strategies(together)


def test_a_second_run_reads_what_the_first_one_wrote(tiny_models, sample_dialogues, tmp_path, monkeypatch):
    loaded, dialogues = tiny_models("llama"), sample_dialogues[:1]
    first = negatives(loaded, dialogues, tmp_path)
    monkeypatch.setattr("esc_lab.training.negatives.generate", None)
    assert negatives(loaded, dialogues, tmp_path, seed=5) == first  # greedy: no seed in it


def test_a_role_prefix_is_taken_off_and_one_label_stays(tiny_models, sample_dialogues, tmp_path, monkeypatch):
    loaded, texts = tiny_models("llama"), "Supporter: (Others) From the model."
    ids = loaded.encoder.tokenizer(texts, add_special_tokens=False)["input_ids"]
    monkeypatch.setattr("esc_lab.training.negatives.generate", lambda model, prompts, *_: [ids] * len(prompts))
    (dialogue,), counts = negatives(loaded, sample_dialogues[:1], tmp_path)
    assert {reply.text for _, replies in rejected(dialogue) for reply in replies} == {"(Others) From the model."}
    assert counts.role_prefixes_removed == counts.replies


def test_what_replies_depend_on_has_an_artifact_of_its_own(tiny_models, tmp_path):
    loaded, dialogue = tiny_models("llama"), short_dialogue(("Question",))
    changed = dataclasses.replace(loaded, model=copy.deepcopy(loaded.model))
    with torch.no_grad():
        changed.model.get_output_embeddings().weight[0, 0] += 1.0
    renamed = dataclasses.replace(loaded, encoder=stopping_at(loaded, 7))
    variants = [
        (loaded, dialogue, {}),
        (changed, dialogue, {}),
        (renamed, dialogue, {}),
        (loaded, short_dialogue(("Information",)), {}),
        (loaded, short_dialogue(("Question",), ("Question",)), {}),
        (loaded, dialogue, {"per_turn": 1}),
        (loaded, dialogue, {"sampling": Sampling(5)}),
        (loaded, dialogue, {"kind": "random"}),
        (loaded, dialogue, {"kind": "random", "seed": 2}),
        (loaded, dialogue, {"sampling": Sampling(6, temperature=0.5)}),
        (loaded, dialogue, {"sampling": Sampling(6, temperature=0.5), "seed": 2}),
    ]
    for number, (model, example, settings) in enumerate(variants, start=1):
        negatives(model, [example], tmp_path, **settings)
        assert len(list(tmp_path.rglob("replies.json"))) == number


def stopping_at(loaded, token):
    """The encoder of a model whose turns end with another token."""
    encoder = copy.copy(loaded.encoder)
    encoder.end_of_turn = token
    return encoder


def test_empty_and_equal_replies_are_dropped_and_counted(tiny_models, tmp_path):
    loaded, dialogue = tiny_models("llama"), short_dialogue(("Question",), ("Information",))
    (found,), report = negatives(loaded, [dialogue], tmp_path, per_turn=1)
    (_, (first,)), (_, (last,)) = rejected(found)
    # The last given reply is in no prompt.
    *before, turn = dialogue.turns
    same = dataclasses.replace(dialogue, turns=(*before, Turn("supporter", Reply(last.text, turn.reply.strategies))))
    (kept,), report = negatives(loaded, [same], tmp_path, per_turn=1)
    assert [replies for _, replies in rejected(kept)] == [(first,)]
    assert report == NegativesReport(turns=2, replies=1, truncated=2, equal_dropped=1)

    decision = decisions(loaded, dialogue)[0]
    ids = next(ids for name, ids, _ in labelled_prompts(loaded, decision) if name == first.strategies[0])
    with torch.no_grad():
        token = int(loaded.model(input_ids=ids[None]).logits[0, -1].argmax())
    silent = dataclasses.replace(loaded, encoder=stopping_at(loaded, token))
    (kept,), report = negatives(silent, [short_dialogue(("Question",))], tmp_path, per_turn=1)
    assert rejected(kept) == []
    assert report == NegativesReport(turns=1, empty_dropped=1)


def test_the_model_stays_as_it_was(tiny_models, tmp_path):
    loaded = tiny_models("llama")
    trained = dataclasses.replace(loaded, model=copy.deepcopy(loaded.model).train())
    before = model_identity(trained.model)
    negatives(trained, [short_dialogue(("Question",))], tmp_path)
    assert model_identity(trained.model) == before
    assert trained.model.training
    trained.model(input_ids=torch.arange(8)[None]).logits.sum().backward()


def test_nothing_to_write(tiny_models, tmp_path):
    dialogue = short_dialogue(())
    assert negatives(tiny_models("llama"), [dialogue], tmp_path) == ([dialogue], NegativesReport())
    assert negatives(tiny_models("llama"), [], tmp_path) == ([], NegativesReport())
    assert list(tmp_path.iterdir()) == []


def test_settings_that_cannot_work(tiny_models, tmp_path):
    loaded, dialogue = tiny_models("llama"), short_dialogue(("Question",))
    with pytest.raises(UserError, match=r"data\.negatives_per_turn=8: .*8 strategies.* Fix: set it to 7 or less"):
        negatives(loaded, [dialogue], tmp_path, per_turn=8)
    with pytest.raises(UserError, match=r"data\.row_tokens"):
        negatives(loaded, [dialogue], tmp_path, row_tokens=200)
    with pytest.raises(ValueError, match="recorded"):
        negatives(loaded, [dialogue], tmp_path, kind="recorded")
    with pytest.raises(UserError, match=r"prompt\.train\.template=standard: the prompt names the strategy"):
        negatives(loaded, [dialogue], tmp_path, kind="random", per_turn=1, template="standard")
