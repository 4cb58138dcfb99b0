"""The documentation site is built without a complaint, whole, and no link of it leads nowhere."""

from __future__ import annotations

import html
import importlib
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from esc_lab.config import STAGES, keys
from esc_lab.metrics.records import METRICS
from tests.conftest import HANGS_S, ROOT

for package in ("material", "mkdocstrings"):
    pytest.importorskip(package, reason="the site needs the extra docs: pip install 'esc-lab[docs]'")


class Page(HTMLParser):
    """What a page can be linked to by, what it links to, and its words."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.anchors, self.links, self.words = set(), [], []
        self.text = file.read_text(encoding="utf-8")
        self.feed(self.text)

    def handle_starttag(self, tag, attributes):
        named = dict(attributes)
        self.anchors |= {named[key] for key in ("id", "name") if named.get(key)}
        self.links += [named[key] for key in ("href", "src") if named.get(key)]

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(target)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=HANGS_S
    )
    assert done.returncode == 0, done.stderr
    return target


@pytest.fixture(scope="module")
def pages(site) -> dict[Path, Page]:
    return {file: Page(file) for file in site.rglob("*.html") if file.name != "404.html"}


def test_every_page_is_there(site, pages):
    names = {file.parent.name for file in pages} | {"index"}
    assert names >= {path.stem for path in (ROOT / "docs").glob("*.md")} | {"contributing", "changelog", "tour"}
    assert "make demo" in pages[site / "index.html"].text
    for page in pages.values():
        assert "generated:" not in page.text
    assert not list(site.rglob("*.py"))


def test_links_lead_somewhere(site, pages):
    wrong = []
    for file, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            there = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            there = there / "index.html" if there.is_dir() else there
            anchor = unquote(parts.fragment)
            known = there.exists() and (not anchor or there not in pages or anchor in pages[there].anchors)
            if not known and not anchor.startswith("__"):  # the theme's own, made by its script
                wrong.append(f"{file.relative_to(site)}: {link}")
    assert not wrong, "\n".join(wrong)


def test_nothing_is_fetched_from_elsewhere(pages):
    for page in pages.values():
        assert "fonts.googleapis" not in page.text
        assert not [link for link in page.links if link.startswith("http") and link.endswith((".js", ".css"))]


def test_every_key_is_told(site, pages):
    page = pages[site / "configuration/index.html"]
    assert {key.name for key in keys()} <= page.anchors
    shown = " ".join("".join(page.words).split())
    for key in keys():
        assert " ".join(key.doc.split()) in shown, key.name
    assert "stage=reward: 0.001" in shown  # of optimizer.lr
    assert "model=llama3_1_8b" in shown


def notes_of_tables() -> list[str]:
    """Texts of constants whose names end in NOTE or NOTES, which are shown below tables."""
    found = []
    for file in (ROOT / "esc_lab").rglob("*.py"):
        names = re.findall(r"^(\w*NOTES?)\b(?::.*)? = ", file.read_text(encoding="utf-8"), re.M)
        module = ".".join(file.relative_to(ROOT).with_suffix("").parts)
        for value in (getattr(importlib.import_module(module), name) for name in names):
            texts = [value] if isinstance(value, str) else value.values() if isinstance(value, Mapping) else value
            found += [text for text in texts if not text.endswith(".json")]
    assert len(found) > 60
    return found


def test_every_column_is_told_in_the_words_of_its_record(site, pages):
    page = pages[site / "glossary/index.html"]
    shown = " ".join("".join(page.words).split())
    for metric in METRICS.values():
        assert metric.name in shown
        assert metric.heading in shown
        assert " ".join(metric.meaning.split()) in shown
    for heading in ("judge: QUESTION", "people: QUESTION"):
        assert heading in shown
    # Columns of tables that are no metrics.
    words = (
        "Passes all",
        "Strength",
        "asked twice",
        "given templates",
        "people and others",
        "consistency",
        "success",
        "severity",
        "stages reused",
        "unconditional",
        "tokens written",
        "Most frequent strategy",
        "with the others",
    )
    assert not [word for word in words if word.lower() not in shown.lower()]
    assert not [note for note in notes_of_tables() if " ".join(note.split()).lower() not in shown.lower()]
    for doc in STAGES.values():
        assert html.unescape(" ".join(doc.split())) in shown


def test_the_api_is_told(site, pages):
    page = pages[site / "api/index.html"]
    names = ("load", "compose", "run", "read_run", "Supporter.reply", "Supporter.strategies", "Supporter.attention")
    assert {f"esc_lab.cli.api.{name}" for name in names} <= page.anchors
