"""`mrpo cache push`, `pull` and `merge`: copy caches between places."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mrpo_cli import closing_lines
from mrpo_cli.closing_lines import Ending
from mrpo_cli.recipe_options import PRIVATE

if TYPE_CHECKING:
    from mrpo_pipeline.cache.transfer import Transfer
    from mrpo_pipeline.recipe import Recipe

Source = Annotated[
    str,
    typer.Argument(
        metavar="CACHE[/NAME]",
        help="A folder or URL of a cache, or one reference in it.",
        show_default=False,
    ),
]
RecipeFile = Annotated[
    Path | None,
    typer.Option(
        "--recipe",
        metavar="FILE",
        help="Only its references; its models and pairs go into the card.",
        show_default=False,
    ),
]


def push(
    source: Source,
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET", help="A folder, an object store's URL, or hf://datasets/ORG/NAME.", show_default=False
        ),
    ],
    recipe: RecipeFile = None,
    without_ids: Annotated[
        bool, typer.Option("--without-ids", help="Leave out token ids, from which the text can be read.")
    ] = False,
    private: Annotated[bool, PRIVATE] = False,
) -> None:
    """Publish cached references with a card that describes them; on the hub in one commit."""
    from mrpo_pipeline.exports.publish_cache import push_cache

    done = push_cache(source, target, without_ids=without_ids, private=private, recipe=_recipe(recipe))
    _report(done, target, ["mrpo", "cache", "pull", target])


def pull(
    source: Source,
    cache: Annotated[
        str, typer.Option("--cache", metavar="DIR-OR-URL", help="The target.", show_default=True)
    ] = "cache",
    recipe: Annotated[
        Path | None,
        typer.Option(
            "--recipe", metavar="FILE", help="Only the rows for this recipe's references and pairs.", show_default=False
        ),
    ] = None,
) -> None:
    """Copy published references to this machine, and verify every file."""
    from mrpo_pipeline.exports.publish_cache import pull_cache

    done = pull_cache(source, cache, recipe=_recipe(recipe))
    _report(done, cache, ["mrpo", "cache", "stats", "--cache", cache])


def merge(
    source: Source,
    target: Annotated[str, typer.Argument(metavar="INTO", help="The cache to add to.", show_default=False)],
) -> None:
    """Copy the shards that a cache lacks from another one with the same fingerprint."""
    from mrpo_pipeline.exports.publish_cache import merge_caches

    _report(merge_caches(source, target), target, ["mrpo", "cache", "stats", "--cache", target])


def _recipe(path: Path | None) -> Recipe | None:
    from mrpo_pipeline.recipe import load_recipe

    return load_recipe(path) if path else None


def _report(done: list[Transfer], place: str, following: list[str]) -> None:
    for one in done:
        print(f"{one.reference}: {one.files:,} files copied, {one.size / 1e6:,.2f} MB; {one.present:,} were present")
    closing_lines.report(Ending(results=place, next=shlex.join(following)))
