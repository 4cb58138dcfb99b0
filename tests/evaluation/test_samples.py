"""Several replies to each prompt: their seeds, what they share, and the metrics over them."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import combinations, pairwise

import numpy as np
import pytest

from esc_lab.config.evaluate import GenerationConfig
from esc_lab.data.strategies import load_inventory
from esc_lab.evaluation.decisions import list_predictions
from esc_lab.evaluation.prompted_replies import PromptedReply
from esc_lab.metrics.predictions import Prediction
from esc_lab.metrics.text import rouge_l, split_words
from tests.evaluation.test_evaluation import evaluated, summary

INVENTORY = load_inventory("esconv")
DRAWN = GenerationConfig(max_new_tokens=6, temperature=1.0, top_p=0.95)


@pytest.mark.parametrize("settings", [{}, {"inference": "self_refine"}, {"template": "c1_hf", "prompted": "all"}])
def test_sample_0_is_the_only_reply_of_a_run_with_one(tiny_models, sample_dialogues, tmp_path, settings):
    loaded, dialogues = tiny_models("llama"), sample_dialogues[:1]
    chosen = frozenset((dialogues[0].id, turn) for turn in list(dialogues[0].decisions())[:3])
    own = {"chosen": chosen, **settings}
    one = evaluated(loaded, dialogues, generation=DRAWN, **own)[0].predictions
    three = evaluated(loaded, dialogues, generation=replace(DRAWN, samples=3), **own)[0].predictions
    first = [prediction for prediction in three if prediction.sample == 0]
    for prediction, alone in zip(first, one, strict=True):
        assert (prediction.raw, prediction.prompted, prediction.turn) == (alone.raw, alone.prompted, alone.turn)
        assert prediction.log_prob == pytest.approx(alone.log_prob)
        assert prediction.distribution == pytest.approx(alone.distribution)
        assert (prediction.sra is None) == (alone.sra is None)
        if prediction.sra and alone.sra:
            for measure, values in prediction.sra.items():
                assert values == pytest.approx(alone.sra[measure], rel=1e-4)
    prompts = [[p for p in three if (p.turn, p.prompted) == (a.turn, a.prompted)] for a in one]
    for group in prompts:
        assert [p.sample for p in group] == (list(range(3)) if group[0].raw is not None else [0])
        assert len({p.raw for p in group}) == len(group)
        assert not any(p.tokens or p.distribution or p.label_mass for p in group[1:])
    metrics, _ = summary(three, tmp_path)
    expected, _ = summary(one, tmp_path)
    for name in ("text/perplexity", "strategy/Q", "strategy/n", "strategy/label_mass", "decisions"):
        assert metrics.get(name) == pytest.approx(expected.get(name)), name
    assert (metrics["generation/samples"], expected["generation/samples"]) == (3, 1)
    assert metrics["text/replies"] == 3 * expected["text/replies"]


def test_a_sample_does_not_depend_on_the_others(tiny_models, sample_dialogues):
    module, _ = evaluated(
        tiny_models("gemma3"), sample_dialogues[:1], template="standard", generation=replace(DRAWN, samples=4),
        chosen=frozenset({(sample_dialogues[0].id, next(iter(sample_dialogues[0].decisions())))}),
    )  # fmt: skip
    together = module.replied[3]
    decision = together.decision
    blank = list_predictions(
        decision.dialogue, decision.example, module.template, INVENTORY, module.settings, replies=True
    )
    alone = PromptedReply(decision, blank[3])
    module.replies.write([alone])
    assert alone.prediction.raw == together.prediction.raw
    assert len({reply.prediction.raw for reply in module.replied}) == 4
    assert alone.sra
    assert together.sra
    for measure, one in alone.sra.items():
        np.testing.assert_allclose(together.sra[measure].heads, one.heads, rtol=1e-3)


def made_up(seed, decisions=8, samples=4):
    drawn = np.random.default_rng(seed)
    names, words = INVENTORY.names, ("I", "hear", "you", "that", "sounds", "hard")
    found = []
    for turn in range(decisions):
        gold = str(drawn.choice(names))
        share = drawn.dirichlet(np.ones(len(names)))
        for sample in range(samples):
            found.append(
                Prediction(
                    dialogue="d",
                    tree="t",
                    turn=turn,
                    problem="",
                    emotion="",
                    gold=[gold],
                    gold_reply="I hear that.",
                    prompted=None,
                    template="cso",
                    sample=sample,
                    distribution={} if sample else dict(zip(names, share.tolist(), strict=True)),
                    label_mass=None if sample else 0.5,
                    reply=" ".join(drawn.choice(words, size=5)),
                    adheres=bool(drawn.random() < 0.5),
                    strategy=None if drawn.random() < 0.2 else str(drawn.choice(names, p=share)),
                    sampling={"temperature": 1.0, "top_p": 1.0, "max_new_tokens": 5},
                )
            )
    return found


def test_metrics_over_samples_by_brute_force(tmp_path):
    rows = made_up(0)
    metrics, tables = summary(rows, tmp_path)
    assert (metrics["strategy/n"], metrics["generated/n"], metrics["adherence/n"]) == (8, 32, 32)
    assert metrics["generated/accuracy"] == np.mean([row.strategy == row.gold[0] for row in rows])
    assert metrics["generated/unparsable"] == np.mean([row.strategy is None for row in rows])
    assert metrics["adherence/accuracy"] == np.mean([row.adheres for row in rows])
    assert np.sum(tables["generated"]["confusion"]["predicted_by_gold"]) == 32
    assert metrics["text/rouge_l"] == pytest.approx(np.mean([rouge_l(row.reply, row.gold_reply) for row in rows]))

    def distinct(groups):
        found = []
        for group in groups:
            grams = [gram for row in group for gram in pairwise(split_words(row.reply))]
            found.append(len(set(grams)) / len(grams))
        return np.mean(found)

    by_sample = [[row for row in rows if row.sample == sample] for sample in range(4)]
    by_turn = [[row for row in rows if row.turn == turn] for turn in range(8)]
    assert metrics["text/distinct_2"] == pytest.approx(distinct(by_sample))
    assert metrics["text/self_distinct_2"] == pytest.approx(distinct(by_turn))
    pairs = [
        one.strategy == other.strategy
        for group in by_turn
        for one, other in combinations(group, 2)
        if one.strategy and other.strategy
    ]
    assert metrics["generated/agreement"] == pytest.approx(np.mean(pairs))
    written = Counter(row.strategy for row in rows if row.strategy)
    expected = {
        name: sum(
            group[0].distribution[name] * sum(row.strategy is not None for row in group) for group in by_turn
        )
        for name in INVENTORY.names
    }  # fmt: skip
    far = sum(abs(written[name] - expected[name]) for name in INVENTORY.names) / 2 / sum(written.values())
    assert metrics["generated/distance_to_exact"] == pytest.approx(far)


def test_many_samples_come_near_the_exact_distribution(tmp_path):
    few, many = (summary(made_up(1, 8, count), tmp_path)[0] for count in (2, 200))
    assert many["generated/distance_to_exact"] < 0.05 < few["generated/distance_to_exact"]


def test_one_sample_and_other_temperatures_have_no_such_metrics(tmp_path):
    rows = made_up(0, samples=1)
    metrics, _ = summary(rows, tmp_path)
    assert {"generated/distance_to_exact", "generation/top_p"} <= metrics.keys()
    assert not {"generated/agreement", "text/self_distinct_2"} & metrics.keys()
    for row in rows:
        row.sampling["temperature"] = 0.7
    assert "generated/distance_to_exact" not in summary(rows, tmp_path)[0]
