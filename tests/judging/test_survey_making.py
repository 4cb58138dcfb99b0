"""Questionnaires: balanced, blinded, with sides drawn by chance, attention checks and repeated items."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from collections import Counter

import pytest

from esc_lab.errors import UserError
from esc_lab.judging.survey_key import LABEL_STUDIO, read_key
from tests.judging.evaluations import decisions
from tests.judging.surveys import DIALOGUES, TEMPLATES, make_survey, run_survey, write_templates


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return write_templates(tmp_path_factory.mktemp("evaluated"))


@pytest.fixture(scope="module")
def made(tmp_path_factory, runs):
    directory = tmp_path_factory.mktemp("survey")
    settings = ("survey.items=30", "survey.raters=3", "survey.ratings=2", "survey.checks=2", "survey.repeats=3")
    return directory, make_survey(directory, runs, *settings)


def spread(counts) -> int:
    return max(counts.values()) - min(counts.values())


def runs_of(item):
    return frozenset(reply.run for reply in item.replies)


def test_items_are_balanced(made):
    _, key = made
    items = list(key.items.values())
    assert len(items) == 30
    assert spread(Counter(map(runs_of, items))) == 0
    assert all(item.strategy == reply.strategy for item in items for reply in item.replies)
    offered = Counter(dialogue.turns[turn].reply.strategies[0] for dialogue, turn in decisions(DIALOGUES))
    for pair in set(map(runs_of, items)):
        asked = Counter(item.strategy for item in items if runs_of(item) == pair)
        # No strategy twice more than one that still has decisions left.
        for other, number in offered.items():
            assert all(asked[one] - asked[other] <= 1 or number <= asked[other] for one in asked)
        first = Counter(item.replies[0].run for item in items if runs_of(item) == pair)
        assert spread(first) <= 1
        assert len(first) == 2


def test_raters_share_the_items_and_sides_are_even(made):
    _, key = made
    own = {name: list(entries.values()) for name, entries in key.questionnaires.items() if name != LABEL_STUDIO}
    asked = {name: [e for e in entries if e.check is None and not e.repeat] for name, entries in own.items()}
    assert {name: len(entries) for name, entries in asked.items()} == dict.fromkeys(own, 20)
    assert set(Counter(entry.item for entries in asked.values() for entry in entries).values()) == {2}
    for entries in [*asked.values(), [e for e in key.questionnaires[LABEL_STUDIO].values() if not e.repeat]]:
        left: dict = {}
        for entry in (entry for entry in entries if entry.check is None):
            item = key.items[entry.item]
            shown = item.replies[::-1] if entry.swapped else item.replies
            left.setdefault(runs_of(item), Counter({run: 0 for run in runs_of(item)}))[shown[0].run] += 1
        assert all(spread(counts) <= 1 for counts in left.values())
    for entries in own.values():
        assert sum(entry.check is not None for entry in entries) == 2
        repeated = [entry for entry in entries if entry.repeat]
        assert len(repeated) == 3
        for entry in repeated:
            before = next(e for e in entries if e.item == entry.item and not e.repeat and e.check is None)
            assert entries.index(before) < entries.index(entry)
            assert before.swapped != entry.swapped
    assert len({e.name for entries in key.questionnaires.values() for e in entries.values()}) == 3 * 25 + 35


def test_raters_see_nothing_of_whose_a_reply_is(made):
    directory, key = made
    files = sorted((directory / "questionnaires").iterdir())
    assert [file.name for file in files] == [
        "label_studio_config.xml", "label_studio_tasks.json", "rater_1.html", "rater_2.html", "rater_3.html",
    ]  # fmt: skip
    secrets = [*key.runs, *key.runs.values(), *TEMPLATES, "item_0", "swapped", "sra", "tiny"]
    for file in files:
        text = file.read_text()
        assert not [secret for secret in secrets if secret in text.replace('"standard"', "")], file
    page = json.loads(re.search(r'id="data">(.*?)</script>', files[2].read_text(), re.S)[1])
    entries = key.questionnaires["rater_1"]
    assert [each["name"] for each in page["pages"]] == list(entries)
    for each in page["pages"]:
        entry = entries[each["name"]]
        item = key.items[entry.item]
        texts = [reply.text for reply in item.replies][:: -1 if entry.swapped else 1]
        assert each["replies"][0] == texts[0]
        assert (each["replies"][1] == texts[1]) == (entry.check is None)
        assert each["strategy"] == item.strategy
        assert each["definition"]
        assert each["history"][0][0] == "seeker"
        if entry.check is not None:
            assert f"choose {entry.check} on every scale" in each["replies"][1]


def test_label_studio_has_all_that_it_needs(made):
    directory, key = made
    tasks = json.loads((directory / "questionnaires/label_studio_tasks.json").read_text())
    config = ElementTree.parse(directory / "questionnaires/label_studio_config.xml").getroot()
    assert [task["data"]["entry"] for task in tasks] == list(key.questionnaires[LABEL_STUDIO])
    wanted = {element.get("value")[1:] for element in config.iter() if (element.get("value") or "").startswith("$")}
    assert wanted == set(tasks[0]["data"]) - {"survey", "entry"}
    names = {element.get("name") for element in config.iter()}
    assert all(choices.get("toName") in names for choices in config.iter("Choices"))
    assert [choices.get("name") for choices in config.iter("Choices")] == key.questions
    assert [choice.get("value") for choice in next(config.iter("Choices"))] == [str(value) for value in range(-4, 5)]


def test_the_seed_decides_and_the_key_is_whole(made, runs, tmp_path):
    directory, key = made
    assert read_key(directory) == key
    again = make_survey(tmp_path / "again", runs, "survey.items=9")
    assert again.identity == make_survey(tmp_path / "same", runs, "survey.items=9").identity
    assert again.identity != make_survey(tmp_path / "other", runs, "survey.items=9", "seed=2").identity
    path = tmp_path / "again/key.json"
    whole = path.read_text()
    path.write_text(whole.replace('"swapped": true', '"swapped": false', 1))
    with pytest.raises(UserError, match=r"key.json: the key was changed, so sides cannot be resolved"):
        read_key(tmp_path / "again")
    path.write_text(whole.replace("survey-2", "survey-9"))
    with pytest.raises(UserError, match=r"a key of another version: 'esc-lab/survey-9'"):
        read_key(tmp_path / "again")
    path.unlink()
    with pytest.raises(UserError, match=r"no key of a survey, so sides cannot be resolved: FileNotFoundError"):
        read_key(tmp_path / "again")


def test_single_replies_are_of_all_runs_to_the_same_prompts(runs, tmp_path):
    key = make_survey(tmp_path, runs, "form=acceptance", "survey.items=18", "survey.raters=1")
    prompts = Counter((item.dialogue, item.turn) for item in key.items.values())
    assert set(prompts.values()) == {3}
    assert key.scale.tolist() == [1, 2, 3, 4, 5]
    assert not any(entry.swapped for entries in key.questionnaires.values() for entry in entries.values())
    assert "Strategy" not in (tmp_path / "questionnaires/label_studio_tasks.json").read_text()


def test_each_run_may_meet_the_baseline_alone(runs, tmp_path):
    key = make_survey(tmp_path, runs, "survey.pairs=baseline", f"survey.baseline={runs[1]}", "survey.items=8")
    assert all(any("c3_hf" in run for run in runs_of(item)) for item in key.items.values())


def test_refusals(runs, tmp_path):
    def refused(match, *call, of=runs):
        with pytest.raises(UserError, match=match):
            run_survey(tmp_path, f"survey.runs=[{','.join(map(str, of))}]", *call)

    refused("one run makes no pair", of=runs[:1])
    refused("no judged run 'c9'", "survey.pairs=baseline", "survey.baseline=c9")
    refused("survey.sra=paper/nam: no such SRA; did you mean 'paper/name'", "survey.sra=paper/nam")
    question = "{name: two words, text: a, low: b, high: c}"
    refused("'two words' is no name of a question", f"survey.form.questions=[{question}]")
    reserved = "{name: strategy, text: a, low: b, high: c}"  # a column of Label Studio's exports
    refused("'strategy' is no name of a question", f"survey.form.questions=[{reserved}]")
    refused("rater_1 has 4 items in its first half. Fix: 4 at most", "survey.items=9", "survey.repeats=5")
    refused("a question has name, text, low, high", "survey.form.questions=[{name: a}]")
    refused("give one question at least", "survey.form.questions=[]")
    assert not (tmp_path / "key.json").exists()
