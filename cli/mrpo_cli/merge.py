"""`mrpo merge`."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from mrpo_cli import closing_lines
from mrpo_cli.closing_lines import Ending

app = typer.Typer(add_completion=False)


@app.command(epilog="Example:  mrpo merge out --output merged")
def merge(
    adapter: Annotated[Path, typer.Argument(help="The folder of `mrpo train`, or one of its checkpoints.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="New folder for the merged checkpoint.")],
    base: Annotated[
        str | None,
        typer.Option("--base", help="Folder or hub name of the base. Default: the adapter's.", show_default=False),
    ] = None,
    dtype: Annotated[str, typer.Option("--dtype", help="Dtype of the merged weights; auto is the base's.")] = "auto",
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run Python code that comes with the base.")
    ] = False,
) -> None:
    """Merge an adapter into its base as one plain checkpoint, and check its log-probs against the adapted model's."""
    from mrpo_pipeline.policy.require_adapter import require_adapter

    require_adapter(adapter)
    from mrpo_pipeline.policy.merge import merge_adapter

    merged = merge_adapter(adapter, output, base=base, dtype=dtype, trust_remote_code=trust_remote_code)
    for notice in merged.notices:
        print(f"mrpo: {notice}", file=sys.stderr)
    found = merged.differences
    print(
        f"Log-probs, in nats per token: the adapter changes the base's by {found.effect:.2g}, and the merged model's differ from "
        f"the adapted one's by {found.rounding:.2g}, as {merged.dtype} rounds."
    )
    print(f"The merged model is in {output} ({merged.dtype}).")
    closing_lines.report(
        Ending(f"{output} (a plain checkpoint that loads like any model)", shlex.join(["vllm", "serve", str(output)]))
    )
