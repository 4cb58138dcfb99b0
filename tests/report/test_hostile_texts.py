"""Pages of runs whose names, directories, texts and labels are hostile, in a real browser: nothing in them runs."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace

from rich.console import Console

from esc_lab.comparison.files import write_comparison
from esc_lab.comparison.formats import print_table
from esc_lab.comparison.result import compute_comparison
from esc_lab.comparison.table import build_table
from esc_lab.config.survey import FormConfig
from esc_lab.data.dialogue import Dialogue, Reply, Turn
from esc_lab.judging.survey_key import SurveyKey
from esc_lab.report.comparison_page import write_comparison_page
from esc_lab.report.questionnaire import render_questionnaire
from esc_lab.report.tree_page import tree_page
from esc_lab.search.tree import Tree
from tests.comparison.synthetic import write_training
from tests.report.runs import evaluated, made_dialogues, predicted

RUN = "window.ran=alert(1)"
TEXT = (
    f'=1+1 </script></style></textarea><script>{RUN}</script><img src=x onerror="{RUN}"><svg onload={RUN}>'
    f"`${{{RUN}}}` \u2028\u2029 ';{RUN}// \" onmouseover={RUN} {{{{ 7*7 }}}} <!-- --!> \x1b]0;title\x07 \x1b[2J \x00"
)
NAME = f"=cmd|<img src=x onerror={RUN}>`\u2028\x1b[2J"  # may be in a path


def test_pages_of_hostile_runs_run_nothing(show, tmp_path):
    root = tmp_path / NAME
    dialogues = [
        Dialogue(
            tuple(replace(turn, reply=Reply(f"{TEXT} {turn.reply.text}", turn.reply.strategies)) for turn in one.turns),
            "esconv", TEXT, TEXT, f"{TEXT} e", f"{TEXT} p",
        )
        for one in made_dialogues(4, 3)
    ]  # fmt: skip
    runs = []
    for method, skill in (("base", 0.1), ("cso", 0.7)):
        own = {"model__name": f"{TEXT} model"}
        if method == "cso":
            own["checkpoint"] = str(write_training(root / "cso", "cso", curve=True, **own))
        rows = predicted(dialogues, skill, 1, texts=[TEXT])
        runs.append(evaluated(root / f"{method}{NAME}", dialogues, [replace(r, raw=TEXT) for r in rows], **own))
    found = compute_comparison(runs, metrics=["strategy/Q", "strategy/B"])
    table = build_table(found)
    pages = [write_comparison_page(found, [], root / "report.html")]
    write_comparison(found, table, [], root)

    tree = Tree((Turn("seeker", Reply(TEXT)),))
    tree.expand(0, {f"{TEXT} label": 1.0})
    tree.nodes[1].text, tree.nodes[1].answer = TEXT, TEXT
    html = tree_page(tree, title=TEXT, situation=TEXT, strategies=[f"{TEXT} label"], c=1.0, emotion=TEXT, problem=TEXT)
    for shown in (*pages, html):
        page = show(shown)
        for summary in page.locator("summary:visible").all():
            summary.click()
        assert page.evaluate("typeof window.ran") == "undefined"
        assert page.locator("img[src=x], svg[onload], [onerror], [onmouseover]").count() == 0
        assert RUN in page.locator("body").inner_text()  # it is shown, as text

    for path in (root / "runs.csv", root / "comparison.csv"):
        cells = [cell for row in csv.reader(io.StringIO(path.read_text())) for cell in row]
        assert any("cmd|" in cell or "1+1" in cell for cell in cells)
        assert not [cell for cell in cells if cell.startswith(("=", "@", "\t")) or "\x1b" in cell]
    assert json.loads((root / "comparison.json").read_text())["cells"]
    said = io.StringIO()
    print_table(table, Console(file=said, width=120, force_terminal=False))
    for text in (said.getvalue(), (root / "comparison.md").read_text()):
        assert "\x1b" not in text
        assert "\x07" not in text


def test_a_hostile_questionnaire_runs_nothing(show):
    question = {"name": "q", "text": TEXT, "low": TEXT, "high": TEXT}
    form = FormConfig(TEXT, TEXT, TEXT, strategy=True, questions=[question])
    shown = {"history": [["seeker", TEXT]], "strategy": TEXT, "definition": TEXT, "replies": [TEXT, TEXT]}
    page = show(render_questionnaire(SurveyKey(form, {}, {}, {}, {}), "rater_1", [{"name": "a", **shown}]))
    assert page.evaluate("typeof window.ran") == "undefined"
    assert page.locator("img[src=x], svg[onload], [onerror], [onmouseover]").count() == 0
    assert page.locator("body").inner_text().count(RUN) >= 10
    assert "do not close it" in page.locator("#notice").inner_text()  # as it is of no file, nothing can be kept
