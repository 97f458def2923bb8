"""`mrpo report`: write a comparison's report again from its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mrpo_cli import closing_lines
from mrpo_cli.closing_lines import Ending

app = typer.Typer(add_completion=False)


@app.command(epilog="Example:  mrpo report side-by-side")
def report(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The output_dir of `mrpo compare`.")],
) -> None:
    """Write a comparison's report.html and plots again from its folder."""
    from mrpo_pipeline.report import write_report

    written = write_report(folder)
    print(written)
    closing_lines.report(Ending(f"{written}; its plots are in {folder / 'plots'}", f"open {written} in a browser"))
