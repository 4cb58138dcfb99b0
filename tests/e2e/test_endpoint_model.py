"""Stage `evaluate` of a model at an endpoint on the loopback interface that writes and serves what is known."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from esc_lab.data.corpora import read_dialogues
from esc_lab.data.strategies import load_inventory
from esc_lab.metrics.predictions import read_predictions
from esc_lab.prompts import build_prompt, load_layout
from tests.e2e.conftest import Outcome, execute
from tests.e2e.test_bad_input import complaint
from tests.search.endpoint import Endpoint
from tests.search.endpoint_roles import journalled

INVENTORY = load_inventory("esconv")
BLANK = ("sra/", "preference/", "text/perplexity", "strategy/", "data/dialogues_trained_on", "evaluate/cost")


def digest(body: dict[str, Any]) -> bytes:
    return hashlib.sha256(json.dumps([body["messages"], body.get("seed")]).encode()).digest()


def write(body: dict[str, Any]) -> str:
    """A labelled reply that depends on the prompt and the seed alone; one in eight without a label."""
    drawn = digest(body)
    label = f"({INVENTORY.names[drawn[0] % 8]}) " if drawn[1] % 8 else ""
    return f"{label}I hear {drawn[2] % 7} of your {drawn[3] % 9} words."


def planted(body: dict[str, Any]) -> dict[str, float]:
    """The distribution over strategies that goes with `write`."""
    shares = np.random.default_rng(list(digest(body))).dirichlet(np.ones(8))
    return dict(zip(INVENTORY.names, shares.tolist(), strict=True))


def serve(body: dict[str, Any]) -> dict[str, Any]:
    """That, a tenth of all probability apart, as alternatives to the first token."""
    pairs = [(f"({name})", math.log(0.9 * share)) for name, share in planted(body).items()]
    written = write(body).split(")")[0] + ")"
    own = next(((token, value) for token, value in pairs if token == written), ("I", math.log(0.1)))
    top = [{"token": token, "logprob": value, "bytes": None} for token, value in pairs]
    return {"content": [{"token": own[0], "logprob": own[1], "top_logprobs": top}]}


def words(url: str, *others: str) -> list[str]:
    own = {word.split("=")[0] for word in others}
    few = ["stage=evaluate", "model=endpoint", "model.path=served", f"llm.openai.base_url={url}", "search.cache=false"]
    return [*(word for word in few if word.split("=")[0] not in own), *others]


@pytest.fixture(scope="module")
def writes() -> Iterator[tuple[Endpoint, str]]:
    with (server := Endpoint(write)).running() as url:
        yield server, url


@pytest.fixture(scope="module")
def written(writes, tmp_path_factory) -> tuple[Outcome, list[dict[str, Any]]]:
    outcome = execute(tmp_path_factory.mktemp("written"), *words(writes[1]))
    assert outcome.status == 0, outcome.errors
    return outcome, [received.body for received in writes[0].requests]


@pytest.fixture(scope="module")
def local(tmp_path_factory) -> Outcome:
    outcome = execute(tmp_path_factory.mktemp("local"), "stage=evaluate")
    assert outcome.status == 0, outcome.errors
    return outcome


def predictions(outcome: Outcome) -> list[Any]:
    return [*read_predictions(outcome.path / "predictions.jsonl")]


def test_prompts_are_those_of_models_that_are_loaded_here(written, local):
    outcome, bodies = written
    dialogues = {dialogue.id: dialogue for dialogue in read_dialogues(outcome.path / "dialogues.jsonl")}
    layout = load_layout("cso")
    expected = [
        build_prompt(layout, INVENTORY, dialogues[p.dialogue], p.turn, history_labels=True, start=p.turn - p.history)
        for p in predictions(local)
    ]
    chats = [[{"role": m.role, "content": m.content} for m in prompt.messages] for prompt in expected]
    assert sorted(map(json.dumps, chats)) == sorted(json.dumps(body["messages"]) for body in bodies)
    assert {(body["model"], body["temperature"], body["max_tokens"]) for body in bodies} == {("served", 0.0, 8)}


def test_rows_of_the_same_table_with_blanks_where_weights_are_needed(written, local):
    outcome, bodies = written
    own, other = predictions(outcome), predictions(local)
    assert [(p.dialogue, p.turn, p.gold, p.gold_reply) for p in own] == [
        (p.dialogue, p.turn, p.gold, p.gold_reply) for p in other
    ]
    replies = Counter(write(body) for body in bodies)
    assert Counter(p.raw for p in own) == replies
    assert all(p.strategy is None or p.raw.startswith(f"({p.strategy})") for p in own)
    assert {p.sampling["model"] for p in own} == {"served-0613"}
    metrics = outcome.metrics
    assert metrics["decisions"] == local.metrics["decisions"] == metrics["evaluate/calls"] == len(bodies)
    assert metrics["generated/unparsable"] == np.mean([p.strategy is None for p in own])
    assert {"generated/Q", "generated/B", "text/rouge_l", "text/distinct_2"} <= metrics.keys()
    assert not [name for name in metrics if name.startswith(BLANK)]
    assert not [name for name, value in metrics.items() if math.isnan(value)]
    assert set(outcome.read("strategies.json")) == {"generated"}


def test_compare_and_its_report_leave_blank_what_an_endpoint_cannot_give(command, written, local):
    runs = f"compare.runs=[{local.path},{written[0].path}]"
    outcome = command("stage=compare", runs, "logger=none")
    assert outcome.status == 0, outcome.errors
    record = outcome.read("comparison.json")
    cells = {cell["model"]: cell for cell in record["cells"]}
    assert set(cells) == {"tiny-llama", "served"}
    rows = [[*map(str.strip, line.split("|"))] for line in (outcome.path / "comparison.md").read_text().splitlines()]
    heads = next(row for row in rows if "run" in row)
    shown = {row[1].split()[0]: dict(zip(heads, row, strict=True)) for row in rows[rows.index(heads) + 2 :][:2]}
    weighed = [head for head in heads if head.startswith(("Q \u2191", "ppl", "pref."))]
    assert len(weighed) >= 3
    assert {shown["served"][head] for head in weighed} == {"-"}
    assert not {shown["tiny-llama"][head] for head in weighed} & {"-", ""}
    assert shown["served"]["ROUGE-L \u2191"] != "-"
    assert (outcome.path / "report.html").exists()


def test_served_alternatives_give_the_distribution(command):
    with (server := Endpoint(write, log_probs=serve)).running() as url:
        outcome = command(*words(url))
    assert outcome.status == 0, outcome.errors
    assert {received.body["top_logprobs"] for received in server.requests} == {20}
    by_reply = {write(received.body): planted(received.body) for received in server.requests}
    own = predictions(outcome)
    for prediction in own:
        assert prediction.distribution == pytest.approx(by_reply[prediction.raw], rel=1e-6)
        assert prediction.label_mass == pytest.approx(0.9, rel=1e-6)
        assert prediction.chosen == max(by_reply[prediction.raw], key=by_reply[prediction.raw].get)
    metrics = outcome.metrics
    assert metrics["strategy/accuracy"] == pytest.approx(np.mean([p.chosen in p.gold for p in own]))
    assert metrics["strategy/label_mass"] == pytest.approx(0.9)
    assert "text/perplexity" not in metrics
    with (server := Endpoint(write, log_probs=serve)).running() as url:
        without = command(*words(url, "evaluate.generation.top_logprobs=0"))
    assert not any("logprobs" in received.body for received in server.requests)
    assert [p.raw for p in predictions(without)] == [p.raw for p in own]
    assert not [name for name in without.metrics if name.startswith("strategy/")]


def test_samples_each_have_a_seed_and_the_decision_one_distribution(command):
    sampling = ("evaluate.generation.samples=2", "evaluate.generation.temperature=1", "evaluate.generation.decisions=3")
    with (server := Endpoint(write, log_probs=serve)).running() as url:
        outcome = command(*words(url, *sampling))
    assert outcome.status == 0, outcome.errors
    own = predictions(outcome)
    assert len(server.requests) == 6 == sum(p.reply is not None for p in own)
    assert len({received.body["seed"] for received in server.requests}) == 6
    assert [p.sample for p in own if p.distribution] == [0, 0, 0]
    assert outcome.metrics["decisions"] == len(own) - 3
    assert outcome.metrics["generation/samples"] == 2


def test_a_baseline_of_several_steps_goes_on_in_the_same_chat(command):
    with (server := Endpoint(write)).running() as url:
        outcome = command(*words(url, "prompt.inference=self_refine", "evaluate.generation.decisions=2"))
    assert outcome.status == 0, outcome.errors
    follow_ups = load_layout("cso").baseline("self_refine").follow_ups
    assert len(server.requests) == 2 * (1 + len(follow_ups))
    chats = [received.body["messages"] for received in server.requests]
    longest = max(chats, key=len)
    first = [message for message in longest if message["content"] not in follow_ups]
    assert [message["content"] for message in longest[-2 * len(follow_ups) + 1 :: 2]] == list(follow_ups)
    assert longest[-2]["role"] == "assistant"
    assert first
    last = {write(received.body) for received in server.requests if len(received.body["messages"]) == len(longest)}
    assert last & {p.raw for p in predictions(outcome)}


def test_prompts_that_name_strategies(command):
    with (server := Endpoint(write)).running() as url:
        named = ("prompt=c1_hf", "evaluate.prompted=all", "evaluate.generation.decisions=1")
        outcome = command(*words(url, *named))
    assert outcome.status == 0, outcome.errors
    assert len(server.requests) == 8
    assert not any("logprobs" in received.body for received in server.requests)
    asked = [p for p in predictions(outcome) if p.reply is not None]
    assert {p.prompted for p in asked} == set(INVENTORY.names)
    assert all(p.neutral for p in asked)
    assert not [name for name in outcome.metrics if name.startswith((*BLANK, "generated/"))]


def test_an_endpoint_that_dies_is_asked_nothing_twice(command, written):
    whole, lives = len(written[1]), [False]

    def fail(number: int, body: dict[str, Any]) -> str | None:
        return None if lives[0] or number < whole // 2 else "500"

    with (server := Endpoint(write, faults=fail)).running() as url:
        broken = command(*words(url, "llm.openai.attempts=1", "search.concurrency=2"))
        message = complaint(broken, "replies.journal.jsonl")
        assert re.search(
            r"no answer of 'served' after 1 attempts.* Fix: check the endpoint, then go on with resume", message
        )
        assert len(journalled(broken.path)) == whole // 2
        lives[0], before = True, len(server.requests)
        resumed = command(*words(url, f"resume={broken.path}"))
    assert resumed.status == 0, resumed.errors
    assert len(server.requests) - before == whole - whole // 2
    assert predictions(resumed) == predictions(written[0])


@pytest.mark.parametrize(
    ("fault", "pattern"),
    [
        ("401", r"does not accept the key \(401\)\. Fix: set OPENAI_API_KEY"),
        ("404", r"no model 'served', or no endpoint at this URL \(404\)"),
        ('400 {"error": {"message": "no temperature here", "param": "temperature"}}',
         r"Fix: evaluate\.generation\.temperature=null leaves it out"),
        ('400 {"error": {"message": "top_logprobs is unknown", "param": "top_logprobs"}}',
         r"Fix: evaluate\.generation\.top_logprobs=0 leaves it out"),
        ('400 {"error": {"message": "max_tokens is unsupported", "param": "max_tokens"}}',
         r"Fix: .*another evaluate\.generation\.max_new_tokens"),
        ("400:context_length_exceeded", r"the conversation is too long for 'served'"),
    ],
)  # fmt: skip
def test_what_will_not_pass_stops_the_run_with_the_fix(command, monkeypatch, fault, pattern):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-planted-secret-0123456789")
    with Endpoint(write, faults=lambda number, body: fault).running() as url:
        outcome = command(*words(url))
    assert re.search(pattern, complaint(outcome, "replies.journal.jsonl"))
    assert not leaks(outcome, "sk-planted-secret-0123456789")


def leaks(outcome: Outcome, secret: str) -> list[str]:
    files = [path for path in outcome.path.rglob("*") if path.is_file()]
    return [path.name for path in files if secret.encode() in path.read_bytes()] + [
        name for name, text in (("output", outcome.output), ("errors", outcome.errors)) if secret in text
    ]


def test_a_key_that_the_endpoint_repeats_is_hidden(command, monkeypatch):
    secret = "sk-planted-secret-0123456789"
    monkeypatch.setenv("OPENAI_API_KEY", secret)

    def repeat(body: dict[str, Any]) -> dict[str, Any]:
        return {"content": [{"token": secret, "logprob": 0, "top_logprobs": [{"token": "(", "logprob": -9999.0}]}]}

    with (server := Endpoint(lambda body: f"(Question) Is it {secret}?", log_probs=repeat)).running() as url:
        outcome = command(*words(url))
    assert outcome.status == 0, outcome.errors
    assert {received.authorization for received in server.requests} == {f"Bearer {secret}"}
    assert not leaks(outcome, secret)


def test_fields_that_are_not_sent_and_answers_of_no_use(command):
    kinds = {0: "refusal", 1: "empty", 2: "cut_off", 3: "400:context_length_exceeded"}
    left_out = ("evaluate.generation.temperature=null", "evaluate.generation.top_p=null", "llm.openai.seeds=false")
    with (server := Endpoint(write, faults=lambda number, body: kinds.get(number))).running() as url:
        outcome = command(*words(url, *left_out, "search.concurrency=1", "evaluate.generation.max_new_tokens=96"))
    assert outcome.status == 0, outcome.errors
    assert not any({"temperature", "top_p", "seed"} & received.body.keys() for received in server.requests)
    metrics, own = outcome.metrics, predictions(outcome)
    assert [metrics[f"evaluate/{name}"] for name in ("refused", "empty", "cut_off", "too_long")] == [1, 1, 1, 1]
    assert sum(p.reply == "" for p in own) == 2
    assert [p.unmeasured for p in own].count("prompt too long") == 1
    assert metrics["text/replies"] == len(own) - 1
    assert not {"generation/temperature", "generation/top_p"} & metrics.keys()


def test_an_endpoint_that_never_writes_a_reply_is_not_paid_to_the_end(command):
    with (server := Endpoint(write, faults=lambda number, body: "cut_off empty")).running() as url:
        outcome = command(*words(url, "search.concurrency=1", "data.limit={train: 2, val: 1, test: 8}"))
    message = complaint(outcome, "replies.journal.jsonl")
    assert "30 of 30 answers cannot be used" in message
    assert "raise evaluate.generation.max_new_tokens" in message
    assert len(server.requests) <= 31  # one more may be under way


def test_a_budget_ends_it_and_a_larger_one_goes_on(command, writes, written):
    broken = command(*words(writes[1], "search.budget.calls=3", "search.concurrency=1"))
    assert "budget of 3 calls is spent" in complaint(broken, "replies.journal.jsonl")
    before = len(writes[0].requests)
    resumed = command(*words(writes[1], f"resume={broken.path}"))
    assert resumed.status == 0, resumed.errors
    assert len(writes[0].requests) - before == len(written[1]) - 3
    assert predictions(resumed) == predictions(written[0])


def test_a_journal_of_other_sampling_is_named(command, writes, written):
    other = ("evaluate.generation.max_new_tokens=9", f"resume={written[0].path}")
    message = complaint(command(*words(writes[1], *other)))
    assert "roles.supporter.max_tokens was 8, is 9" in message


def test_results_are_shared_unless_what_is_sent_differs(command, writes, tmp_path):
    share = ("reuse=true", f"cache_dir={tmp_path}")
    first = command(*words(writes[1], *share))
    asked = len(writes[0].requests)
    again = command(*words(writes[1], *share))
    assert len(writes[0].requests) == asked
    assert again.metrics == first.metrics
    command(*words(writes[1], *share, "llm.openai.extra_body={reasoning_effort: low}"))
    assert len(writes[0].requests) > asked


@pytest.mark.parametrize(
    ("others", "message"),
    [
        (["checkpoint=."], "checkpoint=.: an endpoint has its own weights"),
        (["model.quantization=4bit"], "model.quantization=4bit: an endpoint has its own weights"),
        (["evaluate.generation.no_repeat=4"], "evaluate.generation.no_repeat=4: an endpoint has no such setting"),
        (["evaluate.boost.amount=1", "prompt=c1_hf"], "evaluate.boost.amount=1.0: attention at an endpoint"),
        (["evaluate.boost.mode=block", "prompt=c1_hf"], "evaluate.boost.mode=block: attention at an endpoint"),
        (["evaluate.replies=gold"], "evaluate.replies=gold: an endpoint cannot"),
        (["evaluate.generation.enabled=false"], "evaluate.generation.enabled=false: an endpoint is measured"),
        (["prompt.inference=best_of_n"], "prompt.inference=best_of_n: replies are drawn and chosen"),
        (["search.budget.cost=1"], "search.budget.cost=1.0: without prices"),
        (["stage=sra", "experiment=sra_templates"], "model.source=endpoint: stage=sra needs the weights"),
        (["stage=sft"], "model.source=endpoint: stage=sft needs the weights"),
        (["stage=pipeline"], "model.source=endpoint: stage=pipeline needs the weights"),
        (["stage=export", "checkpoint=."], "model.source=endpoint: stage=export needs the weights"),
        (["model=tiny_llama", "llm.local.model.source=endpoint"], "llm.local.model.source=endpoint: roles"),
        (["model=tiny_llama", "evaluate.generation.temperature=null"], "a model that is loaded here needs one"),
        (["model=tiny_llama", "resume=auto"], "resume=auto: stage=evaluate trains nothing"),
    ],
)
def test_options_that_need_weights_are_refused_with_the_fix(command, others, message):
    outcome = command(*words("http://127.0.0.1:9/v1", *others))
    assert outcome.status == 1
    assert message in outcome.errors
    assert "Fix: " in outcome.errors
    assert not outcome.directory or not (outcome.path / "replies.journal.jsonl").exists()
