"""The report's colours: each one a light and a dark shade, and a name by which a plot inside the page follows the page.

A method has a colour, a line style and a marker, by its place in the comparison, the same in every plot. The hues of
the first six keep apart for the common kinds of colour blindness too, and each stands out 3 : 1 at least from its background;
from the seventh method on it is the line style and the marker that tell.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Colour:
    """One colour: ``name`` is the CSS variable, ``light`` what plots are drawn with, so every one is used once."""

    name: str
    light: str
    dark: str


PAPER = Colour("paper", "#ffffff", "#15181d")
INK = Colour("ink", "#1c2127", "#e8eaed")
MUTED = Colour("muted", "#5a636e", "#a3acb8")
GRID = Colour("grid", "#e1e5ea", "#2c323a")
AXIS = Colour("axis", "#98a2ae", "#5f6a76")
MARK = Colour("mark", "#b0351f", "#ff8f78")
POSITIVE = Colour("positive", "#2166ac", "#4393e6")
NEGATIVE = Colour("negative", "#b35806", "#e08a3c")

METHODS = tuple(
    Colour(f"m{number}", light, dark)
    for number, (light, dark) in enumerate(
        [
            ("#0041dd", "#838ffb"),
            ("#da721e", "#e27c33"),
            ("#0a6946", "#1fc18a"),
            ("#9e348e", "#cc7fbb"),
            ("#5e4b00", "#fae337"),
            ("#4190da", "#b5fffd"),
            ("#6b3fc6", "#b9a1ff"),
            ("#b8202e", "#ff7f7f"),
            ("#55606c", "#b3bcc7"),
            ("#557a00", "#a8d345"),
            ("#7a4528", "#d6a583"),
            ("#00565e", "#67c3cc"),
        ]
    )
)
REFERENCES = tuple(
    Colour(f"r{number}", light, dark)
    for number, (light, dark) in enumerate(
        [
            ("#332f86", "#9d98ff"),
            ("#cc5566", "#f08a99"),
            ("#117744", "#52c98b"),
            ("#997711", "#e6c75c"),
            ("#3c8aa8", "#7cc7e3"),
            ("#882255", "#e07fb2"),
            ("#6d6a75", "#bdb8c9"),
            ("#a0522d", "#e09a72"),
            ("#2f9383", "#7fe0cf"),
            ("#994fa0", "#d294d8"),
        ]
    )
)
DASHES: tuple[tuple[float, ...], ...] = ((), (5, 2), (1.2, 1.6), (6, 2, 1.2, 2), (3, 1.2))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p", "h", "<", ">", "d")


def all_colours() -> tuple[Colour, ...]:
    """Every colour that a plot may hold."""
    return (PAPER, INK, MUTED, GRID, AXIS, MARK, POSITIVE, NEGATIVE, *METHODS, *REFERENCES)


@dataclass(frozen=True)
class Style:
    """How one method or reference is drawn, everywhere."""

    colour: Colour
    dash: tuple[float, ...]
    marker: str


def method_styles(names: list[str]) -> dict[str, Style]:
    """The style of each method by its place. Colour, line style and marker repeat at different intervals: 60 differ."""
    return {
        name: Style(
            METHODS[place % len(METHODS)],
            DASHES[(place // 6 + place // len(METHODS)) % len(DASHES)],
            MARKERS[place % len(MARKERS)],
        )
        for place, name in enumerate(names)
    }


def reference_styles(names: list[str]) -> dict[str, Style]:
    """The style of each reference by its place, the anchor first; other hues than the methods'."""
    return {
        name: Style(
            REFERENCES[place % len(REFERENCES)],
            DASHES[place // len(REFERENCES) % len(DASHES)],
            MARKERS[place % len(MARKERS)],
        )
        for place, name in enumerate(names)
    }


def css_variables(shade: str) -> str:
    """The colours as CSS declarations, ``shade`` being ``light`` or ``dark``."""
    return " ".join(f"--{colour.name}: {getattr(colour, shade)};" for colour in all_colours())
