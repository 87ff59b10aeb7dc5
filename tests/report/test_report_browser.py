"""The page in a real browser: no error in the console, and charts that answer to the pointer."""

import shutil
import subprocess
from pathlib import Path

import pytest

from limbeck.report import make_report

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
QUIET = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
    "--v=0",
    "--dump-dom",
]
PROBE = """<script>
const chart = document.querySelector("svg[data-lines]"), frame = chart.getBoundingClientRect();
const at = { clientX: frame.left + frame.width / 2, clientY: frame.top + 20, bubbles: true };
chart.dispatchEvent(new PointerEvent("pointermove", at));
document.body.dataset.hover = tip.textContent;
document.querySelector(".spot").dispatchEvent(new FocusEvent("focus"));
document.body.dataset.spot = tip.textContent;
</script></body>"""


@pytest.fixture
def browse(tmp_path):
    """Open a page: what the document became, and what its console said."""
    browser = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if browser is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is on PATH")

    def open_page(page: Path) -> tuple[str, list[str]]:
        command = [browser, *QUIET, f"--user-data-dir={tmp_path / 'profile'}", page.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        return done.stdout, [line for line in done.stderr.splitlines() if ":CONSOLE" in line]

    return open_page


def test_page_opens_without_a_word_in_the_console(runs, tmp_path, browse):
    document, console = browse(make_report(tmp_path / "out", runs, "A title", "A note.").html)
    assert console == []
    assert "The distilled student keeps 95%" in document


def test_page_of_an_empty_run_opens_without_a_word_in_the_console(bare_run, tmp_path, browse):
    document, console = browse(make_report(tmp_path / "out", [bare_run("plain")], "A title", "").html)
    assert console == []
    assert "No run holds a training log." in document


def test_the_console_is_really_listened_to(tmp_path, browse):
    page = tmp_path / "broken.html"
    page.write_text("<!doctype html><script>missing();</script>")
    assert "missing is not defined" in browse(page)[1][0]


def test_charts_answer_to_pointer_and_focus(runs, tmp_path, browse):
    page = make_report(tmp_path / "out", runs, "A title", "").html
    page.write_text(page.read_text().replace("</body>", PROBE))
    document, console = browse(page)
    assert console == []
    hover = document.partition('data-hover="')[2].partition('"')[0]
    assert [line.partition(":")[0] for line in hover.splitlines()] == ["teacher", "plain", "distilled"]
    assert "at step 220" in hover
    assert 'data-spot="teacher: TR@1 60.0, 8 M"' in document
