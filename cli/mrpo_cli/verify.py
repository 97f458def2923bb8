"""`mrpo cache verify`: is a cache what was written, and are its numbers the right ones?"""

import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mrpo_cli.ending import Ending
from mrpo_cli.recipe_command import takes_recipe
from mrpo_pipeline.errors import RunError

if TYPE_CHECKING:
    from mrpo_pipeline.recipe import Recipe
    from mrpo_pipeline.verify import Verified


@takes_recipe("cache verify")
def _verify(
    recipe: "Recipe",
    only: Annotated[
        list[str],
        typer.Option("--only", metavar="NAME", help="This reference only (`--reference NAME` does the same)."),
    ] = [],  # noqa: B006
    check: Annotated[
        int, typer.Option("--check", metavar="N", min=0, help="With pairs: completions to compute again; 0 for none.")
    ] = 64,
    limit: Annotated[
        float | None,
        typer.Option(
            "--limit",
            metavar="NATS",
            min=0.0,
            show_default=False,
            help="Largest difference of a token. Default: by dtype.",
        ),
    ] = None,
    repair: Annotated[
        bool,
        typer.Option("--repair", help="First set damaged files aside; with pairs, score again what they held."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> Ending:
    """Re-read every shard against its checksum; with a recipe that names pairs, compute some of the numbers again.

    Without pairs: checksums, lengths, finite numbers. With pairs, policy and references: --check completions of each
    reference, drawn across lengths, are computed again by plain transformers and compared token by token.
    """
    from mrpo_pipeline.verify import verify_cache

    repaired = _repair(recipe, only, silent=as_json) if repair else []
    found = []
    for one in verify_cache(recipe, only=only, check=check, limit=limit):
        found.append(one)
        if not as_json:
            _show(one)
    if as_json:
        told = {one["reference"]: one for one in repaired}
        every = [{**one.as_dict(), "repaired": told.get(one.reference)} for one in found]
        print(json.dumps(every, ensure_ascii=False, indent=1))
    failures = [failure for one in found for failure in one.failures()]
    if failures:
        raise RunError(" ".join(failures))
    return Ending(next="audit" if recipe.references and recipe.pairs.train else "")


def _repair(recipe: "Recipe", only: list[str], *, silent: bool) -> list[dict[str, Any]]:
    from mrpo_pipeline.scoring import repair_cache

    repaired = repair_cache(recipe, only=only)
    for one in repaired if not silent else ():
        for (name, problem), aside in zip(one.damaged.items(), one.set_aside, strict=True):
            print(f"{one.reference}: {name}: {problem}\n{one.reference}: set aside as {aside}")
        done = "no completions were scored again, for no pairs are named: `mrpo score-refs RECIPE` does it"
        print(f"{one.reference}: {done if one.rescored is None else f'{one.rescored:,} completions scored again'}")
    return [one.as_dict() for one in repaired]


def _show(one: "Verified") -> None:
    for name, problem in {**one.damaged, **one.unread}.items():
        print(f"{one.reference}: {name}: {problem}")
    print(f"{one.reference}: {one.shards:,} shards read again, {one.rows:,} rows: checksums, lengths, finite numbers")
    if one.drift is not None:
        print(one.drift.summary(), flush=True)
    else:
        print(f"{one.reference}: the numbers themselves were not computed again ({one.not_computed})", flush=True)


@functools.wraps(_verify)
def verify(recipe_file: Path | None = None, **given: Any) -> None:
    """As `_verify`, where `--reference NAME` picks a reference and `--cache` may be a recipe that names the cache."""
    named = given["reference"]
    given["only"] = [*given["only"], *(text for text in named if "=" not in text)]
    given["reference"] = [text for text in named if "=" in text]
    if given["cache"] is not None and Path(given["cache"]).suffix in (".yaml", ".yml"):
        from mrpo_pipeline.recipe import load_recipe

        given["cache"] = load_recipe(Path(given["cache"])).cache
    _verify(recipe_file, **given)
