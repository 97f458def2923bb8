"""Learning curves: what training logged, the mean over seeds with the seeds behind it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mrpo_pipeline.report.drawing import SMALL, WIDTH, Plot, fitted, new_figure, plain_axes, title_over
from mrpo_pipeline.report.formatting import number, one_line, percent
from mrpo_pipeline.report.palette import Style, method_styles
from mrpo_pipeline.report.results_folder import Folder, Run
from mrpo_pipeline.report.svg import SERIES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Floats = npt.NDArray[np.float64]

# A log of thousands of steps is drawn as so many means: what is left out is noise that no eye can follow.
_BINS = 40
_LOGGED = (
    ("loss", "Loss", "curve-loss", False),
    ("rewards/margins", "Reward margin", "curve-margins", False),
    ("accuracy/policy", "Prefers the chosen side, training batches", "curve-accuracy", True),
    ("eval_accuracy/policy", "Prefers the chosen side, held-out pairs", "curve-held-out", True),
    ("eval_loss", "Loss, held-out pairs", "curve-held-out-loss", False),
)


@dataclass(frozen=True)
class Curve:
    """One method in one metric: steps (S,), a row of values for each seed (N, S), and how it is drawn."""

    label: str
    place: int
    style: Style
    steps: Floats
    seeds: Floats

    @property
    def middle(self) -> Floats:
        """The mean over seeds, (S,)."""
        mean: Floats = self.seeds.mean(axis=0)
        return mean


def logged(run: Run, metric: str) -> tuple[Floats, Floats]:
    """The steps at which a run logged this metric, and its finite values."""
    found = [
        (float(entry["step"]), float(entry[metric]))
        for entry in run.log
        if isinstance(entry.get("step"), int | float)
        and isinstance(entry.get(metric), int | float)
        and math.isfinite(entry[metric])
    ]
    steps, values = zip(*found, strict=True) if found else ((), ())
    return np.asarray(steps, dtype=np.float64), np.asarray(values, dtype=np.float64)


def binned(steps: Floats, values: Floats, edges: Floats) -> Floats:
    """The mean of the values in each bin (edges[i], edges[i+1]], NaN where a bin has none."""
    sums, _ = np.histogram(steps, edges, weights=values)
    counts, _ = np.histogram(steps, edges)
    with np.errstate(invalid="ignore", divide="ignore"):
        means: Floats = sums / counts
    return means


def curves_of(folder: Folder, metric: str) -> list[Curve]:
    """One curve for each method that logged the metric; each point the mean of a fortieth of training, at most."""
    styles = method_styles(folder.names)
    curves = []
    for place, name in enumerate(folder.names):
        logs = [log for run in folder.runs.get(name, []) if (log := logged(run, metric))[0].size]
        if not logs:
            continue
        edges = _edges(np.unique(np.concatenate([steps for steps, _ in logs])))
        rows = np.stack([binned(steps, values, edges) for steps, values in logs])
        whole = ~np.isnan(rows).any(axis=0)
        if whole.any():
            curves.append(Curve(one_line(name), place, styles[name], edges[1:][whole], rows[:, whole]))
    return curves


def _edges(steps: Floats) -> Floats:
    """One bin for each logged step, ending in it, or forty even ones where there are more."""
    if steps.size <= _BINS:
        return np.concatenate([[steps[0] - 1], steps]) + 1e-9
    return np.linspace(min(steps[0] - 1, 0), steps[-1], _BINS + 1) + 1e-9


def curve_plots(folder: Folder) -> list[Plot]:
    """A plot for each metric that training logged."""
    plots = []
    for metric, title, name, share in _LOGGED:
        curves = curves_of(folder, metric)
        if curves:
            said = "; ".join(
                f"{curve.label} from {_write(curve.middle[0], share)} to {_write(curve.middle[-1], share)}"
                for curve in curves
            )
            unit = " (%)" if share else ""
            plots.append(Plot(name, title + unit, f"By training step: {said}.", _draw(curves, title + unit, share)))
    return plots


def _write(value: float, share: bool) -> str:
    return f"{percent(value)} %" if share else number(value)


def _draw(curves: list[Curve], title: str, share: bool) -> Callable[[bool], Figure]:
    def draw(alone: bool) -> Figure:
        legend = 15 * math.ceil(len(curves) / 2) + 8 if alone else 0
        head = 34 if alone else 8
        figure = new_figure(head + 200 + 36 + legend)
        if alone:
            title_over(figure, title)
        axes = plain_axes(figure, left=44, right=10, top=head, bottom=36 + legend)
        few = len(curves) <= 5
        for curve in curves:
            colour = curve.style.colour.light
            group = f"{SERIES}{curve.place}"
            line: dict[str, Any] = {"color": colour, "solid_joinstyle": "round"}
            if len(curve.seeds) > 1 and few:
                low, high = curve.seeds.min(axis=0), curve.seeds.max(axis=0)
                axes.fill_between(curve.steps, low, high, color=colour, alpha=0.13, linewidth=0, gid=group)
            elif len(curve.seeds) > 1:
                for seed in curve.seeds:
                    axes.plot(curve.steps, seed, linewidth=0.6, alpha=0.18, gid=group, **line)
            dash: Any = (0, curve.style.dash) if curve.style.dash else "-"
            axes.plot(
                curve.steps,
                curve.middle,
                linewidth=1.7,
                linestyle=dash,
                marker=curve.style.marker if curve.steps.size == 1 else None,
                label=fitted(curve.label, WIDTH / 2 - 50, SMALL),
                gid=group,
                **line,
            )
            axes.plot(
                curve.steps[-1:], curve.middle[-1:], marker=curve.style.marker, markersize=5, gid=group, color=colour
            )
        axes.set_xlim(0, max(curve.steps[-1] for curve in curves) * 1.02)
        axes.set_ylim(*_window(curve.seeds if few else curve.middle for curve in curves))
        axes.xaxis.set_major_locator(_whole_steps())
        axes.set_xlabel("step")
        if share:
            axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g}")
        else:
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}".replace("-", "\u2212"))
        if alone:
            figure.legend(
                *axes.get_legend_handles_labels(),
                loc="lower left",
                bbox_to_anchor=(0.01, 0),
                ncols=2,
                handlelength=2.4,
                columnspacing=1.2,
            )
        return figure

    return draw


def _window(values: Iterable[Floats]) -> tuple[float, float]:
    """What the curves need of the axis; one value far off, as at a first step, may leave it."""
    every = np.concatenate([np.ravel(part) for part in values])
    low, high = np.percentile(every, [0.3, 99.7])
    inner = max(high - low, 1e-6)
    low, high = max(every.min(), low - 0.5 * inner), min(every.max(), high + 0.5 * inner)
    margin = max((high - low) * 0.06, 1e-6 * max(abs(high), 1.0))
    return float(low - margin), float(high + margin)


def _whole_steps() -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(6, integer=True)
