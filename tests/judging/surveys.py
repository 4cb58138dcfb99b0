"""Surveys of made-up evaluations, and raters whose preferences are known."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from hydra import compose, initialize_config_dir

from esc_lab.cli.compositions import CONF
from esc_lab.config import Config, typed
from esc_lab.data.corpora import write_dialogues
from esc_lab.judging.survey_items import SurveyItem
from esc_lab.judging.survey_key import Entry, SurveyKey, read_key
from esc_lab.metrics.predictions import Prediction
from esc_lab.seeds import derive_seed
from esc_lab.stages import survey
from tests.comparison.synthetic import write_evaluation
from tests.conftest import INVENTORIES
from tests.judging.evaluations import decisions, sample

TEMPLATES = ("standard", "c3_hf", "c1_hf")
WORTH = {"standard": -1.5, "c3_hf": 0.0, "c1_hf": 1.5}  # how well replies under each follow their strategy
DIALOGUES = sample(10)


def write_templates(root: Path, templates: Sequence[str] = TEMPLATES) -> list[Path]:
    """An evaluation under each template, its replies to the gold strategy; SRA grows with `WORTH`, with noise."""
    directories = []
    for template in templates:
        drawn = np.random.default_rng(derive_seed(1, template))
        rows = [
            Prediction(
                dialogue=dialogue.id, tree=dialogue.tree_id, turn=turn, problem="", emotion="",
                gold=list(dialogue.turns[turn].reply.strategies), gold_reply=dialogue.turns[turn].reply.text,
                prompted=dialogue.turns[turn].reply.strategies[0], template=template,
                reply=f"Reply {derive_seed(0, template, dialogue.id, turn) % 10**8}.",
                sampling={"temperature": 0.0, "top_p": 1.0, "max_new_tokens": 40},
                sra={"paper/name": {"sra": float(np.exp(-6 + WORTH[template] / 2 + 0.3 * drawn.normal())),
                                    "control": 0.01, "relative": 1.0}},
            )
            for dialogue, turn in decisions(DIALOGUES)
        ]  # fmt: skip
        changes = {"prompt__eval__template": template}
        directories.append(write_evaluation(root / f"run_{template}", rows, **changes))
        write_dialogues(DIALOGUES, directories[-1] / "dialogues.jsonl")
    return directories


@cache
def composed(*call: str) -> Config:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return typed(compose("config", ["stage=survey", "survey.draws=60", *call]))


def run_survey(directory: Path, *call: str) -> dict[str, float]:
    """Stage survey with its files in a directory."""
    directory.mkdir(parents=True, exist_ok=True)
    return survey.run(composed(*call, f"run_dir={directory}"))


def make_survey(directory: Path, runs: Sequence[Path], *call: str) -> SurveyKey:
    run_survey(directory, f"survey.runs=[{','.join(map(str, runs))}]", *call)
    return read_key(directory)


def preferring(noise: float, seed: int) -> Callable[[SurveyKey, SurveyItem, str], int]:
    """A rater who answers what the runs are worth, with noise, in the order of the item."""
    drawn = np.random.default_rng(seed)

    def rate(key: SurveyKey, item: SurveyItem, question: str) -> int:
        worth = [WORTH[reply.template] for reply in item.replies]
        value = worth[1] - worth[0] if key.pairs else 3 + worth[0]
        return int(np.clip(round(value + noise * drawn.normal()), key.scale[0], key.scale[-1]))

    return rate


def careless(seed: int) -> Callable[[SurveyKey, SurveyItem, str], int]:
    drawn = np.random.default_rng(seed)
    return lambda key, item, question: int(drawn.choice(key.scale))


def fill_in(
    key: SurveyKey, questionnaire: str, rate: Callable[..., int], *, reads: bool = True
) -> dict[str, dict[str, int]]:
    """Answers to all pages, as they stand there; `reads`: attention checks are passed."""

    def answer(entry: Entry, question: str) -> int:
        if entry.check is not None and reads:
            return entry.check
        value = rate(key, key.items[entry.item], question)
        return -value if entry.swapped else value

    entries = key.questionnaires[questionnaire].values()
    return {entry.name: {question: answer(entry, question) for question in key.questions} for entry in entries}


def save(path: Path, key: SurveyKey, questionnaire: str, answers: Mapping[str, Any], **changes: Any) -> Path:
    """A file as the questionnaire saves it."""
    content = {"format": "esc-lab/answers-1", "survey": key.identity, "questionnaire": questionnaire}
    path.write_text(json.dumps({**content, "answers": answers, "seconds": {}, "comment": "", **changes}))
    return path


def published_rows(count: int = 60, raters: Sequence[int] = (1, 2)) -> list[dict[str, Any]]:
    """Rows of the form of the published study's export: preferences of the order of templates and a little of SRA."""
    drawn = np.random.default_rng(11)
    folders = {"standard": "exp6_full", "c3_hf": "exp6_c3_hf_partial", "c1_hf": "exp6_c1_hf_partial"}
    strategies = INVENTORIES["extes_sra"].names
    rows = []
    for number in range(count):
        pair = [TEMPLATES[place] for place in drawn.permutation(3)[:2]]
        sra = [float(np.exp(-7 + WORTH[name] / 3 + 0.2 * drawn.normal())) for name in pair]
        strategy = strategies[number % len(strategies)]
        for rater in raters:
            value = WORTH[pair[1]] - WORTH[pair[0]] + 800 * (sra[1] - sra[0]) + 0.5 * drawn.normal()
            rows.append(
                {
                    "metadata": f"Strategy: {strategy}", "conv_id": f"{number}_{strategy}", "id": number,
                    "file_names": [f"prompting/outputs/{folders[name]}//{number}.json" for name in pair],
                    "history": f"<br><b>seeker</b>: Hello<br><b>supporter</b>: Hi {number // 2}<br><b>seeker</b>: Well",
                    "speakers": ["seeker", "supporter", "seeker"], "strategy": strategy,
                    **{f"model{side}_response": f"{name} {number}" for side, name in enumerate(pair, 1)},
                    **{f"model{side}_sra": value for side, value in enumerate(sra, 1)},
                    "model-preference": str(int(np.clip(round(value), -4, 4))), "annotator": rater,
                    "annotation_id": len(rows), "lead_time": 9.5,
                }
            )  # fmt: skip
    return rows
