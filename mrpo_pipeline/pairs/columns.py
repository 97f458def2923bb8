"""Column names of this project and the user's mapping to the columns of a file."""

import difflib
from collections.abc import Mapping, Sequence

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.pairs.layouts import AS_IS, BY_NAME
from mrpo_pipeline.pairs.row_errors import describe, quoted

COLUMNS = (
    *("prompt", "system", "chosen", "rejected", "completions", "ranks", "scores", "id"),
    *("tools", "chat_template_kwargs"),
)
RANKED = ("completions", "ranks", "scores")
MEDIA = {
    "image": "image", "images": "image", "audio": "audio", "audios": "audio", "video": "video", "videos": "video",
}  # fmt: skip
"""Column that holds media → kind of media."""
Columns = Mapping[str, str | Sequence[str]]


def check_columns(columns: Columns, layout: str) -> None:
    """Raise UserError for unknown column or layout names and for mappings that contradict each other."""
    for ours, theirs in columns.items():
        if ours not in COLUMNS:
            raise UserError(
                f"`columns` maps {ours!r}, which is not a column of pairs{nearest(ours, COLUMNS)}. Correct it."
            )
        names = [theirs] if isinstance(theirs, str) else theirs
        if not isinstance(names, list | tuple) or not names or not all(isinstance(name, str) for name in names):
            raise UserError(
                f"`columns` maps {ours!r} to {describe(theirs)}; expected the name of a column. Correct it."
            )
        if not isinstance(theirs, str) and ours != "prompt":
            raise UserError(f"`columns` maps {ours!r} to a list, but only `prompt` may join several columns. Name one.")
    if layout not in ("auto", AS_IS) and layout not in BY_NAME:
        raise UserError(
            f"`layout` is {layout!r}, which is not a known layout{nearest(layout, ['auto', AS_IS, *BY_NAME])}. "
            "Correct `pairs.layout` (`mrpo recipes layouts` lists them)."
        )
    ranked = [name for name in RANKED if name in columns]
    sides = [name for name in ("chosen", "rejected") if columns.get(name, name) != name]
    if ranked and sides:
        raise UserError(
            f"`columns` maps both {sides[0]!r} (a pair) and {ranked[0]!r} (a ranking), and a row holds one or the other. Remove one."
        )
    if layout in BY_NAME and (ranked or sides):
        raise UserError(
            f"`columns` maps {(ranked + sides)[0]!r}, but the layout {layout} already defines the answer columns. Remove the "
            "mapping or the layout."
        )


def nearest(name: str, names: Sequence[str]) -> str:
    # Names come from a file: there may be many, and long ones.
    close = difflib.get_close_matches(name, [one for one in names[:1000] if len(one) <= 100], n=1, cutoff=0.5)
    listed = ", ".join(map(quoted, names[:30])) + (", …" if len(names) > 30 else "")
    return f"; did you mean {close[0]!r}? Available: {listed}" if close else f"; available: {listed}"
