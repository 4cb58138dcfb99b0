"""A judge's run beside the evaluations that it judged."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from esc_lab.artifacts import file_fingerprint
from esc_lab.comparison.files import write_comparison
from esc_lab.comparison.result import compute_comparison
from esc_lab.comparison.table import build_table
from esc_lab.errors import UserError
from tests.comparison.synthetic import predictions, settings, write_evaluation, write_run

METRICS = ["adherence/accuracy", "judge/overall"]
RATE = {"value": 0.625, "low": 0.5, "high": 0.75}


def written(directory: Path, runs: dict[str, tuple[Path, list]], *, forced=(), baseline="one") -> Path:
    """A judge that gives 1 point to a reply that follows its strategy, else 0; none to the first decision."""
    write_run(directory, settings("judge"), {"judge/calls": 1.0})
    pairwise = {name: RATE for name in ("win_rate", "length_controlled")} | {"wins": 2, "ties": 1, "losses": 1}
    pairwise["consistency"] = {"value": 0.75, "low": None, "high": None}
    record = {
        "judge": {"models": ["judge-1"]},
        "forced": list(forced),
        "baseline": baseline,
        "runs": [
            {
                "label": label,
                "predictions": file_fingerprint(path / "predictions.jsonl"),
                "pairwise": None if label == baseline else pairwise,
            }
            for label, (path, _) in runs.items()
        ],
    }
    (directory / "judge.json").write_text(json.dumps(record))
    lines = [
        {"kind": "rubric", "run": label, "dialogue": row.dialogue, "turn": row.turn, "overall": float(row.adheres)}
        for label, (_, rows) in runs.items()
        for row in rows
    ] + [{"kind": "pairwise", "run": "other", "outcome": 1}]
    (directory / "judgements.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return directory


def compared_into(directory: Path, runs, **asked):
    found = compute_comparison(runs, **asked)
    table = build_table(found)
    write_comparison(found, table, [], directory)
    return found


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    root = tmp_path_factory.mktemp("judged")
    rows = [predictions(skill=0.4, seed=seed, replies=True) for seed in (1, 2)]
    one = write_evaluation(root / "one", rows[0]), rows[0]
    other = write_evaluation(root / "other", rows[1], prompt__inference="cot"), rows[1]
    return root, one, other, written(root / "judge", {"one": one, "other": other})


def test_scores_are_a_metric_like_the_others(judged):
    """This judge says what the classifier says, so value, interval, difference and test are the same."""
    _, (one, rows), (other, _), judge = judged
    found = compute_comparison([one, judge, other], metrics=METRICS).estimates
    for cell in ("tiny base (cso)", "tiny base cot (cso)"):
        mine, theirs = found[cell, "judge/overall"], found[cell, "adherence/accuracy"]
        assert mine.interval == theirs.interval
        assert (mine.n, mine.over) == (len(rows), ("dialogues",))
    mine, theirs = (found["tiny base cot (cso)", metric].difference for metric in reversed(METRICS))
    assert (mine.interval, mine.p) == (theirs.interval, theirs.p)
    assert mine.p > 0


def test_a_judge_may_have_seen_some_decisions_and_runs_only(judged, tmp_path):
    _, (one, rows), (other, _), _ = judged
    judge = written(tmp_path / "judge", {"one": (one, rows[::3])}, forced=["too small"])
    found = compute_comparison([one, other, judge])
    estimate = found.estimates["tiny base (cso)", "judge/overall"]
    assert estimate.interval.value == pytest.approx(sum(row.adheres for row in rows[::3]) / len(rows[::3]))
    assert estimate.interval.low < estimate.interval.value < estimate.interval.high
    assert ("tiny base cot (cso)", "judge/overall") not in found.estimates
    assert found.remarks == [f"not judged: {other}", "the judge was forced, do not rely on what it says: too small"]
    assert "judge" in [column.heading for column in found.columns]


def test_win_rates_have_a_table_of_their_own(judged, tmp_path):
    _, (one, _), (other, _), judge = judged
    moved = other.rename(tmp_path / "moved")
    found = compared_into(tmp_path / "out", [one, moved, judge], metrics=METRICS)
    moved.rename(other)
    page, record = (
        (tmp_path / "out/comparison.md").read_text(),
        json.loads((tmp_path / "out/comparison.json").read_text()),
    )
    assert "## Judged in pairs against tiny base (cso)" in page
    assert "| tiny base cot (cso) | 4 | 0.625 [0.500, 0.750] | 0.625 [0.500, 0.750] | 0.750 |" in page
    (row,) = record["judge"]["pairs"]
    assert (row["run"], row["pairs"], row["win_rate"]) == ("tiny base cot (cso)", 4, RATE)
    assert row["consistency"] == {"value": 0.75, "low": None, "high": None}
    assert found.metrics["tiny base cot (cso)/judge/win_rate"] == 0.625
    assert "tiny base (cso)/judge/win_rate" not in found.metrics
    assert not math.isnan(found.metrics["tiny base cot (cso)/p/judge/overall"])


def test_without_a_judge_there_is_none(judged, tmp_path):
    _, (one, _), (other, _), _ = judged
    compared_into(tmp_path, [one, other], metrics=["strategy/Q"])
    assert json.loads((tmp_path / "comparison.json").read_text())["judge"] is None
    assert "pairs against" not in (tmp_path / "comparison.md").read_text()


def test_refusals(judged, tmp_path):
    _, (one, rows), (other, _), judge = judged
    second = written(tmp_path / "second", {"one": (one, rows)})
    with pytest.raises(UserError, match=r"compare.runs: 2 runs of stage=judge: .*/judge, .*/second. Fix: name one"):
        compute_comparison([one, judge, second])
    again = write_evaluation(tmp_path / "again", [replace(rows[0], reply="new"), *rows[1:]])
    with pytest.raises(UserError, match=r"judge: it judged none of the compared runs. Fix: .* judge again"):
        compute_comparison([again, judge])
    (second / "judge.json").unlink()
    with pytest.raises(UserError, match=r"second: no finished run of the judge: FileNotFoundError"):
        compute_comparison([one, other, second])
