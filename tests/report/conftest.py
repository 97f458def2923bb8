"""One report that most tests read, written once."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_comparison import make_comparison
from page_reader import Page

from mrpo_pipeline.report import write_report

LONG = "A line of a long answer.\n\n" * 400
HOSTILE = [
    (
        "</details><script>alert('prompt')</script>",
        "<img src=x onerror=alert(1)> {{ 7 * 7 }} {% raw %}",
        "  two spaces\n\tand a tab",
    ),
    ("\u202etxt.exe\u2066 \x00\x1b[31m\x07", "مرحبا بالعالم\u200f", LONG),
] * 20


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison's folder with its report; every text of its pairs is hostile."""
    folder = make_comparison(tmp_path_factory.mktemp("report") / "made", texts=HOSTILE, pairs=40, audited=True)
    write_report(folder)
    return folder


@pytest.fixture(scope="session")
def page(written: Path) -> Page:
    return Page((written / "report.html").read_text(encoding="utf-8"))
