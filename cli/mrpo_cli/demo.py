"""`mrpo demo`."""

import typer

from mrpo_cli import closing_lines
from mrpo_cli.closing_lines import Ending

app = typer.Typer(add_completion=False)


@app.command(epilog="Example:  mkdir try && cd try && mrpo demo")
def demo() -> None:
    """Run all steps on three tiny models that are trained here: a few minutes on two cores, no GPU, no network.

    Writes pairs, models, cache and results to runs/demo in the current folder. A second run skips finished steps.
    """
    from mrpo_pipeline.demo.run import run_demo

    report = run_demo()
    closing_lines.report(Ending(str(report), f"open {report} in a browser; mrpo recipes copy small"))
