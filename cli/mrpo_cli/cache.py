"""`mrpo cache`: look at cached references, check them, clear up."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mrpo_cli import ending
from mrpo_cli.ending import Ending
from mrpo_cli.verify import verify
from mrpo_pipeline.errors import UserError

if TYPE_CHECKING:
    from mrpo_pipeline.cache import ReferenceCache

app = typer.Typer(
    help="The reference cache: list, stats, verify, prune.",
    no_args_is_help=True,
    add_completion=False,
    epilog="Example:  mrpo cache stats --cache recipe.yaml",
)

Place = Annotated[
    str,
    typer.Option(
        "--cache", metavar="DIR-OR-URL", help="The cache, or a recipe (.yaml) that names it.", show_default=True
    ),
]
Names = Annotated[
    list[str],
    typer.Option("--reference", metavar="NAME", help="This reference only. May be repeated.", show_default=False),
]


def _open(place: str, names: list[str]) -> list[ReferenceCache]:
    from mrpo_pipeline.cache import ReferenceCache, list_references

    root = place
    if Path(place).suffix in (".yaml", ".yml"):
        from mrpo_pipeline.recipe import load_recipe

        root = load_recipe(Path(place)).cache
    found = list_references(root)
    if not found:
        raise UserError(
            f"{root} holds no cached reference: expected the folder that `cache:` names. Correct --cache, or score first "
            "(`mrpo score-refs`)."
        )
    for name in names:
        if name not in found:
            raise UserError(f"{root} holds no reference {name!r}: there are {', '.join(found)}. Correct --reference.")
    return [ReferenceCache.open(root, name) for name in names or found]


@app.command("list", epilog="Example:  mrpo cache list --cache cache")
def list_caches(cache: Place = "cache") -> None:
    """List the cached references, with what their numbers were computed from."""
    for one in _open(cache, []):
        manifest = one.manifest()
        fields = manifest.fingerprint if manifest else {}
        print(one.name)
        for field, value in fields.items():
            print(f"  {field:14} {value}")
    _end(cache, "stats")


@app.command(epilog="Example:  mrpo cache stats --cache recipe.yaml")
def stats(cache: Place = "cache", reference: Names = []) -> None:  # noqa: B006
    """Rows, completions, tokens, bytes and nats per token of each reference."""
    caches = _open(cache, reference)
    header = (
        f"{'reference':20}{'completions':>13}{'shards':>8}{'tokens':>14}{'MB':>10}{'bytes/token':>13}{'nats/token':>12}"
    )
    print(header)
    for one in caches:
        figures = one.stats()
        tokens = max(figures.tokens, 1)
        print(
            f"{one.name:20}{figures.completions:13,}{figures.shards:8,}{figures.tokens:14,}{figures.size / 1e6:10.2f}"
            f"{figures.size / tokens:13.2f}{figures.nats_per_token:12.4f}"
        )
    _end(cache, "verify")


app.command("verify", epilog="Example:  mrpo cache verify recipe.yaml --check 64")(verify)


@app.command(epilog="Example:  mrpo cache prune --cache cache --reference old --all")
def prune(
    cache: Place = "cache",
    reference: Names = [],  # noqa: B006
    everything: Annotated[bool, typer.Option("--all", help="Delete all numbers of the named references.")] = False,
) -> None:
    """Remove what serves nothing: leftovers, stale sums, doubled shards; with --all, a reference altogether."""
    if everything and not reference:
        raise UserError(
            "--all deletes all numbers of a reference: expected --reference NAME with it. Name the reference."
        )
    for one in _open(cache, reference):
        if everything:
            one.remove()
            print(f"{one.name}: deleted")
        else:
            gone = one.prune()
            print(
                f"{one.name}: {gone.leftovers:,} leftovers, {gone.sums:,} derived files and {gone.shards:,} doubled shards "
                f"removed, {gone.size / 1e6:,.2f} MB"
            )
    _end(cache, "stats")


def _end(cache: str, following: str) -> None:
    ending.report(Ending(next=shlex.join(["mrpo", "cache", following, "--cache", cache])))
