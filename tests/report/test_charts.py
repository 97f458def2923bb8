"""Charts: every label is inside the figure, and none overlaps another, for any names."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from made_comparison import make_comparison

from mrpo_pipeline.report.charts import Plot, plot_style
from mrpo_pipeline.report.learning_curves import curve_plots
from mrpo_pipeline.report.result_plots import drift_plots, method_plots
from mrpo_pipeline.report.results_folder import read_folder
from mrpo_pipeline.report.weight_plots import weight_plots


def visible_texts(plot: Plot) -> dict[str, Any]:
    """The position of every text in drawing order; a legend is one text."""
    plot.figure.draw_without_rendering()
    texts = list(plot.figure.texts)
    for axes in plot.figure.axes:
        texts += [*axes.texts, axes.xaxis.label, axes.yaxis.label]
        texts += [tick.label1 for axis in (axes.xaxis, axes.yaxis) for tick in axis._update_ticks()]
    boxes = {
        f"{place} {text.get_text()}": text.get_window_extent() for place, text in enumerate(texts) if text.get_text()
    }
    return boxes | {f"legend {i}": legend.get_window_extent() for i, legend in enumerate(plot.figure.legends)}


@pytest.mark.parametrize("name", ["a-method-with-a-name-of-forty-chars-{:04d}", "{:04d}" + "x" * 36, "_{}"])
def test_labels_of_twelve_methods_with_long_names_overlap_nowhere_and_stay_inside(tmp_path: Path, name: str) -> None:
    methods = tuple(name.format(number) for number in range(12))
    folder = read_folder(
        make_comparison(tmp_path / "made", methods=methods, seeds=(0, 1), stepwise=(methods[5],), steps=20)
    )
    with plot_style():
        for plot in [*method_plots(folder), *drift_plots(folder), *curve_plots(folder)[:1], *weight_plots(folder)]:
            boxes = visible_texts(plot)
            for text, box in boxes.items():
                assert box.x0 >= -1 and box.x1 <= plot.figure.bbox.x1 + 1, (plot.name, text)
                assert box.y0 >= -1 and box.y1 <= plot.figure.bbox.y1 + 1, (plot.name, text)
            for (text, box), (other, other_box) in itertools.combinations(boxes.items(), 2):
                apart = (
                    box.x1 <= other_box.x0 + 0.5
                    or other_box.x1 <= box.x0 + 0.5
                    or box.y1 <= other_box.y0 + 0.5
                    or other_box.y1 <= box.y0 + 0.5
                )
                assert apart, (plot.name, text, other)
            if plot.name.startswith("methods"):
                shown = "".join("".join(boxes).split())
                assert all(method in shown for method in methods), "no name is shortened"
