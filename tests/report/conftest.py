"""Pages in a real browser: the system's chromium."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.conftest import HANGS_S


@pytest.fixture(scope="module")
def browser():
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("no chromium on this machine")
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"], timeout=HANGS_S * 1000)
        yield opened
        opened.close()


@pytest.fixture
def show(browser):
    """`show(html)` or `show(path, anchor="#there")` -> page; fails if it logs, opens or asks for anything."""
    complaints, pages = [], []

    def opened(html: str | Path, width: int = 1280, scheme: str = "light", height: int = 800, anchor: str = ""):
        own = html.as_uri() if isinstance(html, Path) else ""
        page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
        page.set_default_timeout(HANGS_S * 1000)
        page.on("console", lambda message: complaints.append(message.text))
        page.on("dialog", lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: request.url.split("#")[0] != own and complaints.append(request.url))
        if isinstance(html, Path):
            page.goto(own + anchor)
        else:
            page.set_content(html)
        pages.append(page)
        return page

    yield opened
    for page in pages:
        page.close()
    assert complaints == []
