"""A questionnaire: one web page that a rater fills in, without a network and on any screen, and saves as a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from esc_lab.judging.survey_answers import ANSWERS
from esc_lab.judging.survey_key import SurveyKey
from esc_lab.report.page import render_page


def render_questionnaire(key: SurveyKey, name: str, pages: Sequence[Mapping[str, Any]]) -> str:
    """The page of a questionnaire. It keeps what was answered in the browser until it is saved.

    Args:
        pages: see `build_pages`.
    """
    return render_page(
        "questionnaire.html.jinja",
        key.form.title,
        {
            "format": ANSWERS,
            "survey": key.identity,
            "questionnaire": name,
            "scale": key.scale.tolist(),
            "form": asdict(key.form),
            "pages": pages,
        },
        styles=["page.css", "questionnaire.css"],
        scripts=["page.js", "questionnaire.js"],
        instructions=key.form.instructions,
        pairs=key.pairs,
    )
