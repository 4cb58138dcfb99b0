"""Stage `search` when things go wrong, against a real server on the loopback interface: no answer is lost."""

from __future__ import annotations

import json
import random
import re
import resource
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from esc_lab.cli.compositions import CONF
from esc_lab.config import Config, typed
from esc_lab.data.corpora import read_dialogues
from esc_lab.stages.run_stage import run_stage
from tests.conftest import CACHE, PROCESSES
from tests.e2e.conftest import LIMITS, SEARCH, execute
from tests.e2e.test_bad_input import complaint
from tests.search.endpoint import Endpoint
from tests.search.endpoint_roles import journalled, name, play, role

KEY = "sk-recognisable-0123456789"
TRAIN = "esc_pro/train.jsonl"


def words(url: str, *others: str) -> list[str]:
    own = {word.split("=")[0] for word in others}
    few = ["stage=search", "llm=openai", "mcts=quick", "search.seeds=3", "search.cache=false", "search.judge_check=0"]
    few = [word for word in few if word.split("=")[0] not in own]
    return [*few, "llm.openai.model=test", f"llm.openai.base_url={url}", *others]


def composed(*call: str) -> Config:
    """The configuration that a command has."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return typed(compose("config", list(call)))


@pytest.fixture(autouse=True)
def _key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


@pytest.fixture(scope="module")
def undisturbed_run(tmp_path_factory) -> Path:
    with Endpoint(play).running() as url:
        outcome = execute(tmp_path_factory.mktemp("undisturbed"), *words(url))
    assert outcome.status == 0, outcome.errors
    return outcome.path


@pytest.fixture(scope="module")
def undisturbed(undisturbed_run) -> bytes:
    return (undisturbed_run / TRAIN).read_bytes()


def test_killed_ten_times(tmp_path, undisturbed):
    """Each process goes on where the last one was killed, and asks nothing again that was answered."""
    draw = random.Random(1)
    with (endpoint := Endpoint(play, latency_s=0.02, model=name)).running() as url:
        call = words(url, "resume=auto", "search.concurrency=4")
        cfg = composed(*call, "logger=none", "reuse=false", LIMITS, f"output_root={tmp_path}")
        for number in range(10):
            # Every second one goes on in the same directory.
            directory = tmp_path / "search" / ("0-same" if number % 2 else f"0-{number}")
            directory.mkdir(parents=True, exist_ok=True)
            with asked_once(endpoint, tmp_path) as before:
                process = PROCESSES.Process(target=run_stage, args=(replace(cfg, run_dir=str(directory)),))
                process.start()
                most = before + draw.randrange(25)
                while len(endpoint.requests) <= most:
                    assert process.is_alive()
                    time.sleep(0.001)
                time.sleep(draw.random() * 0.05)
                process.kill()
                process.join()
        with asked_once(endpoint, tmp_path):
            finished = execute(tmp_path, *call)
    assert finished.status == 0, finished.errors
    assert (finished.path / TRAIN).read_bytes() == undisturbed


def test_a_server_of_two_dies_and_the_search_goes_on_with_another(tmp_path, undisturbed):
    """It goes on at once with the one that is left, and later elsewhere, and asks nothing again that was answered."""
    serving = {"model": name, "models": [{"id": "test"}], "latency_s": 0.02}
    dying = Endpoint(play, faults=lambda number, body: "die" if number == 15 else None, **serving)
    left, third = Endpoint(play, **serving), Endpoint(play, **serving)
    with dying.running() as one, left.running() as two, third.running() as three:
        budget = ("search.budget.calls=170", "resume=auto", "search.concurrency=4")
        stopped = execute(tmp_path, *words(f"[{one},{two}]", *budget))
        assert "the budget of 170 calls is spent" in stopped.errors
        assert 0 < len(left.requests) <= 170
        retries = json.loads((stopped.path / "metrics.json").read_text())
        kept = {line["answer"]["model"] for line in journalled(tmp_path)}
        finished = execute(tmp_path, *words(f"[{three}]", "resume=auto"))
    assert finished.status == 0, finished.errors
    assert (finished.path / TRAIN).read_bytes() == undisturbed
    asked = Counter(name(received.body) for received in (*dying.requests, *left.requests))
    lost = retries["search/retries/connection_errors"]
    assert sum(asked.values()) - len(asked) <= lost == retries["search/lost_calls"] <= 4
    assert asked.keys() == kept
    assert not kept & {name(received.body) for received in third.requests}


def test_a_server_with_another_model_is_refused_before_anything_is_asked(tmp_path):
    servers = [Endpoint(play, models=[{"id": model}]) for model in ("test", "other")]
    with servers[0].running() as one, servers[1].running() as two:
        said = complaint(execute(tmp_path, *words(f"[{one},{two}]")), "trees")
    assert f"{two}: it does not serve 'test', but other. Fix: serve the same model under the same name" in said
    assert not any(server.requests for server in servers)


def test_killed_with_a_local_model(tmp_path):
    """Its answers do not depend on what is computed together, so what an interrupted search leaves is the same."""
    call = ("stage=search", *SEARCH, "search.seeds=3", "mcts.in_flight=3", "search.trees=2", "resume=auto")
    undisturbed = execute(tmp_path / "undisturbed", *call)
    assert undisturbed.status == 0, undisturbed.errors
    draw, killed = random.Random(2), tmp_path / "killed"
    cfg = composed(*call, "model=tiny_llama", "logger=none", "reuse=false", LIMITS, f"cache_dir={CACHE}",
                   f"output_root={killed}")  # fmt: skip
    for number in range(3):
        directory = killed / "search" / f"0-{number}"
        directory.mkdir(parents=True)
        before = len(list(journalled(killed)))
        process = PROCESSES.Process(target=run_stage, args=(replace(cfg, run_dir=str(directory)),))
        process.start()
        most = before + draw.randrange(5, 40)
        while len(list(journalled(directory))) <= most:
            assert process.is_alive()
            time.sleep(0.01)
        process.kill()
        process.join()
    # Other trees and calls side by side, so that other calls are computed together.
    finished = execute(killed, *call, "search.concurrency=2")
    assert finished.status == 0, finished.errors
    for file in (TRAIN, "esc_pro/pairs.json", "esc_pro/kto.json"):
        assert (finished.path / file).read_bytes() == (undisturbed.path / file).read_bytes()


@contextmanager
def asked_once(endpoint: Endpoint, root: Path) -> Iterator[int]:
    """Nothing is asked twice, nor what journals below `root` held before; gives how many requests there were then."""
    endpoint.settle()  # a client that was stopped may have sent what the endpoint has not read yet
    kept = {line["answer"]["model"] for line in journalled(root)}
    before = len(endpoint.requests)
    yield before
    asked = [name(received.body) for received in endpoint.requests[before:]]
    assert len(set(asked)) == len(asked)
    assert not kept & set(asked)


FAILING = ("429", "500", "503", "408", "disconnect", "truncated", "malformed_body")  # asked again
RETRIES = {
    "rate_limited": ("429",),
    "server_errors": ("500", "503"),
    "timeouts": ("408",),
    "connection_errors": ("disconnect", "truncated"),
    "malformed": ("malformed_body",),
}
SAYING = ("refusal", "filtered", "empty")  # answers of no use
SAYING_NO_JSON = ("malformed_json", "unknown_strategy")


class Failing:
    """Three requests of ten go wrong; an answer of no use is the same whenever it is asked for.

    Attributes:
        answered: name of each request that had a whole answer -> its role, and what is wrong with the answer.
    """

    def __init__(self) -> None:
        self.times: Counter[str] = Counter()
        self.happened: Counter[str | None] = Counter()
        self.answered: dict[str, tuple[str, str | None]] = {}

    def __call__(self, number: int, body: dict) -> str | None:
        asked, playing = name(body), role(body)
        self.times[asked] += 1
        said = random.Random(asked)
        ways = (*SAYING, *SAYING_NO_JSON) if playing in ("strategist", "judge") else SAYING
        fault = said.choice(ways) if said.random() < 0.15 else None
        passing = random.Random(f"{asked} {self.times[asked]}")
        if passing.random() < 0.18:
            fault = passing.choice(FAILING)
        else:
            self.answered[asked] = playing, fault
        self.happened[fault] += 1
        return fault


def fair(body: dict) -> str:
    """As `play`, but the judge gives everything 3 points."""
    return (
        json.dumps(dict.fromkeys(("empathy", "information", "humanoid", "strategy"), 3))
        if role(body) == "judge"
        else play(body)
    )


def key_is_nowhere(place: Path, *outcomes) -> None:
    texts = [path.read_text(errors="replace") for path in place.glob("**/*") if path.is_file()]
    assert len(texts) > 3
    texts += [text for outcome in outcomes for text in (outcome.output, outcome.errors)]
    assert not [text for text in texts if KEY.removeprefix("sk-") in text]


def test_three_of_ten_calls_fail(command, tmp_path):
    """The search comes to its end, keeps every answer, counts those of no use and makes nothing up."""
    faults = Failing()
    attempts = {"strategist": 1, "supporter": 2, "seeker": 2, "judge": 1}
    rule = ["threshold=absolute", "preferred_min=-1", "rejected_max=1", "lower=false"]
    call = [*(f"llm.{name}.attempts={number}" for name, number in attempts.items())]
    call += ["search.judge_check=2", *(f"mcts.preferences.{word}" for word in rule)]
    call += ["mcts.in_flight=1"]  # so that nothing is left over when a tree is finished
    with Endpoint(fair, faults=faults, model=name).running() as url:
        call = words(url, *call)
        outcome = command(*call)
    assert outcome.status == 0, outcome.errors
    assert {*FAILING, *SAYING, *SAYING_NO_JSON} <= set(faults.happened)

    retries = {kind: outcome.metrics[f"search/retries/{kind}"] for kind in RETRIES}
    expected = {kind: sum(faults.happened[fault] for fault in of) for kind, of in RETRIES.items()}
    assert retries == expected

    kept = journalled(outcome.path)
    assert {line["answer"]["model"] for line in kept} == faults.answered.keys()
    for playing, most in attempts.items():
        wrong = Counter(fault for who, fault in faults.answered.values() if who == playing and fault)
        found = {event: outcome.metrics.get(f"search/{playing}/{event}", 0) for event in ("unusable", "refused")}
        assert found == {"unusable": wrong.total(), "refused": wrong["refusal"] + wrong["filtered"]}
        missing = outcome.metrics.get(f"search/{playing}/missing", 0)
        assert missing == wrong.total() if most == 1 else missing <= wrong.total() / most
    values = [
        reply.value
        for dialogue in read_dialogues(outcome.path / TRAIN)
        for turn in dialogue.turns
        for reply in (turn.reply, *turn.rejected)
        if reply.value is not None
    ]
    assert len(values) > 20
    assert values == pytest.approx([0] * len(values), abs=1e-9)  # 3 points, wherever the judge was heard
    key_is_nowhere(tmp_path, outcome)

    # All of it is there: the endpoint is gone.
    again = command(*call, f"resume={outcome.path}")
    assert again.status == 0, again.errors
    assert (again.path / TRAIN).read_bytes() == (outcome.path / TRAIN).read_bytes()


@pytest.mark.parametrize("check", [0, 30])
def test_wrong_key(command, tmp_path, check):
    with (endpoint := Endpoint(play, faults=lambda number, body: "401")).running() as url:
        outcome = command(*words(url, f"search.judge_check={check}", "search.concurrency=4"))
    assert re.search(r"does not accept the key \(401\)\. Fix: set OPENAI_API_KEY", complaint(outcome, "trees"))
    assert len(endpoint.requests) <= 30  # of 200
    assert endpoint.requests[0].authorization == f"Bearer {KEY}"
    key_is_nowhere(tmp_path, outcome)


def test_a_seed_that_is_too_long_is_set_aside(command, tmp_path, undisturbed):
    """The others finish, it is told and counted, and with room for it the search goes on to what it would have been."""
    texts: list[str] = []

    def fault(number: int, body: dict) -> str | None:
        start = body["messages"][1]["content"][:120]  # the first turns of a seed
        texts.extend([start] if start not in texts and role(body) == "strategist" else [])
        return "400:context_length_exceeded" if texts and start == texts[0] and full else None

    full = True
    with Endpoint(play, faults=fault, model=name).running() as url:
        call = words(url)
        outcome = command(*call)
        assert outcome.status == 0, outcome.errors
        assert outcome.metrics["search/too_long_trees"] == outcome.metrics["search/unfinished_trees"] == 1
        assert "is set aside: " in outcome.errors
        assert "1 of 3 seed dialogues are set aside" in outcome.errors
        card = (outcome.path / "esc_pro/README.md").read_text()
        assert "| of these set aside, as a conversation exceeds a model's context | 1 |" in card
        full = False
        resumed = command(*call, f"resume={outcome.path}")
    assert resumed.status == 0, resumed.errors
    assert resumed.metrics["search/too_long_trees"] == 0
    assert (resumed.path / TRAIN).read_bytes() == undisturbed


def test_answers_that_are_all_cut_off(command):
    with (endpoint := Endpoint(play, faults=lambda number, body: "cut_off empty")).running() as url:
        line = complaint(command(*words(url, "search.concurrency=4")), "trees")
    assert "llm.strategist: 30 of 30 answers cannot be used: 30 cut off at max_tokens (256)" in line
    assert "Fix: raise llm.strategist.max_tokens" in line
    assert len(endpoint.requests) < 60


def test_no_key(command, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    line = complaint(command("stage=search", "llm=openai", "llm.openai.model=test"))
    assert "OPENAI_API_KEY, which holds the key, is not set" in line


def test_endpoint_that_goes_down(command, undisturbed):
    """It says so, with what to do; when the endpoint is back the search goes on."""
    up = threading.Event()
    fault = lambda number, body: "disconnect" if number > 60 and not up.is_set() else None  # noqa: E731
    with (endpoint := Endpoint(play, faults=fault, model=name)).running() as url:
        outcome = command(*words(url, "llm.openai.attempts=2"))
        line = complaint(outcome, "trees")
        assert re.search(r"no answer of 'test' after 2 attempts; the last problem: .* Fix: .* resume", line)
        assert f"61 answers are kept; resume={outcome.path} goes on from here" in outcome.errors
        assert len(journalled(outcome.path)) == 61
        up.set()
        with asked_once(endpoint, outcome.path):
            resumed = command(*words(url), f"resume={outcome.path}")
    assert resumed.status == 0, resumed.errors
    assert (resumed.path / TRAIN).read_bytes() == undisturbed


def test_budget(command, undisturbed):
    with Endpoint(play).running() as url:
        outcome = command(*words(url, "search.budget.calls=160", "search.concurrency=8"))
        assert outcome.status == 0, outcome.errors
        assert (
            "search.budget.calls: the budget of 160 calls is spent. Fix: a larger search.budget.calls" in outcome.errors
        )
        assert 160 <= outcome.metrics["search/calls"] <= 167  # those under way come to their end
        assert outcome.metrics["search/unfinished_trees"] > 0
        assert (outcome.path / TRAIN).exists()
        resumed = command(*words(url, "search.budget.calls=1000"), f"resume={outcome.path}")
    assert resumed.status == 0, resumed.errors
    assert resumed.metrics["search/unfinished_trees"] == 0
    assert (resumed.path / TRAIN).read_bytes() == undisturbed


def test_full_disk(command, tmp_path, undisturbed, undisturbed_run):
    """No file may become larger than the configuration: a journal cannot take all calls, or a file not its tree."""
    most = (undisturbed_run / "config.yaml").stat().st_size + 500
    with Endpoint(play).running() as url:
        process = PROCESSES.Process(target=_with_small_files, args=(tmp_path / "full", most, *words(url)))
        process.start()
        process.join()
        assert process.exitcode == 1
        (stopped,) = (tmp_path / "full").glob("search/*")
        said = (stopped / "run.log").read_text().splitlines()
        assert re.search(r"error: .*trees/.*\.jsonl?: cannot write: .* Fix: make room .* resume=", said[-1])
        assert not (stopped / "metrics.json").exists()
        resumed = command(*words(url), f"resume={stopped}")
    assert resumed.status == 0, resumed.errors
    assert (resumed.path / TRAIN).read_bytes() == undisturbed


def _with_small_files(directory: Path, most: int, *call: str) -> None:
    directory.mkdir()
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    raise SystemExit(execute(directory, *call).status)
