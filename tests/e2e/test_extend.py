"""Stage `extend` and what is trained on its replies, whole: an endpoint on the loopback interface, and tiny models."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from esc_lab.data.corpora import read_dialogues, sample_path
from tests.e2e.conftest import LIMITS, Outcome, execute
from tests.e2e.test_bad_input import complaint
from tests.search.endpoint import Endpoint
from tests.search.endpoint_roles import TALK, journalled

NAMED = re.compile(r'use the "(.+?)" strategy')
FILES = ("train", "valid", "test")


def write(body: dict[str, Any]) -> str:
    """A sentence that depends on the request alone, and says the strategy that its prompt names."""
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).digest()
    words = TALK.split()
    named = NAMED.search(body["messages"][0]["content"])
    said = " ".join(words[byte % len(words)] for byte in digest[:8])
    return f"{'Supporter: ' * (digest[8] % 2)}{said.capitalize()} about {named[1].lower() if named else 'nothing'}."


@pytest.fixture(scope="module")
def endpoint() -> Iterator[tuple[Endpoint, str]]:
    with (server := Endpoint(write)).running() as url:
        yield server, url


def words(url: str, *others: str) -> list[str]:
    own = {word.split("=")[0] for word in others}
    few = ["stage=extend", "llm=openai", "llm.openai.model=test", f"llm.openai.base_url={url}", "search.cache=false"]
    few += ["inventory=extes_sra", "extend.number=3", "extend.unconditional=1"]
    return [*(word for word in few if word.split("=")[0] not in own), *others]


@pytest.fixture(scope="module")
def extended(endpoint, tmp_path_factory) -> Outcome:
    outcome = execute(tmp_path_factory.mktemp("extended"), *words(endpoint[1]))
    assert outcome.status == 0, outcome.errors
    return outcome


def replies(outcome: Outcome) -> dict[str, list[str]]:
    return {name: (outcome.path / f"continuations/{name}.jsonl").read_text().splitlines() for name in FILES}


def test_what_an_extension_leaves(extended):
    found = {name: read_dialogues(extended.path / f"continuations/{name}.jsonl") for name in FILES}
    assert {name: len(dialogues) for name, dialogues in found.items()} == {"train": 16, "valid": 8, "test": 8}
    every = [dialogue for dialogues in found.values() for dialogue in dialogues]
    for dialogue in every:
        prompted = dialogue.meta["prompted"]
        assert dialogue.turns[-1].reply.text.endswith(f"about {prompted.lower() if prompted else 'nothing'}.")
        assert not dialogue.turns[-1].reply.text.startswith("Supporter")
        assert 5 <= len(dialogue.turns) - 1 <= 23
    asked = journalled(extended.path)
    expected = {
        "replies": 32, "asked": 32, "contexts": 8, "dialogues": 8, "calls": 32, "strategy/unconditional": 8,
        "role_prefix": sum(call["answer"]["text"].startswith("Supporter: ") for call in asked),
        "train_replies": 16, "val_replies": 8, "test_replies": 8, "unfinished_dialogues": 0,
    }  # fmt: skip
    assert {name: extended.metrics[f"extend/{name}"] for name in expected} == expected
    card = (extended.path / "continuations/README.md").read_text()
    counts = Counter(dialogue.meta["prompted"] for dialogue in every)
    assert f"| replies | {len(every)} |" in card
    assert "| unconditional | 4 | 2 | 2 |" in card
    assert all(f"| {name} | " in card for name in counts if name)
    assert "test-0613" in card
    assert "data=jsonl data.path=" in extended.errors


def test_an_interrupted_extension_goes_on(endpoint, extended, tmp_path):
    server, url = endpoint
    stopped = execute(tmp_path / "stopped", *words(url, "search.budget.calls=9", "search.concurrency=1"))
    assert stopped.status == 0, stopped.errors
    assert stopped.metrics["extend/unfinished_dialogues"] == 6
    before = len(server.requests)
    again = execute(tmp_path / "again", *words(url, f"resume={stopped.path}"))
    assert len(server.requests) - before == 32 - 9
    assert replies(again) == replies(extended)


def test_training_and_its_judge_on_the_last_replies(extended, command):
    data = ("data=jsonl", f"data.path={extended.path}/continuations", "data.loss=last_reply", "inventory=extes_sra")
    trained = command("stage=sft", *data, "data.limit={}", "prompt=standard", "adapter=lora_r128", "adapter.r=4",
                      "data.step_dialogues=8", "scheduler.name=cosine_restarts", "trainer.max_epochs=1")  # fmt: skip
    assert trained.status == 0, trained.errors
    assert trained.metrics["data/train_examples"] == 16  # 4 of them without a strategy
    judge = command("stage=classifier", *data, "data.limit={}", "trainer.max_epochs=1")
    assert judge.status == 0, judge.errors
    assert (judge.metrics["data/train_replies"], judge.metrics["data/train_unlabelled"]) == (12, 4)
    other = complaint(command("stage=sft", *data[:3], "prompt=standard", "inventory=cso"))
    assert "there is no mapping from 'extes_sra' to 'cso'" in other
    confirmed = (f"extend.classifier={judge.path}", "model@llm.local.model=tiny_llama", "llm.supporter.max_tokens=4")
    wrong = complaint(command("stage=extend", *confirmed, "inventory=esconv"))
    assert "its classes are Affirmation, " in wrong
    assert "(extes_sra), not those of esconv. Fix: inventory=extes_sra" in wrong


def test_replies_of_the_corpus_need_no_model(command):
    words = ("stage=extend", "extend.source=corpus", "inventory=extes_sra", "extend.unconditional=1", "data.limit={}")
    outcome = command(*words)
    assert outcome.status == 0, outcome.errors
    assert outcome.metrics["extend/calls"] == 0
    assert not (outcome.path / "contexts").exists()
    found = [dialogue for name in FILES for dialogue in read_dialogues(outcome.path / f"continuations/{name}.jsonl")]
    assert len(found) == outcome.metrics["extend/replies"] > 50
    corpus = {dialogue.id: dialogue for dialogue in read_dialogues(sample_path())}
    given = {text for talk in corpus.values() for turn in talk.turns for text in turn.reply.text.split()}
    assert all(set(dialogue.turns[-1].reply.text.split()) <= given for dialogue in found)
    card = (outcome.path / "continuations/README.md").read_text()
    assert "What supporters wrote" in card
    assert "cues were found" in card
    assert "language model wrote" not in card
    message = complaint(command(*words[:2], "inventory=cso"))
    assert "has a given reply with one strategy, from extend.min_turns=5" in message  # neither labels nor cues


@pytest.mark.parametrize(
    ("others", "message"),
    [
        (["extend.template=cso"], "extend.template=cso: its prompts name no strategy. Fix: use a layout that names it"),
        (["extend.min_turns=9", "extend.max_turns=8"], "extend.min_turns=9: above extend.max_turns=8. Fix:"),
        (["extend.min_turns=40", "extend.max_turns=50"], "none of 8 dialogues has a seeker's turn to cut after"),
        (["extend.number=16"], "extend.number=16: the inventory extes_sra has 15. Fix:"),
        (["extend.number=0", "extend.unconditional=0"], "extend.number=0: nothing would be written"),
        (["extend.classifier=absent"], "extend.classifier=absent: no such directory"),
        (["extend.classifier=auto"], "extend.classifier=auto: no training reply of sample has a strategy of extes_sra"),
        (["llm.supporter.client=local", "llm.supporter.temperature=null"], "llm.supporter.temperature=null"),
        (["resume=absent"], "no contexts/*.journal.jsonl there"),
    ],
    ids=lambda value: value[0][:40] if isinstance(value, list) else "",
)
def test_what_users_do_wrong(endpoint, command, others, message):
    assert message in complaint(command(*words(endpoint[1], *others)))


def test_a_model_loaded_here_writes_the_same_however_many_replies_together(command):
    words = ("stage=extend", "model@llm.local.model=tiny_llama", "data.limit={train: 2}", "extend.splits=[train]",
             "extend.number=6", "extend.unconditional=1", "llm.supporter.max_tokens=24", "llm.supporter.attempts=1",
             "search.cache=false")  # fmt: skip
    runs = [command(*words), command(*words, "llm.local.batch=1")]
    for run in runs:  # its words are random, so perhaps no sentence ends in time
        assert run.status == 0 or "no reply is kept: 14 asked" in complaint(run, "contexts", "continuations")
    answers = [{call["key"]: call["answer"]["text"] for call in journalled(run.path)} for run in runs]
    assert len(answers[0]) == 14
    assert answers[0] == answers[1]


def test_steerable_pipeline(endpoint, command):
    """All steps of the experiment on the tiny llama, small, but for the replies that an endpoint writes."""
    small = (
        "experiment=steerable", "extend.source=model", "llm=openai", "llm.openai.model=test",
        f"llm.openai.base_url={endpoint[1]}", LIMITS, "pipeline.templates=[standard,c1_hf]", "extend.number=2",
        "search.cache=false", "adapter.r=4", "adapter.layers=null",
        "trainer.max_epochs=1", "evaluate.generation.decisions=1", "evaluate.generation.max_new_tokens=4",
        "evaluate.generation.depths=[5,40]", "evaluate.sra.heat_maps=0",
    )  # fmt: skip
    outcome = command(*small)
    assert outcome.status == 0, outcome.errors
    steps = ("extend", "classifier", "evaluate_base_standard", "evaluate_base_c1_hf", "sft", "evaluate_sft", "compare")
    assert {path.name for path in outcome.path.iterdir() if path.is_dir()} >= set(steps)
    table = (outcome.path / "compare/comparison.md").read_text()
    assert all(heading in table for heading in ("log SRA (reference)", "log SRA (first token)", "adher. own", "ppl"))
    assert all(f"tiny-llama {name}" in table for name in ("base (standard)", "base (c1_hf)", "SFT (standard)"))
    assert {
        "extend/replies",
        "classifier/accuracy",
        "base_c1_hf/adherence/accuracy",
        "sft/adherence/accuracy",
        "sft/text/rouge_l",
        "sft/text/distinct_2",
        "sft/text/copied",
        "sft/text/perplexity",
        *(f"sft/sra/log_sra_{name}" for name in ("paper", "reference", "first_token")),
    } <= {*outcome.metrics}
    predictions = [json.loads(line) for line in (outcome.path / "evaluate_sft/predictions.jsonl").open()]
    assert {len(found) for found in predictions_by_turn(predictions).values()} == {15}


def predictions_by_turn(predictions: list[dict[str, Any]]) -> dict[tuple[str, int], set[str]]:
    found: dict[tuple[str, int], set[str]] = {}
    for prediction in predictions:
        found.setdefault((prediction["dialogue"], prediction["turn"]), set()).add(prediction["prompted"])
    return found
