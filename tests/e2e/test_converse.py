"""Stage `converse`, whole: an endpoint on the loopback interface, and tiny models."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from esc_lab.data.corpora import read_dialogues
from esc_lab.stages.run_stage import run_stage
from tests.conftest import CACHE, PROCESSES, ROOT
from tests.e2e.conftest import Outcome, execute
from tests.e2e.test_bad_input import complaint
from tests.e2e.test_search_faults import asked_once, composed
from tests.evaluation.talk_roles import KIND, feel, play, said, who
from tests.search.endpoint import Endpoint
from tests.search.endpoint_roles import journalled, name

FILES = ("talks.jsonl", "measures.json")
LOCAL = (
    "stage=converse", "model@llm.local.model=tiny_llama", "cards.limit=3", "converse.max_turns=3", "search.cache=false",
    "llm.supporter.max_tokens=8", "llm.seeker.max_tokens=8",
)  # fmt: skip
CARDS_USED = ["closed_bakery", "first_semester", "moved_for_love", "mother_forgets"]
OWN_TIME = ("converse/seconds", "converse/calls_per_s")


@pytest.fixture(scope="module")
def endpoint() -> Iterator[tuple[Endpoint, str]]:
    with (server := Endpoint(play)).running() as url:
        yield server, url


def words(url: str, *others: str) -> list[str]:
    own = {word.split("=")[0] for word in others}
    few = ["stage=converse", "llm=openai", "llm.openai.model=kind", f"llm.openai.base_url={url}", "search.cache=false"]
    few += ["cards.limit=4", "converse.max_turns=6"]
    return [*(word for word in few if word.split("=")[0] not in own), *others]


@pytest.fixture(scope="module")
def talked(endpoint, tmp_path_factory) -> Outcome:
    outcome = execute(tmp_path_factory.mktemp("talked"), *words(endpoint[1]))
    assert outcome.status == 0, outcome.errors
    return outcome


def contents(outcome: Outcome) -> list[bytes]:
    return [(outcome.path / file).read_bytes() for file in FILES]


def test_what_talks_leave(talked):
    talks = read_dialogues(talked.path / "talks.jsonl")
    assert [talk.meta["card"] for talk in talks] == CARDS_USED
    for talk in talks:
        assert [turn.speaker for turn in talk.turns] == [*["supporter", "seeker"] * 5, "supporter"]
        assert talk.turns[2].reply.strategies == ("Affirmation and Reassurance",)
        assert talk.meta["ends"] == "seeker"
        assert talk.meta["intensity"] == [4.0, 3.5, 3.0, 2.5, 2.0, 1.5]
    expected = {
        "turns": 5, "ends/seeker": 1, "ends/max_turns": 0, "success": 1, "turns_to_success": 4, "relief": 2.5,
        "strategy/Affirmation and Reassurance": 1, "strategy_entropy": 0, "strategy_repeats": 1, "labelled": 1,
        "asks": 0, "calls": 4 * (1 + 5 + 5 + 5), "unfinished_talks": 0,
    }  # fmt: skip
    assert {name: talked.metrics[f"converse/{name}"] for name in expected} == expected
    assert "Supporter turns of a talk" in talked.output
    measures = talked.read("measures.json")
    assert measures["intensity"][-1] == [5, 1.5, 4]
    assert measures["transitions"] == {"Affirmation and Reassurance": {"Affirmation and Reassurance": 16}}
    assert len(measures["talks"]) == 4


def test_cards_are_told_to_the_seeker_and_not_to_the_supporter(talked, endpoint):
    shown = [(who(request.body), request.body["messages"]) for request in endpoint[0].requests]
    for playing, messages in shown:
        system = messages[0]["content"]
        assert ("in the same shop since she was 19" in system) == (playing != "supporter" and "bakery" in system)
        told = "offered you a job in his warehouse" in system  # from the third message on
        assert told == ("bakery where" in system and len(messages[1]["content"].split("\nseeker: ")) >= 3)
    assert any("offered you a job" in messages[0]["content"] for _, messages in shown)


def test_one_after_another_and_all_at_once(endpoint, talked, tmp_path):
    outcome = execute(tmp_path, *words(endpoint[1], "search.concurrency=1"))
    assert outcome.status == 0, outcome.errors
    assert contents(outcome) == contents(talked)
    calls = [{call["key"]: call["answer"] for call in journalled(run.path)} for run in (outcome, talked)]
    assert calls[0] == calls[1]


def test_planted_supporters_are_ranked_as_planted(endpoint, tmp_path):
    found, directories = {}, []
    for model in ("kind", "cold", "parrot", "ending", "asking"):
        outcome = execute(tmp_path / model, *words(endpoint[1], f"llm.supporter.model={model}", "cards.limit=12",
                                                   "llm.openai.model=seeker"))  # fmt: skip
        assert outcome.status == 0, outcome.errors
        found[model] = {key.removeprefix("converse/"): value for key, value in outcome.metrics.items()}
        directories.append(str(outcome.path))
    relief = {model: metrics["relief"] for model, metrics in found.items()}
    assert relief["kind"] == 2.5 > relief["asking"] == relief["parrot"] == relief["ending"] == 0 > relief["cold"] == -1
    assert [model for model, metrics in found.items() if metrics["success"] == 1] == ["kind"]
    assert found["kind"]["turns_to_success"] == 4 < found["cold"]["turns_to_success"] == 6
    for measure, model in {"echoed": "parrot", "asks": "asking", "ends/supporter": "ending"}.items():
        others = [metrics[measure] for other, metrics in found.items() if other != model]
        assert found[model][measure] > 0.9 > 0.1 > max(others), measure
    assert found["ending"]["turns"] == 1
    assert [found[model]["ends/max_turns"] for model in ("cold", "asking", "parrot")] == [1, 1, 1]
    compared = execute(
        tmp_path / "all", "stage=compare", f"compare.runs=[{','.join(directories)}]", "compare.baseline=base"
    )
    assert compared.status == 0, compared.errors
    assert compared.metrics["kind base (cso)/converse/relief"] == 2.5
    assert "talks" in compared.output
    assert "12 talks with the seekers of 12 cards" in (" ".join((compared.path / "comparison.md").read_text().split()))
    assert "I can feel how much" in (compared.path / "report.html").read_text()


def test_the_seeker_is_the_same_before_every_supporter(endpoint, talked, tmp_path):
    """Talks are paired: the seeker's first message and what is asked of it do not depend on the supporter."""
    outcome = execute(tmp_path, *words(endpoint[1], "llm.supporter.model=cold"))
    ours, others = (read_dialogues(run.path / "talks.jsonl") for run in (talked, outcome))
    assert [talk.turns[:2] for talk in ours] == [talk.turns[:2] for talk in others]
    assert [talk.turns[2] for talk in ours] != [talk.turns[2] for talk in others]


def test_killed_in_the_middle(tmp_path, talked):
    """Ten processes: each goes on where the last one was killed, and asks nothing again that was answered."""
    draw = random.Random(3)
    with (server := Endpoint(play, latency_s=0.02, model=name)).running() as url:
        call = words(url, "resume=auto", "search.concurrency=3")
        cfg = composed(*call, "logger=none", "reuse=false", f"cache_dir={CACHE}", f"output_root={tmp_path}")
        for number in range(10):
            directory = tmp_path / "converse" / ("0-same" if number % 2 else f"0-{number}")
            directory.mkdir(parents=True, exist_ok=True)
            with asked_once(server, tmp_path) as before:
                process = PROCESSES.Process(target=run_stage, args=(replace(cfg, run_dir=str(directory)),))
                process.start()
                most = before + draw.randrange(1, 7)
                while len(server.requests) <= most:
                    assert process.is_alive()
                    time.sleep(0.001)
                process.kill()
                process.join()
        with asked_once(server, tmp_path):
            finished = execute(tmp_path, *call)
    assert finished.status == 0, finished.errors
    assert contents(finished) == contents(talked)
    assert finished.metrics["converse/calls"] == talked.metrics["converse/calls"]


def test_replay_without_model_or_torch(talked, tmp_path):
    """Byte for byte, in a process of its own that imports no torch."""
    call = ["stage=converse", "llm=replay", f"llm.strategist.recording={talked.path}", "cards.limit=4",
            "converse.max_turns=6", "logger=none", "reuse=false", f"output_root={tmp_path}"]  # fmt: skip
    code = (
        f"import sys; from esc_lab.cli.main import main; sys.argv = ['run.py', *{call!r}]; status = main()\n"
        "print('torch', 'torch' in sys.modules); sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "torch False" in done.stdout
    (directory,) = (tmp_path / "converse").iterdir()
    metrics = json.loads((directory / "metrics.json").read_text())
    assert_same(Outcome(0, "", "", directory), talked)
    assert metrics["converse/calls"] == talked.metrics["converse/calls"]


def replayed(recording: Outcome, tmp_path, *others: str) -> Outcome:
    call = ("stage=converse", "llm=replay", f"llm.strategist.recording={recording.path}", "cards.limit=4",
            "converse.max_turns=6", "search.cache=false", *others)  # fmt: skip
    return execute(tmp_path / "replayed", *call)


def assert_same(run: Outcome, recorded: Outcome) -> None:
    assert contents(run) == contents(recorded)
    assert {**run.metrics, **dict.fromkeys(OWN_TIME)} == {**recorded.metrics, **dict.fromkeys(OWN_TIME)}


@pytest.mark.parametrize(
    ("said", "instead", "differs"),
    [
        ('"(Affirmation and Reassurance) ', '"(Question) ', "turn 10 differs"),
        ('\\"intensity\\": 1.5', '\\"intensity\\": 1.25', "its end or the intensity of the emotion differs"),
    ],
)  # fmt: skip
def test_a_changed_answer_is_named(talked, tmp_path, said, instead, differs):
    """Of the last intensity, and of the last strategy, no later prompt of the talk tells."""
    recorded = tmp_path / "recorded"
    shutil.copytree(talked.path, recorded)
    journal = recorded / "talks" / "closed_bakery-0.journal.jsonl"
    lines = journal.read_text().splitlines()
    last = max(number for number, line in enumerate(lines) if said in line)
    lines[last] = lines[last].replace(said, instead)
    journal.write_text("".join(f"{line}\n" for line in lines))
    message = complaint(replayed(Outcome(0, "", "", recorded), tmp_path), "talks")
    assert f"{journal}: the talk that these answers make is not that of talks.jsonl: {differs}" in message
    (recorded / "talks.jsonl").unlink()
    unchecked = replayed(Outcome(0, "", "", recorded), tmp_path / "unchecked")
    assert "nobody knows whether the journals were changed" in unchecked.errors


@pytest.mark.parametrize(
    ("others", "message"),
    [
        (["converse.max_turns=5"], "the journal is of another configuration: max_turns was 6, is 5"),
        (["converse.seed=2"], "seed was 1, is 2"),
        (["cards.limit=5"], "the recording has no talk drought_year-0"),
        (["converse.wording.greeting=Hi."], "persona.greeting was "),
        (["llm.wording.answer=Say something."], 'wording.answer was "Write the seeker'),
        (["prompt=standard", "converse.strategies=[Question]"], "prompt.template was "),
        (["inventory=cso"], "inventory was "),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_differs_from_a_recording_is_named(talked, command, others, message):
    call = ("stage=converse", "llm=replay", f"llm.strategist.recording={talked.path}", "cards.limit=4",
            "converse.max_turns=6")  # fmt: skip
    assert message in complaint(command(*call, *others), "talks")


def test_a_changed_card_is_named(endpoint, command, tmp_path):
    cards = tmp_path / "cards.yaml"
    cards.write_text(CARDS)
    recorded = command(*words(endpoint[1], "cards=file", f"cards.path={cards}"))
    assert recorded.status == 0, recorded.errors
    cards.write_text(CARDS.replace("They closed the shop.", "They sold the shop."))
    call = ("stage=converse", "llm=replay", f"llm.strategist.recording={recorded.path}", "cards=file",
            f"cards.path={cards}", "converse.max_turns=6")  # fmt: skip
    message = complaint(command(*call), "talks")
    assert 'card.situation was "They closed the shop.", is "They sold the shop."' in message


CARDS = """
format: esc-lab-cards/1
cards:
  - id: one
    person: a baker
    problem: job loss
    emotion: sadness
    intensity: 4
    situation: They closed the shop.
    traits: {resistance: low, disclosure: medium, engagement: medium, verbosity: low, volatility: low}
"""


def test_a_seeker_without_an_opening_writes_it(endpoint, command, tmp_path):
    (tmp_path / "cards.yaml").write_text(CARDS)
    outcome = command(*words(endpoint[1], "cards=file", f"cards.path={tmp_path}/cards.yaml"))
    (talk,) = read_dialogues(outcome.path / "talks.jsonl")
    assert talk.turns[1].reply.text.startswith("Then the ")
    asked = [request.body["messages"][1]["content"] for request in endpoint[0].requests[-20:]]
    first = next(text for text in asked if text.count("\n\nWrite the seeker's next message") and not said_any(text))
    assert "[END]" not in first


def test_cards_of_esc_eval(endpoint, command, tmp_path):
    """`data` reads dialogues, and says what reads such cards."""
    base = "Age: young\nGender: not mentioned\nOccupation: baker\nProblem: They closed the shop."
    path = tmp_path / "cards.json"
    path.write_text(json.dumps([{"base": base, "res": "家庭生活", "id": 7}, {"base": base, "id": 8}]), encoding="utf-8")
    told = complaint(command("stage=data", "data=file", f"data.path={path}"))
    assert "a role card of ESC-Eval, and no dialogue. Fix: they are for stage=converse, cards=file" in told
    outcome = command(*words(endpoint[1], "cards=file", f"cards.path={path}"))
    assert outcome.status == 0, outcome.errors
    talks = read_dialogues(outcome.path / "talks.jsonl")
    assert [talk.meta["card"] for talk in talks] == ["esc-eval-7", "esc-eval-8"]
    assert {(talk.situation, talk.problem) for talk in talks} >= {("They closed the shop.", "family life")}


def said_any(text: str) -> bool:
    return "\nseeker: " in text


def test_a_seeker_that_may_not_end_yet(endpoint, command):
    """What says the end too early is asked again, and what says nothing else is missing."""
    outcome = command(*words(endpoint[1], "converse.min_turns=6", "cards.limit=1"))
    assert outcome.status == 0, outcome.errors
    (talk,) = read_dialogues(outcome.path / "talks.jsonl")
    assert (talk.meta["ends"], len(talk.turns)) == ("seeker_missing", 11)
    assert outcome.metrics["converse/seeker/unusable"] == 3


def test_a_spent_budget_leaves_whole_talks(endpoint, talked, command, tmp_path):
    few = command(*words(endpoint[1], "search.budget.calls=40", "search.concurrency=1"))
    assert few.status == 0, few.errors
    assert few.metrics["converse/unfinished_talks"] == 2
    assert "the budget of 40 calls is spent" in few.errors
    again = replayed(few, tmp_path)
    assert "its budget was spent before the end of every talk" in again.errors
    assert_same(again, few)
    lines = (talked.path / "talks.jsonl").read_text().splitlines()
    assert (few.path / "talks.jsonl").read_text().splitlines() == lines[:2]
    before = len(endpoint[0].requests)
    again = command(*words(endpoint[1], f"resume={few.path}"))
    assert len(endpoint[0].requests) - before == 64 - 40
    assert contents(again) == contents(talked)
    assert "the budget of 5 calls is spent" in complaint(command(*words(endpoint[1], "search.budget.calls=5")), "talks")


def test_scheduled_strategies(endpoint, command):
    schedule = ["Question", "Reflection of feelings", "Self-disclosure"]
    outcome = command(*words(endpoint[1], "prompt=standard", f"converse.strategies=[{','.join(schedule)}]",
                             "llm.supporter.model=cold"))  # fmt: skip
    assert outcome.status == 0, outcome.errors
    for talk in read_dialogues(outcome.path / "talks.jsonl"):
        assert [turn.reply.strategies[0] for turn in talk.turns[2::2]] == schedule * 2
    assert outcome.metrics["converse/strategy/Self-disclosure"] == pytest.approx(1 / 3)
    assert outcome.metrics["converse/transition_entropy"] == 0


def test_prompting_baselines(endpoint, talked, command):
    """Of three calls a turn the last one is said; of an answer with a thought, what follows the marker."""
    refined = command(*words(endpoint[1], "prompt.inference=self_refine"))
    assert refined.status == 0, refined.errors
    supporter_turns = 4 * 5
    assert refined.metrics["converse/calls"] == talked.metrics["converse/calls"] + 2 * supporter_turns
    asked = [request.body["messages"] for request in endpoint[0].requests]
    last = [messages for messages in asked if "mends what you named" in messages[-1]["content"]]
    assert len(last) == supporter_turns
    told = {turn.reply.text for talk in read_dialogues(refined.path / "talks.jsonl") for turn in talk.turns}
    assert all(messages[-4]["content"].partition(") ")[2] not in told for messages in last)
    assert all(KIND in messages[-4]["content"] for messages in last)

    thoughts = command(*words(endpoint[1], "prompt.inference=cot", "llm.openai.model=thinking"))
    assert thoughts.status == 0, thoughts.errors
    turns = [turn for talk in read_dialogues(thoughts.path / "talks.jsonl") for turn in talk.turns[2::2]]
    assert {turn.reply.strategies for turn in turns} == {("Affirmation and Reassurance",)}
    assert all(turn.reply.text.startswith(KIND) for turn in turns)
    bare = command(*words(endpoint[1], "prompt.inference=cot", "cards.limit=1"))
    assert bare.metrics["converse/ends/supporter_missing"] == 1
    assert bare.metrics["converse/supporter/unusable"] == 3


@pytest.mark.parametrize(
    ("fault", "message"),
    [("401", "the endpoint does not accept the key (401)"), ("disconnect", "no answer of 'kind' after 2 attempts")],
)
def test_an_endpoint_that_dies_keeps_the_answers(talked, tmp_path, fault, message):
    """Nothing half-written, and the same command goes on where it ended, in the middle of talks."""
    alive: list[bool] = []
    server = Endpoint(play, faults=lambda number, body: fault if number >= 30 and not alive else None, model=name)
    with server.running() as url:
        died = execute(tmp_path, *words(url, "llm.openai.attempts=2"))
        assert message in complaint(died, "talks")
        kept, before = len(journalled(tmp_path)), len(server.requests)
        assert 0 < kept <= 30
        alive.append(True)
        with asked_once(server, died.path):
            again = execute(tmp_path, *words(url, f"resume={died.path}"))
    assert again.status == 0, again.errors
    assert contents(again) == contents(talked)
    assert len(server.requests) - before == 64 - kept


def test_endless_replies_are_cut_and_counted(command):
    """Where whole sentences were written, the last one, which is not, is left out; without one the words stay."""

    def endless(body: dict) -> str:
        if who(body) != "supporter":
            return play(body)
        return "(Others) I hear you. " * ("bakery" in said_to(body)) + "and then and then " * 40

    def said_to(body: dict) -> str:
        return " ".join(message["content"] for message in body["messages"])

    def cut(number: int, body: dict) -> str | None:
        return "cut_off" if who(body) == "supporter" else None

    with Endpoint(endless, faults=cut).running() as url:
        outcome = command(*words(url, "cards.only=[closed_bakery,first_semester]", "converse.max_turns=3"))
    assert outcome.status == 0, outcome.errors
    one, other = read_dialogues(outcome.path / "talks.jsonl")
    assert {turn.reply.text for turn in one.turns[2::2]} == {"I hear you."}
    assert all(turn.reply.text.startswith("and then and") for turn in other.turns[2::2])
    assert outcome.metrics["converse/supporter/cut_off"] == 6
    assert outcome.metrics["converse/ends/max_turns"] == 1


def test_answers_that_cannot_be_used_end_a_talk_and_are_counted(command):
    """An empty supporter, a seeker that plays the supporter, replies without an end, and intensities out of range."""

    def fault(number: int, body: dict) -> str | None:
        situation = said_situation(body)
        return "empty" if who(body) == "supporter" and "bakery" in situation else None

    def odd(body: dict) -> str:
        situation = said_situation(body)
        if who(body) == "seeker" and "scholarship" in situation.lower():
            return "Supporter: You will be fine."
        if who(body) == "intensity" and "guest room" in situation:
            return '{"intensity": 9}'
        return play(body)

    def said_situation(body: dict) -> str:
        return " ".join(message["content"] for message in body["messages"])

    def cut(number: int, body: dict) -> str | None:
        return "cut_off" if who(body) == "supporter" and "dementia" in said_situation(body) else fault(number, body)

    with Endpoint(odd, faults=cut).running() as url:
        outcome = command(*words(url, "llm.supporter.max_tokens=12"))
    assert outcome.status == 0, outcome.errors
    talks = {talk.meta["card"]: talk.meta for talk in read_dialogues(outcome.path / "talks.jsonl")}
    assert talks["closed_bakery"]["ends"] == "supporter_missing"
    assert talks["first_semester"]["ends"] == "seeker_missing"
    assert talks["moved_for_love"]["intensity"] == [None] * 6
    assert outcome.metrics["converse/seeker/other_side"] == 3
    assert outcome.metrics["converse/supporter/empty"] == 3
    assert outcome.metrics["converse/supporter/missing"] == 1
    assert outcome.metrics["converse/ends/seeker_missing"] == 0.25
    assert "1 of 4 talks broke off: the seeker wrote nothing that can be used (ends/seeker_missing)" in outcome.errors


def test_a_talk_over_the_context_is_counted(command, tmp_path):
    def fault(number: int, body: dict) -> str | None:
        long = len(body["messages"]) >= 6 and who(body) == "supporter"
        return "400:context_length_exceeded" if long else None

    with (server := Endpoint(play, faults=fault)).running() as url:
        outcome = command(*words(url))
        assert outcome.status == 0, outcome.errors
        asked = len(server.requests)
        resumed = command(*words(url, f"resume={outcome.path}"))
        assert len(server.requests) == asked
    assert outcome.metrics["converse/ends/too_long"] == 1
    assert outcome.metrics["converse/turns"] == 2
    for again in (resumed, replayed(outcome, tmp_path)):
        assert again.status == 0, again.errors
        assert_same(again, outcome)


@pytest.mark.parametrize(
    ("others", "message"),
    [
        (["cards=none"], "cards"),
        (["cards=file"], "cards=file needs a file of cards. Fix: cards.path=FILE"),
        (["cards.only=[closed_bakry]"], "there is no card 'closed_bakry'; did you mean 'closed_bakery'?"),
        (
            ["converse.strategies=[Questions]", "prompt=standard"],
            "no strategy 'Questions' in esconv; did you mean 'Question'?",
        ),
        (["prompt=standard"], "prompt.eval.template=standard: its prompts name the strategy, and none is given"),
        (["converse.strategies=[Question]"], "no endpoint can be held to a label. Fix: prompt=standard"),
        (["prompt.inference=best_of_n"], "prompt.inference=best_of_n: a talk draws one answer"),
        (["prompt.inference=cott"], "prompt.inference=cott: no such baseline; did you mean 'cot'?"),
        (["converse.wording.greeting=''"], "'greeting' is empty"),
        (["converse.wording.person=You."], "'person' lacks the slot {person}"),
        (["checkpoint=esc_lab"], "checkpoint=esc_lab: llm.supporter.client=openai loads none"),
        (
            ["llm.supporter.client=local", "llm.supporter.checkpoint=tests"],
            "model and checkpoint name the supporter under",
        ),
        (["resume=absent"], "no talks/*.journal.jsonl there"),
    ],
    ids=lambda value: value[0][:40] if isinstance(value, list) else "",
)
def test_what_users_do_wrong(endpoint, command, others, message):
    assert message in complaint(command(*words(endpoint[1], *others)))


def test_local_models_on_both_sides(command):
    """The same talks however many are computed together, and again from their recording."""
    runs = [command(*LOCAL), command(*LOCAL, "search.concurrency=1")]
    assert all(run.status == 0 for run in runs), runs[0].errors
    assert contents(runs[0]) == contents(runs[1])
    talks = read_dialogues(runs[0].path / "talks.jsonl")
    told = [value for talk in talks for value in talk.meta["intensity"]]
    assert all(1 <= value <= 5 for value in told)
    assert all(turn.reply.strategies for talk in talks for turn in talk.turns[2::2])  # chosen by the labels
    again = command(*LOCAL, "llm=replay", f"llm.strategist.recording={runs[0].path}")
    assert contents(again) == contents(runs[0])


def test_a_checkpoint_and_a_forced_strategy(command):
    trained = command("stage=sft", "trainer.max_epochs=1", "adapter.r=2")
    assert trained.status == 0, trained.errors
    outcome = command(*LOCAL, f"checkpoint={trained.path}", "converse.strategies=[Question]", "cards.limit=2")
    assert outcome.status == 0, outcome.errors
    assert outcome.metrics["converse/strategy/Question"] == 1
    identity = json.loads(next((outcome.path / "talks").iterdir()).read_text().splitlines()[0])["config"]["roles"]
    assert "adapter" in identity["supporter"]["client"]
    assert "adapter" not in identity["seeker"]["client"]


def test_an_exported_directory(trained, command):
    """What stage=export leaves is a supporter under test, against a seeker that is another model."""
    exported = command("stage=export", f"checkpoint={trained.path}")
    assert exported.status == 0, exported.errors
    outcome = command(*LOCAL, "model=directory", "model.name=exported",
                      f"model.path={exported.path}/model", "cards.limit=2")  # fmt: skip
    assert outcome.status == 0, outcome.errors
    talks = read_dialogues(outcome.path / "talks.jsonl")
    assert all(turn.reply.strategies for talk in talks for turn in talk.turns[2::2])
    roles = json.loads(next((outcome.path / "talks").iterdir()).read_text().splitlines()[0])["config"]["roles"]
    assert roles["supporter"]["client"] != roles["seeker"]["client"]
    again = command(*LOCAL, "llm=replay", f"llm.strategist.recording={outcome.path}", "cards.limit=2")
    assert contents(again) == contents(outcome)


def test_a_model_at_an_endpoint_against_a_local_seeker(endpoint, command):
    outcome = command(*LOCAL, "model=endpoint", "model.path=asking", f"llm.openai.base_url={endpoint[1]}")
    assert outcome.status == 0, outcome.errors
    assert outcome.metrics["converse/asks"] == outcome.metrics["converse/strategy/Question"] == 1
    refused = complaint(command(*LOCAL, "model=endpoint", "model.path=asking", "checkpoint=esc_lab"))
    assert "checkpoint=esc_lab: model=endpoint loads none" in refused
    refused = complaint(command(*LOCAL, "model=endpoint", "model.path=asking", "search.budget.cost=1"))
    assert refused.count("search.budget.cost=1.0: without prices every call costs 0") == 1


def test_cards_of_a_corpus_and_of_crises(endpoint, command):
    corpus = command(*words(endpoint[1], "cards=corpus", "cards.split=train", "converse.max_turns=1"))
    assert corpus.status == 0, corpus.errors
    assert all(talk.situation for talk in read_dialogues(corpus.path / "talks.jsonl"))
    crisis = command(*words(endpoint[1], "cards=crisis", "cards.limit=null", "converse.max_turns=1"))
    severities = [talk.meta["severity"] for talk in read_dialogues(crisis.path / "talks.jsonl")]
    assert len(severities) == 12
    assert {*severities} == {1, 2, 3, 4}


def test_the_scripted_seeker_feels_what_it_is_told():
    body = {"messages": [{"content": ""}, {"content": "supporter: Hello.\nsupporter: That is not my concern, no."}]}
    assert (said(body), feel(body)) == (["That is not my concern, no."], 4.5)
