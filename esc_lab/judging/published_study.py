"""The form of the published human study of SRA (arXiv 2402.10453, navidmdn/ESConv-SRA): an export of Label Studio.

Rows have two replies, the SRA of each, the strategy that both were to follow, a preference from -4 (the first) to 4 and
an annotator. The folder that a reply was written to stands for its run and its template. A dialogue has no name there,
and several of its turns are asked about: histories that open alike are taken to be of the same one.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from esc_lab.artifacts import READ_ERRORS, fingerprint
from esc_lab.config.survey import FormConfig
from esc_lab.errors import UserError
from esc_lab.judging.survey_answers import Answer, read_json
from esc_lab.judging.survey_items import SurveyItem, SurveyReply
from esc_lab.judging.survey_key import LABEL_STUDIO, Entry, SurveyKey

log = logging.getLogger(__name__)
QUESTION = "adherence"
_PREFERENCE = "model-preference"
_OPENING = 3  # messages that tell dialogues apart


def read_published_study(paths: Sequence[Path]) -> tuple[SurveyKey, list[Answer]]:
    """The study in exports of that form. Rows without a preference are left out, with a warning.

    Raises:
        UserError: a row is not of that form, or two rows of one conversation have other replies.
    """
    items: dict[str, SurveyItem] = {}
    answers, missing = [], 0
    for path in paths:
        for number, row in enumerate(read_json(path), start=1):
            where = f"{path}, row {number}"
            try:
                item = _read_item(row)
                value = _read_preference(row.get(_PREFERENCE))
                rater = f"annotator {row['annotator']}"
            except READ_ERRORS as error:
                fix = "name the survey that the file belongs to as survey.directory"
                what = f"{type(error).__name__} {error}"
                raise UserError(f"not a row of the published study: {what}", where=where, fix=fix) from error
            if items.setdefault(item.name, item) != item:
                fix = "give each pair of replies a conv_id of its own"
                raise UserError(f"other replies than before for {item.name}", where=where, fix=fix)
            if value is None:
                missing += 1
            else:
                answers.append(Answer(rater, Entry(item.name, item.name), QUESTION, value))
    if missing:
        log.warning("%d rows without a preference are left out", missing)
    question = {"name": QUESTION, "text": "Which reply follows the strategy more?", "low": "first", "high": "second"}
    form = FormConfig(name="published study", unit="pair", reach=4, strategy=True, questions=[question])
    return SurveyKey(form, {}, {}, items, {LABEL_STUDIO: {name: Entry(name, name) for name in items}}), answers


def _read_item(row: Mapping[str, Any]) -> SurveyItem:
    replies = []
    for number, file in zip((1, 2), row["file_names"], strict=True):
        run = PurePosixPath(file).parent.name
        sra = float(row[f"model{number}_sra"])
        replies.append(SurveyReply(run, run, str(row[f"model{number}_response"]), row["strategy"], sra))
    dialogue = fingerprint(row["history"].strip().removeprefix("<br>").split("<br>")[:_OPENING])
    turn = len(row["speakers"])
    return SurveyItem(str(row["conv_id"]), dialogue, dialogue, turn, row["strategy"], tuple(replies))


def _read_preference(value: object) -> int | None:
    if value in (None, ""):
        return None
    preference = int(str(value))
    if not -4 <= preference <= 4:
        raise ValueError(f"{_PREFERENCE} {value!r} is not from -4 to 4")
    return preference
