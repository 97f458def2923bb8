"""Plots of the audit: what each reference is worth on these pairs, before any training."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from mrpo_pipeline.report import palette
from mrpo_pipeline.report.drawing import SMALL, TEXT, WIDTH, Plot, fitted, new_figure, plain_axes, title_over, width_of
from mrpo_pipeline.report.forest import Row, limits_of, mark_line, rows_figure
from mrpo_pipeline.report.formatting import fixed, number, one_line, percent
from mrpo_pipeline.report.palette import Style, reference_styles
from mrpo_pipeline.report.svg import SERIES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_ROW = 34


def reference_plots(audit: Mapping[str, Any], order: list[str]) -> list[Plot]:
    """Those for which the audit has the figures."""
    references = {
        name: figures for name, figures in _mapping(audit.get("references")).items() if isinstance(figures, dict)
    }
    styles = reference_styles(order)
    found = [
        _ranking(references, styles),
        _nats(references, styles),
        _by_length(references, styles, order),
        _agreement(audit.get("agreement"), [name for name in order if name in references]),
    ]
    return [plot for plot in found if plot is not None]


def real(value: Any) -> float | None:
    """A finite number of a file, or nothing."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def figure_of(figures: Any, *path: str) -> float | None:
    """The number at a path of nested mappings."""
    for part in path:
        figures = figures.get(part) if isinstance(figures, dict) else None
    return real(figures)


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _ranking(references: dict[str, Any], styles: dict[str, Style]) -> Plot | None:
    rows = []
    for name, figures in references.items():
        middle = figure_of(figures, "ranked_rightly", "share")
        if middle is not None and name in styles:
            low, high = (figure_of(figures, "ranked_rightly", end) for end in ("low", "high"))
            rows.append(Row(one_line(name), styles[name], middle, low, high))
    if not rows:
        return None
    title = "Pairs ranked rightly by each reference"

    def draw(alone: bool) -> Figure:
        ends = [0.5, *(value for row in rows for value in (row.middle, row.low, row.high) if value is not None)]
        limits = limits_of(ends, floor=0.0, ceiling=1.0)
        figure, axes = rows_figure(rows, limits, title if alone else "", "% of pairs", percent)
        mark_line(axes, 0.5, "chance 50")
        return figure

    said = "; ".join(f"{row.label} {percent(row.middle)} %" for row in rows)
    return Plot("reference-ranking", title, f"{said}.", draw)


def _nats(references: dict[str, Any], styles: dict[str, Style]) -> Plot | None:
    """Nats per byte on both sides of the pairs: the one unit that compares across tokenizers."""
    rows = [
        (name, chosen, rejected)
        for name, figures in references.items()
        if (chosen := figure_of(figures, "nats_per_byte", "chosen")) is not None
        and (rejected := figure_of(figures, "nats_per_byte", "rejected")) is not None
        and name in styles
    ]
    if not rows:
        return None
    title = "Nats per byte: chosen filled, rejected hollow"

    def draw(alone: bool) -> Figure:
        head = 30 if alone else 4
        figure = new_figure(head + _ROW * len(rows) + 38)
        if alone:
            title_over(figure, title)
        axes = plain_axes(figure, left=10, right=10, top=head, bottom=38)
        top = max(max(chosen, rejected) for _, chosen, rejected in rows)
        axes.set_xlim(0, top * 1.06 or 1)
        axes.set_ylim(len(rows), 0)
        axes.set_yticks([])
        axes.grid(axis="y", visible=False)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set_xlabel("nats per byte (less: the text is likelier to this reference)")
        box: dict[str, Any] = {"facecolor": palette.PAPER.light, "edgecolor": "none", "pad": 1.0}
        shared: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "va": "center", "zorder": 4, "bbox": box}
        for place, (name, chosen, rejected) in enumerate(rows):
            style, at = styles[name], place + 0.72
            figures = f"{fixed(chosen, 3)} / {fixed(rejected, 3)}"
            label = fitted(one_line(name), WIDTH - 40 - width_of(figures, SMALL))
            axes.text(0.004, place + 0.3, label, ha="left", fontsize=TEXT, **shared)
            axes.text(0.996, place + 0.3, figures, ha="right", fontsize=SMALL, color=palette.MUTED.light, **shared)
            axes.plot([chosen, rejected], [at, at], color=style.colour.light, linewidth=1.8, zorder=2)
            for value, inside in ((rejected, palette.PAPER.light), (chosen, style.colour.light)):
                axes.plot(
                    [value], [at], color=style.colour.light, marker=style.marker, markersize=7, markerfacecolor=inside, zorder=3,
                    markeredgecolor=style.colour.light, markeredgewidth=1.6,
                )  # fmt: skip
        return figure

    said = "; ".join(
        f"{one_line(name)} {number(chosen)} on chosen, {number(rejected)} on rejected"
        for name, chosen, rejected in rows
    )
    return Plot("reference-nats", title, f"{said}.", draw)


def _by_length(references: dict[str, Any], styles: dict[str, Style], order: list[str]) -> Plot | None:
    """The mean Δ in each quarter of the pairs by length."""
    lines: dict[str, list[tuple[float, float]]] = {}
    ends: list[tuple[int, int]] = []
    for name, figures in references.items():
        bins = [part for part in figures.get("by_length") or [] if isinstance(part, dict)]
        values = [(place, real(part.get("delta_mean"))) for place, part in enumerate(bins)]
        known = [(float(place), value) for place, value in values if value is not None]
        if len(known) > 1 and name in styles:
            lines[name] = known
            sizes = [(real(part.get("bytes_from")), real(part.get("bytes_to"))) for part in bins]
            ends = ends or [(int(low or 0), int(high or 0)) for low, high in sizes]
    if not lines:
        return None
    title = "Mean Δ by length of the pair"

    def draw(alone: bool) -> Figure:
        legend = 15 * math.ceil(len(lines) / 2) + 8 if alone else 0
        head = 34 if alone else 6
        figure = new_figure(head + 170 + 46 + legend)
        if alone:
            title_over(figure, title)
        axes = plain_axes(figure, left=46, right=14, top=head, bottom=46 + legend)
        axes.axhline(0, color=palette.MARK.light, linewidth=1.1, linestyle=(0, (4, 2)), zorder=1)
        for name, values in lines.items():
            style = styles[name]
            axes.plot(
                *zip(*values, strict=True),
                color=style.colour.light,
                linestyle=(0, style.dash) if style.dash else "-",
                linewidth=1.8,
                marker=style.marker,
                markersize=6,
                label=fitted(one_line(name), WIDTH / 2 - 50, SMALL),
                gid=f"{SERIES}r{order.index(name)}",
            )
        axes.set_xticks(range(len(ends)), [f"{low:,}–{high:,}" for low, high in ends])
        axes.set_xlim(-0.35, len(ends) - 0.65)
        axes.grid(axis="x", visible=False)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}".replace("-", "\u2212"))
        axes.set_xlabel("bytes of both sides together")
        axes.set_ylabel("nats")
        if alone:
            handles, labels = axes.get_legend_handles_labels()
            figure.legend(handles, labels, loc="lower left", bbox_to_anchor=(0.01, 0), ncols=2, handlelength=2.4)
        return figure

    said = "; ".join(
        f"{one_line(name)} {number(values[0][1])} to {number(values[-1][1])} nats" for name, values in lines.items()
    )
    return Plot("reference-length", title, f"From the shortest to the longest quarter: {said}.", draw)


def _agreement(given: Any, names: list[str]) -> Plot | None:
    """For each two references, the share of pairs that they rank alike."""
    shares: dict[frozenset[str], float] = {}
    for entry in given if isinstance(given, list) else []:
        two = entry.get("references") if isinstance(entry, dict) else None
        share = real(entry.get("ranked_alike")) if isinstance(entry, dict) else None
        if isinstance(two, list) and len(two) == 2 and share is not None:
            shares[frozenset(map(str, two))] = share
    if len(names) < 2 or not shares:
        return None
    title = "Pairs that two references rank alike, %"
    said = "; ".join(
        f"{' and '.join(map(one_line, sorted(two)))} {percent(share, 0)} %" for two, share in shares.items()
    )
    return Plot("reference-agreement", title, f"{said}.", _draw_agreement(shares, names, title))


def _draw_agreement(shares: dict[frozenset[str], float], names: list[str], title: str) -> Callable[[bool], Figure]:
    """Names stand on the left alone, with numbers that head the columns: they may be long."""
    size = len(names)

    def draw(alone: bool) -> Figure:
        from matplotlib.patches import Rectangle

        labels = [f"{place + 1}  {fitted(one_line(name), 130)}" for place, name in enumerate(names)]
        left = 14 + max(width_of(label) for label in labels)
        side = min((WIDTH - left - 8) / (size - 1), 46)
        head = (34 if alone else 4) + 18
        figure = new_figure(head + side * (size - 1) + 8)
        if alone:
            title_over(figure, title)
        axes = plain_axes(figure, left=left, right=WIDTH - left - side * (size - 1), top=head, bottom=8)
        axes.set_xlim(0, size - 1)
        axes.set_ylim(size, 1)
        axes.axis("off")
        for row in range(1, size):
            axes.text(-8 / side, row + 0.5, labels[row], ha="right", va="center", fontsize=TEXT)
            for column in range(row):
                share = shares.get(frozenset((names[row], names[column])))
                if share is None:
                    continue
                colour = palette.POSITIVE if share >= 0.5 else palette.NEGATIVE
                strength = 0.06 + 0.5 * min(abs(share - 0.5) * 2, 1.0)
                axes.add_patch(
                    Rectangle((column + 0.03, row + 0.03), 0.94, 0.94, color=colour.light, alpha=strength, linewidth=0)
                )
                axes.text(
                    column + 0.5,
                    row + 0.5,
                    f"{100 * share:.0f}",
                    ha="center",
                    va="center",
                    fontsize=TEXT if side > 30 else SMALL,
                )
        for column in range(size - 1):
            axes.text(
                column + 0.5, 1 - 9 / side, str(column + 1), ha="center", va="center", fontsize=SMALL,
                color=palette.MUTED.light,
            )  # fmt: skip
        first = fitted(one_line(names[0]), 130)
        axes.text(-8 / side, 1 - 9 / side, f"1  {first}", ha="right", va="center", fontsize=TEXT)
        return figure

    return draw
