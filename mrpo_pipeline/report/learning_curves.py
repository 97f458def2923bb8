"""Learning curves from the training logs: the mean over seeds, and the single seeds."""

from __future__ import annotations

import numpy as np

from mrpo_pipeline.report import palette
from mrpo_pipeline.report.charts import Floats, Line, Plot, line_plot
from mrpo_pipeline.report.formatting import number, one_line, real
from mrpo_pipeline.report.results_folder import Folder, Run

# Points of a curve; longer logs are averaged in bins.
BINS = 40
_LOGGED = (
    ("loss", "Loss", "curve-loss", 1),
    ("rewards/margins", "Reward margin", "curve-margins", 1),
    ("accuracy/policy", "Prefers the chosen side, training batches (%)", "curve-accuracy", 100),
    ("eval_accuracy/policy", "Prefers the chosen side, held-out pairs (%)", "curve-held-out", 100),
    ("eval_loss", "Loss, held-out pairs", "curve-held-out-loss", 1),
)


def curve_plots(folder: Folder) -> list[Plot]:
    """A plot for each metric that training logged."""
    plots = []
    for metric, title, name, scale in _LOGGED:
        curves = curves_of(folder, metric, scale)
        if curves:
            spans = [f"{one_line(one.label)} from {number(one.y[0])} to {number(one.y[-1])}" for one in curves]
            description = f"By training step: {'; '.join(spans)}."
            plots.append(line_plot(name, title, description, curves, xlabel="step", ylabel="")[0])
    return plots


def curves_of(folder: Folder, metric: str, scale: float = 1) -> list[Line]:
    """One line for each method that logged the metric, with at most ``BINS`` points, each the mean of its steps."""
    styles = palette.styles(folder.names, palette.METHODS)
    curves = []
    for name in folder.names:
        logs = [log for run in folder.runs.get(name, []) if (log := logged(run, metric))[0].size]
        if not logs:
            continue
        edges = bin_edges(np.unique(np.concatenate([steps for steps, _ in logs])))
        rows = scale * np.stack([binned(steps, values, edges) for steps, values in logs])
        complete = ~np.isnan(rows).any(axis=0)
        if complete.any():
            rows = rows[:, complete]
            curves.append(Line(name, styles[name], edges[1:][complete], rows.mean(axis=0), rows))
    return curves


def logged(run: Run, metric: str) -> tuple[Floats, Floats]:
    """The steps at which a run logged this metric, and its finite values."""
    pairs = [(real(entry.get("step")), real(entry.get(metric))) for entry in run.log]
    found = [(step, value) for step, value in pairs if step is not None and value is not None]
    steps, values = zip(*found, strict=True) if found else ((), ())
    return np.asarray(steps, dtype=np.float64), np.asarray(values, dtype=np.float64)


def binned(steps: Floats, values: Floats, edges: Floats) -> Floats:
    """The mean of the values in each bin (edges[i], edges[i+1]]; NaN for an empty bin."""
    sums, _ = np.histogram(steps, edges, weights=values)
    counts, _ = np.histogram(steps, edges)
    with np.errstate(invalid="ignore", divide="ignore"):
        means: Floats = sums / counts
    return means


def bin_edges(steps: Floats) -> Floats:
    """One bin for each logged step, ending at it; for more than ``BINS`` steps, that many bins of equal width."""
    if steps.size <= BINS:
        return np.concatenate([[steps[0] - 1], steps]) + 1e-9
    return np.linspace(min(steps[0] - 1, 0), steps[-1], BINS + 1) + 1e-9
