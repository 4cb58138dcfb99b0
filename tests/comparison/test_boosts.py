"""Slopes over the dose of attention against a line fitted to the metrics, and their intervals against the jackknife."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from esc_lab.comparison.result import compute_comparison
from tests.comparison.synthetic import predictions, write_evaluation

BOOST = {"mode": "add", "amount": 0.0, "span": "name", "queries": "all", "layers": [], "heads": [], "choice": "all",
         "count": 16, "study": None, "matched": None, "draw": 1}  # fmt: skip
DOSES = (0.0, 0.5, 1.0, 2.0, 3.0)
EFFECT = 0.12  # of adherence, planted for each unit of the dose on the strategy's name; none on the neutral phrase


def rows_at(span: str, dose: float):
    """Replies of 24 dialogues, in each of which adherence is as likely as the dose and the dialogue make it."""
    rows, draw = predictions(skill=0.5, seed=3, dialogues=24, replies=True), np.random.default_rng(7)
    for row in rows:
        level, luck = 0.25 + 0.1 * (int(row.dialogue[1:]) % 3), draw.random()  # the same luck at every dose
        row.adheres = bool(luck < level + (EFFECT * dose if span == "name" else 0.0))
        row.sra = {"paper/name": {"sra": 1e-3 * np.exp(dose * (span == "name")), "control": 1e-3, "relative": 1.0}}
    return rows


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    root, found = tmp_path_factory.mktemp("boosts"), {}
    for span in ("name", "neutral"):
        for dose in DOSES[span == "neutral" :]:
            path = root / f"{span}_{dose}"
            boost = {**BOOST, "amount": dose, "span": span if dose else "name"}
            found[span, dose] = write_evaluation(path, rows_at(span, dose), evaluate__boost=boost)
    found["neutral", 0.0] = found["name", 0.0]
    return found


def jackknife(weights):
    """Slope over the dose of adherence, weighted over spans, with Tukey's interval by dialogues left out."""
    rows = {(span, dose): rows_at(span, dose) for span in weights for dose in DOSES}
    names = sorted({row.dialogue for row in rows_at("name", 0.0)})

    def fit(left_out=None):
        slope = {}
        for span in weights:
            means = [np.mean([r.adheres for r in rows[span, dose] if r.dialogue != left_out]) for dose in DOSES]
            slope[span] = np.polyfit(DOSES, means, 1)[0]
        return sum(weight * slope[span] for span, weight in weights.items())

    whole, without = fit(), np.array([fit(name) for name in names])
    m = len(names)
    half = stats.t.ppf(0.975, m - 1) * np.sqrt((m - 1) / m * ((without - without.mean()) ** 2).sum())
    return [whole, whole - half, whole + half]


def test_planted_slopes_are_found(directories):
    boosts = compute_comparison([*dict.fromkeys(directories.values())]).boosts
    curves = {(curve.label, curve.metric.name): curve for curve in boosts.curves}
    log_sra = curves["name", "sra/log_sra"]
    assert log_sra.slope.value == pytest.approx(1.0)
    assert [dose for dose, _, _ in log_sra.points] == [*DOSES]
    adherence = curves["name", "adherence/accuracy"]
    assert adherence.slope.low < EFFECT < adherence.slope.high
    assert adherence.p < 1e-3
    assert curves["neutral", "adherence/accuracy"].slope.value == pytest.approx(0.0, abs=1e-12)
    (contrast,) = [one for one in boosts.contrasts if one.metric.name == "adherence/accuracy"]
    assert (contrast.label, contrast.other) == ("name", "neutral")
    assert contrast.difference.low < EFFECT < contrast.difference.high
    for found, weights in ((adherence.slope, {"name": 1}), (contrast.difference, {"name": 1, "neutral": -1})):
        assert [found.value, found.low, found.high] == pytest.approx(jackknife(weights))


def test_effects_are_differences_to_the_same_without(directories):
    boosts = compute_comparison([*dict.fromkeys(directories.values())]).boosts
    assert len(boosts.effects) == 2 * (len(DOSES) - 1)
    for effect in boosts.effects:
        values = {metric.name: value.value for metric, value in effect.values.items()}
        plain = effect.plain.runs[0].metrics
        for metric, difference in effect.differences.items():
            expected = values[metric.name] - plain[metric.name]
            assert difference.interval.value == pytest.approx(expected, abs=1e-12)


def test_slopes_are_contrasted_with_equal_words_and_with_random_heads(directories, tmp_path):
    """Spans with neutral words of their own length, heads of a study with those of the same and with random ones."""
    adherence = {"choice": "adherence", "study": "A"}
    boosts = [
        {"span": "instruction"}, {"span": "neutral_instruction"}, {**adherence, "span": "name"},
        {**adherence, "span": "neutral"}, {**adherence, "span": "neutral", "study": "B"},
        {"choice": "random", "study": "A", "span": "name"},
    ]  # fmt: skip
    paths = [
        write_evaluation(
            tmp_path / str(number), rows_at(boost["span"], 2.0), evaluate__boost={**BOOST, **boost, "amount": 2.0}
        )
        for number, boost in enumerate(boosts)
    ]
    found = compute_comparison([directories["name", 0.0], *paths]).boosts
    assert {(one.label, one.other) for one in found.contrasts} == {
        ("instruction", "neutral_instruction"),
        ("name, 16 heads by adherence", "neutral, 16 heads by adherence"),
        ("name, 16 heads by adherence", "name, 16 random heads"),
    }
    assert len({(one.label, one.other, one.metric) for one in found.contrasts}) == len(found.contrasts)


def test_draws_of_random_heads_vary_as_seeds_do(directories, tmp_path):
    """The mean of what chosen heads add to each draw; its variance over draws and dialogues is worked out by hand."""
    chosen = {"choice": "adherence", "study": "A", "span": "name"}
    drawn = {"choice": "random", "study": "A", "span": "name", "matched": "adherence"}
    effects = (0.0, 0.05, -0.04)  # of each draw of random heads
    rows = {0: rows_at("name", 2.0)}
    for draw, effect in enumerate(effects, 1):
        rows[draw] = rows_at("neutral", 2.0)
        luck = np.random.default_rng(draw)
        for row in rows[draw]:
            row.adheres = bool(row.adheres) != bool(luck.random() < abs(effect))
    paths = []
    for draw, own in rows.items():
        boost = {**BOOST, **(drawn if draw else chosen), "amount": 2.0, "draw": max(draw, 1)}
        paths.append(write_evaluation(tmp_path / str(draw), own, evaluate__boost=boost))
    boosts = compute_comparison([directories["name", 0.0], *paths]).boosts
    labels = {curve.label for curve in boosts.curves}
    assert "name, 16 random heads, none by adherence, draw 2" in labels
    (one,) = [one for one in boosts.contrasts if one.metric.name == "adherence/accuracy"]
    assert one.other == "name, 16 random heads, none by adherence (3 draws)"

    def slope(draw, left_out=None):
        """Less that without a boost, over a dose of 2."""
        return np.mean([row.adheres for row in rows[draw] if row.dialogue != left_out]) / 2

    names = sorted({row.dialogue for row in rows[0]})
    m, n = len(names), len(effects)
    less = np.array([slope(0) - slope(draw) for draw in range(1, n + 1)])
    without = np.array([[slope(0, name) - slope(draw, name) for name in names] for draw in range(1, n + 1)])
    pseudo = m * less[:, None] - (m - 1) * without
    rest = pseudo - pseudo.mean(axis=0) - pseudo.mean(axis=1, keepdims=True) + pseudo.mean()
    of_draws, of_dialogues = less.var(ddof=1) / n, pseudo.mean(axis=0).var(ddof=1) / m
    interaction = (rest**2).sum() / ((n - 1) * (m - 1) * n * m)
    parts = np.array([of_draws, max(of_dialogues - interaction, 0.0)])
    normal, (t_draws, t_dialogues) = stats.norm.ppf(0.975), stats.t.ppf(0.975, [n - 1, m - 1])
    share = parts / parts.sum()
    critical = np.sqrt(normal**2 + share**2 @ (np.array([t_draws, t_dialogues]) ** 2 - normal**2))
    half = critical * np.sqrt(parts.sum())
    expected = [less.mean(), less.mean() - half, less.mean() + half]
    assert [one.difference.value, one.difference.low, one.difference.high] == pytest.approx(expected)
    assert of_draws > 0


def test_other_methods_and_older_runs_have_no_curves(directories, tmp_path):
    """A boost of another sampling has nothing to be compared with; runs of older code know of no boosts."""
    assert not compute_comparison([directories["name", 0.0]]).boosts.effects
    older = write_evaluation(tmp_path / "older", [replace(row) for row in rows_at("name", 0.0)])
    assert not compute_comparison([older]).boosts.curves
    warm = {"temperature": 1.0, "top_p": 1.0, "max_new_tokens": 40, "decisions": None, "samples": 1}
    boost = {**BOOST, "amount": 2.0}
    other = write_evaluation(
        tmp_path / "warm", rows_at("name", 2.0), evaluate__boost=boost, evaluate__generation=warm
    )  # fmt: skip
    runs = [directories["name", 0.0], directories["name", 1.0], other]
    assert [effect.amount for effect in compute_comparison(runs).boosts.effects] == [1.0]
    plain = write_evaluation(tmp_path / "plain", rows_at("name", 0.0), evaluate__boost=BOOST, evaluate__generation=warm)
    curves = compute_comparison([*runs, plain]).boosts.curves
    places = {curve.place for curve in curves}  # told apart by the sampling alone
    assert len(places) == 2
    assert {place.count("temperature=") for place in places} == {1}
    assert not any("boost" in place for place in places)
