"""Which tokens and heads a boost of attention takes, and what it refuses."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

from esc_lab.config.evaluate import BOOSTED_SPANS, BoostConfig
from esc_lab.data.strategies import load_inventory
from esc_lab.errors import UserError
from esc_lab.evaluation.boost import PromptBoost, build_boost, check_other_dialogues
from esc_lab.evaluation.reply_attention import span_columns
from esc_lab.models.attention_boost import AttentionBoost
from esc_lab.prompts import build_prompt
from tests.conftest import LAYOUTS
from tests.evaluation.test_module import evaluated, shortened

INVENTORY, SRA = load_inventory("esconv"), load_inventory("extes_sra")
NAMED = [name for name, layout in LAYOUTS.items() if not layout.chooses_strategy]


@pytest.mark.parametrize("inventory", [INVENTORY, SRA], ids=lambda inventory: inventory.name)
@pytest.mark.parametrize("template", NAMED)
@pytest.mark.parametrize("queries", ["all", "reply"])
def test_spans_are_found_in_every_template(tiny_models, sample_dialogues, template, queries, inventory):
    encoder, dialogue = tiny_models("llama").encoder, sample_dialogues[0]
    attention = AttentionBoost("add", 1.0, torch.ones(4, 4, dtype=torch.bool))
    for turn in [*dialogue.decisions()][2::2]:
        at = (dialogue.id, turn)
        for strategy in inventory.names:
            prompt = build_prompt(LAYOUTS[template], inventory, dialogue, turn, strategy, history_labels=False)
            encoded = encoder.encode_prompt(encoder.adapt(prompt))
            columns, size = span_columns(encoded.spans), len(encoded.input_ids)
            keys = {}
            for span in BOOSTED_SPANS:
                found = PromptBoost(attention, span, queries).locate(encoded.spans, strategy, size, at)
                assert found.first_query == (size - 1 if queries == "reply" else found.keys[-1] + 1)
                keys[span] = found.keys
            np.testing.assert_array_equal(keys["name"], columns["name", strategy])
            np.testing.assert_array_equal(keys["instruction"], columns["instruction", strategy])
            np.testing.assert_array_equal(keys["neutral"], columns["name", None])
            assert len(keys["name"]) == len(keys["neutral"]) >= len(keys["history"]) > 0
            np.testing.assert_array_equal(keys["neutral_instruction"], columns["instruction", None])
            assert len(keys["neutral_instruction"]) == len(keys["instruction"])
            assert (np.diff(keys["history"]) == 1).all()
            assert not set(keys["history"]) & {*keys["instruction"], *keys["neutral_instruction"]}
            assert not {*keys["instruction"]} & {*keys["neutral_instruction"]}
            text = encoder.decode(encoded.input_ids[keys["history"]])
            assert text.strip("\ufffd ") in " ".join(message.content for message in prompt.messages)


@pytest.mark.parametrize("span", ["neutral", "neutral_instruction"])
def test_neutral_words_that_end_too_early_are_refused(tiny_models, sample_dialogues, span):
    """Fewer of them than the strategy has would be boosted less, and called as many."""
    encoder, layout, dialogue = tiny_models("llama").encoder, LAYOUTS["c1_hf"], sample_dialogues[0]
    words = {"neutral": 'Write "{phrase}".', "neutral_phrase": "so", "instruction": "{strategy} {neutral}"}
    short = dataclasses.replace(layout, wordings=({**layout.wordings[0], **words},))
    strategy, turn = "Provide Different Perspectives", [*dialogue.decisions()][2]
    prompt = encoder.adapt(build_prompt(short, SRA, dialogue, turn, strategy, history_labels=False))
    encoded = encoder.encode_prompt(prompt)
    boost = PromptBoost(AttentionBoost("add", 1.0, torch.ones(4, 4, dtype=torch.bool)), span, "all")
    kind = "name" if span == "neutral" else "instruction"
    with pytest.raises(UserError, match=rf"the neutral text has \d+ tokens, and the {kind} of {strategy} has \d+"):
        boost.locate(encoded.spans, strategy, len(encoded.input_ids), (dialogue.id, turn))


def test_the_same_words_are_boosted_for_written_and_for_given_replies(tiny_models, sample_dialogues, monkeypatch):
    found, original = {}, PromptBoost.locate

    def locate(self, spans, strategy, prompt_tokens, at):
        span = original(self, spans, strategy, prompt_tokens, at)
        found.setdefault(at, []).append((*span.keys.tolist(), span.first_query))
        return span

    monkeypatch.setattr(PromptBoost, "locate", locate)
    boost = BoostConfig(amount=1.0, span="history", queries="reply")
    evaluated(tiny_models("llama"), [shortened(sample_dialogues[0], 4)], "c1_hf", boost=boost)
    assert len(found) == 4
    assert all(len(spans) == 2 and len({*spans}) == 1 for spans in found.values())


def test_no_boost_is_none(tiny_models):
    model = tiny_models("llama").model
    assert build_boost(BoostConfig(), model, 1) is None
    assert build_boost(BoostConfig(mode="share", amount=0.0, span="neutral"), model, 1) is None
    assert build_boost(BoostConfig(mode="block"), model, 1) is not None


def test_heads(tiny_models, tmp_path):
    model = tiny_models("gemma2").model

    def heads(**settings):
        return build_boost(BoostConfig(amount=1.0, **settings), model, 1).attention.heads

    assert heads().all()
    assert heads().shape == (4, 4)
    assert heads(layers=[1, 3], heads=[0]).nonzero().tolist() == [[1, 0], [3, 0]]
    drawn = heads(choice="random", count=5)
    assert drawn.sum() == 5
    assert torch.equal(drawn, heads(choice="random", count=5, span="neutral"))
    assert heads(choice="random", count=2, layers=[2])[2].sum() == 2
    relation = np.arange(16.0).reshape(4, 4)
    relation[3, 3] = np.nan  # a head that was never seen to look
    (tmp_path / "study.json").write_text(json.dumps({"sra": (-np.arange(16.0)).reshape(4, 4).tolist()}))
    chosen = heads(choice="attention", count=2, study=str(tmp_path))
    assert chosen.nonzero().tolist() == [[0, 0], [0, 1]]
    with pytest.raises(UserError, match="nobody judged adherence there"):
        heads(choice="adherence", study=str(tmp_path))
    (tmp_path / "study.json").write_text(json.dumps({"sra": [], "relation": relation.tolist()}))
    chosen = heads(choice="adherence", count=2, study=str(tmp_path))
    assert chosen.nonzero().tolist() == [[3, 1], [3, 2]]


def test_random_heads_are_others_in_the_same_layers(tiny_models, tmp_path):
    """As many in each layer as were chosen there; of another where a layer has no more; several draws differ."""
    model = tiny_models("gemma2").model  # 4 x 4 heads
    scores = np.zeros((4, 4))
    scores[0, :3], scores[2, 1] = 1.0, 1.0  # three of four in layer 0: one is left there, two come from elsewhere
    (tmp_path / "study.json").write_text(json.dumps({"sra": scores.tolist()}))
    chosen = scores > 0
    seen = set()
    for draw in range(1, 6):
        boost = BoostConfig(amount=1.0, choice="random", matched="attention", count=4, study=str(tmp_path), draw=draw)
        drawn = build_boost(boost, model, 1).attention.heads.numpy()
        assert drawn.sum() == 4
        assert not (drawn & chosen).any()
        assert drawn[0, 3]
        assert drawn[2].sum() >= 1
        seen.add(tuple(np.flatnonzero(drawn)))
    assert len(seen) > 1
    with pytest.raises(UserError, match="beside these there are only 7 heads"):
        build_boost(BoostConfig(**{**vars(boost), "count": 9}), model, 1)


def test_heads_are_tried_on_other_dialogues(tmp_path, caplog):
    (tmp_path / "study.json").write_text(json.dumps({"sra": [[1.0]], "dialogues": ["a", "b"]}))
    boost = BoostConfig(amount=1.0, choice="attention", study=str(tmp_path))
    check_other_dialogues(boost, {"c"}, allow=False)
    with pytest.raises(UserError, match=r"chosen on 1 of the 2 dialogues .* such as b") as error:
        check_other_dialogues(boost, {"b", "c"}, allow=False)
    assert "evaluate.split=val" in error.value.fix
    drawn = BoostConfig(**{**vars(boost), "choice": "random", "matched": "attention"})
    with pytest.raises(UserError):
        check_other_dialogues(drawn, {"b"}, allow=False)
    for other in ({"choice": "random"}, {"choice": "all"}, {"amount": 0.0}):
        check_other_dialogues(BoostConfig(**{**vars(boost), **other}), {"b"}, allow=False)
    assert not caplog.text
    check_other_dialogues(boost, {"b", "c"}, allow=True)
    assert "chosen on 1 of the 2 dialogues" in caplog.text
    (tmp_path / "study.json").write_text(json.dumps({"sra": [[1.0]]}))  # of older code
    check_other_dialogues(boost, {"b"}, allow=False)
    assert "does not say which dialogues" in caplog.text


@pytest.mark.parametrize(
    ("settings", "text", "message"),
    [
        ({"layers": [1, 4]}, None, r"no layers \[4\]"),
        ({"heads": [-1]}, None, r"no heads \[-1\]"),
        ({"choice": "random", "count": 9}, None, "8 heads to choose from"),
        ({"choice": "attention"}, None, "no study of heads"),
        ({"choice": "attention"}, "{", "no study of heads"),
        ({"choice": "attention"}, '{"sra": [[1, 2], [3]]}', "no study of heads"),
        ({"choice": "attention"}, "[1]", "no study of heads"),
        ({"choice": "attention"}, '{"sra": [[1.0]]}', "layers x heads 1 x 1 against 2 x 4"),
        ({"choice": "attention"}, '{"runs": []}', "it is no study of heads"),
    ],
)
def test_what_is_not_there_is_refused(tiny_models, tmp_path, settings, text, message):
    if text is not None:
        (tmp_path / "study.json").write_text(text)
    with pytest.raises(UserError, match=message):
        build_boost(BoostConfig(amount=1.0, study=str(tmp_path), **settings), tiny_models("llama").model, 1)


def test_a_prompt_without_the_span_is_refused():
    boost = PromptBoost(AttentionBoost("block", 0.0, torch.ones(1, 1, dtype=torch.bool)), "neutral", "all")
    with pytest.raises(UserError, match=r"no token of evaluate\.boost\.span=neutral"):
        boost.locate((), "Question", 10, ("d", 1))
