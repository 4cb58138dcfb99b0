"""Stage `judge` against an endpoint on the loopback interface whose judges are known."""

from __future__ import annotations

import copy
import functools
import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from esc_lab.cli.compositions import CONF
from esc_lab.comparison.result import compute_comparison
from esc_lab.config import Config, DataConfig, typed
from esc_lab.data.corpora import ReadReport, read_splits
from esc_lab.data.dialogue import Dialogue
from esc_lab.errors import UserError
from esc_lab.judge_check.cases import FOREIGN, NEXT, REJECTED, add_claim, draw_cases
from esc_lab.stages.run_stage import run_stage
from tests.comparison.synthetic import settings, write_run
from tests.conftest import PROCESSES
from tests.judging.evaluations import evaluation, knowing, sample
from tests.search.endpoint import Endpoint
from tests.search.endpoint_roles import journalled, judging, name

DIALOGUES = sample()
CLAIM = "empathy: 4, information: 4, humanoid: 4, strategy: 4"
BASE, GOOD = "tiny base (cso)", "tiny base cot (cso)"


def plain(number, dialogue, turn):
    return f"Plain words {number}." + " And some more of them." * (number % 3)


def good(number, dialogue, turn):
    """Better than the plain one in three of four decisions, the same in one of eight."""
    return plain(number, dialogue, turn) if number % 8 == 7 else f"A {'good' if number % 4 else 'bad'} one, {number}."


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("evaluated")
    return evaluation(root / "base", plain), evaluation(root / "good", good, prompt__inference="cot")


def words(url: str, runs: Sequence[Path], *others: str) -> list[str]:
    own = {word.split("=")[0] for word in others}
    few = ["stage=judge", "llm=openai", "search.cache=false", "judge.decisions=24", "judge.check=12", "logger=none"]
    few += ["llm.openai.model=test", f"llm.openai.base_url={url}", f"judge.runs=[{','.join(map(str, runs))}]"]
    return [*(word for word in few if word.split("=")[0] not in own), *others]


@cache
def composed(*call: str) -> Config:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return typed(compose("config", list(call)))


@dataclass(frozen=True)
class Left:
    """What a run left."""

    path: Path
    metrics: dict[str, float]

    @property
    def record(self) -> dict[str, Any]:
        return json.loads((self.path / "judge.json").read_text())

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.path / "judgements.jsonl").read_text().splitlines()]


def changed(url: str, runs: Sequence[Path], changes: Mapping[str, Any]) -> Config:
    """The configuration of `words`, composed once, with other values by dotted name."""
    cfg = copy.deepcopy(composed(*words("http://localhost/v1", [])))
    for key, value in {"judge.runs": [*map(str, runs)], "llm.openai.base_url": url, **changes}.items():
        *groups, last = key.split(".")
        setattr(functools.reduce(getattr, groups, cfg), last, value)
    return cfg


def judge(path: Path, url: str, runs: Sequence[Path], **changes: Any) -> Left:
    """Run the stage; `changes` are by dotted name with `__` for the dots."""
    cfg = changed(url, runs, {name.replace("__", "."): value for name, value in changes.items()})
    path.mkdir(parents=True, exist_ok=True)
    return Left(path, run_stage(replace(cfg, run_dir=str(path))))


@pytest.fixture(scope="module")
def knows() -> Iterator[tuple[Endpoint, str]]:
    with (server := Endpoint(judging(knowing(DIALOGUES)))).running() as url:
        yield server, url


@pytest.fixture(scope="module")
def judged(knows, evaluated, tmp_path_factory) -> tuple[Left, list[dict]]:
    before = len(knows[0].requests)
    left = judge(tmp_path_factory.mktemp("judged"), knows[1], evaluated)
    return left, [received.body for received in knows[0].requests[before:]]


def test_results_are_those_of_the_judgements(judged):
    left, bodies = judged
    metrics, lines = left.metrics, left.lines
    scored = {label: [x for x in lines if x["kind"] == "rubric" and x["run"] == label] for label in (BASE, GOOD)}
    pairs = [line for line in lines if line["kind"] == "pairwise"]
    assert len(pairs) == len(scored[BASE]) == len(scored[GOOD]) == 24
    assert len({(line["dialogue"], line["turn"]) for line in lines}) == 24
    for label, own in scored.items():
        # Plain words are worth 0.5 to this judge, good ones 0.75; the scores are four times that.
        for line in own:
            worth = 3.0 if "good" in line["reply"] else 2.0
            assert line["scores"] == dict.fromkeys(("empathy", "information", "humanoid", "strategy"), worth)
        values = [line["overall"] for line in own]
        assert metrics[f"{label}/rubric/overall"] == pytest.approx(sum(values) / 24)
        assert metrics[f"{label}/rubric/n"] == 24
    for line in pairs:
        assert line["identical"] == (line["reply"] == line["baseline_reply"])
        # To equal worth it says A in both orders, which is a tie.
        assert line["outcome"] == (1 if "good" in line["reply"] else 0.5)
        assert line["length_difference"] == len(line["reply"]) - len(line["baseline_reply"])
    asked = [line for line in pairs if not line["identical"]]
    assert 0 < len(asked) < 24
    assert metrics[f"{GOOD}/pairwise/win_rate"] == pytest.approx(sum(line["outcome"] for line in pairs) / 24)
    consistent = sum(line["first"] == line["second"] for line in asked) / len(asked)
    assert metrics[f"{GOOD}/pairwise/consistency"] == pytest.approx(consistent)
    assert 0.5 < metrics[f"{GOOD}/pairwise/length_controlled"] <= 1
    assert metrics["gate/rubric/auc"] == metrics["gate/pairwise/share"] == 1
    assert metrics["judge/forced"] == 0
    assert metrics["gate/rubric/believed"] == metrics["gate/pairwise/believed"] == 1
    assert metrics["judge/calls"] == len(bodies) == _check_calls() + 48 - 24 + len(asked) * 2 + _copies(lines)
    assert {body["temperature"] for body in bodies} == {0.0}


def _check_calls() -> int:
    """Questions of the checks: each conversation is scored once, and each pair compared in both orders."""
    cases = draw_cases(sorted(DIALOGUES, key=lambda dialogue: dialogue.id), 12, 1)
    claims = {side: [add_claim(case, CLAIM, side) for case in cases[FOREIGN]] for side in ("supporter", "seeker")}
    talks = {talk for drawn in (*cases.values(), *claims.values()) for case in drawn for talk in case[:2]}
    compared = sum(len(cases[kind]) for kind in (FOREIGN, NEXT, REJECTED)) + len(claims["supporter"])
    return len(talks) + 2 * compared


def _copies(lines) -> int:
    """Of the 48 scored replies, those that differ: the same reply of two runs is scored once."""
    return len({(x["dialogue"], x["turn"], x["reply"]) for x in lines if x["kind"] == "rubric"}) - 24


def test_from_the_command_line(command, knows, evaluated, judged):
    outcome = command(*words(knows[1], evaluated))
    assert outcome.status == 0, outcome.errors
    assert outcome.lines("judgements.jsonl") == judged[0].lines
    assert "judgements" in outcome.output
    assert GOOD in outcome.output
    record, page = outcome.read("judge.json"), (outcome.path / "judge.md").read_text()
    assert [one["label"] for one in record["runs"]] == [BASE, GOOD]
    assert record["baseline"] == BASE
    assert record["judge"]["client"]["model"] == "test"
    assert record["judge"]["models"] == ["test-0613"]
    assert all(gate["believed"] for gate in record["gates"])
    assert {*record["gates"][0]["kinds"]} == {"foreign", "same_dialogue", "rejected", "wrong_strategy"}
    assert {*record["gates"][1]["kinds"]} == {"foreign", "same_dialogue", "rejected"}
    good_one = record["runs"][1]
    assert good_one["pairwise"]["win_rate"]["low"] <= good_one["pairwise"]["win_rate"]["value"]
    assert record["runs"][0]["pairwise"] is None
    assert record["forced"] == []
    for text in (f"| {GOOD} | ", "Rubric judge: Believed.", "24 of ", f"Win rate against {BASE}"):
        assert text in page


def test_wrong_settings(command):
    absent = command("stage=judge", "llm=openai", "judge.runs=[absent]", "judge.rubric=false", "judge.pairwise=false")
    for text in (
        "judge.runs: absent: no such directory",
        "nothing is judged",
        "no name of a model for judge. Fix: llm",
    ):
        assert text in absent.errors
    assert "stage=judge needs run directories of evaluations" in command("stage=judge").errors


def test_beside_the_evaluations_in_a_comparison(judged, evaluated):
    left, _ = judged
    found = compute_comparison([*evaluated, left.path])
    for cell in (BASE, GOOD):
        assert found.estimates[cell, "judge/overall"].interval.value == left.metrics[f"{cell}/rubric/overall"]
    assert found.estimates[GOOD, "judge/overall"].difference.p < 0.05
    assert found.metrics[f"{GOOD}/judge/win_rate"] == left.metrics[f"{GOOD}/pairwise/win_rate"]


def test_a_judge_of_length(tmp_path):
    """It fails the check. Forced, its win rates are those of length, and at equal length nobody wins."""
    longer = evaluation(tmp_path / "longer", lambda n, *_: "word " * (20 + n % 7), prompt__inference="cot")
    shorter = evaluation(tmp_path / "shorter", lambda n, *_: "word " * (20 + (3 * n) % 7 - (n % 5 == 0) * 9))
    runs = (longer, shorter)
    with Endpoint(judging(lambda talk, message: min(1.0, len(message) / 1000))).running() as url:
        with pytest.raises(UserError) as refused:
            judge(tmp_path / "refused", url, runs)
        line = str(refused.value)
        assert re.search(r"rubric judge: NOT believed, AUC 0\.\d\d .*; it takes 0\.6 and an interval above 0\.5", line)
        assert "not above what words alone tell" in line
        assert "pairwise judge: NOT believed, share 0." in line
        assert "judge.force=true judges all the same" in line
        assert not (tmp_path / "refused" / "metrics.json").exists()
        left = judge(tmp_path / "forced", url, runs, judge__force=True, judge__decisions=None, judge__rubric=False)
    (pairwise,) = [one["pairwise"] for one in left.record["runs"] if one["pairwise"]]
    assert abs(pairwise["win_rate"]["value"] - 0.5) > 2 * abs(pairwise["length_controlled"]["value"] - 0.5)
    assert abs(pairwise["length_effect"]) > 1
    assert left.metrics["judge/forced"] == 1
    assert "FORCED, do not rely on these numbers: pairwise judge" in (left.path / "judge.md").read_text()
    assert len(left.record["forced"]) == 1


def test_a_judge_of_position(evaluated, tmp_path):
    with Endpoint(judging(lambda talk, message: 0.5)).running() as url:
        with pytest.raises(UserError, match=r"pairwise judge: NOT believed, share 0.50 \[0.50, 0.50\]"):
            judge(tmp_path / "refused", url, evaluated, judge__rubric=False)
        left = judge(tmp_path / "forced", url, evaluated, judge__rubric=False, judge__force=True)
    assert left.metrics[f"{GOOD}/pairwise/consistency"] == 0
    assert left.metrics[f"{GOOD}/pairwise/win_rate"] == 0.5
    assert left.metrics[f"{GOOD}/pairwise/length_controlled"] == pytest.approx(0.5)


def test_a_local_judge(command, evaluated):
    """Read off probabilities: a random model cannot be trusted, and gives graded numbers all the same."""
    call = [word for word in words("", evaluated) if not word.startswith("llm")]
    call += ["llm=local", "model@llm.local.model=tiny_llama", "judge.decisions=4", "judge.check=4", "judge.force=true"]
    outcome = command(*call)
    assert outcome.status == 0, outcome.errors
    assert outcome.metrics["judge/forced"] == 1
    lines = outcome.lines("judgements.jsonl")
    assert all(0 < line["overall"] < 4 for line in lines if line["kind"] == "rubric")
    chances = [line[order] for line in lines if line["kind"] == "pairwise" for order in ("first", "second")]
    assert all(chance is None or 0 < chance < 1 for chance in chances)
    assert any(chance is not None for chance in chances)


def test_killed_and_resumed(tmp_path, evaluated, judged):
    """Nothing that was answered is asked again, and the result is that of an undisturbed run."""
    again = {"resume": "auto", "output_root": str(tmp_path), "search__concurrency": 4}
    with (endpoint := Endpoint(judging(knowing(DIALOGUES)), latency_s=0.02, model=name)).running() as url:
        cfg = changed(url, evaluated, {key.replace("__", "."): value for key, value in again.items()})
        for number, most in enumerate((10, 50)):
            directory = tmp_path / "judge" / f"0-{number}"
            directory.mkdir(parents=True)
            with asked_once(endpoint, tmp_path):
                process = PROCESSES.Process(target=run_stage, args=(replace(cfg, run_dir=str(directory)),))
                process.start()
                while len(endpoint.requests) <= most:
                    assert process.is_alive()
                    time.sleep(0.001)
                process.kill()
                process.join()
        with asked_once(endpoint, tmp_path):
            finished = judge(tmp_path / "judge" / "1", url, evaluated, **again)
    assert finished.lines == judged[0].lines


@contextmanager
def asked_once(endpoint: Endpoint, root: Path) -> Iterator[None]:
    kept = {line["answer"]["model"] for line in journalled(root)}
    before = len(endpoint.requests)
    yield
    asked = [name(received.body) for received in endpoint.requests[before:]]
    assert len(set(asked)) == len(asked)
    assert not kept & set(asked)


def test_budget_keeps_what_was_paid_for(knows, evaluated, judged, tmp_path):
    with pytest.raises(
        UserError, match=r"the budget of 60 calls is spent. Fix: a larger search.budget.calls, with res"
    ):
        judge(tmp_path / "stopped", knows[1], evaluated, search__budget__calls=60)
    before = len(knows[0].requests)
    resumed = judge(tmp_path / "resumed", knows[1], evaluated, resume=str(tmp_path / "stopped"))
    assert resumed.lines == judged[0].lines
    # What two journals wait for at the same time is one call.
    paid = [call for call in journalled(tmp_path / "stopped") if not call["cached"]]
    assert len(knows[0].requests) - before == len(judged[1]) - len(paid)
    with pytest.raises(UserError, match=r"another configuration: roles.judge.temperature was 0.0, is 0.5"):
        judge(tmp_path / "other", knows[1], evaluated, resume=str(tmp_path / "stopped"), llm__judge__temperature=0.5)
    assert not journalled(tmp_path / "other")  # nothing was copied


def test_a_recording_judges_with_its_own_sampling(knows, evaluated, judged, tmp_path):
    recorded = judge(tmp_path / "recorded", knows[1], evaluated, llm__judge__temperature=0.3, llm__judge__top_p=0.7)
    before = len(knows[0].requests)
    replay = {"llm__judge__client": "replay", "llm__judge__recording": str(recorded.path / "judge.journal.jsonl")}
    again = judge(tmp_path / "again", knows[1], evaluated, **replay)
    assert len(knows[0].requests) == before
    assert again.lines == recorded.lines
    assert {line["judge_sampling"]["temperature"] for line in again.lines} == {0.3}


def test_what_is_too_long_for_the_judge_is_set_aside(evaluated, judged, tmp_path):
    """Of one dialogue nothing can be asked, as it exceeds the judge's context: it is counted, and told."""
    long = next(dialogue for dialogue in DIALOGUES if dialogue.id == judged[0].lines[0]["dialogue"])
    start = next(turn.reply.text for turn in long.turns if turn.speaker == "seeker")

    def too_long(number: int, body: dict[str, Any]) -> str | None:
        if start not in body["messages"][1]["content"] and body["model"] != "short":
            return None
        return f"400 {json.dumps({'error': {'message': 'too much', 'code': 'context_length_exceeded'}})}"

    with Endpoint(judging(knowing(DIALOGUES)), faults=too_long).running() as url:
        left = judge(tmp_path / "judge", url, evaluated, judge__force=True)  # seven dialogues are few
        with pytest.raises(UserError, match=r"NOT believed, no usable answer.*\d+ of its questions exceed the judge's"):
            judge(tmp_path / "all", url, evaluated, llm__openai__model="short")
    theirs = [line for line in left.lines if line["dialogue"] == long.id]
    assert theirs
    assert all(line.get("scores") is None and line.get("outcome") in (None, 0.5) for line in theirs)
    assert [x for x in left.lines if x["dialogue"] != long.id] == [
        x for x in judged[0].lines if x["dialogue"] != long.id
    ]
    assert left.metrics["judge/too_long"] == left.record["counts"]["judge/too_long"] > 0
    assert "questions exceed the judge's context and are left out" in (left.path / "judge.md").read_text()


def test_the_judge_of_the_search_is_refused(knows, tmp_path):
    llm = {"judge": {"client": "openai", "model": None}, "openai": {"model": "test"}}
    search = write_run(tmp_path / "search", {**settings("search"), "llm": llm}, {})
    cso = write_run(tmp_path / "cso", settings("cso", data__path=str(search / "esc_pro")), {"val/loss": 1.0})
    runs = evaluation(tmp_path / "base", plain), evaluation(tmp_path / "of_cso", good, checkpoint=str(cso))
    told = f"test judged the search {search}, on whose data tiny CSO (cso) was trained"
    before = len(knows[0].requests)
    with pytest.raises(UserError) as refused:
        judge(tmp_path / "refused", knows[1], runs)
    assert f"llm.judge: {told}. Fix: another model as judge, or judge.force=true" in str(refused.value)
    assert len(knows[0].requests) == before
    few = {"judge__decisions": 6, "judge__pairwise": False}
    left = judge(tmp_path / "forced", knows[1], runs, judge__force=True, **few)
    assert left.record["forced"] == [told]
    assert left.metrics["judge/forced"] == 1
    assert judge(tmp_path / "b", knows[1], runs, llm__openai__model="another", **few).metrics["judge/forced"] == 0


def test_refusals(knows, evaluated, tmp_path):
    def refused(*runs: Path, **changes: Any) -> str:
        with pytest.raises(UserError) as error:
            judge(tmp_path / "refused", knows[1], runs, **changes)
        return str(error.value)

    fewer = evaluation(tmp_path / "fewer", good, DIALOGUES[:5], prompt__inference="cot")
    assert "test sets differ" in refused(evaluated[0], fewer)
    found = refused(*evaluated, judge__baseline="tiny base cto (cso)")
    assert "no judged run 'tiny base cto (cso)'; did you mean" in found
    assert "one run makes no pair" in refused(evaluated[0], judge__rubric=False)
    unwritten = evaluation(tmp_path / "unwritten", good, prompt__inference="cot")
    rows = (unwritten / "predictions.jsonl").read_text()
    (unwritten / "predictions.jsonl").write_text(re.sub(r'"reply": "[^"]*"', '"reply": null', rows))
    assert "no written reply to a gold strategy. Fix: evaluate with evaluate.generation.enabled" in refused(unwritten)
    longer = evaluation(tmp_path / "longer", good, evaluate=sampled(80), prompt__inference="cot")
    shorter = evaluation(tmp_path / "shorter", plain, evaluate=sampled(40))
    assert "evaluate.generation.max_new_tokens differs: " in refused(shorter, longer)
    alone = evaluation(tmp_path / "alone", plain, DIALOGUES[:1])
    assert "the judges cannot be checked: that takes two dialogues" in refused(alone)


PROMPTED = ("Question", "Information")


def adhering(body: dict[str, Any]) -> str:
    """A judge that knows the given replies' strategies, and of others what they say of themselves."""
    given = {" ".join(turn.reply.text.split()): turn.reply.strategies for talk in DIALOGUES for turn in talk.turns}
    asked = re.search(
        r'next:\nA: (.*)\nB: (.*)\n\nBoth were written to the instruction to use the strategy "(.*)": ',
        body["messages"][1]["content"],
    )
    first, second, strategy = asked.groups()
    follows = [strategy in given.get(text, ()) or f"good {strategy}" in text for text in (first, second)]
    return json.dumps({"better": "A" if follows[0] >= follows[1] else "B"})


def test_in_pairs_by_adherence_the_judge_is_told_the_strategy(tmp_path):
    runs = [evaluation(tmp_path / "base", plain, prompted=PROMPTED),
            evaluation(tmp_path / "good", good, prompted=PROMPTED, prompt__inference="cot")]  # fmt: skip
    asked = {"judge__question": "adherence", "judge__rubric": False}
    with Endpoint(adhering).running() as url:
        left = judge(tmp_path / "judge", url, runs, **asked)
        assert left.metrics["judge/forced"] == 0
        assert left.metrics["gate/pairwise/share"] == 1
        pairs = left.lines
        assert {line["strategy"] for line in pairs} == {*PROMPTED}
        assert {line["question"] for line in pairs} == {"adherence"}
        assert [line["outcome"] for line in pairs] == [1 if "good" in line["reply"] else 0.5 for line in pairs]
        assert "which follows the strategy of its prompt more" in (left.path / "judge.md").read_text()
        found = compute_comparison([*runs, left.path])
        assert found.metrics[f"{GOOD}/judge/win_rate"] == left.metrics[f"{GOOD}/pairwise/win_rate"]
        # The corpus has no strategies of the inventory: nothing to check the judge on.
        cot = {"prompt__inference": "cot"}
        bare = [evaluation(tmp_path / "bare", plain, strip(DIALOGUES), prompted=PROMPTED),
                evaluation(tmp_path / "other", good, strip(DIALOGUES), prompted=PROMPTED, **cot)]  # fmt: skip
        with pytest.raises(UserError, match=r"judge of adherence cannot be checked: given .* no strategies of"):
            judge(tmp_path / "refused", url, bare, **asked)
        forced = judge(tmp_path / "forced", url, bare, **asked, judge__force=True)
    assert len(forced.lines) == 24
    assert {line["strategy"] for line in forced.lines} == {*PROMPTED}


def strip(dialogues: Sequence[Dialogue]) -> list[Dialogue]:
    """The dialogues without strategies."""
    bare = [[replace(turn, reply=replace(turn.reply, strategies=())) for turn in talk.turns] for talk in dialogues]
    return [replace(talk, turns=tuple(turns)) for talk, turns in zip(dialogues, bare, strict=True)]


def sampled(tokens: int) -> dict[str, Any]:
    generation = {"temperature": 0.0, "top_p": 1.0, "max_new_tokens": tokens, "decisions": None}
    return {"split": "test", "generation": generation}


def test_dialogues_of_the_corpus(tmp_path):
    """An evaluation that left no dialogues: its configuration says where they are from."""
    split = read_splits(DataConfig(name="sample", path=None), "esconv", ReadReport())["test"]
    found = evaluation(tmp_path / "run", plain, split, keep=False, evaluate=sampled(40))
    with Endpoint(judging(knowing(split))).running() as url:
        left = judge(tmp_path / "judge", url, [found], judge__decisions=3, judge__force=True)
        assert left.metrics[f"{BASE}/rubric/n"] == 3
        foreign = evaluation(tmp_path / "foreign", plain, keep=False, evaluate=sampled(40))
        with pytest.raises(UserError, match=r"are not those that were evaluated"):
            judge(tmp_path / "judge", url, [foreign])
