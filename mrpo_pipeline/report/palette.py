"""The report's colours, each with a light and a dark shade.

A method has the same colour, line style and marker in every plot. The first six colours also differ for the common kinds of
colour blindness, and every colour has a contrast of 3 : 1 or more with its background. From the seventh method on, methods
differ by line style and marker.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Colour:
    """One colour. ``name`` is its CSS variable; ``light`` is its unique shade in plot files, which the page replaces by the variable."""

    name: str
    light: str
    dark: str


# The first five are those of ``plots.mplstyle``.
PAPER = Colour("paper", "#ffffff", "#15181d")
INK = Colour("ink", "#1c2127", "#e8eaed")
MUTED = Colour("muted", "#5a636e", "#a3acb8")
GRID = Colour("grid", "#e1e5ea", "#2c323a")
AXIS = Colour("axis", "#98a2ae", "#5f6a76")
MARK = Colour("mark", "#b0351f", "#ff8f78")
HUE = Colour("hue", "#2166ac", "#4393e6")


def _colours(name: str, light: str, dark: str) -> tuple[Colour, ...]:
    shades = zip(light.split(), dark.split(), strict=True)
    return tuple(Colour(f"{name}-{place}", f"#{one}", f"#{other}") for place, (one, other) in enumerate(shades))


METHODS = _colours(
    "method",
    "0041dd da721e 0a6946 9e348e 5e4b00 4190da 6b3fc6 b8202e 55606c 557a00 7a4528 00565e",
    "838ffb e27c33 1fc18a cc7fbb fae337 b5fffd b9a1ff ff7f7f b3bcc7 a8d345 d6a583 67c3cc",
)
REFERENCES = _colours(
    "reference",
    "332f86 cc5566 117744 997711 3c8aa8 882255 6d6a75 a0522d 2f9383 994fa0",
    "9d98ff f08a99 52c98b e6c75c 7cc7e3 e07fb2 bdb8c9 e09a72 7fe0cf d294d8",
)
COLOURS = (PAPER, INK, MUTED, GRID, AXIS, MARK, HUE, *METHODS, *REFERENCES)
_DASHES = ("-", (0, (5, 2)), (0, (1.2, 1.6)), (0, (6, 2, 1.2, 2)), (0, (3, 1.2)))
_MARKERS = "os^DvPXph<>d"


@dataclass(frozen=True)
class Style:
    """Colour, matplotlib line style and marker of a method or reference."""

    colour: Colour
    line: str | tuple[int, tuple[float, ...]]
    marker: str


def styles(names: Sequence[str], colours: Sequence[Colour]) -> dict[str, Style]:
    """A style for each name by its position. Colours, line styles and markers have different periods: 60 styles are distinct."""
    return {
        name: Style(
            colours[place % len(colours)],
            _DASHES[(place // 6 + place // len(colours)) % len(_DASHES)],
            _MARKERS[place % len(_MARKERS)],
        )
        for place, name in enumerate(names)
    }


def css_variables() -> str:
    """The colours as CSS declarations."""
    return " ".join(f"--{colour.name}: light-dark({colour.light}, {colour.dark});" for colour in COLOURS)
