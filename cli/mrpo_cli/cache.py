"""`mrpo cache`: list, check and maintain cached references."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Annotated

import typer

from mrpo_cli import closing_lines
from mrpo_cli.cache_transfer import merge, pull, push
from mrpo_cli.closing_lines import Ending
from mrpo_cli.option_values import cache_place
from mrpo_cli.verify import verify
from mrpo_pipeline.errors import UserError

if TYPE_CHECKING:
    from mrpo_pipeline.cache import ReferenceCache

app = typer.Typer(
    help="The reference cache: list, stats, verify, prune, compact, push, pull, merge.",
    no_args_is_help=True,
    add_completion=False,
    epilog="Example:  mrpo cache stats --cache recipe.yaml",
)

Place = Annotated[
    str,
    typer.Option(
        "--cache", metavar="DIR-OR-URL", help="The cache, or a recipe (.yaml) with its location.", show_default=True
    ),
]
Names = Annotated[
    list[str],
    typer.Option("--reference", metavar="NAME", help="Only this reference. May be repeated.", show_default=False),
]


def _open(place: str, names: list[str]) -> list[ReferenceCache]:
    from mrpo_pipeline.cache.transfer import find_caches

    return find_caches(cache_place(place), names)


@app.command("list", epilog="Example:  mrpo cache list --cache cache")
def list_caches(cache: Place = "cache") -> None:
    """List the cached references with their fingerprints."""
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


app.command("push", epilog="Example:  mrpo cache push cache hf://datasets/org/name --recipe recipe.yaml")(push)
app.command("pull", epilog="Example:  mrpo cache pull hf://datasets/org/name --recipe recipe.yaml")(pull)
app.command("merge", epilog="Example:  mrpo cache merge /mnt/other/cache cache")(merge)
app.command("verify", epilog="Example:  mrpo cache verify recipe.yaml --check 64")(verify)


@app.command(epilog="Example:  mrpo cache prune --cache cache --reference old --all")
def prune(
    cache: Place = "cache",
    reference: Names = [],  # noqa: B006
    everything: Annotated[bool, typer.Option("--all", help="Delete the named references completely.")] = False,
) -> None:
    """Remove unused files: leftovers of killed runs, stale sums, duplicate shards. With --all, remove whole references."""
    if everything and not reference:
        raise UserError("--all deletes a reference completely: expected --reference NAME with it. Name the reference.")
    for one in _open(cache, reference):
        if everything:
            one.remove()
            print(f"{one.name}: deleted")
        else:
            gone = one.prune()
            print(
                f"{one.name}: {gone.leftovers:,} leftovers, {gone.sums:,} derived files and {gone.shards:,} duplicate shards "
                f"removed, {gone.size / 1e6:,.2f} MB"
            )
    _end(cache, "stats")


@app.command(epilog="Example:  mrpo cache compact --cache cache")
def compact(cache: Place = "cache", reference: Names = []) -> None:  # noqa: B006
    """Merge small shards into large ones, which open faster. Run it while nothing else reads the cache."""
    for one in _open(cache, reference):
        done = one.compact()
        print(f"{one.name}: {done.joined:,} small shards joined into {done.written:,}")
    _end(cache, "stats")


def _end(cache: str, following: str) -> None:
    closing_lines.report(Ending(next=shlex.join(["mrpo", "cache", following, "--cache", cache])))
