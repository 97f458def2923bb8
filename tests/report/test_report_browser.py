"""The page in a real browser, from disk: no console errors, no requests. Skipped without Chromium."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--enable-logging=stderr", "--v=0", "--virtual-time-budget=2000",
    "--host-resolver-rules=MAP * ~NOTFOUND", "--dump-dom",
]  # fmt: skip
# Requests that the browser makes for any page.
ITS_OWN = re.compile(r"https?://([\w-]+\.)*(google|googleapis|gstatic|chromium)\.(com|org)(:\d+)?(/|$)")

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH")


def look(page: Path, folder: Path) -> tuple[str, list[str], set[str]]:
    """The page's DOM in the browser, its console output, and the requested addresses."""
    assert CHROMIUM is not None
    network = folder / "network.json"
    done = subprocess.run(
        [CHROMIUM, *FLAGS, f"--user-data-dir={folder / 'profile'}", f"--log-net-log={network}", page.as_uri()],
        capture_output=True, text=True, timeout=90, check=True,
    )  # fmt: skip
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    # Read line by line: the browser may exit without closing its log.
    asked = set(re.findall(r'"url":"([^"]+)"', network.read_text()))
    return done.stdout, console, {url for url in asked if url.startswith("http") and not ITS_OWN.match(url)}


def test_the_report_opens_without_a_console_message_or_a_request(written: Path, tmp_path: Path) -> None:
    shown, console, asked = look(written / "report.html", tmp_path)
    assert console == [] and asked == set()
    assert '<button type="button" class="theme" id="theme" aria-label=' in shown, "the page's script ran"
    assert "alert('prompt')" in shown and "<script>alert" not in shown


def test_what_somebody_puts_into_the_page_can_neither_run_nor_ask(written: Path, tmp_path: Path) -> None:
    """A control for the test above, which would see scripts and requests; and the page's policy blocks them."""
    source = (written / "report.html").read_text()
    policy = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
    put = '<img src="http://example.test/seen.png"><script>console.error("ran")</script></main>'
    guarded, bare = tmp_path / "guarded.html", tmp_path / "bare.html"
    guarded.write_text(source.replace("</main>", put))
    bare.write_text(policy.sub("", source.replace("</main>", put)))
    _, console, asked = look(guarded, tmp_path / "guarded")
    assert asked == set() and len(console) == 2 and all("Content Security Policy" in line for line in console)
    _, console, asked = look(bare, tmp_path / "bare")
    assert asked == {"http://example.test/seen.png"} and any("ran" in line for line in console)
