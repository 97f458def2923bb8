"""Plots of the results: each method's share of held-out pairs, and its difference from each single reference."""

from __future__ import annotations

from collections.abc import Callable

from mrpo_pipeline.report import palette
from mrpo_pipeline.report.charts import Interval, Plot, interval_plot
from mrpo_pipeline.report.formatting import before_training, percent, points
from mrpo_pipeline.report.results_folder import Folder


def method_plots(folder: Folder) -> list[Plot]:
    """Each method's share of held-out pairs, in the two metrics that may be compared across methods."""
    document = folder.document
    styles = palette.styles(folder.names, palette.METHODS)
    start = document.start.get("accuracy/policy")
    asked = [
        ("accuracy/policy", "Prefers the chosen side", "before training", start, "methods-prefers-chosen"),
        ("accuracy/anchor", "Moved towards the chosen side", "chance", 0.5, "methods-moved-to-chosen"),
    ]
    plots = []
    for metric, title, line_label, line, name in asked:
        rows = [
            _interval(method.name, styles[method.name], one.mean, one.low, one.high, percent, method.baseline, one.per_seed)
            for method in document.methods
            if (one := method.metrics.get(metric)) is not None and one.mean is not None
        ]  # fmt: skip
        xlabel = f"% of {document.held_out:,} held-out pairs"
        xlabel += f"; dashed: {line_label}, {percent(line)}" if line is not None else ""
        if rows:
            at = None if line is None else 100 * line
            plots.append(interval_plot(name, title, rows, xlabel=xlabel, line=at, within=(-1, 101)))
    return plots


def difference_plots(folder: Folder, metric: str, question: str) -> list[Plot]:
    """For each method that others are compared with: their differences from it, with intervals."""
    document = folder.document
    styles = palette.styles(folder.names, palette.METHODS)
    baselines = {method.name for method in document.methods if method.baseline}
    asked = [one for one in document.comparisons if (one.metric, one.question) == (metric, question)]
    plots = []
    for place, other in enumerate(dict.fromkeys(one.against for one in asked), 1):
        rows = [
            _interval(one.method, styles[one.method], one.difference, one.low, one.high, points, one.method in baselines)
            for one in asked
            if one.against == other and one.difference is not None and one.method in styles
        ]  # fmt: skip
        if rows:
            title = f"Difference from {before_training(other)}"
            xlabel = "percentage points; right of the dashed line is better"
            plots.append(interval_plot(f"difference-{place}", title, rows, xlabel=xlabel, line=0, within=(-101, 101)))
    return plots


def _interval(
    name: str,
    style: palette.Style,
    middle: float,
    low: float | None,
    high: float | None,
    write: Callable[[float | None], str],
    hollow: bool,
    per_seed: list[float | None] | None = None,
) -> Interval:
    """Shares as percentages; the mark of a single reference is hollow."""
    seeds = [100 * value for value in per_seed or [] if value is not None]
    if low is None or high is None:
        return Interval(name, style, 100 * middle, None, None, write(middle), hollow=hollow)
    figures = f"{write(middle)} ({write(low)} to {write(high)})"
    return Interval(name, style, 100 * middle, 100 * low, 100 * high, figures, seeds if len(seeds) > 1 else (), hollow)
