"""Stage `survey`: people asked about replies. It makes questionnaires, or reads what raters gave back."""

from __future__ import annotations

import importlib.util
import json
import logging
from collections import Counter
from pathlib import Path

from esc_lab.artifacts import file_fingerprint, remove_files, write_atomic
from esc_lab.config import Config
from esc_lab.data.corpora import read_dialogues, write_dialogues
from esc_lab.data.strategies import build_inventory
from esc_lab.errors import UserError
from esc_lab.judging.evaluations import read_evaluations
from esc_lab.judging.published_study import read_published_study
from esc_lab.judging.survey_answers import Answer, Ratings, collect_ratings, read_answers
from esc_lab.judging.survey_files import write_results
from esc_lab.judging.survey_items import choose_items
from esc_lab.judging.survey_judge import compare_judge, read_judged_items
from esc_lab.judging.survey_key import LABEL_STUDIO, SurveyKey, check_form, draw_questionnaires, read_key
from esc_lab.judging.survey_pages import build_labelling_config, build_pages, build_tasks
from esc_lab.judging.survey_results import summarize_question
from esc_lab.judging.survey_votes import build_votes
from esc_lab.report.questionnaire import render_questionnaire
from esc_lab.runs.layout import PREDICTIONS, QUESTIONNAIRES, SURVEY_DIALOGUES, VOTES

log = logging.getLogger(__name__)


def run(cfg: Config) -> dict[str, float]:
    """Make questionnaires of `survey.runs`, or read `survey.results`.

    Raises:
        UserError: runs cannot be asked about together; files are not of this survey; there is nothing to read.
    """
    return _read(cfg) if cfg.survey.results else _make(cfg)


def _make(cfg: Config) -> dict[str, float]:
    """Questionnaires go into `questionnaires/`, for raters; who wrote what into key.json, not for them."""
    directory, settings = Path(cfg.run_dir), cfg.survey
    check_form(settings.form)
    evaluations = read_evaluations(settings.runs, "survey.runs", cfg.config_dirs)
    for remark in evaluations.remarks:
        log.warning("%s", remark)
    items = choose_items(evaluations, settings, cfg.seed)
    runs = {label: file_fingerprint(run.directory / PREDICTIONS) for run, label in evaluations.labels.items()}
    questionnaires = draw_questionnaires(items, settings, cfg.seed)
    inventory = next(iter(evaluations.labels)).config["inventory"]
    key = SurveyKey(settings.form, runs, inventory, {item.name: item for item in items}, questionnaires)
    key.write(directory)
    asked = [evaluations.dialogues[name] for name in dict.fromkeys(item.dialogue for item in items)]
    write_dialogues(asked, directory / SURVEY_DIALOGUES, inventory=evaluations.inventory)
    remove_files(directory / QUESTIONNAIRES)
    for name in key.questionnaires:
        pages = build_pages(key, name, evaluations.dialogues, evaluations.inventory)
        if name == LABEL_STUDIO:
            tasks = json.dumps(build_tasks(key, pages), ensure_ascii=False, indent=1)
            write_atomic(directory / QUESTIONNAIRES / "label_studio_tasks.json", tasks)
            write_atomic(directory / QUESTIONNAIRES / "label_studio_config.xml", build_labelling_config(key))
        else:
            write_atomic(directory / QUESTIONNAIRES / f"{name}.html", render_questionnaire(key, name, pages))
    log.info("give raters the files in %s alone; read what comes back with", directory / QUESTIONNAIRES)
    log.info("  stage=survey survey.directory=%s survey.results=[FILE,FILE]", directory)
    groups = Counter(tuple(sorted(reply.run for reply in item.replies)) for item in items)
    strategies = Counter(item.strategy for item in items)
    return {
        "survey/items": float(len(items)),
        "survey/dialogues": float(len(asked)),
        "survey/questionnaires": float(len(questionnaires) - 1),
        "survey/strategies": float(len(strategies.keys() - {None})),
        "survey/fewest_of_runs": float(min(groups.values())),
        "survey/most_of_runs": float(max(groups.values())),
    }


def _read(cfg: Config) -> dict[str, float]:
    """Ratings, what they say and preferences.jsonl, which CSO and the reward model read."""
    directory, settings = Path(cfg.run_dir), cfg.survey
    _require_packages()
    paths = [Path(path) for path in settings.results]
    source = Path(settings.directory) if settings.directory else None
    answers: list[Answer] = []
    if source:
        key = read_key(source)
        answers = [answer for path in paths for answer in read_answers(path, key)]
    else:
        key, answers = read_published_study(paths)
    ratings = collect_ratings(key, answers, settings.min_checks)
    by_question = {name: [r for r in ratings.ratings if r.question == name] for name in key.questions}
    answered = {name: own for name, own in by_question.items() if own}
    if not answered:
        fix = "see set_aside of its checks: survey.min_checks; or give files with answers"
        raise UserError("no rating is left", where="survey.results", fix=fix)
    judge = read_judged_items(Path(settings.judge), key) if settings.judge else None
    results = [summarize_question(name, own, key, settings, cfg.seed) for name, own in answered.items()]
    judged = [compare_judge(n, own, judge, settings, cfg.seed) for n, own in answered.items()] if judge else []
    (directory / VOTES).unlink(missing_ok=True)
    votes = _write_votes(cfg, key, ratings, source) if source else {}
    silent = [name for name in key.questionnaires if name != LABEL_STUDIO and name not in ratings.missing]
    if source and silent and not any(name.startswith("annotator") for name in ratings.missing):
        log.warning("no answers of %s", ", ".join(silent))
    return {**write_results(directory, key, ratings, results, judged), **votes}


def _write_votes(cfg: Config, key: SurveyKey, ratings: Ratings, source: Path) -> dict[str, float]:
    question = cfg.survey.question or key.questions[0]
    if question not in key.questions:
        fix = f"one of {', '.join(key.questions)}"
        raise UserError(f"no such question: {question!r}", where="survey.question", fix=fix)
    inventory = build_inventory(key.inventory, cfg.config_dirs)
    dialogues = {each.id: each for each in read_dialogues(source / SURVEY_DIALOGUES, "jsonl", inventory=inventory)}
    own = [rating for rating in ratings.ratings if rating.question == question]
    margin, ties = cfg.survey.min_margin, cfg.survey.ties
    votes, undecided = build_votes(own, dialogues, inventory, margin, ties=ties) if own else ([], 0)
    if votes:
        write_dialogues(votes, Path(cfg.run_dir) / VOTES, inventory=inventory)
    return {"votes/dialogues": float(len(votes)), "votes/undecided": float(undecided)}


def _require_packages() -> None:
    missing = [name for name in ("krippendorff", "choix") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"{' and '.join(missing)} not installed", where="survey", fix="pip install 'esc-lab[survey]'")
