"""The published human study itself, where its file is: the numbers of the paper, and those of docs/survey.md.

It is `annotation/strategy_following_comparison/annotation-results.json` of github.com/navidmdn/ESConv-SRA.
"""

from __future__ import annotations

import os
import re

import pytest

from tests.conftest import ROOT
from tests.judging.surveys import run_survey

FILE = os.environ.get("ESC_LAB_PUBLISHED_STUDY")


@pytest.mark.skipif(not FILE, reason="ESC_LAB_PUBLISHED_STUDY names no file of the published study")
def test_the_numbers_of_the_published_study(tmp_path):
    metrics = run_survey(tmp_path, f"survey.results=[{FILE}]", "survey.draws=20")
    start = "survey/adherence"
    assert metrics["survey/ratings"] == 264
    assert metrics[f"{start}/sra/annotator 1/trimmed"] == pytest.approx(0.8222, abs=5e-5)
    assert metrics[f"{start}/sra/annotator 2/trimmed"] == pytest.approx(0.8035, abs=5e-5)
    assert metrics[f"{start}/alpha_trimmed"] == pytest.approx(0.9118, abs=5e-5)
    page = (ROOT / "docs/survey.md").read_text(encoding="utf-8")
    rows = {
        "raw": "raw",
        "trimmed, given the order of the templates": "order",
        "trimmed, given the templates": "templates",
    }
    for name, kind in rows.items():
        shown = re.search(rf"\| {name} \| (\S+) \| (\S+) \| (\S+) \[", page)
        raters = ("annotator 1", "annotator 2", "all")
        for value, rater in zip(shown.groups(), raters, strict=True):
            assert metrics[f"{start}/sra/{rater}/{kind}"] == pytest.approx(float(value), abs=5e-4)
    # Each template is one run there.
    assert metrics[f"{start}/sra/all/runs"] == pytest.approx(metrics[f"{start}/sra/all/templates"])
