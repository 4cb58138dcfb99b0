"""Whole talks under a schedule of strategies, and the study of their turns as they were written."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from esc_lab.data.corpora import read_dialogues
from tests.e2e.conftest import Outcome, execute
from tests.e2e.test_bad_input import complaint
from tests.e2e.test_converse import LOCAL
from tests.search.endpoint_roles import journalled

SCHEDULE = ["Question", "Reflection of feelings", "Providing Suggestions"]
HELD = (
    "prompt=standard", f"converse.strategies=[{','.join(SCHEDULE)}]", "converse.max_turns=20", "converse.min_turns=20",
    "converse.intensity=false",
)  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> str:
    outcome = execute(tmp_path_factory.mktemp("steered"), "stage=sft", "prompt=standard", "trainer.max_steps=2")
    return str(outcome.path)


@pytest.fixture(scope="module")
def held(trained, tmp_path_factory) -> list[Outcome]:
    """Talks of a base model and of a trained one."""
    root = tmp_path_factory.mktemp("held")
    return [execute(root / name, *LOCAL, *HELD, *own) for name, own in
            (("base", ()), ("steered", (f"checkpoint={trained}",)))]  # fmt: skip


@pytest.fixture(scope="module")
def judge(tmp_path_factory) -> str:
    outcome = execute(tmp_path_factory.mktemp("judge"), "stage=classifier", "trainer.max_steps=2")
    return f"evaluate.classifier={outcome.path}"


def test_turns_of_whole_talks(held, judge, trained, command):
    talks = [outcome.path for outcome in held]
    study = command("experiment=sra_turns", f"sra.talks=[{talks[0]},{talks[1]}]", "sra.draws=50", judge)
    assert study.status == 0, study.errors
    left = study.read("study.json")
    for run in talks:
        dialogues = {talk.id: talk for talk in read_dialogues(run / "talks.jsonl")}
        lines = [json.loads(line) for line in (study.path / run.name / "predictions.jsonl").read_text().splitlines()]
        turns = sum(len(list(talk.decisions())) for talk in dialogues.values())
        assert len(lines) == turns == 3 * 20
        for line in lines:
            talk, number = dialogues[line["dialogue"]], line["turn"] // 2
            assert line["prompted"] == SCHEDULE[(number - 1) % 3]
            assert line["gold_reply"] == talk.turns[line["turn"]].reply.text
            assert (line["history"], line["template"]) == (line["turn"], "standard")
        for turn in range(1, 21):
            of_turn = [line for line in lines if line["turn"] == 2 * turn]
            expected = np.mean([math.log(line["sra"]["paper/name"]["sra"]) for line in of_turn])
            assert study.metrics[f"{run.name}/turn_{turn:02d}/log_sra"] == pytest.approx(expected)
            adheres = np.mean([line["adheres"] for line in of_turn])
            assert study.metrics[f"{run.name}/turn_{turn:02d}/adherence"] == pytest.approx(adheres)
        assert math.isfinite(study.metrics[f"{run.name}/log_sra_per_turn"])
        assert study.metrics[f"{run.name}/shortened"] == 0
    assert len(left["turns"]) == 2 * 20
    assert study.read(f"{talks[1].name}/environment.json")
    settings = (study.path / talks[1].name / "config.yaml").read_text()
    assert f"checkpoint: {trained}\n" in settings
    assert {path.name for path in study.path.glob("*_by_turn.svg")} == {
        f"{name}_by_turn.svg" for name in ("log_sra", "sham_net", "log_relative", "adherence")
    }
    assert "Change from one turn to the next" in (study.path / "study.md").read_text()


def test_histories_without_room_are_counted(held, command):
    calls = [call for call in journalled(held[0].path) if call["role"] == "supporter"]
    room = max(call["answer"]["prompt_tokens"] for call in calls)
    study = command("experiment=sra_turns", f"sra.talks=[{held[0].path}]", f"data.row_tokens={room}",
                    "evaluate.classifier=null")  # fmt: skip
    assert study.status == 0, study.errors
    assert 0 < study.metrics[f"{held[0].path.name}/shortened"] < len(calls)
    assert "raise data.row_tokens" in study.output
    assert not any(name.endswith("/adherence") for name in study.metrics)


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ([], "sra.study=turns needs talks. Fix: sra.talks=[<run directory of stage=converse>"),
        (["sra.talks=[esc_lab]"], "sra.talks: esc_lab has no talks.jsonl"),
        (["sra.talks=[{run},{run}]"], "runs are told apart by the names of their directories"),
        (["sra.talks=[{run}]", "checkpoint=esc_lab"], "the talks say which model held them"),
    ],
)
def test_what_users_do_wrong(held, command, others, message):
    run = str(held[0].path)
    assert message in complaint(
        command("experiment=sra_turns", "evaluate.classifier=null", *(each.replace("{run}", run) for each in others))
    )


def test_talks_whose_supporter_was_not_loaded(held, command):
    replayed = command(*LOCAL, *HELD, "llm=replay", f"llm.strategist.recording={held[0].path}")
    assert replayed.status == 0, replayed.errors
    refused = command("experiment=sra_turns", f"sra.talks=[{replayed.path}]", "evaluate.classifier=null")
    assert "attention takes the weights of the supporter, and its talks have llm.supporter.client=replay" in complaint(
        refused
    )
