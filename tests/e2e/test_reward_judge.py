"""A reward model at work: as judge of a search and of evaluations, choosing replies, and giving values to pairs."""

from __future__ import annotations

import json

import numpy as np
import pytest

from esc_lab.data.corpora import read_dialogues
from esc_lab.data.dialogue import Reply, Turn
from esc_lab.data.strategies import load_inventory
from esc_lab.prompts.trained import RewardPrompts
from esc_lab.scorers.reward_files import load_reward
from tests.conftest import CACHE
from tests.e2e.conftest import SEARCH, Outcome, execute
from tests.e2e.test_bad_input import complaint
from tests.e2e.test_reward import SPLIT, write_corpus

ESCONV = load_inventory("esconv")
EVALUATE = ("stage=evaluate", "evaluate.sra.enabled=false", "evaluate.generation.decisions=4")
JUDGE = ("stage=judge", "model@llm.local.model=tiny_llama", "search.cache=false", "judge.check=12")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> list[str]:
    directory = tmp_path_factory.mktemp("corpus")
    return ["data=jsonl", write_corpus(directory / "corpus.jsonl"), *SPLIT]


@pytest.fixture(scope="module")
def run(corpus, tmp_path_factory):
    """`run(*words)` on the corpus; it has to end well."""

    def call(*words: str) -> Outcome:
        outcome = execute(tmp_path_factory.mktemp("run"), *corpus, *words)
        assert outcome.status == 0, outcome.errors
        return outcome

    return call


@pytest.fixture(scope="module")
def reward(run) -> Outcome:
    """It knows kind words from unkind ones."""
    words = ("trainer.max_epochs=4", "optimizer.lr=0.01", "reward.head_lr=0.03", "reward.check=18")
    return run("stage=reward", "reward.kinds={rejected: 1.0}", *words)


@pytest.fixture(scope="module")
def judge(reward) -> list[str]:
    return ["llm.judge.client=reward", f"llm.judge.checkpoint={reward.path}"]


@pytest.fixture(scope="module")
def best(run, reward) -> Outcome:
    words = ("prompt.inference=best_of_n", "evaluate.best_of.replies=3", f"evaluate.best_of.reward={reward.path}")
    return run(*EVALUATE, *words)


def test_a_search_with_it(run, judge):
    """Its check is on dialogues that it was not trained on; a recording plays it again without the model."""
    # Its scores are nearly all 0 or 4: of equal ones none would be rejected.
    limits = ("mcts.preferences.rejected_max=1.0", "mcts.preferences.preferred_min=0.8")
    words = ("search.seeds=1", "search.judge_check=16", "search.seeker_check=0", *limits)
    few = [word for word in SEARCH if not word.startswith("search.judge_check")]
    searched = run("stage=search", *few, *words, *judge)
    assert "not trained on" in (searched.path / "run.log").read_text()
    assert searched.metrics["search/judge_check/rejected"] > 0.9
    (file,) = [path for path in searched.path.glob("trees/*.journal.jsonl") if "judge_check" not in path.name]
    head, *calls = [json.loads(line) for line in file.read_text().splitlines()]
    assert head["config"]["roles"]["judge"]["client"]["asked"] == RewardPrompts(False).record()
    judged = [call["answer"] for call in calls if call["role"] == "judge"]
    assert judged
    for answer in judged:
        np.testing.assert_allclose(np.exp(answer["log_probs"]).sum(axis=1), [1], atol=1e-5)
    replay = ("llm=replay", f"llm.strategist.recording={file}", "search.judge_check=0", "search.seeker_check=0")
    again = run("stage=search", *few[1:], "search.seeds=1", *limits, *replay)
    trees = [next(path for path in outcome.path.glob("trees/*.json")).read_text() for outcome in (searched, again)]
    assert json.loads(trees[0])["tree"]["nodes"] == json.loads(trees[1])["tree"]["nodes"]


def test_the_best_of_n_is_the_one_with_the_highest_score(run, reward, best):
    """The candidates are what a sampled evaluation writes with the same seeds."""
    sampling = ("temperature=0.8", "top_p=0.95", "samples=3")
    sampled = run(*EVALUATE, *(f"evaluate.generation.{word}" for word in sampling))
    candidates: dict[tuple, list[dict]] = {}
    for line in sampled.lines("predictions.jsonl"):
        if line.get("reply"):
            candidates.setdefault((line["dialogue"], line["turn"]), []).append(line)
    dialogues = {each.id: each for each in read_dialogues(best.path / "dialogues.jsonl", inventory=ESCONV)}
    model = load_reward(reward.path, ESCONV, CACHE)
    chosen = [line for line in best.lines("predictions.jsonl") if line["reply"] is not None]
    assert len(chosen) == 4
    scores, gains = [], []
    for line in chosen:
        own = candidates[line["dialogue"], line["turn"]]
        history = dialogues[line["dialogue"]].turns[: line["turn"]]
        found = model.score([(*history, Turn("supporter", Reply(other["reply"]))) for other in own])
        assert line["reply"] == own[int(found.argmax())]["reply"]
        assert (line["sample"], line["sampling"]["inference"]) == (0, "best_of_n")
        scores.append(found.max())
        gains.append(found.max() - found.mean())
    assert best.metrics["best_of/score"] == pytest.approx(np.mean(scores), abs=1e-4)
    assert best.metrics["best_of/gain"] == pytest.approx(np.mean(gains), abs=1e-4)
    assert best.metrics["generated/n"] == 4
    assert "strategy/Q" not in best.metrics  # the choice is that of what is written


def test_it_gives_values_to_pairs_and_judges_nothing_that_it_made(run, reward, judge, best, command):
    """The corpus has no values; those of the reward model put the kind reply of each pair above the other."""
    margin = ("stage=cso", "objective.value_margin=0.5", "trainer.max_steps=2")
    trained = run(*margin, f"objective.reward={reward.path}")
    assert trained.metrics["data/train_unjudged_pairs"] == 0
    assert trained.metrics["data/train_inverted_pairs"] < 0.1 * trained.metrics["data/train_pairs"]
    optimised = run(*EVALUATE, f"checkpoint={trained.path}")
    plain = run(*EVALUATE)
    for outcome, made in ((best, "chose the replies of"), (optimised, "gave the values that")):
        runs = f"judge.runs=[{plain.path},{outcome.path}]"
        assert made in complaint(command(*JUDGE, runs, *judge))
    forced = command(*JUDGE, runs, *judge, "judge.force=true")
    assert forced.status == 0, forced.errors
    record = forced.read("judge.json")
    assert [axis["name"] for axis in record["axes"]] == ["reward"]
    assert any("gave the values that" in reason for reason in record["forced"])
    rubric, pairwise = (
        [line for line in forced.lines("judgements.jsonl") if line["kind"] == kind] for kind in ("rubric", "pairwise")
    )
    assert all(0 <= line["scores"]["reward"] == line["overall"] <= 4 for line in rubric)
    assert all(line["first"] == pytest.approx(line["second"], abs=1e-5) for line in pairwise if not line["identical"])
    assert forced.metrics["judge/calls"] > len(rubric) > 0


def test_dialogues_that_it_was_trained_on_are_refused(run, reward, judge, command):
    seen = run(*EVALUATE, "evaluate.split=train")
    words = (*JUDGE, f"judge.runs=[{seen.path}]", "judge.pairwise=false", *judge)
    assert "was trained on" in complaint(command(*words))
    best = (*EVALUATE, "evaluate.split=val", "prompt.inference=best_of_n", f"evaluate.best_of.reward={seen.path}")
    assert "no reward model in it" in complaint(command(*best))


def test_another_base_model_is_refused(judge, command):
    other = ("stage=search", *SEARCH[1:], "model@llm.local.model=tiny_qwen2", *judge)
    assert "it was trained on tiny-llama" in complaint(command(*other))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("stage=search", "llm.judge.client=reward"), "llm.judge.client=reward needs a trained reward model"),
        (("stage=search", "llm.supporter.client=reward"), "a reward model judges and writes nothing"),
        (("stage=evaluate", "prompt.inference=best_of_n"), "prompt.inference=best_of_n needs a reward model"),
        (
            ("stage=evaluate", "prompt.inference=best_of_n", "evaluate.replies=gold", "evaluate.best_of.reward=."),
            "no reply is written",
        ),
    ],
)
def test_settings_that_mean_nothing_are_refused(command, words, message):
    assert message in complaint(command(*words))
