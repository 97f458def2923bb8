"""`mrpo cache verify`: check shards against their checksums, and log-probs by recomputing some."""

import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mrpo_cli.closing_lines import Ending
from mrpo_cli.option_values import cache_place
from mrpo_cli.recipe_decorator import takes_recipe
from mrpo_pipeline.errors import RunError

if TYPE_CHECKING:
    from mrpo_pipeline.recipe import Recipe
    from mrpo_pipeline.verify import Verified


@takes_recipe("cache verify")
def _verify(
    recipe: "Recipe",
    only: Annotated[
        list[str],
        typer.Option("--only", metavar="NAME", help="Only this reference (same as `--reference NAME`)."),
    ] = [],  # noqa: B006
    check: Annotated[
        int,
        typer.Option(
            "--check",
            metavar="N",
            min=0,
            help="With pairs: completions of each reference to recompute; 0 for none.",
        ),
    ] = 64,
    limit: Annotated[
        float | None,
        typer.Option(
            "--limit",
            metavar="NATS",
            min=0.0,
            show_default=False,
            help="Largest allowed difference of a token. Default: by dtype.",
        ),
    ] = None,
    repair: Annotated[
        bool,
        typer.Option("--repair", help="First set damaged files aside; with pairs, score their completions again."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> Ending:
    """Check every shard against its checksum. For a recipe with pairs, also recompute a sample of the log-probs.

    Without pairs, it checks checksums, lengths and finite numbers. With pairs, policy and references, it recomputes --check
    completions of each reference, of all lengths, by plain transformers, and compares them token by token.
    """
    from mrpo_pipeline.verify import verify_cache

    repaired = _repair(recipe, only, silent=as_json) if repair else []
    found = []
    for one in verify_cache(recipe, only=only, check=check, limit=limit):
        found.append(one)
        if not as_json:
            _show(one)
    if as_json:
        by_name = {one["reference"]: one for one in repaired}
        every = [{**one.as_dict(), "repaired": by_name.get(one.reference)} for one in found]
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
        done = "not scored again, because the recipe has no pairs: run `mrpo score-refs RECIPE`"
        print(f"{one.reference}: {done if one.rescored is None else f'{one.rescored:,} completions scored again'}")
    return [one.as_dict() for one in repaired]


def _show(one: "Verified") -> None:
    for name, problem in {**one.damaged, **one.unread}.items():
        print(f"{one.reference}: {name}: {problem}")
    print(f"{one.reference}: {one.shards:,} shards read, {one.rows:,} rows: checksums, lengths, finite numbers")
    if one.drift is not None:
        print(one.drift.summary(), flush=True)
    else:
        print(f"{one.reference}: log-probs not recomputed ({one.not_recomputed})", flush=True)


@functools.wraps(_verify)
def verify(recipe_file: Path | None = None, **given: Any) -> None:
    """`_verify`, with `--reference NAME` to select a reference, and `--cache` that may be a recipe."""
    named = given["reference"]
    given["only"] = [*given["only"], *(text for text in named if "=" not in text)]
    given["reference"] = [text for text in named if "=" in text]
    if given["cache"] is not None:
        given["cache"] = cache_place(given["cache"])
    _verify(recipe_file, **given)
