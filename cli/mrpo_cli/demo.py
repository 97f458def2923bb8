"""`mrpo demo`."""

import typer

from mrpo_cli import ending
from mrpo_cli.ending import Ending

app = typer.Typer(add_completion=False)


@app.command(epilog="Example:  mkdir try && cd try && mrpo demo")
def demo() -> None:
    """See all of it on three tiny models that are made here: some minutes on two cores, no GPU, no network.

    Pairs, models, cache and results go into runs/demo below the current folder. A second run finds what is done.
    """
    from mrpo_pipeline.demo.run import run_demo

    report = run_demo()
    ending.report(Ending(str(report), f"open {report} in a browser; mrpo recipes copy small"))
