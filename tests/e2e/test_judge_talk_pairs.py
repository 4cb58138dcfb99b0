"""Stage `judge` over runs of stage `converse`: talks in pairs, and a second opinion on the emotion's intensity."""

from __future__ import annotations

import copy
import json
import random
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from esc_lab.comparison.result import compute_comparison
from esc_lab.data.corpora import read_dialogues
from esc_lab.errors import UserError
from esc_lab.judging.talks import TalkPairInputs, read_talk_runs
from esc_lab.stages.run_stage import run_stage
from tests.conftest import ROOT
from tests.e2e.conftest import execute
from tests.e2e.test_bad_input import complaint
from tests.e2e.test_converse import LOCAL
from tests.e2e.test_judge import Left, changed, composed, judge
from tests.e2e.test_search_faults import asked_once
from tests.evaluation.talk_roles import feel, who
from tests.judging.talk_judges import ASPECTS, ORDER, judging, true_worth
from tests.search.endpoint import Endpoint
from tests.search.endpoint_roles import journalled, name

CARDS = 4


def converse(path: Path, url: str, model: str, cards: int = CARDS, talks: int = 1) -> Path:
    cfg = copy.deepcopy(composed("stage=converse", "llm=openai", "llm.openai.model=seeker", "search.cache=false",
                                 "converse.max_turns=3", "logger=none", "reuse=false"))  # fmt: skip
    cfg.llm.openai.base_url, cfg.llm.supporter.model, cfg.cards.limit, cfg.converse.talks = url, model, cards, talks
    path.mkdir(parents=True)
    run_stage(replace(cfg, run_dir=str(path)))
    return path


@pytest.fixture(scope="module")
def knows() -> Iterator[tuple[Endpoint, str]]:
    with (server := Endpoint(judging(true_worth))).running() as url:
        yield server, url


@pytest.fixture(scope="module")
def talks(knows, tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("talks")
    return {model: converse(root / model, knows[1], model) for model in ORDER}


@pytest.fixture(scope="module")
def judged(knows, talks, tmp_path_factory) -> Left:
    runs, parrot = [talks[model] for model in ORDER], str(talks["parrot"])
    return judge(tmp_path_factory.mktemp("judged"), knows[1], runs, judge__baseline=parrot)


def rates(left: Left, what: str = "win_rate") -> dict[str, float]:
    found = {}
    for key, value in left.metrics.items():
        if match := re.fullmatch(rf"(\w+) base \(cso\)/pairwise/{what}", key):
            found[match[1]] = value
    return found


def test_the_planted_order_is_recovered(knows, talks, judged, tmp_path):
    assert rates(judged) == {"kind": 1, "asking": 1, "cold": 0}
    for aspect in ASPECTS:
        assert rates(judged, f"{aspect}/win_rate") == {"kind": 1, "asking": 1, "cold": 0}
    assert rates(judged, "consistency") == {"kind": 1, "asking": 1, "cold": 1}
    assert judged.metrics["gate/pairwise/believed"] == 1
    assert judged.metrics["judge/forced"] == 0
    # Against another baseline: the planted talks and what was compared already are not asked about again.
    runs = [talks[model] for model in ORDER]
    before = len(knows[0].requests)
    resume = str(judged.path)
    other = judge(tmp_path, knows[1], runs, judge__baseline="asking base (cso)", resume=resume)
    assert rates(other) == {"kind": 1, "parrot": 0, "cold": 0}
    assert len(knows[0].requests) - before == 2 * 2 * len(ASPECTS) * CARDS  # kind and cold


def test_what_it_leaves(talks, judged):
    assert len(judged.lines) == 3 * 3 * CARDS
    line = next(line for line in judged.lines if line["run"] == "kind base (cso)")
    written = [
        sum(len(turn.reply.text) for turn in talk.turns if turn.speaker == "supporter")
        for model in ("kind", "parrot")
        for talk in read_dialogues(talks[model] / "talks.jsonl")
        if talk.meta["card"] == line["card"]
    ]
    assert line["length_difference"] == written[0] - written[1]
    assert (line["first"], line["second"], line["outcome"], line["aspect"]) == (1, 1, 1, "exploration")
    record = judged.record
    assert record["judged_talks"] == record["shared_talks"] == record["cards"] == CARDS
    assert [one["label"] for one in record["runs"]] == [f"{model} base (cso)" for model in ORDER]
    assert record["runs"][2]["pairwise"] is None
    assert record["runs"][0]["pairwise"]["overall"]["wins"] == 3 * CARDS
    assert {*record["gates"][0]["kinds"]} == {"poor", "other_aspect", *ASPECTS}
    page = (judged.path / "judge.md").read_text()
    for text in (
        "Win rates of talks against parrot base (cso)",
        "## Check of the pairwise judge of talks",
        "Believed.",
    ):
        assert text in page


@pytest.mark.parametrize(
    ("worth", "told"),
    [
        (lambda talk, aspect: 0.0, "share 0.50 "),  # always the first
        (lambda talk, aspect: float(len(talk)), "not above what lengths tell"),
    ],
    ids=["position", "length"],
)
def test_a_biased_judge(talks, tmp_path, worth, told):
    runs = [talks["cold"], talks["kind"]]
    with Endpoint(judging(worth)).running() as url:
        with pytest.raises(UserError, match="pairwise judge: NOT believed") as refused:
            judge(tmp_path / "refused", url, runs)
        assert told in str(refused.value)
        assert "judge.force=true" in str(refused.value)
        forced = judge(tmp_path / "forced", url, runs, judge__force=True)
    assert forced.metrics["judge/forced"] == 1
    assert "FORCED, do not rely on these numbers" in (forced.path / "judge.md").read_text()
    if "share" in told:
        assert rates(forced) == {"kind": 0.5}
        assert rates(forced, "consistency") == {"kind": 0}
        assert {line["outcome"] for line in forced.lines} == {0.5}


def test_the_judges_opinion_of_the_intensity(knows, talks, tmp_path):
    """A judge that feels with the seeker, and one that thinks all of it half as strong, with noise."""

    def doubt(body: dict) -> str:
        noise = random.Random(json.dumps(body, sort_keys=True)).choice((-0.5, 0, 0.5))
        return json.dumps({"intensity": min(5, max(1, 1 + (feel(body) - 1) / 2 + noise))})

    runs = [talks["kind"], talks["cold"]]
    same = judge(tmp_path / "same", knows[1], runs, judge__intensity=True, judge__pairwise=False)
    for model in ("kind", "cold"):
        assert same.metrics[f"{model} base (cso)/judge/correlation"] == pytest.approx(1)
        expected = json.loads((talks[model] / "metrics.json").read_text())
        for measure in ("intensity_start", "intensity_end", "relief", "success", "turns_to_success"):
            for who_says in ("judge", "seeker"):
                assert same.metrics[f"{model} base (cso)/{who_says}/{measure}"] == expected[f"converse/{measure}"]
    assert same.metrics["judge/calls"] == 2 * CARDS * 4 - CARDS  # the seeker's first messages are the same
    curve = same.record["runs"][0]["intensity"]["judge_curve"]
    assert curve == json.loads((talks["kind"] / "measures.json").read_text())["intensity"]
    with Endpoint(doubt).running() as url:
        other = judge(tmp_path / "other", url, runs[:1], judge__intensity=True)
    assert {line["kind"] for line in other.lines} == {"intensity"}
    points = [pair for line in other.lines for pair in zip(line["seeker"], line["judge"], strict=True)]
    assert len(points) == 4 * CARDS
    assert 0.3 < (found := other.metrics["kind base (cso)/judge/correlation"]) < 0.99
    assert found == pytest.approx(correlate(points))
    assert other.metrics["kind base (cso)/judge/success"] > other.metrics["kind base (cso)/seeker/success"]
    page = (other.path / "judge.md").read_text()
    assert "kind base (cso): correlation of what judge and seeker say of the intensity +0." in page


def correlate(points: list[tuple[float, float]]) -> float:
    means = [sum(side) / len(points) for side in zip(*points, strict=True)]
    apart = [[value - mean for value, mean in zip(point, means, strict=True)] for point in points]
    spread = [sum(point[side] ** 2 for point in apart) for side in (0, 1)]
    return sum(x * y for x, y in apart) / (spread[0] * spread[1]) ** 0.5


def test_an_endpoint_that_dies_and_answers_of_no_use(talks, judged, tmp_path):
    """What was answered is kept, and asked once; intensities out of range are left out and counted."""
    runs, alive = [talks["parrot"], talks["kind"]], []

    def odd(body: dict) -> str:
        return '{"intensity": 9}' if who(body) == "intensity" else judging(true_worth)(body)

    server = Endpoint(odd, faults=lambda n, body: "401" if n >= 160 and not alive else None, model=name)
    with server.running() as url:
        with pytest.raises(UserError, match=r"does not accept the key \(401\)"):
            judge(tmp_path / "died", url, runs, judge__intensity=True)
        assert 0 < len(journalled(tmp_path)) <= 160
        alive.append(True)
        with asked_once(server, tmp_path):
            resume = str(tmp_path / "died")
            again = judge(tmp_path / "again", url, runs, judge__intensity=True, resume=resume)
    pairs = [line for line in again.lines if line["kind"] == "talk_pair"]
    assert pairs == [line for line in judged.lines if line["run"] == "kind base (cso)"]
    assert again.metrics["judge/missing"] == 2 * CARDS * 4
    assert again.metrics["kind base (cso)/judge/missing"] == CARDS * 4
    assert "kind base (cso)/judge/relief" not in again.metrics


def read(*runs: Path | dict[str, Any]) -> TalkPairInputs:
    """The inputs of run directories; a dictionary changes settings."""
    changes = [run for run in runs if isinstance(run, dict)]
    paths = [run for run in runs if isinstance(run, Path)]
    return read_talk_runs(changed("http://localhost/v1", paths, changes[0] if changes else {}))


PAIRED = r"judge.runs: the seekers of .* differ \(talk closed_bakery-0\): .*Fix: compare supporters that met the same"


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("roles.seeker.client.model", "another", 'roles.seeker.client.model is "seeker" and "another"'),
        ("seed", 2, "seed is 1 and 2"),
        ("persona.greeting", "Hi.", 'and "Hi."'),
        ("wording.answer", "Say something.", 'and "Say something."'),
        ("card.problem", "debts", 'and "debts"'),
        ("max_turns", 2, "max_turns is 3 and 2"),
        ("roles.supporter.client.model", "another", None),
        ("prompt.template", "standard", None),
        ("schedule", ["Question"], None),
        ("intensity", False, "intensity is true and false"),
    ],
)
def test_talks_are_paired_under_the_same_seeker(talks, tmp_path, place, value, message):
    other = tmp_path / "other"
    shutil.copytree(talks["cold"], other)
    journal = other / "talks" / "closed_bakery-0.journal.jsonl"
    head, *calls = journal.read_text().splitlines()
    header = json.loads(head)
    *groups, last = place.split(".")
    node: Any = header["config"]
    for group in groups:
        node = node[group]
    assert node[last] != value
    node[last] = value
    journal.write_text("\n".join([json.dumps(header), *calls, ""]))
    if message is None:
        assert len(read(talks["kind"], other).keys) == CARDS
        return
    with pytest.raises(UserError, match=PAIRED) as refused:
        read(talks["kind"], other)
    assert message in str(refused.value)


def test_talks_that_one_run_lacks(talks, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(talks["cold"], other)
    lines = (other / "talks.jsonl").read_text().splitlines()
    (other / "talks.jsonl").write_text(lines[0] + "\n")
    inputs = read(talks["kind"], other)
    assert len(inputs.keys) == 1
    assert f"{CARDS - 1} talks are not in every run, and left out" in inputs.remarks
    other_card = lines[0].replace('"card": "closed_bakery"', '"card": "none"')
    (other / "talks.jsonl").write_text(other_card + "\n")
    with pytest.raises(UserError, match="there is no talk that every run has"):
        read(talks["kind"], other)
    (other / "metrics.json").unlink()
    with pytest.raises(UserError, match=r"no finished run: it has no metrics\.json.*Fix: finish it"):
        read(talks["kind"], other)
    shutil.copytree(talks["cold"], tmp_path / "bare")
    shutil.rmtree(tmp_path / "bare" / "talks")
    with pytest.raises(UserError, match="there are no journals, which say what its seekers are"):
        read(talks["kind"], tmp_path / "bare")


def test_fewer_talks_are_among_more(talks):
    few, many = (read(talks["kind"], talks["cold"], {"judge.decisions": number}).keys for number in (2, None))
    assert len(few) == 2
    assert {*few} < {*many}


def test_what_users_do_wrong(knows, talks, tmp_path):
    def refused(*runs: Path, **changes: Any) -> str:
        with pytest.raises(UserError) as error:
            judge(tmp_path / "run", knows[1], runs, **changes)
        return str(error.value)

    kind, cold, evaluation = talks["kind"], talks["cold"], tmp_path / "evaluation"
    evaluation.mkdir()
    (evaluation / "config.yaml").write_text("stage: evaluate\n")
    assert "one run makes no pair of talks" in refused(kind)
    assert "one run makes no pair of talks" in refused(kind, kind)
    assert "no judged run 'kin base (cso)'; did you mean 'kind base (cso)'?" in refused(
        kind, cold, judge__baseline="kin base (cso)"
    )
    assert "whole talks follow no one strategy" in refused(kind, cold, judge__question="adherence")
    assert "are not judged together with replies" in refused(kind, evaluation)
    assert "the intensity is asked of whole talks" in refused(evaluation, judge__intensity=True)
    named = [{"name": "warmth", "question": "Warmth?"}]
    unchecked = refused(kind, cold, judge__talk_pairs__aspects=named)
    assert "cannot be checked: there are no planted talks for warmth (judge.talk_pairs.planted)" in unchecked


def test_from_the_command_line(knows, judged, talks, tmp_path):
    few = ["stage=judge", "llm=openai", "llm.openai.model=test", f"llm.openai.base_url={knows[1]}",
           "search.cache=false", f"judge.runs=[{talks['parrot']},{talks['kind']}]"]  # fmt: skip
    few += ["judge.decisions=24", "judge.check=12", f"resume={judged.path}"]
    outcome = execute(tmp_path / "right", *few)
    assert outcome.status == 0, outcome.errors
    for text in ("check of the pairwise judge", "talks that are good at something else", "win rates of talks"):
        assert text in outcome.output
    wrong = complaint(execute(tmp_path / "wrong", *few, "judge.talk_pairs.wording.pair=Which?"))
    assert "judge.talk_pairs.wording: 'pair' lacks the slot {first}" in wrong


def test_a_local_judge(command, tmp_path):
    """Read by probabilities: what it prefers, and expected intensities."""
    few = [word for word in LOCAL if not word.startswith("cards.limit")]
    runs = [command(*few, "cards.limit=2"), command(*few, "cards.limit=2", "converse.strategies=[Question]")]
    planted = yaml.safe_load((ROOT / "esc_lab/judge_check/planted_hill.yaml").read_text())
    (tmp_path / "planted.yaml").write_text(yaml.safe_dump({**planted, "talks": planted["talks"][:1]}))
    call = ("stage=judge", "model@llm.local.model=tiny_llama", "search.cache=false", "judge.intensity=true",
            f"judge.talk_pairs.planted={tmp_path}/planted.yaml", "judge.force=true",
            f"judge.runs=[{','.join(str(run.path) for run in runs)}]")  # fmt: skip
    outcome = command(*call)
    assert outcome.status == 0, outcome.errors
    lines = outcome.lines("judgements.jsonl")
    told = [value for line in lines if line["kind"] == "intensity" for value in line["judge"]]
    assert all(1 < value < 5 for value in told)
    assert all(0 < line["first"] < 1 for line in lines if line["kind"] == "talk_pair")
    assert outcome.metrics["judge/forced"] == 1
    assert "1 dialogues say too little of others" in outcome.errors
    assert "no second opinion" in outcome.output
    labels = [run["label"] for run in outcome.read("judge.json")["runs"]]
    assert labels == ["tiny-llama base (cso)", "tiny-llama base always Question (cso)"]


def test_comparisons_have_it_beside_the_measures(talks, judged):
    found = compute_comparison([talks["parrot"], talks["kind"], talks["cold"], judged.path])
    for aspect in ASPECTS:
        assert found.metrics[f"kind base (cso)/converse/judge/preferred, {aspect}"] == 1
        assert found.metrics[f"cold base (cso)/converse/judge/preferred, {aspect}"] == 0
