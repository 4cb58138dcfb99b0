"""Which tokens and heads a boost of attention takes, and what it refuses."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from esc_lab.config.evaluate import BOOSTED_SPANS, BoostConfig
from esc_lab.data.strategies import load_inventory
from esc_lab.errors import UserError
from esc_lab.evaluation.boost import PromptBoost, build_boost
from esc_lab.evaluation.reply_attention import span_columns
from esc_lab.models.attention_boost import AttentionBoost
from esc_lab.prompts import build_prompt
from tests.conftest import LAYOUTS
from tests.evaluation.test_module import evaluated, shortened

INVENTORY = load_inventory("esconv")
NAMED = [name for name, layout in LAYOUTS.items() if not layout.chooses_strategy]


@pytest.mark.parametrize("template", NAMED)
@pytest.mark.parametrize("queries", ["all", "reply"])
def test_spans_are_found_in_every_template(tiny_models, sample_dialogues, template, queries):
    encoder, dialogue = tiny_models("llama").encoder, sample_dialogues[0]
    attention = AttentionBoost("add", 1.0, torch.ones(4, 4, dtype=torch.bool))
    for turn in [*dialogue.decisions()][2::2]:
        at = (dialogue.id, turn)
        for strategy in INVENTORY.names:
            prompt = build_prompt(LAYOUTS[template], INVENTORY, dialogue, turn, strategy, history_labels=False)
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


@pytest.mark.parametrize(
    ("settings", "text", "message"),
    [
        ({"layers": [1, 4]}, None, r"no layers \[4\]"),
        ({"heads": [-1]}, None, r"no heads \[-1\]"),
        ({"choice": "random", "count": 9}, None, "8 heads to choose from"),
        ({"choice": "attention"}, None, "no study of heads"),
        ({"choice": "attention"}, "{", "no study of heads"),
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
