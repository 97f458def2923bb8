"""Choose the column mapping of a file: the user's mapping, a named layout, or a layout detected from its first rows."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.pairs.columns import RANKED, Columns
from mrpo_pipeline.pairs.field_paths import get_path, is_filled
from mrpo_pipeline.pairs.layouts import AS_IS, BY_NAME, LAYOUTS, NO_PAIRS, NO_PAIRS_HINT, Layout, Ranked, Sides
from mrpo_pipeline.pairs.row_fields import RowReader

Rows = Sequence[Mapping[str, Any]]


def reader_for(
    file: str, head: Rows, columns: Columns, layout: str = "auto", ignored: Sequence[str] = (), *, decode: bool = False
) -> RowReader:
    """Row reader for a file, from its first rows and the user's settings.

    Raises UserError: columns of the named layout are missing, several layouts fit, or the data has no pairs.
    """
    mapped = {name: given for name, given in columns.items() if given != name or name in RANKED}
    answers = any(name in mapped for name in (*RANKED, "chosen", "rejected"))
    taken: Layout | None = None
    if layout in BY_NAME:
        taken = BY_NAME[layout]
        lacking = [path for path in taken.needs if not _any_filled(head, path, decode)]
        if lacking and head:
            raise UserError(
                f"{file}: the layout {layout} needs {', '.join(f'`{path}`' for path in taken.needs)}, but "
                f"{', '.join(f'`{path}`' for path in lacking)} is missing or empty in the first rows (columns {_listed(head)}). Use "
                "another layout (`mrpo recipes layouts`), or map `pairs.columns`."
            )
    elif layout == "auto" and not answers:
        taken = _detect(file, head, decode)
    if taken is None and not answers:
        _refuse_data_without_pairs(file, head, decode)
    reading = RowReader(
        file,
        taken and _resolve(taken, head, decode),
        mapped,
        frozenset(ignored),
        named=layout in BY_NAME,
        decode=decode,
    )
    # A single prompt that ends with an assistant message is an error; if all do, they are answer prefixes, as in TRL.
    reading.prompt_has_answer_prefix = layout != AS_IS and bool(head) and all(map(reading.ends_in_answer, head))
    return reading


def _any_filled(rows: Rows, path: str, decode: bool) -> bool:
    return any(is_filled(get_path(row, one, decode=decode)) for row in rows for one in path.split("|"))


def _detect(file: str, head: Rows, decode: bool) -> Layout | None:
    """Layout whose required columns the first rows have; of several, the one that requires all columns of the others and more."""
    has_sides = all(_any_filled(head, name, decode) for name in ("chosen", "rejected"))
    fitting = [
        layout
        for layout in LAYOUTS
        if (not has_sides or layout.answers == Sides())
        and all(_any_filled(head, path, decode) for path in layout.needs)
        and not any(_any_filled(head, path, decode) for path in layout.without)
    ]
    best = [one for one in fitting if not any(set(one.needs) < set(other.needs) for other in fitting)]
    if len(best) > 1:
        raise UserError(
            f"{file}: the columns match the layouts {' and '.join(layout.name for layout in best)}. Set `pairs.layout` to one of "
            "them, or map `pairs.columns`."
        )
    return best[0] if best else None


def _resolve(layout: Layout, head: Rows, decode: bool) -> Layout:
    """Resolve every `a|b`, and drop a system or history column that the file does not use."""

    def one(path: str) -> str:
        names = path.split("|")
        return next((name for name in names if _any_filled(head, name, decode)), names[0])

    def optional(path: str) -> str:
        return one(path) if path and _any_filled(head, path, decode) else ""

    answers = layout.answers
    if isinstance(answers, Ranked):
        answers = replace(answers, ranks=one(answers.ranks), scores=one(answers.scores))
    return replace(
        layout,
        prompt=tuple(map(one, layout.prompt)),
        system=optional(layout.system),
        history=optional(layout.history),
        answers=answers,
    )


def _refuse_data_without_pairs(file: str, head: Rows, decode: bool) -> None:
    if not head or any(_any_filled(head, name, decode) for name in ("chosen", "rejected")):
        return
    for form in NO_PAIRS:
        fits = all(_any_filled(head, path, decode) for path in form.needs)
        if fits and not any(_any_filled(head, path, decode) for path in form.without):
            raise UserError(f"{file}: this file holds {form.why} (columns {_listed(head)}). {NO_PAIRS_HINT}")


def _listed(head: Rows) -> str:
    names = list(dict.fromkeys(name for row in head for name in row))
    return ", ".join(map(repr, names[:20])) + (", …" if len(names) > 20 else "")
