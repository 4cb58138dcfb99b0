"""Stage `search` against an endpoint on the loopback interface that plays all roles."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence

import pytest

from esc_lab.config.search import ROLES
from esc_lab.data.corpora import read_dialogues
from esc_lab.data.dialogue import Dialogue, Turn
from tests.conftest import ROOT
from tests.e2e.conftest import LIMITS, SEARCH, Outcome, execute
from tests.e2e.test_bad_input import complaint
from tests.search.endpoint import Endpoint
from tests.search.endpoint_roles import journalled, play, role

TRAIN = "esc_pro/train.jsonl"


def words(url: str, *others: str) -> list[str]:
    """A small search with this endpoint."""
    own = {word.split("=")[0] for word in others}
    few = ["stage=search", "llm=openai", "mcts=quick", "search.seeds=3", "search.cache=false", "search.judge_check=0"]
    few += ["llm.openai.model=test", f"llm.openai.base_url={url}"]
    return [*(word for word in few if word.split("=")[0] not in own), *others]


@pytest.fixture(scope="module")
def endpoint() -> Iterator[tuple[Endpoint, str]]:
    with (server := Endpoint(play)).running() as url:
        yield server, url


@pytest.fixture(scope="module")
def searched(endpoint, tmp_path_factory) -> Outcome:
    outcome = execute(tmp_path_factory.mktemp("searched"), *words(endpoint[1], "search.judge_check=4"))
    assert outcome.status == 0, outcome.errors
    return outcome


def test_files(searched):
    seeds = sorted(path.stem for path in searched.path.glob("trees/*.html"))
    assert len(seeds) == 3
    trees = {f"{seed}{end}" for seed in seeds for end in (".html", ".json", ".journal.jsonl")}
    assert {path.name for path in (searched.path / "trees").iterdir()} == trees | {"judge_check.journal.jsonl"}
    splits, forms = ("train", "valid", "test"), ("dialogues", "pairs", "kto")
    found = {path.name for path in (searched.path / "esc_pro").iterdir()}
    assert found == {*(f"{name}.jsonl" for name in splits), *(f"{name}.json" for name in forms), "README.md"}
    assert {"config.yaml", "environment.json", "metrics.json", "run.log"} <= {
        path.name for path in searched.path.iterdir()
    }
    assert len(read_dialogues(searched.path / "esc_pro/valid.jsonl")) == 2
    assert "data=jsonl data.path=" in searched.errors
    assert "What the search found" in searched.output


def test_searches_that_start_somewhere_in_their_seeds(endpoint, searched, tmp_path):
    def starts(outcome: Outcome) -> dict[str, list[str]]:
        trees = {path.stem: json.loads(path.read_text()) for path in outcome.path.glob("trees/*[!l].json")}
        return {name: [turn["reply"]["text"] for turn in tree["tree"]["start"]] for name, tree in trees.items()}

    later = execute(tmp_path, *words(endpoint[1], "search.start=random"))
    assert later.status == 0, later.errors
    first, drawn = starts(searched), starts(later)
    assert drawn.keys() == first.keys()
    assert all(told[: len(first[name])] == first[name] for name, told in drawn.items())
    assert len({len(told) - len(first[name]) for name, told in drawn.items()}) > 1
    found = [[turn.reply.text for turn in one.turns] for one in read_dialogues(later.path / TRAIN)]
    assert all(any(texts[: len(told)] == told for told in drawn.values()) for texts in found)
    assert not any(
        turn.rejected
        for one in read_dialogues(later.path / TRAIN)
        for turn in one.turns[: len(min(drawn.values(), key=len))]
    )


def test_dry_run(endpoint, searched, tmp_path, monkeypatch):
    before = len(endpoint[0].requests)
    own = ("search.dry_run=true", "search.judge_check=4", "logger=wandb")
    prices = ("llm.openai.price_in=2", "llm.openai.price_out=8")
    outcome = execute(tmp_path / "dry", *words(endpoint[1], *own, *prices))
    assert outcome.status == 0, outcome.errors
    assert len(endpoint[0].requests) == before
    assert not (tmp_path / "dry").exists()  # nothing is left, and no run that `latest` would find
    lines = [line.strip("│").split("│") for line in outcome.output.splitlines() if "│" in line]
    rows = [[cell.strip() for cell in cells] for cells in lines]
    numbers = {name: [float(cell.replace(",", "")) for cell in cells] for name, *cells in rows}
    assert [*numbers] == [*ROLES, "all"]
    for place in range(3):
        assert numbers["all"][place] == pytest.approx(sum(numbers[role][place] for role in ROLES), abs=2)
    calls, read, written, cost, minutes = numbers["all"]
    assert cost == pytest.approx((2 * read + 8 * written) / 1e6, abs=0.02)
    assert minutes > 0
    assert searched.metrics["search/calls"] / 3 < calls < 3 * searched.metrics["search/calls"]
    assert "Endpoints: 4 characters a token; minutes if a call waits 1 s" in outcome.output
    # A number for each question, and no key: one may ask before one has any.
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    rated = execute(tmp_path / "dry", *words("null", *own, "llm.openai.ratings=continued"))
    assert rated.status == 0, rated.errors
    assert "No dollars: llm.openai.price_in" in rated.output
    local = execute(tmp_path / "dry", "stage=search", *SEARCH, "search.seeds=2", "search.dry_run=true")
    assert local.status == 0, local.errors
    assert "Models here: minutes and tokens by 8 calls of each role" in local.output


Pair = tuple[tuple[tuple[str, str], ...], str, str]


def said(turn: Turn) -> tuple[str, str]:
    label = f"({turn.reply.strategies[0]}) " if turn.speaker == "supporter" else ""
    return {"supporter": "assistant", "seeker": "user"}[turn.speaker], f"{label}{turn.reply.text}"


def pairs_of(dialogues: Sequence[Dialogue]) -> set[Pair]:
    return {
        (tuple(map(said, dialogue.turns[:index])), said(turn)[1], said(Turn("supporter", rejected))[1])
        for dialogue in dialogues
        for index, turn in enumerate(dialogue.turns)
        for rejected in turn.rejected
    }


def test_forms_and_metrics_agree(searched):
    found = read_dialogues(searched.path / TRAIN)
    records = searched.read("esc_pro/pairs.json")
    pairs = [
        (
            tuple((m["role"], m["content"]) for m in record["messages"]),
            record["chosen"]["content"],
            record["reject"]["content"],
        )
        for record in records
    ]
    assert len(set(pairs)) == len(pairs)
    assert (
        set(pairs)
        == pairs_of(found)
        == pairs_of(read_dialogues(searched.path / "esc_pro/pairs.json", inventory="esconv"))
    )
    labels = Counter(record["label"] for record in searched.read("esc_pro/kto.json"))
    calls = journalled(searched.path)
    trees = [json.loads(path.read_text()) for path in searched.path.glob("trees/*.json")]
    expected = {
        "pairs": len(pairs),
        "dialogues": len(found),
        "preferred": labels[True],
        "rejected": labels[False],
        "trees": 3,
        "unfinished_trees": 0,
        "iterations": sum(tree["tree"]["iterations"] for tree in trees),
        "ended_leaves": sum(node["ended"] for tree in trees for node in tree["tree"]["nodes"]),
        "calls": len(calls),
        "prompt_tokens": sum(call["answer"]["prompt_tokens"] for call in calls),
        "completion_tokens": sum(call["answer"]["completion_tokens"] for call in calls),
    }
    assert {name: searched.metrics[f"search/{name}"] for name in expected} == expected
    chosen = [value for name, value in searched.metrics.items() if name.startswith("search/chosen/")]
    assert sum(chosen) == labels[True]
    card = (searched.path / "esc_pro/README.md").read_text()
    assert f"| replies of other dialogues | {searched.metrics['search/judge_auc']:.2f} [" in card
    check = searched.read("judge_check.json")
    assert check["kinds"]["foreign"]["value"]["value"] == searched.metrics["search/judge_auc"]
    assert check["believed"] == searched.metrics["search/judge_check/believed"]
    assert f"{check['verdict']}" in searched.output + (searched.path / "run.log").read_text()
    assert "test-0613" in card
    assert f"| pairs | {len(pairs)} |" in card


@pytest.mark.parametrize("stage", ["sft", "cso"])
def test_it_can_be_trained_on(command, searched, stage):
    data = ("data=jsonl", f"data.path={searched.path}/esc_pro", "trainer.fast_dev_run=true")
    outcome = command(f"stage={stage}", *data, LIMITS)
    assert outcome.status == 0, outcome.errors


def test_seeds_of_another_split(command, endpoint):
    """What is trained on is not tested on."""
    outcome = command(*words(endpoint[1], "search.split=test"))
    assert outcome.status == 0, outcome.errors
    assert sorted(path.name for path in outcome.path.glob("esc_pro/*.jsonl")) == ["train.jsonl", "valid.jsonl"]
    assert "the seeds are those of test, so esc_pro/ has no test.jsonl" in outcome.errors


def test_same_seed_same_file(command, endpoint, searched):
    """However many trees and calls are under way."""
    alone = command(*words(endpoint[1], "search.concurrency=1", "search.trees=1"))
    assert (alone.path / TRAIN).read_bytes() == (searched.path / TRAIN).read_bytes()
    other = command(*words(endpoint[1], "search.seed=2", "search.trees=8"))
    assert (other.path / TRAIN).read_bytes() != (searched.path / TRAIN).read_bytes()


def test_cache(command, endpoint, searched, tmp_path):
    server, url = endpoint
    call = words(url, "search.cache=true", f"cache_dir={tmp_path}/cache")
    assert command(*call).status == 0
    before = len(server.requests)
    again = command(*call)
    assert len(server.requests) == before
    assert again.metrics["search/calls"] == 0
    assert again.metrics["search/from_cache"] > 0
    assert (again.path / TRAIN).read_bytes() == (searched.path / TRAIN).read_bytes()


def test_replay(command, endpoint):
    """The journal of a tree is all that it takes to grow the tree again."""
    server, url = endpoint
    one = command(*words(url, "search.seeds=1"))
    (journal,) = one.path.glob("trees/*.journal.jsonl")
    before = len(server.requests)
    again = command("stage=search", "llm=replay", f"llm.strategist.recording={journal}", "mcts=quick", "search.seeds=1")
    assert again.status == 0, again.errors
    assert len(server.requests) == before
    assert (again.path / TRAIN).read_bytes() == (one.path / TRAIN).read_bytes()
    other = ("stage=search", "llm=replay", f"llm.strategist.recording={journal}", "mcts=quick", "search.seeds=2")
    line = complaint(command(*other, "search.judge_check=0"), "trees")
    assert "no recorded answer for this request of the" in line


def test_replay_of_a_local_model(command, tmp_path):
    """With the sampling of the recording, which is not that of llm=replay; and never out of the request cache."""
    own = ("search.cache=true", f"cache_dir={tmp_path}/cache", "search.judge_check=0", "search.seeds=1", "stage=search")
    twice = ("search.cache=false", "search.judge_check=2")
    one = command(*own, *(word for word in SEARCH if word not in twice))
    assert one.status == 0, one.errors
    (journal,) = one.path.glob("trees/*.journal.jsonl")
    replay = (*own, "llm=replay", "mcts=quick", "mcts.min_iterations=4", "mcts.max_iterations=5")
    again = command(*replay, f"llm.strategist.recording={journal}")
    assert again.status == 0, again.errors
    assert (again.path / TRAIN).read_bytes() == (one.path / TRAIN).read_bytes()
    assert again.metrics["search/from_cache"] == 0
    lines = journal.read_text().splitlines(keepends=True)
    (tmp_path / "wrong.journal.jsonl").write_text("".join(lines[:-3]))
    line = complaint(command(*replay, f"llm.strategist.recording={tmp_path}/wrong.journal.jsonl"), "trees")
    assert "no recorded answer for this request of the" in line


FEW = ("mcts.min_iterations=9", "mcts.max_iterations=10", "mcts.rollout_rounds=1", "mcts.in_flight=2")


@pytest.fixture(scope="module")
def variant(endpoint, tmp_path_factory):
    """`variant(*overrides)`: the outcome, the requests by role, and the trees of a search with the published rule."""
    server, url = endpoint

    def call(*overrides: str):
        before = len(server.requests)
        outcome = execute(
            tmp_path_factory.mktemp("variant"), *words(url, "mcts=paper", "search.seeds=2", *FEW, *overrides)
        )
        assert outcome.status == 0, outcome.errors
        asked: dict[str, list[str]] = {}
        for received in server.requests[before:]:
            asked.setdefault(role(received.body), []).append(received.body["messages"][1]["content"])
        return (
            outcome,
            asked,
            [json.loads(path.read_text())["tree"]["nodes"] for path in outcome.path.glob("trees/*.json")],
        )

    return call


@pytest.fixture(scope="module")
def paper(variant):
    return variant()


def test_ablations(variant, paper):
    for name in ("random", "greedy", "best_of_n"):
        rule = ["mcts.preferences.preferred_min=-3", "mcts.preferences.rejected_max=1"] if name == "greedy" else []
        outcome, asked, trees = variant(f"mcts={name}", *rule)
        assert (outcome.path / TRAIN).read_bytes() != (paper[0].path / TRAIN).read_bytes()
        assert outcome.metrics["search/iterations"] == pytest.approx(paper[0].metrics["search/iterations"], abs=3)
        assert (
            f"| policy | {'puct' if name == 'greedy' else name} |" in (outcome.path / "esc_pro/README.md").read_text()
        )
        if name == "random":
            assert "strategist" not in asked
            assert {node["prior"] for nodes in trees for node in nodes[1:]} == {1 / 8}
        else:
            assert len(asked["strategist"]) > 10
        if name == "best_of_n":  # all candidates are tried before one is followed
            assert all(nodes[child]["visits"] for nodes in trees for child in nodes[0]["children"])


def test_options(variant, paper):
    outcome, asked, trees = variant("mcts.judge_own_turn=true")
    assert len(asked["judge"]) > len(paper[1]["judge"])

    outcome, asked, trees = variant("mcts.preferences.extend_rejected=true")
    assert outcome.metrics["search/preferred"] == paper[0].metrics["search/preferred"]
    assert outcome.metrics["search/preferred_alone"] < paper[0].metrics["search/preferred_alone"]
    assert outcome.metrics["search/rejected"] > paper[0].metrics["search/rejected"]

    outcome, asked, trees = variant("llm.strategist.discourage=true")
    assert all("Do not pick the strategy of the supporter's last message again" in text for text in asked["strategist"])
    assert not [text for text in paper[1]["strategist"] if "Do not pick" in text]

    outcome, asked, trees = variant(
        "mcts.seed_path=false", "mcts.preferences.preferred_min=-3", "mcts.preferences.rejected_max=1"
    )
    assert outcome.metrics["search/preferred_seed"] == 0
    assert outcome.metrics["search/preferred_found"] > 0
    assert not [node for nodes in trees for node in nodes if node["seed"]]


def test_roles_of_two_clients(variant):
    """The endpoint talks; a model that is loaded here rates and judges by its probabilities."""
    numbers = [f"llm.{name}.client=local" for name in ("strategist", "judge")]
    outcome, asked, trees = variant("model@llm.local.model=tiny_llama", *numbers)
    assert asked.keys() == {"supporter", "seeker"}
    values = {node["value"] for nodes in trees for node in nodes if node["visits"] and not node["seed"]}
    assert len(values) > 3
    card = (outcome.path / "esc_pro/README.md").read_text()
    assert re.search(r"\| judge \| local \| tiny-llama", card)
    assert "| seeker | openai | test-0613" in card


def test_wrong_settings(command):
    """All that can be told at once is told at once, with the way out."""
    outcome = command(
        "stage=search", "llm.strategist.client=openai", "llm.supporter.client=replay", "llm.seeker.model=absent",
        "llm.judge.axes.0.weight=0.2", "mcts.preferences.threshold=quantile", "mcts.preferences.preferred_min=2",
        "data.negatives=gold_contrast", "mcts.policy=pcut",
    )  # fmt: skip
    assert outcome.status == 1
    assert outcome.directory is None
    lines = outcome.errors.splitlines()
    for part in (
        "llm.openai.model: no name of a model for strategist. Fix: llm.openai.model=NAME",
        "client=replay: no recording for supporter. Fix: llm.supporter.recording=FILE",
        "llm.seeker.model=absent: no model directory",
        "the weights are empathy 0.2, information 0.1, humanoid 0.1, strategy 0.7; they have to sum to 1. Fix: ",
        "mcts.preferences: quantiles are from 0 to 1; preferred_min=2.0",
        "data.negatives=gold_contrast: the search finds the rejected replies. Fix: leave it out",
        "mcts.policy=pcut: not one of puct, random, best_of_n; did you mean 'puct'?",
    ):
        assert [line for line in lines if part in line], part
    assert len(lines) == 8


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["llm=openai"], "no name of a model for strategist, supporter, seeker, judge. Fix: llm.openai.model=NAME"),
        (
            ["llm=openai", "llm.openai.model=m", "search.budget.cost=5"],
            "search.budget.cost=5.0: without prices every call costs 0. Fix: llm.openai.price_in",
        ),
        (["llm=replay"], "no recording for strategist, supporter, seeker, judge. Fix: llm.strategist.recording=FILE"),
        (
            ["llm.judge.client=replay", "llm.judge.recording=absent.jsonl"],
            "llm.judge.recording=absent.jsonl: no such file",
        ),
        (
            ["llm=replay", f"llm.strategist.recording={ROOT}/pyproject.toml"],
            "no journal of a search. Fix: name a trees/",
        ),
        (["llm=replay", f"llm.strategist.recording={ROOT}/tests"], "no journal of a search. Fix: name a trees/"),
        (
            ["llm=openai", "llm.openai.model=test", "llm.openai.base_url=http://me:password@host/v1"],
            "llm.openai.base_url: a user and password in it would come into config.yaml. Fix: export OPENAI_BASE_URL",
        ),
        (
            ["llm.openai.base_url='http://host/v1?key=secret'"],
            "what follows ? or # may be a secret, and is never sent",
        ),
        (["llm.openai.base_url=[http://a/v1,http://me:password@host/v1]"], "a user and password in it would come into"),
        (["llm.openai.base_url=[http://a/v1,http://a/v1]"], "give one URL, or a list of different ones"),
        (["llm.judge.base_url=[]"], "llm.judge.base_url=[]: give one URL, or a list of different ones"),
        (["llm.openai.base_url=8000"], "llm.openai.base_url=8000: give one URL"),
        (
            ["llm.openai.extra_body={continue_final_message: true}"],
            "no field that can be added. Fix: llm.openai.ratings",
        ),
        (["stage=sft", "llm.openai.base_url=http://me:password@host/v1"], "a user and password in it would come into"),
        (["data.limit={train: 0}"], "there are no seed dialogues. Fix: check data.path, data.limit and search.split"),
        ([f"resume={ROOT}/tests"], "no trees/*.journal.jsonl there"),
    ],
)
def test_refusals(command, overrides, message):
    assert message in complaint(command("stage=search", *overrides))


def test_another_configuration(command, endpoint, searched):
    call = words(endpoint[1], "mcts.c=0.5", "search.judge_check=4")
    line = complaint(command(*call, f"resume={searched.path}"), "trees")
    assert "another configuration: search.c was 1.0, is 0.5. Fix: set it back, or start anew without resume=" in line
    anew = command(*call, "resume=auto")
    assert anew.status == 0, anew.errors
    assert "starting anew" in anew.errors
