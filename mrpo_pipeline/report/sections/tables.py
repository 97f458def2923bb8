"""Tables of the page, before they are HTML."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from mrpo_pipeline.report.formatting import one_line
from mrpo_pipeline.report.palette import Style


@dataclass(frozen=True)
class Column:
    """A column's head; ``number`` columns stand to the right."""

    title: str
    unit: str = ""
    number: bool = False


@dataclass(frozen=True)
class Cell:
    """One cell: text, small text below it, a class, and the sign by which plots know the method."""

    text: str
    below: str = ""
    kind: str = ""
    swatch: Markup | None = None


@dataclass(frozen=True)
class Row:
    """One row; the first cell is its head."""

    cells: list[Cell]
    kind: str = ""


def name_cell(name: str, style: Style | None = None, *, hollow: bool = False) -> Cell:
    """A method's or reference's name with its sign; a short name stays on one line."""
    shown = one_line(name)
    sign = swatch(style, hollow=hollow) if style is not None else None
    return Cell(shown, kind="name" if len(shown) <= 24 else "", swatch=sign)


@dataclass(frozen=True)
class LegendEntry:
    """One method or reference of a legend; ``series`` is the class that its lines have in the plots."""

    name: str
    series: str
    swatch: Markup


def swatch(style: Style, *, hollow: bool = False) -> Markup:
    """A short line with the method's colour, dashes and marker, as in the plots."""
    colour = f"var(--{style.colour.name})"
    dash = f"; stroke-dasharray: {' '.join(f'{1.7 * part:g}' for part in style.dash)}" if style.dash else ""
    inside = "var(--paper)" if hollow else colour
    return Markup(
        '<svg class="swatch" viewBox="0 0 30 12" aria-hidden="true">'
        '<path d="M1 6H29" style="stroke: {line}; stroke-width: 2; fill: none"/>'
        '<path d="{shape}" style="fill: {inside}; stroke: {colour}; stroke-width: 1.5"/></svg>'
    ).format(line=f"{colour}{dash}", shape=_shape(style.marker), inside=inside, colour=colour)


def _shape(marker: str) -> str:
    """matplotlib's own outline of the marker, as an SVG path round (15, 6)."""
    from matplotlib.markers import MarkerStyle

    drawn = MarkerStyle(marker)
    path = drawn.get_path().transformed(drawn.get_transform())
    rings: Any = path.to_polygons(closed_only=True)
    return " ".join("M" + "L".join(f"{15 + 7.5 * x:.2f} {6 - 7.5 * y:.2f}" for x, y in ring) + "Z" for ring in rings)
