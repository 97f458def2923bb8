"""`mrpo render`: one row's pairs as the policy and every reference read them."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Sequence

from mrpo_pipeline.dataset.prepare import read_splits
from mrpo_pipeline.dataset.truncate import prepare
from mrpo_pipeline.errors import UserError
from mrpo_pipeline.models.source import ModelSource
from mrpo_pipeline.pairs import PairTable
from mrpo_pipeline.recipe import Recipe
from mrpo_pipeline.rendering import Renderer
from mrpo_pipeline.rendering.token_view import LEGEND, view
from mrpo_pipeline.terminal import printable


def show_row(
    recipe: Recipe, row: int, names: Sequence[str] = (), *, width: int = 80, color: bool = False, ids: bool = False
) -> Iterator[str]:
    """Lines for a terminal.

    Args:
        recipe: its pairs, policy and references.
        row: 0-based in its file.
        names: the references to show, or `policy`; empty for all.
        width, color, ids: see ``rendering.token_view.view``.

    Raises:
        UserError: for an unknown row or name, a pair that a model can't read, and a renderer that differs from the model's own
            tokenizer and template.
    """
    sources = _sources(recipe, names)
    table = _row(recipe, row)
    own = recipe.required_policy()
    policy = Renderer.of(own)
    prepared = prepare(table, policy, recipe.limits, what=f"row {row}")
    if not prepared.frame.height:
        raise UserError(
            f"Row {row} is left out of a run ({', '.join(prepared.counts.dropped)}): expected a pair to show. Give another --row, or raise "
            "limits."
        )
    yield from _lines(f"Row {row} of {table.frame['file'][0]}: {LEGEND}.", width, "")
    columns = ("prompt_read", "chosen", "rejected", "chosen_cut", "rejected_cut")
    for source in sources:
        renderer = policy if source.loads_like(own) else Renderer.of(source)
        yield ""
        for line in _heading(source, renderer):
            yield from _lines(line, width, "  " * line.startswith(" "))
        for prompt, chosen, rejected, chosen_cut, rejected_cut in prepared.frame.select(columns).iter_rows():
            sides = [("chosen", chosen, chosen_cut), ("rejected", rejected, rejected_cut)]
            yield from view(renderer, prompt, sides, width=width, color=color, ids=ids)
        for line in (*renderer.notices, renderer.check.summary()):
            yield from _lines(line, width, "  ")


def _heading(source: ModelSource, renderer: Renderer) -> Iterator[str]:
    yield f"{source.name} ({source.model})"
    identity = renderer.identity()
    template = "the plain template" if identity["template"].startswith("plain:") else "a chat template"
    yield f"  rendered by {template}; an answer ends with {identity['end_of_turn']}"
    if source.template_kwargs:
        yield f"  template_kwargs: {json.dumps(source.template_kwargs, ensure_ascii=False)}"
    yield from (f"  {line}" for line in renderer.reading)


def _lines(text: str, width: int, indent: str) -> list[str]:
    return textwrap.wrap(
        printable(text.strip()), max(width, 40), initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
    )


def _sources(recipe: Recipe, names: Sequence[str]) -> list[ModelSource]:
    policy = recipe.required_policy()
    known = [policy, *(recipe.sources() if recipe.references and recipe.method.has_reference else [])]
    unknown = [name for name in names if name not in [source.name for source in known]]
    if unknown:
        raise UserError(
            f"--reference is {unknown[0]!r}: expected a reference of the recipe, or policy "
            f"({', '.join(source.name for source in known)}). Correct the option."
        )
    return [source for source in known if not names or source.name in names]


def _row(recipe: Recipe, row: int) -> PairTable:
    splits = read_splits(recipe.pairs)
    for table in splits.values():
        frame = table.frame.filter(table.frame["row"] == row)
        if frame.height:
            return PairTable(frame.filter(frame["file"] == frame["file"][0]))
    last = max((int(table.frame["row"].max() or 0) for table in splits.values() if table.frame.height), default=0)  # type: ignore[arg-type]
    raise UserError(f"--row is {row}: expected a row that holds a pair, 0 to {last}. Correct the option.")
