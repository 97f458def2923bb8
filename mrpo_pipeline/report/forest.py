"""Forest plots: a point and its interval for each method, and for each difference from a single reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mrpo_pipeline.report import palette
from mrpo_pipeline.report.drawing import SMALL, TEXT, WIDTH, Plot, fitted, new_figure, plain_axes, title_over, width_of
from mrpo_pipeline.report.formatting import before_training, one_line, percent, points
from mrpo_pipeline.report.palette import Style, method_styles
from mrpo_pipeline.report.results_folder import Folder

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ROW, _TALL_ROW = 38, 52
_HEAD, _TITLE, _FOOT = 18, 26, 38


@dataclass(frozen=True)
class Row:
    """One line of a forest plot, shares of one."""

    label: str
    style: Style
    middle: float
    low: float | None
    high: float | None
    dots: Sequence[float] = ()
    hollow: bool = False


def method_forests(folder: Folder) -> list[Plot]:
    """Each method's share of held-out pairs, in the two metrics that may be compared across methods."""
    document = folder.document
    styles = method_styles(folder.names)
    chosen = [
        (
            "accuracy/policy",
            "Prefers the chosen side",
            "before training",
            document.start.get("accuracy/policy"),
            "forest-policy",
        ),
        ("accuracy/anchor", "Moved towards the chosen side", "chance", 0.5, "forest-anchor"),
    ]
    plots = []
    for metric, title, line_label, line, name in chosen:
        rows = []
        for method in document.methods:
            figures = method.metrics.get(metric)
            if figures is None or figures.mean is None:
                continue
            dots = [value for value in figures.per_seed if value is not None]
            rows.append(
                Row(
                    one_line(method.name),
                    styles[method.name],
                    figures.mean,
                    figures.low,
                    figures.high,
                    dots if len(dots) > 1 else (),
                    method.baseline,
                )
            )
        if not rows:
            continue
        said = "; ".join(f"{row.label} {_span(row, percent)} %" for row in rows)
        plots.append(
            Plot(
                name,
                title,
                f"{said}." + (f" {line_label.capitalize()}: {percent(line)} %." if line is not None else ""),
                _draw_shares(rows, line, line_label, title, document.held_out),
            )
        )
    return plots


def difference_forests(folder: Folder, metric: str, question: str) -> list[Plot]:
    """For each method that others are held against: how far they are from it, with intervals."""
    document = folder.document
    styles = method_styles(folder.names)
    baselines = {method.name for method in document.methods if method.baseline}
    asked = [one for one in document.comparisons if (one.metric, one.question) == (metric, question)]
    plots = []
    for place, other in enumerate(dict.fromkeys(one.against for one in asked), 1):
        rows = [
            Row(
                one_line(one.method),
                styles[one.method],
                one.difference,
                one.low,
                one.high,
                hollow=one.method in baselines,
            )
            for one in asked
            if one.against == other and one.difference is not None and one.method in styles
        ]
        if rows:
            said = "; ".join(f"{row.label} {_span(row, points)} points" for row in rows)
            title = f"Against {before_training(other)}"
            plots.append(Plot(f"difference-{place}", title, f"{said}.", _draw_differences(rows, title)))
    return plots


def _span(row: Row, write: Callable[[float | None], str]) -> str:
    if row.low is None or row.high is None:
        return write(row.middle)
    return f"{write(row.middle)} ({write(row.low)} to {write(row.high)})"


def _draw_shares(
    rows: list[Row], line: float | None, line_label: str, title: str, pairs: int
) -> Callable[[bool], Figure]:
    def draw(alone: bool) -> Figure:
        ends = [value for row in rows for value in (row.middle, row.low, row.high, *row.dots) if value is not None] + (
            [line] if line is not None else []
        )
        label = f"% of {pairs:,} held-out pairs" if pairs else "% of the held-out pairs"
        limits = limits_of(ends, floor=0.0, ceiling=1.0)
        figure, axes = rows_figure(rows, limits, title if alone else "", label, percent)
        if line is not None:
            mark_line(axes, line, f"{line_label} {percent(line)}")
        return figure

    return draw


def _draw_differences(rows: list[Row], title: str) -> Callable[[bool], Figure]:
    def draw(alone: bool) -> Figure:
        ends = [0.0, *(value for row in rows for value in (row.middle, row.low, row.high) if value is not None)]
        low, high = limits_of(ends, floor=-1.0, ceiling=1.0)
        figure, axes = rows_figure(rows, (low, high), title if alone else "", "difference in points", points)
        axes.axvline(0, color=palette.MARK.light, linewidth=1.1, linestyle=(0, (4, 2)), zorder=1)
        if -low / (high - low) > 0.2:
            _beside(axes, 0, "← worse", right=False)
        if high / (high - low) > 0.2:
            _beside(axes, 0, "better →", right=True)
        return figure

    return draw


def rows_figure(
    rows: list[Row], limits: tuple[float, float], title: str, label: str, write: Callable[[float | None], str]
) -> tuple[Figure, Axes]:
    """A name and its figures over each interval, so that a long name needs no margin; over each other where both are long."""
    spans = [_span(row, write) for row in rows]
    room = WIDTH - 26
    tall = any(width_of(row.label) + width_of(span, SMALL) > room - 12 for row, span in zip(rows, spans, strict=True))
    height = _TALL_ROW if tall else _ROW
    head = _HEAD + (_TITLE if title else 0)
    figure = new_figure(head + height * len(rows) + _FOOT)
    if title:
        title_over(figure, title)
    axes = plain_axes(figure, left=10, right=10, top=head - _HEAD, bottom=_FOOT)
    axes.set_xlim(*limits)
    axes.set_ylim(len(rows), -_HEAD / height)
    axes.set_yticks([])
    axes.grid(axis="y", visible=False)
    axes.xaxis.set_major_formatter(lambda value, _: write(value).removesuffix(".0"))
    axes.xaxis.set_major_locator(_locator(limits[1] - limits[0]))
    axes.set_xlabel(label)
    box: dict[str, Any] = {"facecolor": palette.PAPER.light, "edgecolor": "none", "pad": 1.0}
    for place, (row, span) in enumerate(zip(rows, spans, strict=True)):
        shared: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "va": "center", "zorder": 4, "bbox": box}
        muted: dict[str, Any] = {"fontsize": SMALL, "color": palette.MUTED.light}
        axes.text(0.004, place + 10 / height, fitted(row.label, room), ha="left", fontsize=TEXT, **shared)
        if tall:
            axes.text(0.004, place + 24 / height, span, ha="left", **muted, **shared)
        else:
            axes.text(0.996, place + 10 / height, span, ha="right", **muted, **shared)
        _draw_row(axes, row, place + 1 - 13 / height, 1 / height)
    return figure, axes


def _draw_row(axes: Axes, row: Row, at: float, unit: float) -> None:
    """The interval with its middle, and a tick for each seed below; ``unit`` is a unit of text in the axis' own."""
    colour = row.style.colour.light
    if row.low is not None and row.high is not None:
        axes.plot([row.low, row.high], [at, at], color=colour, linewidth=2.2, zorder=2)
        for end in (row.low, row.high):
            axes.plot([end, end], [at - 3.5 * unit, at + 3.5 * unit], color=colour, linewidth=1.6, zorder=2)
    for dot in row.dots:
        axes.plot(
            [dot, dot], [at + 5.5 * unit, at + 9.5 * unit], color=palette.MUTED.light, linewidth=1.1, zorder=2,
            solid_capstyle="butt",
        )  # fmt: skip
    axes.plot(
        [row.middle],
        [at],
        color=colour,
        marker=row.style.marker,
        markersize=7.5,
        markerfacecolor=palette.PAPER.light if row.hollow else colour,
        markeredgecolor=colour,
        markeredgewidth=1.7,
        zorder=3,
    )


def mark_line(axes: Axes, at: float, text: str) -> None:
    """A dashed line with its meaning beside it, on the side that has room."""
    low, high = axes.get_xlim()
    axes.axvline(at, color=palette.MARK.light, linewidth=1.1, linestyle=(0, (4, 2)), zorder=1)
    right = (at - low) / (high - low) < 0.6
    _beside(axes, at, text, right=right)


def _beside(axes: Axes, at: float, text: str, *, right: bool) -> None:
    axes.annotate(
        text,
        (at, 1),
        xycoords=("data", "axes fraction"),
        xytext=(4 if right else -4, -2),
        textcoords="offset points",
        ha="left" if right else "right",
        va="top",
        fontsize=SMALL,
        color=palette.MARK.light,
    )


def limits_of(values: list[float], *, floor: float, ceiling: float) -> tuple[float, float]:
    """An axis that holds the values, with some room, and no more than there can be."""
    low, high = min(values), max(values)
    margin = max((high - low) * 0.07, 0.01)
    return max(low - margin, floor - 0.01), min(high + margin, ceiling + 0.01)


def _locator(span: float) -> Any:
    from matplotlib.ticker import MultipleLocator

    for step in (0.005, 0.01, 0.02, 0.05, 0.1, 0.2):
        if span / step <= 7:
            return MultipleLocator(step)
    return MultipleLocator(0.25)
