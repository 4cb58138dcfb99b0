"""Stage `arena`, whole, with tiny models: who is trained, who talks how, and the comparison at the end."""

from __future__ import annotations

import pytest

from esc_lab.data.corpora import read_dialogues
from tests.e2e.test_bad_input import complaint
from tests.e2e.test_converse import LOCAL

SMALL = (
    "stage=arena", *LOCAL[1:], "converse.min_turns=3", "trainer.max_steps=2", "llm.local.model.dtype=float32",
    "arena.strategies=[Question,Information]",
)  # fmt: skip


def test_supporters_of_several_trainings(trained, command):
    """One is given, one is trained here, and two are the base model, in its own way and by a schedule."""
    outcome = command(*SMALL, f"arena.sft={trained.path}", "arena.supporters=[base,sft,steerable,prompted]")
    assert outcome.status == 0, outcome.errors
    path = outcome.path
    talks = {name: read_dialogues(path / name / "talks.jsonl") for name in ("base", "sft", "steerable", "prompted")}
    for name in ("steerable", "prompted"):
        replies = [[turn.reply.strategies[0] for turn in talk.turns[2::2]] for talk in talks[name]]
        assert replies == [["Question", "Information", "Question"]] * 3
    openings = {name: [talk.turns[:2] for talk in held] for name, held in talks.items()}
    assert openings["base"] == openings["sft"] == openings["steerable"] == openings["prompted"]
    settings = {name: (path / name / "config.yaml").read_text() for name in talks}
    assert f"\ncheckpoint: {trained.path}\n" in settings["sft"]
    assert f"\ncheckpoint: {path}/training/steerable\n" in settings["steerable"]
    assert "\ncheckpoint: null\n" in settings["prompted"]
    assert {file.name for file in (path / "training").iterdir()} == {"steerable"}
    trained_on = (path / "training/steerable/config.yaml").read_text()
    assert "template: standard" in trained_on
    for name, held in talks.items():
        assert outcome.metrics[f"{name}/turns"] == sum(len(list(talk.decisions())) for talk in held) / 3
    assert (path / "compare/report.html").exists()


@pytest.mark.parametrize(
    ("others", "message"),
    [
        (["arena.sft=esc_lab"], "arena.sft=esc_lab: CSO goes on from SFT, and the other one would be of another"),
        (["arena.supporters=[]"], "arena.supporters=[]: one or more are needed"),
        (["arena.supporters=[base,base]"], "one or more are needed, each once"),
        (["arena.strategies=[Questions]"], "no strategy 'Questions' in esconv; did you mean 'Question'?"),
        (["arena.template=cso"], "arena.template=cso: its prompts let the model choose. Fix: arena.template=standard"),
        (["checkpoint=esc_lab"], "checkpoint=esc_lab: the supporters have their own"),
        (["model=endpoint", "model.path=x", "arena.supporters=[base]"], "stage=arena needs the weights"),
        (
            ["pipeline.stages=[sft]"],
            "arena.sft and arena.cso are not named, and it does not train both",
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_users_do_wrong(command, others, message):
    assert message in complaint(command("experiment=arena", "model@llm.local.model=tiny_llama", *others))
