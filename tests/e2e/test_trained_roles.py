"""A seeker is trained, and a search is played by a trained supporter, its choice of strategies, and that seeker."""

from __future__ import annotations

import json

import pytest

from esc_lab.data.corpora import read_dialogues
from esc_lab.prompts import END
from tests.e2e.conftest import SEARCH, Outcome, execute
from tests.e2e.test_bad_input import complaint


@pytest.fixture(scope="module")
def seeker(tmp_path_factory) -> Outcome:
    words = ("stage=sft", "data.side=seeker", "trainer.max_steps=2", "optimizer.lr=0.02")
    outcome = execute(tmp_path_factory.mktemp("seeker"), *words)
    assert outcome.status == 0, outcome.errors
    return outcome


@pytest.fixture(scope="module")
def policy_words(trained, seeker) -> list[str]:
    checkpoints = [f"llm.supporter.checkpoint={trained.path}", f"llm.seeker.checkpoint={seeker.path}"]
    return ["stage=search", "llm=policy", *SEARCH, *checkpoints]


@pytest.fixture(scope="module")
def searched(policy_words, tmp_path_factory) -> Outcome:
    outcome = execute(tmp_path_factory.mktemp("searched"), *policy_words, "search.seeds=2")
    assert outcome.status == 0, outcome.errors
    return outcome


def test_the_training_keeps_its_words_and_says_what_it_is(seeker):
    card = (seeker.path / "adapter" / "README.md").read_text()
    assert "on the seeker's turns" in card
    assert f"`{END}`" in card
    assert "You play the seeker" in card
    assert seeker.metrics["data/train_examples"] > 0


def test_the_roles_are_asked_as_in_training(searched):
    """As their journals say; the strategist is asked for one choice, and the seeker ends the talk itself."""
    for file in searched.path.glob("trees/*.journal.jsonl"):
        head, *calls = [json.loads(line) for line in file.read_text().splitlines()]
        asked = {role: how["client"].get("asked") for role, how in head["config"]["roles"].items()}
        assert "judge" not in {role for role, how in asked.items() if how}
        assert asked["strategist"] == asked["supporter"]
        assert asked["supporter"]["template"]["template"] == "cso"
        assert asked["seeker"]["words"]["seeker_system"].startswith("You play the seeker")
        answers = {role: [call["answer"] for call in calls if call["role"] == role] for role in asked}
        assert all(len(answer["log_probs"]) == 1 for answer in answers["strategist"])
        assert not any(answer["log_probs"] for answer in answers["seeker"])


def test_every_strategy_has_a_prior(searched):
    for file in searched.path.glob("trees/*.json"):
        nodes = json.loads(file.read_text())["tree"]["nodes"]
        for node in nodes:
            priors = [nodes[child]["prior"] for child in node["children"]]
            assert sum(priors) == pytest.approx(1 if priors else 0)
            assert all(prior >= 0.01 - 1e-9 for prior in priors)


def test_what_seekers_say_is_compared(searched):
    card = (searched.path / "esc_pro" / "README.md").read_text()
    assert "### What the seekers say" in card
    assert "| real |" in card
    metrics = searched.metrics
    assert metrics["search/seeker/real/turns"] > 0
    assert metrics["search/seeker/real/perplexity"] > 1
    assert read_dialogues(searched.path / "esc_pro/train.jsonl")


def test_a_recording_needs_no_checkpoint(policy_words, command):
    """Its journal says how the roles were asked."""
    own = ("search.seeds=1", "search.judge_check=0", "mcts.preferences.extend_rejected=true")
    words = [word for word in policy_words if not word.startswith("search.judge_check")]
    recorded = command(*words, *own, "llm.strategist.min_prior=0.03")
    assert recorded.status == 0, recorded.errors
    (journal,) = recorded.path.glob("trees/*.journal.jsonl")
    replay = ("stage=search", "llm=replay", f"llm.strategist.recording={journal}", "search.cache=false")
    again = command(*replay, *own, *SEARCH[1:4])
    assert again.status == 0, again.errors
    trees = [next(outcome.path.glob("trees/*.json")).read_text() for outcome in (recorded, again)]
    assert json.loads(trees[0])["tree"]["nodes"] == json.loads(trees[1])["tree"]["nodes"]


def test_the_wrong_checkpoint_is_refused(trained, seeker, command):
    turned = ("stage=search", "llm=policy", *SEARCH, f"llm.supporter.checkpoint={seeker.path}")
    assert "it was trained as the seeker, and this is the supporter" in complaint(command(*turned))
    swapped = ("stage=search", *SEARCH, f"llm.seeker.checkpoint={trained.path}")
    assert "it was trained as the supporter, and this is the seeker" in complaint(command(*swapped))
    other = ("stage=search", "llm=policy", *SEARCH[1:], "model@llm.local.model=tiny_qwen2",
             f"llm.supporter.checkpoint={trained.path}")  # fmt: skip
    assert "it was trained from tiny-llama" in complaint(command(*other))
    assert "it was trained as the seeker" in complaint(command("stage=evaluate", f"checkpoint={seeker.path}"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("stage=cso", "data.side=seeker"), "data.side=seeker: stage=cso is about supporters"),
        (("stage=search", "llm.seeker.client=policy"), "a policy plays the strategist alone"),
        (("stage=search", "llm.strategist.client=policy"), "needs a trained supporter"),
        (("stage=search", "llm=policy"), "llm.supporter.checkpoint"),
    ],
)
def test_settings_that_mean_nothing_are_refused(command, words, message):
    assert message in complaint(command(*words))
