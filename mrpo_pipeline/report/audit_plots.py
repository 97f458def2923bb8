"""Plots of the audit's figures for each reference."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from mrpo_pipeline.report import palette
from mrpo_pipeline.report.charts import Interval, Line, Plot, interval_plot, line_plot
from mrpo_pipeline.report.formatting import fixed, number, one_line, percent, real


def audit_plots(references: Mapping[str, Any], names: list[str]) -> list[Plot]:
    """The plots for which ``audit.json`` has the numbers; ``names`` sets the order of colours."""
    styles = palette.styles(names, palette.REFERENCES)
    ranking, nats, lines = [], [], []
    bins: list[Any] = []
    for name, figures in references.items():
        share, low, high = (at(figures, f"accuracy.{part}") for part in ("share", "low", "high"))
        if share is not None:
            known = low is not None and high is not None
            text = percent(share) + (f" ({percent(low)} to {percent(high)})" if known else "")
            low, high = (None if end is None else 100 * end for end in (low, high))
            ranking.append(Interval(name, styles[name], 100 * share, low, high, text))
        chosen, rejected = (at(figures, f"nats_per_byte.{side}") for side in ("chosen", "rejected"))
        if chosen is not None and rejected is not None:
            text = f"{fixed(chosen, 3)} / {fixed(rejected, 3)}"
            nats.append(Interval(name, styles[name], chosen, None, None, text, end=rejected))
        own = figures.get("by_length") if isinstance(figures, dict) else None
        values = [at(part, "delta_mean") for part in own] if isinstance(own, list) else []
        if len(values) > 1 and None not in values:
            bins = bins or list(own or [])
            lines.append(Line(name, styles[name], np.arange(len(values), dtype=float), np.array(values)))
    plots = []
    if ranking:
        title, xlabel = "Pairs ranked correctly by each reference", "% of pairs; dashed: chance, 50"
        plots.append(interval_plot("reference-ranking", title, ranking, xlabel=xlabel, line=50, within=(-1, 101)))
    if nats:
        xlabel = "nats per byte, chosen filled / rejected hollow; less is likelier"
        plots.append(interval_plot("reference-nats", "Nats per byte", nats, xlabel=xlabel, within=(0, math.inf)))
    if lines:
        plots.append(_by_length(lines, bins))
    return plots


def at(figures: Any, path: str) -> float | None:
    """The finite number at a dotted path of nested mappings, or None."""
    for part in path.split("."):
        figures = figures.get(part) if isinstance(figures, dict) else None
    return real(figures)


def _by_length(lines: list[Line], bins: list[Any]) -> Plot:
    """The mean Δ in each quarter of the pairs by length."""
    texts = [f"{one_line(line.label)} {number(line.y[0])} to {number(line.y[-1])} nats" for line in lines]
    plot, axes = line_plot(
        "reference-length", "Mean Δ by length of the pair",
        f"From the shortest to the longest quarter: {'; '.join(texts)}.", lines,
        xlabel="bytes of both sides together", ylabel="nats",
    )  # fmt: skip
    axes.axhline(0, color=palette.MARK.light, linewidth=1.1, linestyle=(0, (4, 2)), zorder=1)
    ends = [(at(part, "bytes_from") or 0, at(part, "bytes_to") or 0) for part in bins]
    axes.set_xticks(range(len(ends)), [f"{low:,.0f}–{high:,.0f}" for low, high in ends])
    axes.grid(axis="x", visible=False)
    return plot
