"""What raters gave back: planted preferences are found, what cannot be used is told or kept apart."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import pearsonr

from esc_lab.artifacts import file_fingerprint
from esc_lab.comparison.files import write_comparison
from esc_lab.comparison.result import compute_comparison
from esc_lab.comparison.table import build_table
from esc_lab.config.survey import FormConfig
from esc_lab.data.corpora import read_dialogues
from esc_lab.errors import UserError
from esc_lab.judging.published_study import read_published_study
from esc_lab.judging.survey_answers import Rating, collect_ratings, read_answers
from esc_lab.judging.survey_items import SurveyItem, SurveyReply
from esc_lab.judging.survey_key import LABEL_STUDIO, SurveyKey
from esc_lab.judging.survey_results import summarize_question
from esc_lab.judging.survey_votes import build_votes
from esc_lab.report.comparison_page import write_comparison_page
from tests.comparison.synthetic import settings, write_run
from tests.conftest import INVENTORIES
from tests.judging.surveys import (
    DIALOGUES,
    TEMPLATES,
    WORTH,
    careless,
    composed,
    fill_in,
    make_survey,
    preferring,
    published_rows,
    run_survey,
    save,
    write_templates,
)

LABELS = {template: f"tiny base ({template})" for template in TEMPLATES}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return write_templates(tmp_path_factory.mktemp("evaluated"))


@pytest.fixture(scope="module")
def asked(tmp_path_factory, runs):
    """A survey that two raters of known preferences and a careless one have filled in."""
    root = tmp_path_factory.mktemp("asked")
    calls = ("survey.items=45", "survey.raters=3", "survey.checks=4", "survey.repeats=6")
    key = make_survey(root / "made", runs, *calls)
    raters = {"rater_1": preferring(0.5, 1), "rater_2": preferring(1.5, 2)}
    files = [save(root / f"{name}.json", key, name, fill_in(key, name, rate)) for name, rate in raters.items()]
    thoughtless = fill_in(key, "rater_3", careless(3), reads=False)
    return root, key, [*files, save(root / "rater_3.json", key, "rater_3", thoughtless)]


def read(root, out, files, *call):
    return run_survey(out, f"survey.directory={root / 'made'}", f"survey.results=[{','.join(map(str, files))}]", *call)


@pytest.fixture(scope="module")
def found(asked, tmp_path_factory):
    root, _, files = asked
    out = tmp_path_factory.mktemp("found")
    return out, read(root, out, files)


def test_planted_preferences_and_a_careless_rater_are_found(found):
    out, metrics = found
    record = json.loads((out / "survey.json").read_text())
    assert record["careless"] == ["rater_3"]
    for question in record["questions"]:
        strengths = {run["run"]: run["strength"] for run in question["runs"]}
        best, middle, worst = (strengths[LABELS[name]] for name in ("c1_hf", "c3_hf", "standard"))
        assert best["low"] > middle["high"] > middle["low"] > worst["high"]
        means = {run["run"]: run["mean"] for run in question["runs"]}
        assert all(abs(means[LABELS[name]]["value"] - 1.5 * WORTH[name]) < 0.4 for name in TEMPLATES)
        assert question["side"]["low"] < 0 < question["side"]["high"]
        steady, noisy = question["raters"]
        assert (steady["rater"], steady["repeats"]) == ("rater_1", 6)
        assert steady["change"] < noisy["change"]
        assert question["alpha"]["interval"]["value"] > 0.6
    assert metrics["survey/careless_raters"] == 1
    assert metrics["survey/set_aside/failed_checks"] == 2 * (45 + 6)
    assert metrics["survey/ratings"] == 2 * 45 * 2
    assert metrics["survey/missing"] == 0
    aside = [json.loads(line) for line in (out / "set_aside.jsonl").read_text().splitlines()]
    assert {(line["rater"], line["reason"]) for line in aside} == {("rater_3", "failed_checks")}


def test_believed_all_the_same_a_careless_rater_stands_apart(asked, tmp_path):
    root, _, files = asked
    assert read(root, tmp_path, files, "survey.min_checks=0")["survey/careless_raters"] == 0
    raters = json.loads((tmp_path / "survey.json").read_text())["questions"][0]["raters"]
    others = {rater["rater"]: rater["others"] for rater in raters}
    assert others["rater_3"] < 0.4 < min(others["rater_1"], others["rater_2"])


def test_who_always_chooses_the_left_side_favours_no_run(asked, tmp_path):
    root, key, _ = asked
    left = [save(tmp_path / name, key, name, fill_in(key, name, lambda *_: 0)) for name in ("rater_1", "rater_2")]
    for path in left:
        content = json.loads(path.read_text())
        checks = {e.name for e in key.questionnaires[content["questionnaire"]].values() if e.check is not None}
        content["answers"] |= {n: dict.fromkeys(key.questions, -3) for n in content["answers"].keys() - checks}
        path.write_text(json.dumps(content))
    metrics = read(root, tmp_path / "out", left)
    assert metrics["survey/adherence/side"] == -3
    question = json.loads((tmp_path / "out/survey.json").read_text())["questions"][0]
    assert [rater["mean"] for rater in question["raters"]] == [-3, -3]
    assert all(abs(metrics[f"survey/adherence/mean/{label}"]) <= 3 * 2 / 30 for label in LABELS.values())
    assert metrics["survey/adherence/alpha/interval"] < 0.5  # they saw pairs on sides of their own


def test_sra_is_correlated_as_planted(found):
    """People follow the template alone, so what is left of the correlation with SRA, given templates, is noise."""
    out, metrics = found
    lines = [json.loads(line) for line in (out / "ratings.jsonl").read_text().splitlines()]
    own = [line for line in lines if line["question"] == "adherence"]
    x, y = np.array([(line["sra"][1] - line["sra"][0], line["value"]) for line in own]).T
    assert metrics["survey/adherence/sra/all/raw"] == pytest.approx(pearsonr(x, y)[0])
    low, high = np.quantile(x, [0.01, 0.99])
    kept = (x >= low) & (x <= high)
    assert metrics["survey/adherence/sra/all/trimmed"] == pytest.approx(pearsonr(x[kept], y[kept])[0])
    assert metrics["survey/adherence/sra/all/trimmed"] > 0.7
    record = json.loads((out / "survey.json").read_text())["questions"][0]["sra"][0]["correlations"]
    assert record["templates"]["low"] < 0 < record["templates"]["high"]


@pytest.mark.parametrize("templates", [("standard", "standard"), ("standard", "c1_hf")])
def test_what_a_model_explains_is_taken_out_too(templates):
    """Steerable models and their bases, all prompted alike or not: people follow the model alone, and so does SRA."""
    drawn = np.random.default_rng(2)
    kinds = [(model, template) for model in ("base", "steerable") for template in dict.fromkeys(templates)]
    ratings = []
    for number in range(240):
        places = drawn.permutation(len(kinds))[:2]
        replies = tuple(
            SurveyReply(f"{model} ({template})", template, "x", None, 2 * (model == "steerable") + drawn.normal())
            for model, template in (kinds[place] for place in places)
        )
        item = SurveyItem(f"item_{number}", f"d{number // 3}", f"d{number // 3}", 1, None, replies)
        better = [reply.run.startswith("steerable") for reply in replies]
        value = int(np.clip(round(2.5 * (better[1] - better[0]) + drawn.normal()), -4, 4))
        ratings.append(Rating("a", item, "adherence", value, value))
    form = FormConfig(unit="pair", reach=4, questions=[{"name": "adherence"}])
    found = summarize_question("adherence", ratings, SurveyKey(form, {}, {}, {}, {}), composed().survey, 1)
    correlations = found.sra[0].correlations
    assert correlations["trimmed"].low > 0.4
    assert correlations["runs"].low < 0 < correlations["runs"].high
    assert math.isnan(correlations["templates"].value) == (templates[0] == templates[1])
    if templates[0] != templates[1]:
        assert correlations["templates"].low > 0.3  # the template knows nothing of the model
    x = np.array([rating.item.replies[1].sra - rating.item.replies[0].sra for rating in ratings])
    y = np.array([rating.value for rating in ratings], dtype=float)
    runs = [f"{model} ({template})" for model, template in kinds]
    sides = np.array([[runs.index(reply.run) for reply in rating.item.replies] for rating in ratings])
    given = np.column_stack([np.ones(240), np.eye(len(runs))[sides[:, 1]] - np.eye(len(runs))[sides[:, 0]]])
    low, high = np.quantile(x, [0.01, 0.99])
    kept = (x >= low) & (x <= high)
    left = [each[kept] - given[kept] @ np.linalg.lstsq(given[kept], each[kept], rcond=None)[0] for each in (x, y)]
    assert correlations["runs"].value == pytest.approx(pearsonr(*left)[0])


def test_votes_are_preference_pairs(asked, found):
    _, key, _ = asked
    out, metrics = found
    votes = read_dialogues(out / "preferences.jsonl")
    assert metrics["votes/dialogues"] == len(votes) > 40
    assert len(votes) + metrics["votes/undecided"] == len(key.items)
    texts = {reply.text: reply.template for item in key.items.values() for reply in item.replies}
    right = []
    for vote in votes:
        last = vote.turns[-1]
        (rejected,) = last.rejected
        item = key.items[vote.meta["survey_item"]]
        assert (vote.tree_id, len(vote.turns)) == (item.tree, item.turn + 1)
        assert last.reply.strategies == rejected.strategies == (item.strategy,)
        assert last.reply.value == -rejected.value >= 0.5
        right.append(WORTH[texts[last.reply.text]] > WORTH[texts[rejected.text]])
    assert np.mean(right) > 0.9


def export(tasks, raters, *, minimal=False):
    """Label Studio's export of tasks that each rater has answered."""
    if minimal:
        return [
            {**task["data"], "id": n, **{q: str(v) for q, v in answers[task["data"]["entry"]].items()}, "annotator": by}
            for n, task in enumerate(tasks)
            for by, answers in raters.items()
        ]
    return [
        {
            **task,
            "annotations": [
                {
                    "completed_by": {"id": by, "email": "hidden"}, "was_cancelled": False,
                    "result": [{"from_name": q, "type": "choices", "value": {"choices": [str(v)]}}
                               for q, v in answers[task["data"]["entry"]].items()],
                }
                for by, answers in raters.items()
            ] + [{"completed_by": 9, "was_cancelled": True, "result": []}],
        }
        for task in tasks
    ]  # fmt: skip


def test_both_exports_of_label_studio_say_the_same(asked, tmp_path):
    root, key, _ = asked
    tasks = json.loads((root / "made/questionnaires/label_studio_tasks.json").read_text())
    answers = {by: fill_in(key, LABEL_STUDIO, preferring(0.5, by)) for by in (1, 2)}
    sets = []
    for minimal in (False, True):
        path = tmp_path / f"{minimal}.json"
        path.write_text(json.dumps(export(tasks, answers, minimal=minimal)))
        sets.append({(a.rater, a.entry, a.question, a.value) for a in read_answers(path, key)})
    assert sets[0] == sets[1]
    assert len(sets[0]) == 2 * 2 * (45 + 4 + 6)
    ratings = collect_ratings(key, read_answers(path, key), 0.75)
    assert {rating.rater for rating in ratings.ratings} == {"annotator 1", "annotator 2"}
    assert ratings.checks == {"annotator 1": (8, 8), "annotator 2": (8, 8)}


def test_missing_and_double_answers_are_counted_and_kept_apart(asked, tmp_path):
    root, key, files = asked
    answers = json.loads(files[0].read_text())["answers"]
    plain = [e.name for e in key.questionnaires["rater_1"].values() if e.check is None and not e.repeat]
    early = {name: dict(values) for name, values in answers.items() if name != plain[0]}
    early[plain[1]]["helpfulness"] = 4 if early[plain[1]]["helpfulness"] < 4 else 3
    del early[plain[2]]["adherence"]
    late = {name: values for name, values in answers.items() if name != plain[0]}
    late[plain[2]] = {"helpfulness": late[plain[2]]["helpfulness"]}
    paths = [save(tmp_path / f"{n}.json", key, "rater_1", given) for n, given in enumerate((early, late))]
    metrics = read(root, tmp_path / "out", paths)
    total = 2 * len(answers)
    assert metrics["survey/missing"] == 3
    assert metrics["survey/set_aside/double"] == 2
    items = [json.loads(line)["item"] for line in (tmp_path / "out/ratings.jsonl").read_text().splitlines()]
    assert len(items) == 2 * 45 - 4  # none of these four was asked about again
    assert metrics["survey/duplicates"] == total - 3 - 1
    aside = [json.loads(line) for line in (tmp_path / "out/set_aside.jsonl").read_text().splitlines()]
    item = key.questionnaires["rater_1"][plain[1]].item
    assert {(line["item"], line["question"], line["reason"]) for line in aside} == {(item, "helpfulness", "double")}
    assert math.isnan(metrics.get("survey/adherence/alpha/interval", math.nan))  # one rater agrees with nobody


@pytest.mark.parametrize("first", ["open", "double"])
def test_the_second_answer_counts_where_the_first_is_not_known(asked, tmp_path, first):
    root, key, files = asked
    entries = key.questionnaires["rater_1"].values()
    repeat = next(entry for entry in entries if entry.repeat)
    before = next(e for e in entries if e.item == repeat.item and not e.repeat and e.check is None)
    content = json.loads(files[0].read_text())["answers"]
    content[repeat.name]["adherence"] = 3
    other = json.loads(json.dumps(content))
    del content[before.name]["adherence"]
    if first == "double":
        content[before.name]["adherence"], other[before.name]["adherence"] = 1, 2
    paths = [save(tmp_path / "a.json", key, "rater_1", content)]
    paths += [save(tmp_path / "b.json", key, "rater_1", other)] if first == "double" else []
    metrics = read(root, tmp_path / "out", paths)
    assert metrics["survey/ratings"] == 2 * 45
    assert (metrics["survey/missing"], metrics["survey/set_aside/double"]) == ((1, 0) if first == "open" else (0, 2))
    lines = [json.loads(line) for line in (tmp_path / "out/ratings.jsonl").read_text().splitlines()]
    (line,) = (line for line in lines if (line["item"], line["question"]) == (repeat.item, "adherence"))
    assert (line["shown"], line["value"], line["again"]) == (3, -3 if repeat.swapped else 3, None)


def test_files_that_are_not_of_this_survey_are_refused(asked, tmp_path):
    root, key, files = asked
    whole = json.loads(files[0].read_text())["answers"]
    name = next(iter(whole))

    def refused(match, answers=whole, questionnaire="rater_1", **changes):
        path = save(tmp_path / "bad.json", key, questionnaire, answers, **changes)
        with pytest.raises(UserError, match=match):
            read(root, tmp_path / "out", [path])

    refused(rf"bad.json: answers to another survey: 'x', not '{key.identity}'. Fix: name the directory", survey="x")
    refused(r"bad.json: answers of another version: 'esc-lab/answers-7'", format="esc-lab/answers-7")
    refused(r"page nowhere: no page 'nowhere' of 'rater_1' in the key, so its sides cannot", {"nowhere": whole[name]})
    refused(r"no page '\w+' of 'rater_2' in the key", questionnaire="rater_2")
    refused(rf"page {name}: adherence is 9, which is not on the scale. Fix: one of -4, -3", {name: {"adherence": 9}})
    refused(r"no such question: 'warmth'. Fix: the survey asks adherence, help", {name: {"warmth": 1}})
    refused(r"bad.json: not what raters give back: AttributeError", {name: 3})
    refused(r"survey.results: no rating is left", {})
    (tmp_path / "no.json").write_text("{")
    with pytest.raises(UserError, match=r"no.json: no JSON"):
        read_answers(tmp_path / "no.json", key)
    with pytest.raises(UserError, match=r"key.json: no key of a survey"):
        read(tmp_path, tmp_path / "out", files)
    with pytest.raises(UserError, match=r"survey.question: no such question: 'x'. Fix: one of adherence"):
        read(root, tmp_path / "out", files, "survey.question=x")
    assert not (tmp_path / "out/survey.json").exists()


def test_single_replies(runs, tmp_path):
    key = make_survey(tmp_path / "made", runs, "form=acceptance", "survey.items=36")
    names = ("rater_1", "rater_2")
    files = [save(tmp_path / name, key, name, fill_in(key, name, preferring(0.7, n))) for n, name in enumerate(names)]
    metrics = read(tmp_path, tmp_path / "out", files, "survey.question=sensitivity")
    for template in TEMPLATES:
        assert abs(metrics[f"survey/sensitivity/mean/{LABELS[template]}"] - 3 - WORTH[template]) < 0.4
    assert metrics["survey/sensitivity/sra/all/trimmed"] > 0.6
    votes = read_dialogues(tmp_path / "out/preferences.jsonl")
    assert len(votes) + metrics["votes/undecided"] == 12
    assert all(vote.turns[-1].reply.value > other.value for vote in votes for other in vote.turns[-1].rejected)

    # What two runs wrote in the same words is one reply, with the mean of its scores.
    prompts: dict = {}
    for item in key.items.values():
        prompts.setdefault((item.dialogue, item.turn), []).append(item)
    same, also, other = next(iter(prompts.values()))
    also = replace(also, replies=(replace(also.replies[0], text=same.replies[0].text),))
    given = [Rating("a", item, "sensitivity", value, value) for item, value in ((same, 5), (also, 2), (other, 3))]
    dialogues = {dialogue.id: dialogue for dialogue in DIALOGUES}
    ((vote,), undecided) = build_votes(given, dialogues, INVENTORIES["esconv"], 0.5)
    assert (vote.turns[-1].reply.text, vote.turns[-1].reply.value) == (same.replies[0].text, 3.5)
    assert [(reply.text, reply.value) for reply in vote.turns[-1].rejected] == [(other.replies[0].text, 3)]
    assert (build_votes(given[:2], dialogues, INVENTORIES["esconv"], 0.5), undecided) == (([], 1), 0)

    # What is nearly as good is a tie, if those are kept.
    near = [given[0], replace(given[2], value=4.8)]
    assert build_votes(near, dialogues, INVENTORIES["esconv"], 0.5) == ([], 1)
    ((tie,), undecided) = build_votes(near, dialogues, INVENTORIES["esconv"], 0.5, ties=True)
    values = [reply.value for reply in (tie.turns[-1].reply, *tie.turns[-1].rejected)]
    assert (values, undecided) == ([pytest.approx(4.9)] * 2, 1)
    assert values[0] == values[1]
    assert build_votes(given[:2], dialogues, INVENTORIES["esconv"], 0.5, ties=True) == ([], 1)  # one reply


def test_the_published_study(tmp_path):
    """Planted rows of its form; correlations and alpha against the computation of its notebook."""
    rows = published_rows()
    del rows[7]["model-preference"]
    (tmp_path / "study.json").write_text(json.dumps(rows))
    metrics = run_survey(tmp_path / "out", f"survey.results=[{tmp_path / 'study.json'}]")
    lines = [json.loads(line) for line in (tmp_path / "out/ratings.jsonl").read_text().splitlines()]
    assert len({line["item"] for line in lines}) == 60
    assert len({line["tree"] for line in lines}) == 30  # intervals draw dialogues, some with several items
    known = [row for row in rows if "model-preference" in row]
    x = np.array([row["model2_sra"] - row["model1_sra"] for row in known])
    y = np.array([int(row["model-preference"]) for row in known])
    low, high = np.quantile(x, [0.01, 0.99])
    kept = (x >= low) & (x <= high)
    order = [TEMPLATES.index(_template(row, 1)) - TEMPLATES.index(_template(row, 0)) for row in known]
    given = np.column_stack([np.ones(kept.sum()), np.sign(order)[kept]])
    left = [values[kept] - given @ np.linalg.lstsq(given, values[kept], rcond=None)[0] for values in (x, y)]
    assert metrics["survey/adherence/sra/all/order"] == pytest.approx(pearsonr(*left)[0])
    for rater in (1, 2):
        own = np.array([row["annotator"] == rater for row in known])
        start = f"survey/adherence/sra/annotator {rater}"
        assert metrics[f"{start}/raw"] == pytest.approx(pearsonr(x[own], y[own])[0])
        assert metrics[f"{start}/trimmed"] == pytest.approx(pearsonr(x[own & kept], y[own & kept])[0])
    assert metrics["survey/ratings"] == 119
    assert metrics["survey/adherence/alpha_trimmed"] > 0.8
    assert not (tmp_path / "out/preferences.jsonl").exists()

    def refused(match, rows):
        (tmp_path / "bad.json").write_text(json.dumps(rows))
        with pytest.raises(UserError, match=match):
            read_published_study([tmp_path / "bad.json"])

    refused(r"bad.json, row 2: not a row of the published study: KeyError", [rows[0], {"text": 1}])
    refused(r"ValueError model-preference '7' is not from -4 to 4", [{**rows[0], "model-preference": "7"}])
    refused(r"row 2: other replies than before for 0_", [rows[0], {**rows[1], "model1_response": "other"}])


def _template(row, side: int) -> str:
    return next((name for name in TEMPLATES[1:] if name in row["file_names"][side]), "standard")


@pytest.fixture(scope="module")
def judge(runs, tmp_path_factory):
    """A judge that always finds c1_hf better than the baseline, and c3_hf worse; its scores are the runs' worth."""
    directory = write_run(tmp_path_factory.mktemp("judge"), settings("judge"), {"judge/calls": 1.0})
    paths = dict(zip(TEMPLATES, runs, strict=True))
    record = {"runs": [{"label": name, "predictions": file_fingerprint(path / "predictions.jsonl")}
                       for name, path in paths.items()]}  # fmt: skip
    (directory / "judge.json").write_text(json.dumps(record))
    rows = {name: [json.loads(line) for line in (path / "predictions.jsonl").read_text().splitlines()]
            for name, path in paths.items()}  # fmt: skip
    lines = []
    for name, own in rows.items():
        for row, other in zip(own, rows["standard"], strict=True):
            line = {"run": name, "dialogue": row["dialogue"], "turn": row["turn"], "reply": row["reply"]}
            lines.append({**line, "kind": "rubric", "overall": WORTH[name] + 2})
            if name != "standard":
                pair = {"baseline": "standard", "baseline_reply": other["reply"], "outcome": float(name == "c1_hf")}
                lines.append({**line, "kind": "pairwise", **pair})
    (directory / "judgements.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return directory


def test_a_judge_agrees_with_people_as_planted(asked, judge, tmp_path):
    root, key, files = asked
    metrics = read(root, tmp_path, files, f"survey.judge={judge}")
    record = json.loads((tmp_path / "survey.json").read_text())
    (other, agreement) = record["judge"]
    assert (other["question"], other["asked"], other["pairs"]) == ("adherence", "help", 0)  # it asks something else
    assert not [name for name in metrics if name.startswith("survey/adherence/judge/") and "correlation" not in name]
    compared = [item for item in key.items.values() if "standard" in {reply.template for reply in item.replies}]
    assert agreement["pairs"] == len(compared) == 30
    assert agreement["scored"] == 45
    # It is right against c1_hf and wrong against c3_hf, half of the pairs each.
    assert abs(metrics["survey/helpfulness/judge/agreement"] - 0.5) < 0.1
    signs: dict = {}
    for line in map(json.loads, (tmp_path / "ratings.jsonl").read_text().splitlines()):
        if line["question"] == "helpfulness" and "standard" in line["templates"]:
            signs.setdefault(line["item"], []).append(np.sign(line["value"]))
    people = [1 - abs(one - other) / 2 for one, other in signs.values()]
    assert metrics["survey/helpfulness/judge/people"] == pytest.approx(np.mean(people))
    assert np.mean(people) > 0.8
    assert metrics["survey/adherence/judge/correlation"] > 0.8
    table = next(table for table in record["tables"] if table["title"] == "The judge and people")
    assert [row[:3] for row in table["rows"]] == [["adherence", "-", "0"], ["helpfulness", "help", "30"]]
    write_run(tmp_path / "other", settings("judge"), {})
    for name in ("judge.json", "judgements.jsonl"):
        (tmp_path / "other" / name).write_text((judge / name).read_text().replace('"reply": "', '"reply": "Other '))
    with pytest.raises(UserError, match=r"it judged none of the survey's replies. Fix: judge the evaluations"):
        read(root, tmp_path / "out", files, f"survey.judge={tmp_path / 'other'}")
    with pytest.raises(UserError, match=r"no finished run of the judge: FileNotFoundError"):
        read(root, tmp_path / "out", files, f"survey.judge={tmp_path}/out")


def test_ratings_are_columns_and_a_section_of_comparisons(found, runs, tmp_path):
    out, _ = found
    write_run(out, settings("survey"), {"survey/ratings": 1.0})
    comparison = compute_comparison([*runs, out], baseline=LABELS["standard"])
    estimates = comparison.estimates
    best, worst = (estimates[LABELS[name], "survey/adherence"] for name in ("c1_hf", "standard"))
    assert best.interval.low > 0 > worst.interval.high
    assert best.over == ("dialogues",)
    assert best.difference.corrected < 0.05
    lines = [json.loads(line) for line in (out / "ratings.jsonl").read_text().splitlines()]
    by_key: dict = {}
    for line in lines:
        if line["question"] == "adherence" and LABELS["c1_hf"] in line["runs"]:
            sign = 1 if line["runs"][1] == LABELS["c1_hf"] else -1
            by_key.setdefault((line["dialogue"], line["turn"]), []).append(sign * line["value"])
    assert best.interval.value == pytest.approx(np.mean([np.mean(values) for values in by_key.values()]))
    assert best.n == len(by_key)
    table = build_table(comparison)
    write_comparison(comparison, table, [], tmp_path)
    page = write_comparison_page(comparison, [], tmp_path / "report.html").read_text()
    markdown = (tmp_path / "comparison.md").read_text()
    for text in ("People asked", "What people prefer", "Correlation with SRA", "Krippendorff"):
        assert text in page
        assert text in markdown
    headings = [column.heading for column in comparison.columns if "survey" in column.name]
    assert headings == ["people: adherence", "people: helpfulness"]
    assert compute_comparison([runs[0], runs[1], out]).metrics[f"{LABELS['c3_hf']}/survey/n"] > 0


def test_comparisons_refuse_surveys_of_other_runs(found, asked, tmp_path):
    out, _ = found
    root, _, _ = asked
    write_run(out, settings("survey"), {"survey/ratings": 1.0})
    others = write_templates(tmp_path, TEMPLATES[:2])
    path = others[0] / "predictions.jsonl"
    rows = path.read_text().replace("Reply", "Other")
    path.write_text(rows)
    with pytest.raises(UserError, match="people were asked about none of the compared runs"):
        compute_comparison([others[0], out], metrics=["sra/log_sra"])
    write_run(root / "made", settings("survey"), {})
    with pytest.raises(UserError, match="no finished run that read ratings"):
        compute_comparison([others[1], root / "made"])
    with pytest.raises(UserError, match="2 runs of stage=survey"):
        compute_comparison([others[1], root / "made", out])
