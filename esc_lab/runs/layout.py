"""The run directory: names of its files, which run left a file, and the configuration that it keeps."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

from esc_lab.artifacts import read_yaml
from esc_lab.config.files import read_option
from esc_lab.config.prompt import find_layout
from esc_lab.config.schema import RENAMED
from esc_lab.errors import UserError

Settings: TypeAlias = Mapping[str, Any]  # a configuration as nested dictionaries

# Of every run.
CONFIG = "config.yaml"
ENVIRONMENT = "environment.json"
METRICS = "metrics.json"
LOG = "run.log"
REUSED = "reused.json"  # where the result was taken from, and which run computed it, if this one did not
ORIGIN = ".origin.json"  # of a stored result: the run that computed it, and its run in W&B
WANDB = "wandb"  # folder of the W&B run
# Of trainings.
CHECKPOINT = Path("checkpoints", "last.ckpt")  # from which an interrupted training goes on
SHARDS = "shards"  # key of a checkpoint: the folder beside it that holds its tensors, in parts of several processes
ADAPTER, MODEL, CLASSIFIER, REWARD = WEIGHTS = "adapter", "model", "classifier", "reward"  # folders of trained weights
BASE_MODEL = "base_model.json"  # in such a folder: the model that the weights were trained from
REWARD_CHECK = "reward_check.json"  # how far a reward model tells given replies from foils
REFERENCE = "reference.json"  # what CSO's reference model was
CURVES = "metrics.csv"
TRAINING_TREES = "training_trees.json"  # ids of the dialogue trees that it was trained on
# Of a corpus that is looked at.
DATA_PAGE = "data.html"
# Of searches.
ESC_PRO = "esc_pro"  # folder of the preference data
TREES = "trees"  # folder of trees, their pages and their journals
JUDGE_CHECK = "judge_check.json"  # whether their judge is believed
JOURNAL_SUFFIX = ".journal.jsonl"
# Of extended dialogues.
CONTINUATIONS = "continuations"  # folder of the dialogues with their new replies
CONTEXTS = "contexts"  # folder of the journals, one a dialogue
# Of whole talks.
TALKS = "talks"  # folder of the journals, one a talk
TALKS_FILE = "talks.jsonl"  # the talks as dialogues
TALK_MEASURES = "measures.json"
# Of chats.
CHAT = "chat.json"  # the session; what was preferred in it goes to VOTES
# Of seeker cards.
CARDS = "cards"  # folder of the journals, one a card
CARDS_FILE = "cards.yaml"
# Of evaluations and studies.
PREDICTIONS = "predictions.jsonl"
DIALOGUES = "dialogues.jsonl"  # of its test set
PAIRS = "pairs.jsonl"
STRATEGIES = "strategies.json"
REPLIES_JOURNAL = f"replies{JOURNAL_SUFFIX}"  # of an endpoint's replies
ATTENTION = "sra.json"
STUDY = "study.json"
SLOPES = "slopes.json"  # what trainings learned of planted preferences
# Of what is done with several runs.
FIGURES = "figures"
COMPARISON_CSV = "comparison.csv"
COMPARISON = ("comparison.md", "comparison.tex", COMPARISON_CSV, "comparison.json", "runs.csv")
REPORT = "report.html"
REPORT_BUNDLE = "report.zip"  # with the pages that it links
SHARED_RUNS = "runs.zip"  # the compared runs without texts of the corpus
DASHBOARD = "dashboard.json"
DASHBOARD_REPORT = "dashboard_report.json"
JUDGEMENTS = "judgements.jsonl"
JUDGE_RESULT = "judge.json"
JUDGE_TABLE = "judge.md"
JUDGE_JOURNAL = f"judge{JOURNAL_SUFFIX}"
TALK_PAIRS = "talk_pairs"  # the journal of a judge of whole talks in pairs, without its ending
QUESTIONNAIRES = "questionnaires"  # folder of what raters get
SURVEY_KEY = "key.json"  # which reply is whose and on which side: not for raters
SURVEY_DIALOGUES = "asked_dialogues.jsonl"
SURVEY_RESULT = "survey.json"
SURVEY_TABLE = "survey.md"
RATINGS = "ratings.jsonl"
SET_ASIDE = "set_aside.jsonl"  # ratings that were not used, with the reason
VOTES = "preferences.jsonl"  # what people preferred, as preference pairs
MANIFEST = "manifest.jsonl"  # of a multirun: what became of its jobs


def read_config(directory: Path) -> Settings:
    """The configuration of a run, its keys named as they are today.

    Raises:
        OSError, ValueError, yaml.YAMLError: there is none that can be read.
    """
    path = directory / CONFIG
    return _read_config(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=1024)  # a comparison asks for the same ones many times
def _read_config(path: Path, _: int) -> Settings:
    config = read_yaml(path)
    if not isinstance(config, dict):
        raise ValueError(f"{CONFIG} holds no configuration")
    rename_keys(config)
    fill_options(config)
    return config


def fill_options(config: dict[str, Any]) -> None:
    """Give a configuration of older code what it only named: the shipped inventory, layouts, words and titles (in
    place).
    """
    sections = (config.get(name) for name in ("inventory", "prompt", "llm"))
    inventory, prompt, llm = (section if isinstance(section, dict) else {} for section in sections)
    with contextlib.suppress(UserError, KeyError):  # whoever needs what is not there says so
        if inventory and not inventory.get("strategies"):
            inventory |= read_option("inventory", inventory["name"])
        for side in ("train", "eval"):
            if side in prompt and not prompt[side].get("layout"):
                layout = find_layout(prompt[side]["template"])
                prompt[side]["layout"] = layout if side == "eval" else {**layout, "baselines": {}}
        if llm and "wording" not in llm:
            llm["wording"] = read_option("roles", "default")["wording"]
    objective = config.get("objective")
    if isinstance(objective, dict) and not objective.get("title"):
        with contextlib.suppress(UserError, KeyError):
            objective["title"] = read_option("objective", objective["name"]).get("title")
    axes = llm.get("judge", {}).get("axes")
    if isinstance(axes, dict):
        llm["judge"]["axes"] = [{"name": name, **axis} for name, axis in axes.items()]


def rename_keys(config: dict[str, Any]) -> None:
    """Give the keys, and the values of choices, of a configuration of older code the names of today (in place)."""
    for old, new in RENAMED.items():
        key, equals, value = old.partition("=")
        section, name = _section(config, key)
        if section is None or name not in section or (equals and str(section[name]) != value):
            continue
        if equals:
            section[name] = new.partition("=")[2]
        else:
            value = section.pop(name)
            place, name = _section(config, new, create=True)
            assert place is not None
            place.setdefault(name, value)


def _section(config: dict[str, Any], key: str, *, create: bool = False) -> tuple[dict[str, Any] | None, str]:
    """The innermost section of a dotted key, None if it is not there, and the key's own name."""
    *path, name = key.split(".")
    section: Any = config
    for part in path:
        section = section.setdefault(part, {}) if create else section.get(part)
        if not isinstance(section, dict):
            return None, name
    return section, name


def find_run(path: Path, beside: Path | None = None) -> Path | None:
    """The run that left weights or data: the path itself, or the directory above such a folder; None if it is gone.

    Args:
        beside: the run that mentions the path; runs that were moved together are found beside it.
    """
    # A run may have the name of such a folder itself, as the step `reward` of a pipeline has.
    runs = [path, *([path.absolute().parent] if path.name in (*WEIGHTS, ESC_PRO, CONTINUATIONS) else [])]
    places = [*runs, *(beside.absolute().parent / run.name for run in runs if beside)]
    return next((place for place in places if (place / CONFIG).exists()), None)
