"""Size and speed of the page of a comparison: 6 runs of 200 dialogues, some 2,900 decisions, each with a reply.

The runs are made up. A page is open when a headless chromium has loaded it from its file and painted it, and its first
decision is shown; starting the browser does not count.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from playwright.sync_api import Browser, sync_playwright

from esc_lab.comparison.result import compute_comparison
from esc_lab.comparison.table import build_table
from esc_lab.report.comparison_figures import draw_comparison
from esc_lab.report.comparison_page import write_comparison_page
from tests.report.runs import made_dialogues, write_runs

_PAINTED = "() => new Promise(done => requestAnimationFrame(() => setTimeout(() => done(performance.now()))))"


def open_seconds(browser: Browser, path: Path) -> float:
    """Seconds from the start of the navigation to the first paint after loading."""
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    page.goto(path.as_uri())
    page.wait_for_selector("#decision .card")
    seconds = float(page.evaluate(_PAINTED)) / 1000
    page.close()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dialogues", type=int, default=200)
    parser.add_argument("--decisions", type=int, default=15, help="of a dialogue; every other dialogue has one less")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--keep", type=Path, help="leave the page here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        half = options.dialogues // 2
        dialogues = made_dialogues(half, options.decisions) + made_dialogues(half, options.decisions - 1, seed=1)
        runs = write_runs(root, dialogues, models=("model-a", "model-b"))
        found = compute_comparison(runs)
        table = build_table(found)
        figures = draw_comparison(found, table, root / "figures")
        started = time.perf_counter()
        path = write_comparison_page(found, figures, root / "report.html")
        written = time.perf_counter() - started
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            seconds = min(open_seconds(browser, path) for _ in range(options.repeats))
            browser.close()
        size = path.stat().st_size / 1e6
        if options.keep:
            shutil.copy(path, options.keep)
    assert found.test is not None
    print(f"{len(runs)} runs, {len(found.test.keys):,} decisions, {len(figures)} figures, written in {written:.1f} s")
    print(f"comparison_page_size: {size:.1f} MB (goal < 10 MB)")
    print(f"comparison_page_open: {seconds:.2f} s (goal < 2 s)")


if __name__ == "__main__":
    main()
