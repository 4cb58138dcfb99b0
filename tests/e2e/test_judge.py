"""Stage `judge` against an endpoint on the loopback interface whose judges are known."""

from __future__ import annotations

import multiprocessing
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

import run
from esc_lab.config import DataConfig, typed
from esc_lab.corpora import ReadReport
from esc_lab.datamodule import read_splits
from esc_lab.stages.record import recorded
from tests.comparison.synthetic import settings, write_run
from tests.e2e.conftest import execute
from tests.e2e.test_bad_input import complaint
from tests.judging.evaluations import evaluation, knowing, sample
from tests.search.endpoint import Endpoint
from tests.search.endpoint_roles import journalled, judging, name

DIALOGUES = sample()
BASE, GOOD = "tiny base (cso)", "tiny base cot (cso)"
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["run", "esc_lab.stages.judge", "esc_lab.search.clients.openai", "openai", "aiohttp"])


def plain(number, dialogue, turn):
    return f"Plain words {number}." + " And some more of them." * (number % 3)


def good(number, dialogue, turn):
    """Better than the plain one in three of four decisions, the same in one of eight."""
    return plain(number, dialogue, turn) if number % 8 == 7 else f"A {'good' if number % 4 else 'bad'} one, {number}."


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("evaluated")
    return evaluation(root / "base", plain), evaluation(root / "good", good, prompt__inference="cot")


def words(url: str, runs, *others: str) -> list[str]:
    own = {word.split("=")[0] for word in others}
    few = ["stage=judge", "llm=openai", "search.cache=false", "judge.decisions=24", "judge.check=12"]
    few += ["llm.openai.model=test", f"llm.openai.base_url={url}", f"judge.runs=[{','.join(map(str, runs))}]"]
    return [*(word for word in few if word.split("=")[0] not in own), *others]


@pytest.fixture(scope="module")
def knows() -> Iterator[tuple[Endpoint, str]]:
    with (server := Endpoint(judging(knowing(DIALOGUES)))).running() as url:
        yield server, url


@pytest.fixture(scope="module")
def judged(knows, evaluated, tmp_path_factory):
    before = len(knows[0].requests)
    outcome = execute(tmp_path_factory.mktemp("judged"), *words(knows[1], evaluated))
    assert outcome.status == 0, outcome.errors
    return outcome, [received.body for received in knows[0].requests[before:]]


def test_results_are_those_of_the_judgements(judged):
    outcome, bodies = judged
    metrics, lines = outcome.metrics, outcome.lines("judgements.jsonl")
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
    assert metrics["judge/calls"] == len(bodies) == 2 * 12 + 2 * 12 + 48 - 24 + len(asked) * 2 + _copies(lines)
    assert {body["temperature"] for body in bodies} == {0.0}


def _copies(lines) -> int:
    """Of the 48 scored replies, those that differ: the same reply of two runs is scored once."""
    return len({(x["dialogue"], x["turn"], x["reply"]) for x in lines if x["kind"] == "rubric"}) - 24


def test_files(judged):
    outcome, _ = judged
    record, page = outcome.read("judge.json"), (outcome.path / "judge.md").read_text()
    assert [one["label"] for one in record["runs"]] == [BASE, GOOD]
    assert record["baseline"] == BASE
    assert record["judge"]["client"]["model"] == "test"
    assert record["judge"]["models"] == ["test-0613"]
    assert all(gate["passed"] for gate in record["gates"])
    good_one = record["runs"][1]
    assert good_one["pairwise"]["win_rate"]["low"] <= good_one["pairwise"]["win_rate"]["value"]
    assert record["runs"][0]["pairwise"] is None
    assert record["forced"] == []
    for text in (f"| {GOOD} | ", "Rubric judge: AUC 1.00", "24 of ", f"Win rate against {BASE}"):
        assert text in page
    assert "judgements" in outcome.output
    assert GOOD in outcome.output


def test_a_judge_of_length(command, evaluated, tmp_path):
    """It fails the check. Forced, its win rates are those of length, and at equal length nobody wins."""
    longer = evaluation(tmp_path / "longer", lambda n, *_: "word " * (20 + n % 7), prompt__inference="cot")
    shorter = evaluation(tmp_path / "shorter", lambda n, *_: "word " * (20 + (3 * n) % 7 - (n % 5 == 0) * 9))
    # Half of the replies are as long or shorter.
    runs = (longer, shorter)
    with Endpoint(judging(lambda talk, message: min(1.0, len(message) / 1000))).running() as url:
        refused = command(*words(url, runs))
        line = complaint(refused, "judge.journal.jsonl")
        assert re.search(r"rubric judge: AUC 0\.\d\d .*; it takes 0\.6 and an interval above 0\.5", line)
        assert "pairwise judge: share 0." in line
        assert "judge.force=true judges all the same" in line
        outcome = command(*words(url, runs, "judge.force=true", "judge.decisions=null", "judge.rubric=false"))
    assert outcome.status == 0, outcome.errors
    (pairwise,) = [one["pairwise"] for one in outcome.read("judge.json")["runs"] if one["pairwise"]]
    assert abs(pairwise["win_rate"]["value"] - 0.5) > 2 * abs(pairwise["length_controlled"]["value"] - 0.5)
    assert abs(pairwise["length_effect"]) > 1
    assert outcome.metrics["judge/forced"] == 1
    assert "FORCED, do not rely on these numbers: pairwise judge" in (outcome.path / "judge.md").read_text()
    assert len(outcome.read("judge.json")["forced"]) == 1


def test_a_judge_of_position(command, evaluated):
    with Endpoint(judging(lambda talk, message: 0.5)).running() as url:
        line = complaint(command(*words(url, evaluated, "judge.rubric=false")), "judge.journal.jsonl")
        assert "pairwise judge: share 0.50 [0.50, 0.50]" in line
        outcome = command(*words(url, evaluated, "judge.rubric=false", "judge.force=true"))
    assert outcome.metrics[f"{GOOD}/pairwise/consistency"] == 0
    assert outcome.metrics[f"{GOOD}/pairwise/win_rate"] == 0.5
    assert outcome.metrics[f"{GOOD}/pairwise/length_controlled"] == pytest.approx(0.5)


def test_a_local_judge(command, evaluated):
    """Read off probabilities: a random model cannot be trusted, and gives graded numbers all the same."""
    call = [word for word in words("", evaluated) if not word.startswith("llm")]
    call += ["llm=local", "model@llm.local.model=tiny_llama", "judge.decisions=4", "judge.check=4"]
    assert "it takes 0.6 and an interval above 0.5" in complaint(command(*call), "judge.journal.jsonl")
    outcome = command(*call, "judge.force=true")
    assert outcome.status == 0, outcome.errors
    lines = outcome.lines("judgements.jsonl")
    assert all(0 < line["overall"] < 4 for line in lines if line["kind"] == "rubric")
    chances = [line[order] for line in lines if line["kind"] == "pairwise" for order in ("first", "second")]
    assert all(chance is None or 0 < chance < 1 for chance in chances)
    assert any(chance is not None for chance in chances)


def test_killed_and_resumed(tmp_path, evaluated, judged):
    """Nothing that was answered is asked again, and the result is that of an undisturbed run."""
    with (endpoint := Endpoint(judging(knowing(DIALOGUES)), latency_s=0.02, model=name)).running() as url:
        call = words(url, evaluated, "resume=auto", "search.concurrency=4")
        with initialize_config_dir(str(run.CONF), version_base="1.3"):
            cfg = typed(compose("config", [*call, "logger=none", f"output_root={tmp_path}"]))
        for number, most in enumerate((10, 50)):
            directory = tmp_path / "judge" / f"0-{number}"
            directory.mkdir(parents=True)
            with asked_once(endpoint, tmp_path):
                process = PROCESSES.Process(target=recorded, args=(replace(cfg, run_dir=str(directory)),))
                process.start()
                while len(endpoint.requests) <= most:
                    assert process.is_alive()
                    time.sleep(0.001)
                process.kill()
                process.join()
        with asked_once(endpoint, tmp_path):
            finished = execute(tmp_path, *call)
    assert finished.status == 0, finished.errors
    assert "going on from" in finished.errors
    assert finished.lines("judgements.jsonl") == judged[0].lines("judgements.jsonl")


@contextmanager
def asked_once(endpoint: Endpoint, root: Path) -> Iterator[None]:
    kept = {line["answer"]["model"] for line in journalled(root)}
    before = len(endpoint.requests)
    yield
    asked = [name(received.body) for received in endpoint.requests[before:]]
    assert len(set(asked)) == len(asked)
    assert not kept & set(asked)


def test_budget_keeps_what_was_paid_for(command, knows, evaluated, judged):
    call = words(knows[1], evaluated)
    stopped = command(*call, "search.budget.calls=60")
    assert "the budget of 60 calls is spent. Fix: a larger search.budget.calls, with resume=" in complaint(
        stopped, "judge.journal.jsonl"
    )
    resumed = command(*call, f"resume={stopped.path}")
    assert resumed.status == 0, resumed.errors
    assert resumed.lines("judgements.jsonl") == judged[0].lines("judgements.jsonl")
    other = command(*call, f"resume={stopped.path}", "llm.judge.temperature=0.5")
    assert "the journal is of another configuration: roles.judge.temperature was 0.0, is 0.5" in complaint(other)


def test_the_judge_of_the_search_is_refused(command, knows, tmp_path):
    llm = {"judge": {"client": "openai", "model": None}, "openai": {"model": "test"}}
    search = write_run(tmp_path / "search", {**settings("search"), "llm": llm}, {})
    cso = write_run(tmp_path / "cso", settings("cso", data__path=str(search / "esc_pro")), {"val/loss": 1.0})
    runs = evaluation(tmp_path / "base", plain), evaluation(tmp_path / "of_cso", good, checkpoint=str(cso))
    line = complaint(command(*words(knows[1], runs)))
    assert f"llm.judge: test judged the search {search}, on whose data tiny CSO (cso) was trained. Fix: another" in line
    outcome = command(*words(knows[1], runs, "judge.force=true"))
    assert outcome.read("judge.json")["forced"] == [
        f"test judged the search {search}, on whose data tiny CSO (cso) was trained"
    ]
    assert outcome.metrics["judge/forced"] == 1
    assert command(*words(knows[1], runs, "llm.openai.model=another")).metrics["judge/forced"] == 0


def test_refusals(command, knows, evaluated, tmp_path):
    def refused(*runs, others=()):
        return complaint(command(*words(knows[1], runs, *others)))

    fewer = evaluation(tmp_path / "fewer", good, DIALOGUES[:5], prompt__inference="cot")
    assert "test sets differ" in refused(evaluated[0], fewer)
    named = "judge.baseline='tiny base cto (cso)'"
    assert "no judged run 'tiny base cto (cso)'; did you mean" in refused(*evaluated, others=[named])
    assert "one run makes no pair" in refused(evaluated[0], others=["judge.rubric=false"])
    unwritten = evaluation(tmp_path / "unwritten", lambda *_: None, prompt__inference="cot")
    assert "there is no written reply. Fix: evaluate with evaluate.generation.enabled=true" in refused(unwritten)
    longer = evaluation(tmp_path / "longer", good, evaluate=sampled(80), prompt__inference="cot")
    shorter = evaluation(tmp_path / "shorter", plain, evaluate=sampled(40))
    assert "evaluate.generation.max_new_tokens differs: " in refused(shorter, longer)
    absent = command("stage=judge", "llm=openai", "judge.runs=[absent]", "judge.rubric=false", "judge.pairwise=false")
    for text in (
        "judge.runs: absent: no such directory",
        "nothing is judged",
        "no name of a model for judge. Fix: llm",
    ):
        assert text in absent.errors


def sampled(tokens: int) -> dict:
    generation = {"temperature": 0.0, "top_p": 1.0, "max_new_tokens": tokens, "decisions": None}
    return {"split": "test", "generation": generation}


def test_dialogues_of_the_corpus(command, tmp_path):
    """An evaluation that left no dialogues: its configuration says where they are from."""
    split = read_splits(DataConfig(name="sample", path=None), "esconv", ReadReport())["test"][:3]
    found = evaluation(tmp_path / "run", plain, split, keep=False, evaluate=sampled(40))
    with Endpoint(judging(knowing(split))).running() as url:
        outcome = command(*words(url, [found], "judge.decisions=3"))
        assert outcome.status == 0, outcome.errors
        assert outcome.metrics[f"{BASE}/rubric/n"] == 3
        foreign = evaluation(tmp_path / "foreign", plain, keep=False, evaluate=sampled(40))
        assert "are not those that were evaluated" in complaint(command(*words(url, [foreign])))
