"""Plots of the references' weights: by step for step-scoped weights, else one bar for each method."""

from __future__ import annotations

import warnings

import numpy as np
import polars as pl

from mrpo_pipeline.report import palette
from mrpo_pipeline.report.charts import Floats, Line, Plot, line_plot, stacked_bars
from mrpo_pipeline.report.formatting import one_line, real
from mrpo_pipeline.report.learning_curves import bin_edges, binned
from mrpo_pipeline.report.results_folder import Folder


def weight_plots(folder: Folder) -> list[Plot]:
    """A plot over steps for each method with step-scoped weights, and one bar chart for the others."""
    by_step = {name: lines for name in folder.names if (lines := weights_by_step(folder, name))}
    plots = []
    for place, (method, lines) in enumerate(by_step.items(), 1):
        title = f"Weights by step: {one_line(method)}"
        ends = "; ".join(f"{one_line(line.label)} {line.y[-1]:.1f} %" for line in lines)
        plot, axes = line_plot(
            f"weights-{place}", title, f"At the end: {ends}.", lines, xlabel="step", ylabel="weight, %"
        )
        axes.set_ylim(-3, 103)
        plots.append(plot)
    bars = {method: shares for method, shares in mean_weights(folder).items() if method not in by_step}
    if bars:
        texts = [
            f"{one_line(method)}: {', '.join(f'{one_line(name)} {share:.0f} %' for name, share in shares.items())}"
            for method, shares in bars.items()
        ]
        styles = palette.styles(folder.references, palette.REFERENCES)
        title = "Mean weight of each reference"
        description = f"{'; '.join(texts)}."
        plots.append(stacked_bars("weights-mean", title, description, bars, styles, xlabel="share of the weight, %"))
    return plots


def weights_by_step(folder: Folder, method: str) -> list[Line]:
    """A line for each reference, in %: the mean over seeds, from the runs' ``weights.parquet``."""
    frames = [run.weights.drop_nulls() for run in folder.runs.get(method, []) if run.weights is not None]
    frames = [frame.filter(pl.col("weight").is_finite()) for frame in frames if frame.height]
    if not any(frame.height for frame in frames):
        return []
    edges = bin_edges(pl.concat(frame["step"].cast(pl.Float64) for frame in frames).unique().sort().to_numpy())
    lines = []
    styles = palette.styles(folder.references, palette.REFERENCES)
    for name, style in styles.items():
        own = [frame.filter(pl.col("reference") == name) for frame in frames]
        rows = [
            binned(one["step"].to_numpy().astype(float), one["weight"].to_numpy().astype(float), edges) for one in own
        ]
        with warnings.catch_warnings(action="ignore", category=RuntimeWarning):
            mean: Floats = 100 * np.nanmean(np.stack(rows), axis=0)
        known = ~np.isnan(mean)
        if known.any():
            lines.append(Line(name, style, edges[1:][known], mean[known]))
    return lines


def mean_weights(folder: Folder) -> dict[str, dict[str, float]]:
    """The mean weight of each reference over training in % of their sum, for each method with several references."""
    found = {}
    for method in folder.document.methods:
        weights = {
            name: value
            for name in folder.references
            if (value := real(method.diagnostics.get(f"refs/{name}/weight"))) is not None
        }
        total = sum(weights.values())
        if len(weights) > 1 and total > 0 and not method.baseline:
            found[method.name] = {name: 100 * weight / total for name, weight in weights.items()}
    return found
