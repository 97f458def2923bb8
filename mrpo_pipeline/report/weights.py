"""What weight each reference had: by step where weights change while training, one bar for each method where not."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from mrpo_pipeline.report import palette
from mrpo_pipeline.report.curves import Floats, binned
from mrpo_pipeline.report.drawing import SMALL, TEXT, WIDTH, Plot, fitted, new_figure, plain_axes, title_over, width_of
from mrpo_pipeline.report.formatting import one_line, percent
from mrpo_pipeline.report.palette import reference_styles
from mrpo_pipeline.report.results_folder import Folder
from mrpo_pipeline.report.svg import SERIES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BINS = 40
_ROW = 38


@dataclass(frozen=True)
class Weights:
    """One method's weights by step: steps (S,), and for each reference the mean over seeds, (S,)."""

    method: str
    seeds: int
    steps: Floats
    shares: dict[str, Floats]


def weights_by_step(folder: Folder) -> list[Weights]:
    """The methods whose training left ``weights.parquet``."""
    found = []
    for name in folder.names:
        frames = [run.weights for run in folder.runs.get(name, []) if run.weights is not None and run.weights.height]
        if not frames:
            continue
        last = max(float(frame["step"].max()) for frame in frames)  # type: ignore[arg-type]
        steps = max(frame["step"].n_unique() for frame in frames)
        edges = np.linspace(-1, last, min(_BINS, steps) + 1) + 1e-9
        shares: dict[str, Floats] = {}
        for reference in dict.fromkeys(
            str(value) for frame in frames for value in frame["reference"].unique(maintain_order=True)
        ):
            rows = []
            for frame in frames:
                own = frame.filter(pl.col("reference") == reference).drop_nulls(["step", "weight"])
                rows.append(binned(own["step"].to_numpy().astype(float), own["weight"].to_numpy().astype(float), edges))
            shares[reference] = _mean_of_known(np.stack(rows))
        found.append(Weights(name, len(frames), edges[1:], shares))
    return found


def _mean_of_known(rows: Floats) -> Floats:
    """The mean over seeds (N, S) → (S,) of those that have a value there; NaN where none has."""
    known = ~np.isnan(rows)
    with np.errstate(invalid="ignore"):
        mean: Floats = np.where(known, rows, 0.0).sum(axis=0) / known.sum(axis=0)
    return mean


def run_weights(folder: Folder) -> dict[str, dict[str, float]]:
    """The mean weight of each reference over training, by method: ``refs/NAME/weight`` of its diagnostics."""
    found = {}
    for method in folder.document.methods:
        shares = {
            name: float(value)
            for name in _references(folder)
            if isinstance(value := method.diagnostics.get(f"refs/{name}/weight"), int | float) and math.isfinite(value)
        }
        if len(shares) > 1 and sum(shares.values()) > 0 and not method.baseline:
            found[method.name] = shares
    return found


def weight_plots(folder: Folder) -> list[Plot]:
    """Weights over steps, a plot for each method that has them; then one of bars for the others."""
    over_time = weights_by_step(folder)
    order = list(dict.fromkeys([*_references(folder), *(name for found in over_time for name in found.shares)]))
    plots = []
    for place, found in enumerate(over_time, 1):
        title = f"Weights by step: {one_line(found.method)}"
        ends = {name: _last(share) for name, share in found.shares.items()}
        said = "; ".join(f"{one_line(name)} {percent(value)} % at the end" for name, value in ends.items())
        plots.append(Plot(f"weights-{place}", title, f"{said}.", _draw_steps(found, order, title)))
    shown = {found.method for found in over_time}
    bars = {name: shares for name, shares in run_weights(folder).items() if name not in shown}
    if bars:
        said = "; ".join(
            f"{one_line(method)}: "
            + ", ".join(f"{one_line(name)} {percent(value, 0)} %" for name, value in shares.items())
            for method, shares in bars.items()
        )
        title = "Mean weight of each reference"
        plots.append(Plot("weights-mean", title, f"{said}.", _draw_bars(bars, order, title)))
    return plots


def _references(folder: Folder) -> list[str]:
    return folder.references or list(
        dict.fromkeys(
            key.split("/")[1]
            for method in folder.document.methods
            for key in method.diagnostics
            if key.startswith("refs/") and key.endswith("/weight") and key.count("/") == 2
        )
    )


def _last(share: Floats) -> float | None:
    known = share[~np.isnan(share)]
    return float(known[-1]) if known.size else None


def _draw_steps(found: Weights, order: list[str], title: str) -> Callable[[bool], Figure]:
    styles = reference_styles(order)

    def draw(alone: bool) -> Figure:
        legend = 15 * math.ceil(len(found.shares) / 2) + 8 if alone else 0
        head = 34 if alone else 8
        figure = new_figure(head + 180 + 36 + legend)
        if alone:
            title_over(figure, fitted(title, WIDTH - 20, 13.5))
        axes = plain_axes(figure, left=40, right=10, top=head, bottom=36 + legend)
        for name, share in found.shares.items():
            style = styles[name]
            known = ~np.isnan(share)
            axes.plot(
                found.steps[known],
                share[known],
                color=style.colour.light,
                linestyle=(0, style.dash) if style.dash else "-",
                linewidth=1.8,
                marker=style.marker,
                markevery=[int(known.sum()) - 1] if known.any() else [],
                markersize=5.5,
                label=fitted(one_line(name), WIDTH / 2 - 50, SMALL),
                gid=f"{SERIES}r{order.index(name)}",
            )
        axes.set_ylim(-0.03, 1.03)
        axes.set_xlim(0, found.steps[-1] * 1.02)
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f}")
        axes.set_xlabel("step")
        axes.set_ylabel("weight, %")
        if alone:
            figure.legend(
                *axes.get_legend_handles_labels(), loc="lower left", bbox_to_anchor=(0.01, 0), ncols=2, handlelength=2.4
            )
        return figure

    return draw


def _draw_bars(bars: dict[str, dict[str, float]], order: list[str], title: str) -> Callable[[bool], Figure]:
    styles = reference_styles(order)

    def draw(alone: bool) -> Figure:
        shown = [name for name in order if any(name in shares for shares in bars.values())]
        legend = 15 * math.ceil(len(shown) / 2) + 10 if alone else 0
        head = 34 if alone else 4
        figure = new_figure(head + _ROW * len(bars) + 34 + legend)
        if alone:
            title_over(figure, title)
        axes = plain_axes(figure, left=10, right=10, top=head, bottom=34 + legend)
        axes.set_xlim(0, 1)
        axes.set_ylim(len(bars), 0)
        axes.set_yticks([])
        axes.grid(axis="y", visible=False)
        box = {"facecolor": palette.PAPER.light, "edgecolor": "none", "pad": 1.2}
        for place, (method, shares) in enumerate(bars.items()):
            label = fitted(one_line(method), WIDTH - 30)
            axes.text(0, place + 0.24, label, ha="left", va="center", fontsize=TEXT, bbox=box, zorder=3)
            total, start = sum(shares.values()), 0.0
            for name, weight in shares.items():
                share = weight / total
                colour = styles[name].colour.light
                axes.barh(
                    place + 0.66, share, left=start, height=0.36, color=colour, edgecolor=palette.PAPER.light,
                    linewidth=1.2, gid=f"{SERIES}r{order.index(name)}", zorder=2,
                )  # fmt: skip
                figures = f"{100 * share:.0f}"
                if share * (WIDTH - 20) > width_of(figures, SMALL) + 8:
                    axes.text(
                        start + share / 2, place + 0.665, figures, ha="center", va="center", fontsize=SMALL,
                        color=palette.PAPER.light, fontweight="bold", zorder=4,
                    )  # fmt: skip
                start += share
        axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f}")
        axes.set_xlabel("share of the weight, %")
        if alone:
            from matplotlib.patches import Patch

            handles = [Patch(color=styles[name].colour.light) for name in shown]
            labels = [fitted(one_line(name), WIDTH / 2 - 50, SMALL) for name in shown]
            figure.legend(handles, labels, loc="lower left", bbox_to_anchor=(0.01, 0), ncols=2)
        return figure

    return draw
