"""`mrpo report`: a comparison's report, written again from its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="What `mrpo compare` left: its output_dir.")],
) -> None:
    """Write a comparison's report.html and plots again, from its folder."""
    from mrpo_pipeline.report import write_report

    print(write_report(folder))


def register(app: typer.Typer) -> None:
    app.command("report")(report)
