"""The report's matplotlib charts: intervals by name, lines, segments in a plane, stacked bars."""

from __future__ import annotations

import io
import math
import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mrpo_pipeline.files.atomic import whole_file, write_whole
from mrpo_pipeline.report import palette
from mrpo_pipeline.report.formatting import one_line
from mrpo_pipeline.report.inline_svg import inline_svg
from mrpo_pipeline.report.palette import Style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Floats = npt.NDArray[np.float64]

# Points; about the width of a phone.
WIDTH = 380
_SMALL = 9.5


@contextmanager
def plot_style() -> Iterator[None]:
    """Use the report's style instead of the user's matplotlibrc, so that the same data give the same bytes."""
    from matplotlib import style

    with style.context(["default", Path(__file__).with_name("plots.mplstyle")]):
        yield


@dataclass(frozen=True)
class Plot:
    """One plot: ``name`` is the file's stem; ``description`` holds its numbers for screen readers."""

    name: str
    title: str
    description: str
    figure: Figure

    @cached_property
    def svg(self) -> str:
        """The SVG written by matplotlib."""
        held = io.StringIO()
        with warnings.catch_warnings():
            # Browsers have glyphs that matplotlib's font lacks.
            warnings.filterwarnings("ignore", message=".*[Gg]lyph.*")
            self.figure.savefig(held, format="svg", metadata={"Date": None, "Creator": None})
        return held.getvalue()

    @property
    def inline(self) -> str:
        """The SVG element for the page, with the page's CSS colours."""
        return inline_svg(self.svg, self.name, f"{self.title}. {self.description}")

    def write(self, folder: Path) -> None:
        """Write ``NAME.svg`` and ``NAME.png``, on white."""
        write_whole(folder / f"{self.name}.svg", self.svg)
        with whole_file(folder / f"{self.name}.png") as temporary:
            self.figure.savefig(temporary, format="png", dpi=180, metadata={"Software": None})


@dataclass(frozen=True)
class Interval:
    """One row of an interval plot, in the plot's unit; ``figures`` is the text beside it, ``end`` a second, hollow mark."""

    label: str
    style: Style
    middle: float
    low: float | None
    high: float | None
    figures: str
    seeds: Sequence[float] = ()
    hollow: bool = False
    end: float | None = None


@dataclass(frozen=True)
class Line:
    """One line of a line plot: x and y, (S,) each, and the values of each seed, (N, S), drawn behind it."""

    label: str
    style: Style
    x: Floats
    y: Floats
    seeds: Floats | None = None


@dataclass(frozen=True)
class Segment:
    """A horizontal segment: from ``x`` (a filled mark) to ``end`` (a hollow one) at the height ``y`` with an interval."""

    label: str
    style: Style
    x: float
    end: float
    y: float
    low: float | None = None
    high: float | None = None


def interval_plot(
    name: str,
    title: str,
    rows: Sequence[Interval],
    *,
    xlabel: str,
    line: float | None = None,
    within: tuple[float, float] = (-math.inf, math.inf),
) -> Plot:
    """A plot with names on the left, marks with intervals, and the figures on the right.

    Args:
        line: x of a dashed line. within: limits of the axis, outside which no value is possible.
    """
    labels = [_wrapped(row.label, 21) for row in rows]
    lines = max(label.count("\n") for label in labels) + 1
    figure, axes = _new(title, len(rows) * (12 + 14 * lines) + 46)
    if line is not None:
        axes.axvline(line, color=palette.MARK.light, linewidth=1.1, linestyle=(0, (4, 2)), zorder=1)
    for at, row in enumerate(rows):
        colour = row.style.colour.light
        if row.low is not None and row.high is not None:
            axes.plot([row.low, row.high], [at, at], color=colour, linewidth=2, marker="|", markersize=8, zorder=2)
        axes.plot(row.seeds, [at + 0.33] * len(row.seeds), "|", color=palette.MUTED.light, markersize=4)
        marks = [(row.middle, row.hollow)]
        if row.end is not None:
            axes.plot([row.middle, row.end], [at, at], color=colour, linewidth=1.8, zorder=2)
            marks.append((row.end, True))
        for value, hollow in marks:
            inside = palette.PAPER.light if hollow else colour
            axes.plot(value, at, color=colour, marker=row.style.marker, markersize=7, markerfacecolor=inside, zorder=3)
        axes.text(
            1.02, at, row.figures, transform=axes.get_yaxis_transform(), va="center", fontsize=_SMALL,
            color=palette.MUTED.light,
        )  # fmt: skip
    axes.set_yticks(range(len(rows)), labels)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    low, high = axes.get_xlim()
    axes.set_xlim(max(low, within[0]), min(high, within[1]))
    axes.locator_params(axis="x", nbins=5)
    axes.set_xlabel(_wrapped(xlabel, 60))
    figures = "; ".join(f"{one_line(row.label)} {row.figures}" for row in rows)
    return Plot(name, title, f"{figures}. {xlabel[:1].upper()}{xlabel[1:]}.", figure)


def line_plot(
    name: str, title: str, description: str, lines: Sequence[Line], *, xlabel: str, ylabel: str
) -> tuple[Plot, Axes]:
    """A line plot with a legend below, and its axes. Seeds are bands behind up to five lines, and thin lines behind more."""
    columns = 2 if max(len(line.label) for line in lines) <= 22 else 1
    figure, axes = _new(title, 230 + 15 * math.ceil(len(lines) / columns))
    for line in lines:
        colour = line.style.colour.light
        if line.seeds is not None and len(line.seeds) > 1 and len(lines) <= 5:
            low, high = line.seeds.min(axis=0), line.seeds.max(axis=0)
            axes.fill_between(line.x, low, high, color=colour, alpha=0.13, linewidth=0)
        elif line.seeds is not None and len(line.seeds) > 1:
            axes.plot(line.x, line.seeds.T, color=colour, linewidth=0.6, alpha=0.18)
        axes.plot(
            line.x, line.y, color=colour, linewidth=1.8, linestyle=line.style.line, marker=line.style.marker,
            markersize=5.5, markevery=[-1] if line.x.size > 10 else None, label=_legend_label(line.label),
        )  # fmt: skip
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.locator_params(nbins=6)
    figure.legend(loc="outside lower left", ncols=columns)
    return Plot(name, title, description, figure), axes


def segment_plot(name: str, title: str, description: str, rows: Sequence[Segment], *, xlabel: str, ylabel: str) -> Plot:
    """Segments with a legend below, and a dashed line at x = 0."""
    columns = 2 if max(len(row.label) for row in rows) <= 22 else 1
    figure, axes = _new(title, 230 + 15 * math.ceil(len(rows) / columns))
    axes.axvline(0, color=palette.MARK.light, linewidth=1.1, linestyle=(0, (4, 2)), zorder=1)
    for row in rows:
        colour = row.style.colour.light
        if row.low is not None and row.high is not None:
            axes.plot([row.x, row.x], [row.low, row.high], color=colour, linewidth=0.9, alpha=0.5, zorder=2)
        axes.plot([row.x, row.end], [row.y, row.y], color=colour, linewidth=1.2, linestyle=row.style.line, zorder=2)
        marks: dict[str, Any] = {
            "color": colour,
            "marker": row.style.marker,
            "markersize": 7,
            "linestyle": "none",
            "zorder": 3,
        }
        axes.plot(row.end, row.y, markerfacecolor=palette.PAPER.light, **marks)
        axes.plot(row.x, row.y, label=_legend_label(row.label), **marks)
    axes.set_xlabel(_wrapped(xlabel, 60))
    axes.set_ylabel(_wrapped(ylabel, 40))
    axes.locator_params(nbins=6)
    figure.legend(loc="outside lower left", ncols=columns)
    return Plot(name, title, description, figure)


def stacked_bars(
    name: str, title: str, description: str, bars: Mapping[str, Mapping[str, float]], parts: Mapping[str, Style], *, xlabel: str
) -> Plot:  # fmt: skip
    """A bar of percentages that sum to 100 for each name, with a legend of the parts below."""
    shown = [part for part in parts if any(part in shares for shares in bars.values())]
    columns = 2 if max(map(len, shown)) <= 22 else 1
    labels = [_wrapped(label, 21) for label in bars]
    height = 12 + 14 * (1 + max(label.count("\n") for label in labels))
    figure, axes = _new(title, height * len(bars) + 46 + 16 * math.ceil(len(shown) / columns))
    left = np.zeros(len(bars))
    for part in shown:
        widths = np.array([shares.get(part, 0.0) for shares in bars.values()])
        colour = parts[part].colour.light
        drawn = axes.barh(
            range(len(bars)), widths, 0.6, left, color=colour, edgecolor=palette.PAPER.light, label=_legend_label(part)
        )
        texts = [f"{width:.0f}" if width >= 8 else "" for width in widths]
        axes.bar_label(drawn, texts, label_type="center", color=palette.PAPER.light, fontsize=_SMALL, fontweight="bold")
        left += widths
    axes.set_yticks(range(len(bars)), labels)
    axes.set_ylim(len(bars) - 0.5, -0.5)
    axes.set_xlim(0, 100)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(xlabel)
    figure.legend(loc="outside lower left", ncols=columns)
    return Plot(name, title, description, figure)


def _new(title: str, height: float) -> tuple[Figure, Axes]:
    """An empty plot with its title; ``height`` in points, without the title."""
    from matplotlib.figure import Figure

    text = _wrapped(title, 46)
    figure = Figure(figsize=(WIDTH / 72, (height + 18 * (1 + text.count("\n"))) / 72), dpi=72)
    figure.suptitle(text, x=0.005, ha="left")
    return figure, figure.subplots()


def _wrapped(text: str, width: int) -> str:
    """A text from a file wrapped to lines of ``width`` characters."""
    return textwrap.fill(one_line(text), width)


def _legend_label(text: str) -> str:
    """A wrapped label; matplotlib leaves out labels that start with an underscore."""
    label = _wrapped(text, 50)
    return f" {label}" if label.startswith("_") else label
