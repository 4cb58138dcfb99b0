"""The chat in a real browser, served by `run.py`: talk, pick, vote, edit, stop, go on; by keyboard, narrow, dark."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from esc_lab.data.corpora import read_dialogues
from tests.conftest import CACHE, HANGS_S, ROOT
from tests.e2e.conftest import execute

pytest.importorskip("nicegui", reason="nicegui is not installed")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@contextmanager
def served(root: Path, *words: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The page's address, and the process that serves it."""
    port = free_port()
    command = [
        sys.executable, str(ROOT / "run.py"), "stage=chat", "chat.where=browser", f"chat.port={port}",
        "model=tiny_llama", "chat.max_new_tokens=8", f"output_root={root}", f"cache_dir={CACHE}", *words,
    ]  # fmt: skip
    environment = {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}
    process = subprocess.Popen(
        command, cwd=root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    address, end = f"http://127.0.0.1:{port}/", time.monotonic() + HANGS_S
    try:
        while True:
            try:
                urllib.request.urlopen(address, timeout=HANGS_S).close()
                break
            except OSError:
                assert process.poll() is None, process.stdout.read()
                assert time.monotonic() < end
                time.sleep(0.2)
        yield address, process
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def visit(browser):
    """`visit(address)` -> page; it asks nobody but the server for anything, and no script fails."""
    complaints, pages = [], []

    def opened(address: str, width: int = 1280, scheme: str = "light"):
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page.set_default_timeout(HANGS_S * 1000)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: is_foreign(request.url, address) and complaints.append(request.url))
        pages.append(page)
        page.goto(address)
        page.get_by_label("What you say").wait_for()
        return page

    yield opened
    for page in pages:
        page.close()
    assert complaints == []


def is_foreign(url: str, address: str) -> bool:
    return not url.startswith((address, address.replace("http", "ws"), "data:", "blob:", "about:"))


def say(page, text: str) -> None:
    page.get_by_label("What you say").fill(text)
    page.get_by_label("What you say").press("Enter")


def wait_for_replies(page, count: int = 1) -> None:
    """Until so many replies stand there whole, with their bars."""
    page.wait_for_function(f"document.querySelectorAll('article .bars').length === {count}")


def check_looks(page, width: int) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    found = [one for one in axe.Axe().run(page).response["violations"] if one["impact"] in ("serious", "critical")]
    assert [(one["id"], [node["html"][:200] for node in one["nodes"]]) for one in found] == []


def test_a_talk_in_the_browser_and_how_it_goes_on(tmp_path, visit):
    with served(tmp_path) as (address, process):
        page = visit(address)
        assert "no counsellor" in page.get_by_role("note").inner_text()
        assert "local emergency services" in page.get_by_role("note").inner_text()
        say(page, "<b>I</b> lost my job.")
        wait_for_replies(page)
        assert page.get_by_text("<b>I</b> lost my job.").is_visible()
        assert page.get_by_label("What you say").input_value() == ""
        assert page.locator("article .bars li").count() == 8
        page.get_by_text(re.compile("log SRA -.* sham-net .* cso")).wait_for()
        # By keyboard: the strategy, another reply, the vote.
        page.get_by_role("radio", name="Information").focus()
        page.keyboard.press("Space")
        page.get_by_role("radio", name="Information", checked=True).wait_for()
        page.get_by_role("slider").locator("[tabindex='0']").focus()
        page.keyboard.press("ArrowRight")
        page.get_by_text("Attention on the strategy: boosted by 0.1").wait_for()
        page.get_by_role("button", name="Another reply").focus()
        page.keyboard.press("Enter")
        wait_for_replies(page, 2)
        right = page.get_by_role("article", name="Right")
        assert right.locator(".tag").inner_text() == "Information"
        assert "boost 0.1" in right.inner_text()
        page.get_by_role("button", name="Right is better").focus()
        page.keyboard.press("Enter")
        page.get_by_text("Right, better").wait_for()
        assert page.get_by_role("button", name="Right is better").get_attribute("aria-pressed") == "true"
        # Where it looks.
        right.get_by_text("Where it looks").click()
        page.frame_locator("iframe").last.locator("#prompt .token").first.wait_for()
        assert "(Information)" in page.frame_locator("iframe").last.locator("#prompt").inner_text()
        page.get_by_text("Edit the reply").click()
        page.get_by_label("The reply as it should be").fill("Who could you tell?")
        page.get_by_role("button", name="Save").click()
        page.get_by_text("Supporter, edited").wait_for()
        check_looks(page, 1280)
        # A second turn, under another template; then a message that cannot be.
        page.get_by_role("radio", name="c1_hf").click()
        page.get_by_role("radio", name="c1_hf", checked=True).wait_for()
        say(page, "My sister.")
        wait_for_replies(page)
        say(page, " ")
        page.get_by_role("alert").get_by_text("there is no message").wait_for()
        for width, scheme in ((400, "light"), (400, "dark"), (1280, "dark")):
            other = visit(address, width, scheme)
            other.get_by_text("Who could you tell?").wait_for()
            other.get_by_role("radio", name="c1_hf", checked=True).wait_for()
            check_looks(other, width)
        page.get_by_role("button", name="End the chat").click()
        page.get_by_text(re.compile("The chat has ended. It is kept in .*chat")).wait_for()
        assert page.get_by_text("Who could you tell?").is_visible()  # to be read to the end
        output, _ = process.communicate(timeout=HANGS_S)
        assert process.returncode == 0, output
    (run,) = (tmp_path / "chat").iterdir()
    (talk,) = read_dialogues(run / "preferences.jsonl")
    assert talk.turns[0].reply.text == "<b>I</b> lost my job."
    assert talk.turns[1].reply.text == "Who could you tell?"
    assert len(talk.turns[1].rejected) == 2
    metrics = json.loads((run / "metrics.json").read_text())
    assert (metrics["chat/turns"], metrics["chat/votes"], metrics["chat/edits"]) == (2, 1, 1)
    with served(tmp_path, "resume=auto") as (address, process):
        page = visit(address)
        assert page.get_by_text("Who could you tell?").is_visible()
        page.get_by_role("button", name="Take back").click()
        page.get_by_text("Supporter, edited").wait_for()
        assert page.get_by_label("What you say").input_value() == "My sister."
        with pytest.raises(urllib.error.HTTPError, match="400"):
            urllib.request.urlopen(urllib.request.Request(address, headers={"Host": "elsewhere.example"}))
        process.terminate()
        output, _ = process.communicate(timeout=HANGS_S)
        assert process.returncode == 143, output


def test_a_reply_that_is_stopped(tmp_path, visit):
    with served(tmp_path, "chat.max_new_tokens=1500") as (address, _):
        page = visit(address)
        say(page, "I lost my job.")
        page.wait_for_function("document.querySelector('article .said')?.innerText")
        page.get_by_role("button", name="Stop").click()
        page.get_by_role("button", name="Send").wait_for()
        assert page.get_by_label("What you say").input_value() == "I lost my job."
        assert page.locator("article").count() == 0
        assert not page.get_by_role("button", name="Stop").is_visible()
    (run,) = (tmp_path / "chat").iterdir()
    assert not (run / "chat.json").exists() or not json.loads((run / "chat.json").read_text())["exchanges"]


def test_a_port_that_is_taken(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        outcome = execute(tmp_path, "stage=chat", "chat.where=browser", f"chat.port={port}")
    assert outcome.status == 1
    assert "cannot be served there" in outcome.errors + outcome.output
