"""Plots of the results: accuracies of the methods, their drift from the anchor, and their differences from single references."""

from __future__ import annotations

from collections.abc import Callable

from mrpo_pipeline.report import palette
from mrpo_pipeline.report.charts import Interval, Plot, Segment, interval_plot, segment_plot
from mrpo_pipeline.report.formatting import before_training, fixed, percent, points
from mrpo_pipeline.report.results_folder import Folder


def method_plots(folder: Folder) -> list[Plot]:
    """Accuracies of each method on held-out pairs, in the two metrics that are comparable across methods."""
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
            _interval(method.name, styles[method.name], one.mean, one.low, one.high, percent, method.hollow, one.per_seed)
            for method in document.methods
            if (one := method.metrics.get(metric)) is not None and one.mean is not None
        ]  # fmt: skip
        xlabel = f"% of {document.held_out:,} held-out pairs"
        xlabel += f"; dashed: {line_label}, {percent(line)}" if line is not None else ""
        if rows:
            at = None if line is None else 100 * line
            plots.append(interval_plot(name, title, rows, xlabel=xlabel, line=at, within=(-1, 101)))
    return plots


def drift_plots(folder: Folder) -> list[Plot]:
    """Accuracy of each method in the verdict's metric against its drift from the anchor on both sides."""
    document = folder.document
    styles, metric = palette.styles(folder.names, palette.METHODS), document.verdict_metric
    rows = []
    for method in document.methods:
        share = method.metrics.get(metric)
        chosen, rejected = (method.mean(f"drift/{side}_per_token") for side in ("chosen", "rejected"))
        if share is None or share.mean is None or chosen is None or rejected is None:
            continue
        low, high = (None if value is None else 100 * value for value in (share.low, share.high))
        rows.append(Segment(method.name, styles[method.name], chosen, rejected, 100 * share.mean, low, high))
    if not rows:
        return []
    figures = "; ".join(f"{row.label} {fixed(row.y, 1)} %, {fixed(row.x, 3)} and {fixed(row.end, 3)}" for row in rows)
    xlabel = "nats a token from the anchor: chosen sides (filled), rejected sides (hollow)"
    label = str(document.metrics.get(metric) or metric)
    described = f"{figures}. Share of pairs, then nats a token on chosen and on rejected sides."
    return [segment_plot("accuracy-and-drift", "Accuracy against drift from the anchor", described, rows,
                         xlabel=xlabel, ylabel=f"% of pairs: {label}")]  # fmt: skip


def difference_plots(folder: Folder, metric: str, question: str) -> list[Plot]:
    """A plot for each method that others are compared with: their differences from it, with intervals."""
    document = folder.document
    styles = palette.styles(folder.names, palette.METHODS)
    hollow = {method.name for method in document.methods if method.hollow}
    asked = [one for one in document.comparisons if (one.metric, one.question) == (metric, question)]
    plots = []
    for place, other in enumerate(dict.fromkeys(one.against for one in asked), 1):
        rows = [
            _interval(one.method, styles[one.method], one.difference, one.low, one.high, points, one.method in hollow)
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
    """One row, with shares as percentages."""
    seeds = [100 * value for value in per_seed or [] if value is not None]
    if low is None or high is None:
        return Interval(name, style, 100 * middle, None, None, write(middle), hollow=hollow)
    figures = f"{write(middle)} ({write(low)} to {write(high)})"
    return Interval(name, style, 100 * middle, 100 * low, 100 * high, figures, seeds if len(seeds) > 1 else (), hollow)
