"""SRA and adherence: the bootstrap against a loop over draws, planted relations, published means."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from esc_lab.sra.relations import (
    bin_by_depth,
    compare_paired,
    relate_over_runs,
    relate_within_runs,
    summarize_runs,
    summarize_strategies,
)
from esc_lab.sra.sample import MEASURES, MeasuredReply, ReplySample, measure_columns

LLAMA_2 = {  # run: (accuracy, mean log SRA), as published
    "standard": (0.144, -7.294),
    "c5hf": (0.178, -6.802),
    "c5hl": (0.202, -6.781),
    "c3hf": (0.294, -6.394),
    "c3hl": (0.295, -6.504),
    "c1hl": (0.715, -6.164),
    "c1hf": (0.765, -6.112),
    "fine-tuned": (0.933, -6.126),
}
LLAMA_3 = {
    "standard": (0.594, -6.916),
    "c5hf": (0.658, -6.607),
    "c3hf": (0.711, -6.337),
    "c5hl": (0.736, -6.711),
    "c3hl": (0.798, -6.549),
    "c1hf": (0.811, -5.758),
    "c1hl": (0.821, -6.082),
    "fine-tuned": (0.940, -5.760),
}
COLUMNS = (*MEASURES, "adherence")


def reply(run="a", dialogue="d0", turn=4, strategy="Question", log_sra=-6.0, log_control=-6.0, adheres=True, keys=400):
    control = math.nan if log_control is None else math.exp(log_control)
    return MeasuredReply(run, dialogue, turn, strategy, math.exp(log_sra), control, math.exp(log_sra) * keys, adheres)


def random_replies(seed=0, runs=4, dialogues=9, n=160):
    """Replies without a planted relation; some lack a control, some a judgement, some dialogues lack a run."""
    draw = np.random.default_rng(seed)
    return [
        reply(
            run=f"run {draw.integers(runs)}",
            dialogue=f"d{draw.integers(dialogues)}",
            turn=int(draw.integers(1, 30)),
            strategy=str(draw.choice(["Question", "Information", "Others"])),
            log_sra=float(draw.normal(-6, 1)),
            log_control=None if draw.random() < 0.1 else float(draw.normal(-6.5, 1)),
            adheres=None if draw.random() < 0.1 else bool(draw.random() < 0.5),
            keys=int(draw.integers(100, 1000)),
        )
        for _ in range(n)
    ]


def looped(replies, statistic, draws, seed):
    """Value and percentile interval of a statistic of replies: each draw's replies are written out, measured anew."""
    dialogues = sorted({r.dialogue for r in replies})
    samples = []
    for weights in ReplySample(replies, draws, seed).weights:
        times = dict(zip(dialogues, weights.astype(int), strict=True))
        samples.append(statistic([r for r in replies for _ in range(times[r.dialogue])]))
    known = [sample for sample in samples[1:] if not math.isnan(sample)]
    return samples[0], *np.percentile(known, (2.5, 97.5))


def columns(replies):
    found = measure_columns(replies)
    return [{name: found[name][i] for name in COLUMNS} | {"run": r.run} for i, r in enumerate(replies)]


def mean_of(name, run):
    def statistic(replies):
        values = [row[name] for row in columns(replies) if row["run"] == run and not math.isnan(row[name])]
        return float(np.mean(values)) if values else math.nan

    return statistic


def complete(name, replies):
    return [row for row in columns(replies) if not math.isnan(row[name] + row["adherence"])]


def over_runs(name, correlate):
    def statistic(replies):
        rows = complete(name, replies)
        by_run = [[r for r in rows if r["run"] == run] for run in sorted({r["run"] for r in rows})]
        x, y = ([np.mean([r[key] for r in members]) for members in by_run] for key in (name, "adherence"))
        return float(correlate(x, y).statistic)

    return statistic


def about_run_means(name):
    def statistic(replies):
        rows = complete(name, replies)
        mean = {
            (run, key): np.mean([r[key] for r in rows if r["run"] == run])
            for run in {r["run"] for r in rows}
            for key in (name, "adherence")
        }
        x, y = ([r[key] - mean[r["run"], key] for r in rows] for key in (name, "adherence"))
        return float(stats.pearsonr(x, y).statistic)

    return statistic


def ends(found):
    return found.value, found.low, found.high


def test_weights_draw_whole_dialogues():
    replies = random_replies()
    weights = ReplySample(replies, 200, 5).weights
    assert np.all(weights[0] == 1)
    assert np.all(weights.sum(axis=1) == weights.shape[1])
    assert np.array_equal(weights, ReplySample(replies[::-1], 200, 5).weights)
    assert not np.array_equal(weights, ReplySample(replies, 200, 6).weights)
    assert weights[1:].mean(axis=0) == pytest.approx(1, abs=0.3)


def test_summaries_agree_with_a_loop_over_draws():
    replies = random_replies(1)
    found = summarize_runs(ReplySample(replies, 40, 3))
    assert [summary.run for summary in found] == list(dict.fromkeys(r.run for r in replies))
    for summary in found:
        members = [r for r in replies if r.run == summary.run]
        assert summary.n == len(members)
        assert summary.dialogues == len({r.dialogue for r in members})
        assert summary.with_control == sum(not math.isnan(r.control) for r in members)
        assert summary.judged == sum(r.adheres is not None for r in members)
        for name in ("log_sra", "sham_net", "log_relative", "adherence"):
            expected = looped(replies, mean_of(name, summary.run), 40, 3)
            assert ends(getattr(summary, name)) == pytest.approx(expected)


def test_relation_agrees_with_a_loop_over_draws():
    replies = random_replies(2)
    found = relate_over_runs(ReplySample(replies, 40, 4))
    assert [item.measure for item in found] == list(MEASURES)
    for item in found:
        assert item.runs == 4
        assert item.degenerate == 0
        assert ends(item.pearson) == pytest.approx(looped(replies, over_runs(item.measure, stats.pearsonr), 40, 4))
        assert ends(item.spearman) == pytest.approx(looped(replies, over_runs(item.measure, stats.spearmanr), 40, 4))


def test_correlation_within_runs_agrees_with_a_loop_over_draws():
    replies = random_replies(3)
    for item in relate_within_runs(ReplySample(replies, 40, 5)):
        assert item.n == len(complete(item.measure, replies))
        assert ends(item.correlation) == pytest.approx(looped(replies, about_run_means(item.measure), 40, 5))


def test_strategies_agree_with_a_loop_over_draws():
    replies = random_replies(4, runs=3, dialogues=8, n=300)
    found = summarize_strategies(ReplySample(replies, 30, 6))
    assert [item.strategy for item in found] == list(dict.fromkeys(r.strategy for r in replies))
    for item in found:
        members = [r for r in replies if r.strategy == item.strategy]
        assert item.n == len(members)
        assert item.with_control == sum(not math.isnan(r.control) for r in members)
        assert item.judged == sum(r.adheres is not None for r in members)
        for name in ("log_sra", "sham_net", "adherence"):
            statistic = of_strategy(item.strategy, partial(overall_mean, name))
            assert ends(getattr(item, name)) == pytest.approx(looped(replies, statistic, 30, 6))
        statistic = of_strategy(item.strategy, over_runs("log_sra", stats.pearsonr))
        assert ends(item.over_runs.pearson) == pytest.approx(looped(replies, statistic, 30, 6))
        statistic = of_strategy(item.strategy, about_run_means("log_sra"))
        assert ends(item.within_runs.correlation) == pytest.approx(looped(replies, statistic, 30, 6))


def of_strategy(name, statistic):
    return lambda drawn: statistic([r for r in drawn if r.strategy == name])


def overall_mean(name, drawn):
    return float(np.nanmean(measure_columns(drawn)[name]))


@pytest.mark.parametrize(("table", "pearson_of_logs"), [(LLAMA_2, 0.848), (LLAMA_3, 0.834)])
def test_published_means_give_the_published_correlation(table, pearson_of_logs):
    replies = [
        reply(run, dialogue=f"d{i % 50}", log_sra=log_sra, adheres=i < round(accuracy * 1000))
        for run, (accuracy, log_sra) in table.items()
        for i in range(1000)
    ]
    for summary, (accuracy, log_sra) in zip(summarize_runs(ReplySample(replies, 20)), table.values(), strict=True):
        assert summary.adherence.value == pytest.approx(accuracy)
        assert summary.log_sra.value == pytest.approx(log_sra)
    found = {item.measure: item for item in relate_over_runs(ReplySample(replies, 200))}
    assert found["log_sra"].pearson.value == pytest.approx(pearson_of_logs, abs=5e-4)
    assert found["log_sra"].spearman.value == pytest.approx(stats.spearmanr(*zip(*table.values(), strict=True))[0])
    z = stats.pearsonr(*zip(*table.values(), strict=True)).confidence_interval(0.95)
    fisher = found["log_sra"].fisher
    assert (fisher.low, fisher.high) == pytest.approx((z.low, z.high), abs=1e-4)
    # Many dialogues pin down these eight runs, yet eight runs say little about others.
    spread = found["log_sra"].pearson
    assert spread.high - spread.low < (fisher.high - fisher.low) / 3


def planted(between, within, seed=0, runs=6, dialogues=60, per=5):
    """Adherence with a slope on the run's part of log SRA and a slope on the reply's own part."""
    draw = np.random.default_rng(seed)
    made = []
    for run in range(runs):
        level = run - (runs - 1) / 2
        for dialogue in range(dialogues):
            for turn in range(per):
                own = draw.normal()
                chance = 1 / (1 + math.exp(-between * level - within * own))
                made.append(
                    reply(
                        f"r{run}", f"d{dialogue}", turn, log_sra=-6 + level + own, adheres=bool(draw.random() < chance)
                    )
                )
    return made


def test_relation_between_runs_only():
    replies = planted(between=1, within=0)
    assert relate_over_runs(ReplySample(replies))[1].pearson.low > 0.9
    inside = relate_within_runs(ReplySample(replies))[0].correlation
    assert inside.low < 0 < inside.high
    assert abs(inside.value) < 0.06


def test_relation_within_runs_only():
    replies = planted(between=0, within=1)
    assert relate_within_runs(ReplySample(replies))[0].correlation.low > 0.3
    # Own parts average out over a run; without a planted level neither direction is certain.
    over = relate_over_runs(ReplySample(replies))[1].pearson
    assert over.low < 0 < over.high


def test_shuffled_adherence_has_no_relation():
    replies = planted(between=1, within=1, seed=1)
    order = np.random.default_rng(1).permutation(len(replies))
    shuffled = [replace(r, adheres=replies[i].adheres) for r, i in zip(replies, order, strict=True)]
    for item in relate_over_runs(ReplySample(shuffled)):
        assert item.pearson.low < 0 < item.pearson.high
    for item in relate_within_runs(ReplySample(shuffled)):
        assert item.correlation.low < 0 < item.correlation.high
        assert item.correlation.high - item.correlation.low < 0.15


def test_net_takes_position_out():
    """Where attention on any span differs between two runs alike, net differs not."""
    own = np.random.default_rng(0).normal(size=80)
    replies = [
        reply(run, f"d{i}", log_sra=-6 + shift + noise, log_control=-6 + shift, adheres=True)
        for run, shift in (("near", 1.7), ("far", 0))
        for i, noise in enumerate(own)
    ]
    near, far = summarize_runs(ReplySample(replies, 50))
    assert near.log_sra.value - far.log_sra.value == pytest.approx(1.7)
    assert near.sham_net.value == pytest.approx(far.sham_net.value)
    assert ends(near.sham_net) == pytest.approx(ends(far.sham_net))  # the same draws


def test_unmeasured_is_nan():
    draw = np.random.default_rng(0)
    replies = [
        reply(f"r{i % 4}", f"d{i % 7}", log_sra=float(draw.normal()), log_control=None, adheres=None) for i in range(60)
    ]
    for summary in summarize_runs(ReplySample(replies, 20)):
        assert (summary.with_control, summary.judged) == (0, 0)
        assert np.isnan(ends(summary.sham_net) + ends(summary.adherence)).all()
        assert summary.log_sra.low < summary.log_sra.value < summary.log_sra.high
    for item in relate_over_runs(ReplySample(replies, 20)):
        assert item.runs == 0
        assert item.degenerate == 20
        assert np.isnan(ends(item.pearson) + ends(item.spearman) + ends(item.fisher)).all()
    for item in relate_within_runs(ReplySample(replies, 20)):
        assert item.n == 0
        assert np.isnan(ends(item.correlation)).all()
    judged = [replace(r, adheres=bool(draw.random() < 0.5)) for r in replies]
    _, log_sra, sham_net, _ = relate_over_runs(ReplySample(judged, 20))
    assert log_sra.runs == 4
    assert not math.isnan(log_sra.pearson.value)
    assert sham_net.runs == 0
    assert bin_by_depth(ReplySample(replies, 20), "sham_net") == {f"r{i}": [] for i in range(4)}


def test_too_few_runs_or_no_variance_is_nan():
    two_runs = [r for r in random_replies(5) if r.run in ("run 0", "run 1")]
    for item in relate_over_runs(ReplySample(two_runs, 20)):
        assert (item.runs, item.degenerate) == (2, 20)
        assert np.isnan(ends(item.pearson) + ends(item.spearman)).all()
    all_follow = [replace(r, adheres=True) for r in random_replies(5)]
    for item in relate_over_runs(ReplySample(all_follow, 20)):
        assert (item.runs, item.degenerate) == (4, 20)
        assert np.isnan(ends(item.pearson) + ends(item.spearman) + ends(item.fisher)).all()
    assert all(math.isnan(item.correlation.value) for item in relate_within_runs(ReplySample(all_follow, 20)))
    # A tenth in binary differs from a mean of tenths by rounding: constant all the same.
    constant = [replace(r, sra=0.1, relative=0.3) for r in random_replies(5)]
    assert math.isnan(relate_within_runs(ReplySample(constant, 20))[0].correlation.value)
    assert math.isnan(relate_over_runs(ReplySample(constant, 20))[0].pearson.value)


def test_draws_without_a_run_are_counted():
    replies = [r for r in random_replies(6, dialogues=6) if r.run != "run 3"]
    rare = [reply("rare", d, log_sra=-5.0, adheres=True) for d in ("d0", "d1")]
    weights = ReplySample(replies + rare, 300, 0).weights
    lost = int(np.sum(weights[:, :2].sum(axis=1) == 0))
    assert lost > 0
    assert relate_over_runs(ReplySample(replies + rare, 300, 0))[1].degenerate == lost


def test_draws_of_one_dialogue_alone_are_counted():
    """Attention differs between two dialogues but not inside them: a draw of one of them has no correlation."""
    replies = [
        reply(dialogue=f"d{d}", turn=i, log_sra=-5.1 - d / 3, adheres=i % 5 > d) for d in range(2) for i in range(11)
    ]
    weights = ReplySample(replies, 200, 0).weights
    lost = int(np.sum((weights == 0).any(axis=1)))
    assert lost > 0
    assert relate_within_runs(ReplySample(replies, 200))[0].degenerate == lost


def test_one_dialogue_has_no_interval():
    lone = [reply("lone", "d0", turn=i, log_sra=-i, adheres=i % 2 == 0) for i in range(1, 9)]
    summary = summarize_runs(ReplySample(lone + random_replies(7), 30))[0]
    assert summary.log_sra.value == pytest.approx(-4.5)
    assert math.isnan(summary.log_sra.low)
    assert math.isnan(summary.adherence.high)
    inside = relate_within_runs(ReplySample(lone, 30))[0]
    assert not math.isnan(inside.correlation.value)
    assert math.isnan(inside.correlation.low)
    assert inside.degenerate == 30


def test_no_replies_and_impossible_attention_are_refused():
    with pytest.raises(ValueError, match="no replies"):
        ReplySample([])
    with pytest.raises(ValueError, match="dialogue d0, turn 4 in a must be above 0"):
        replace(reply(), sra=0.0)
    for field in ("sra", "relative"):
        with pytest.raises(ValueError, match="above 0"):
            replace(reply(), **{field: math.nan})
    with pytest.raises(ValueError, match="above 0"):
        replace(reply(), control=-1.0)
    with pytest.raises(ValueError, match="1 turn or more"):
        bin_by_depth(ReplySample([reply()]), "sra", width=0)


def test_depth_bins_are_merged_until_they_hold_three():
    turns = [1, 1, 2, 3, 4, 4, 5, 9, 20]
    replies = [reply(dialogue=f"d{i % 3}", turn=turn, log_sra=-turn) for i, turn in enumerate(turns)]
    replies += [reply("short", f"d{i}", turn=i) for i in range(2)]
    found = bin_by_depth(ReplySample(replies, 100), "log_sra")
    # 0-1 holds two and takes in 2-3; 4-5 holds three; 8-9 and 20 are left over and join it.
    assert [(item.depth, item.n) for item in found["a"]] == [(7 / 4, 4), ((4 + 4 + 5 + 9 + 20) / 5, 5)]
    for item in found["a"]:
        assert item.mean.value == pytest.approx(-item.depth)
        assert item.mean.low <= item.mean.value <= item.mean.high
    assert found["short"] == []
    assert [item.n for item in bin_by_depth(ReplySample(replies, 10), "log_sra", width=100)["a"]] == [9]


@given(seed=st.integers(0, 1000), width=st.integers(1, 12), name=st.sampled_from(COLUMNS))
@settings(max_examples=25)
def test_depth_bins_lose_no_reply(seed, width, name):
    replies = random_replies(seed, n=60)
    for run, bins in bin_by_depth(ReplySample(replies, 5), name, width).items():
        rows = [row[name] for row in columns(replies) if row["run"] == run and not math.isnan(row[name])]
        if len(rows) < 3:
            assert bins == []
            continue
        assert all(item.n >= 3 for item in bins)
        assert sum(item.n for item in bins) == len(rows)
        assert sum(item.n * item.mean.value for item in bins) == pytest.approx(sum(rows))
        assert [item.depth for item in bins] == sorted({item.depth for item in bins})


def test_depth_intervals_agree_with_a_loop_over_draws():
    replies = random_replies(8, n=100)
    run = replies[0].run
    for item in bin_by_depth(ReplySample(replies, 30, 1), "sham_net", width=10)[run]:
        start = int(item.depth // 10) * 10
        inside = [r for r in replies if start <= r.turn < start + 10]
        if sum(r.run == run and not math.isnan(r.control) for r in inside) == item.n:
            expected = looped(replies, lambda drawn, s=start: mean_of("sham_net", run)(_between(drawn, s)), 30, 1)
            assert ends(item.mean) == pytest.approx(expected)


def _between(replies, start):
    return [r for r in replies if start <= r.turn < start + 10]


def test_paired_difference_uses_matched_replies_only():
    draw = np.random.default_rng(0)
    replies = []
    for i in range(40):
        hard = float(draw.normal(0, 3))
        shared = {"dialogue": f"d{i // 4}", "turn": i}
        replies.append(reply("base", log_sra=-8 + hard, log_control=-8.5 + hard, keys=500, **shared))
        gain = float(draw.normal(0.5, 0.1))
        control = None if i % 8 == 0 else -8.5 + hard
        replies.append(reply("sft", log_sra=-8 + hard + gain, log_control=control, keys=250, **shared))
    extra = [reply("base", "d0", 99, log_sra=5.0), reply("sft", "d0", 4, "Others", log_sra=5.0), reply("other")]
    found = compare_paired(ReplySample(replies + extra, 60, 2), "base", "sft")
    assert (found.first, found.second, found.pairs, found.unmatched, found.with_control) == ("base", "sft", 40, 2, 35)

    def gain_of(name):
        def statistic(drawn):
            values = [row[name] for row in columns(drawn) if row["run"] == "sft"]
            before = [row[name] for row in columns(drawn) if row["run"] == "base"]
            return float(np.nanmean(np.subtract(values, before)))

        return statistic

    for name in ("log_sra", "sham_net", "log_relative"):
        assert ends(getattr(found, name)) == pytest.approx(looped(replies, gain_of(name), 60, 2))
    assert found.log_relative.value == pytest.approx(found.log_sra.value - math.log(2))
    # The pairs share what makes a dialogue hard, so their difference is known far better than either mean.
    assert found.log_sra.high - found.log_sra.low < 0.15
    back = compare_paired(ReplySample(replies + extra, 60, 2), "sft", "base")
    assert ends(back.log_sra) == pytest.approx((-found.log_sra.value, -found.log_sra.high, -found.log_sra.low))


def test_paired_difference_refuses_what_cannot_be_paired():
    replies = [reply("base", turn=1), reply("sft", turn=2)]
    with pytest.raises(ValueError, match="no reply of 'base'"):
        compare_paired(ReplySample(replies), "base", "sft")
    with pytest.raises(ValueError, match="no reply of 'base'"):
        compare_paired(ReplySample(replies), "base", "absent")
    with pytest.raises(ValueError, match="two replies"):
        compare_paired(ReplySample([*replies, replies[0], reply("sft", turn=1)]), "base", "sft")


@given(seed=st.integers(0, 1000), factor=st.floats(0.01, 100))
@settings(max_examples=15)
def test_order_and_unit_of_attention_do_not_matter(seed, factor):
    replies = random_replies(seed, n=80)
    order = np.random.default_rng(seed).permutation(len(replies))
    scaled = [
        replace(r, sra=r.sra * factor, control=r.control * factor, relative=r.relative * factor)
        for r in (replies[i] for i in order)
    ]
    sample, other = ReplySample(replies, 20), ReplySample(scaled, 20)
    for before, after in zip(relate_over_runs(sample), relate_over_runs(other), strict=True):
        # Runs in another order add up in another order, which may part equal ranks; Pearson is continuous.
        assert ends(after.pearson) == pytest.approx(ends(before.pearson), abs=1e-6, nan_ok=True)
    for before, after in zip(relate_within_runs(sample), relate_within_runs(other), strict=True):
        assert ends(after.correlation) == pytest.approx(ends(before.correlation), abs=1e-6)
