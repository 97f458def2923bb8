"""Learning curves show the logged values."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from made_comparison import make_comparison

from mrpo_pipeline.report.charts import plot_style
from mrpo_pipeline.report.learning_curves import binned, curve_plots, curves_of
from mrpo_pipeline.report.results_folder import Folder, read_folder


def with_logs(folder: Path, logs: dict[int, list[dict[str, object]]]) -> Folder:
    make_comparison(folder, methods=("dpo", "mrpo"), references=("base",), seeds=tuple(logs), stepwise=(), steps=20)
    for seed, log in logs.items():
        (folder / "mrpo" / f"seed-{seed}" / "trainer_state.json").write_text(json.dumps({"log_history": log}))
    return read_folder(folder)


def test_a_bin_holds_what_ends_in_it() -> None:
    means = binned(np.array([1.0, 2.0, 3.0, 6.0]), np.array([1.0, 3.0, 5.0, 8.0]), np.array([0, 2, 4, 5, 6]) + 1e-9)
    np.testing.assert_allclose(means, [2.0, 5.0, np.nan, 8.0])


def test_a_curve_is_the_mean_over_seeds_by_step(tmp_path: Path) -> None:
    logs = {
        0: [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5}, {"step": 2, "train_runtime": 9.0}],
        1: [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 0.7}],
    }
    curve = next(curve for curve in curves_of(with_logs(tmp_path / "made", logs), "loss") if curve.label == "mrpo")
    np.testing.assert_allclose(curve.x, [1, 2], atol=1e-6)
    assert curve.seeds is not None
    np.testing.assert_allclose(curve.seeds, [[1.0, 0.5], [2.0, 0.7]])
    np.testing.assert_allclose(curve.y, [1.5, 0.6])


def test_a_long_log_is_drawn_as_forty_means_that_keep_its_mean(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=4000)
    log: list[dict[str, object]] = [{"step": step + 1, "loss": float(value)} for step, value in enumerate(values)]
    curve = next(curve for curve in curves_of(with_logs(tmp_path / "made", {0: log}), "loss") if curve.label == "mrpo")
    assert curve.y.size == 40
    np.testing.assert_allclose(curve.y, values.reshape(40, 100).mean(axis=1), atol=1e-12)


def test_values_that_are_no_numbers_are_left_out(tmp_path: Path) -> None:
    log: list[dict[str, object]] = [
        {"step": 1, "loss": float("nan")},
        {"step": "2", "loss": 1.0},
        {"step": 3, "loss": "x"},
        {"step": 4, "loss": 0.25},
    ]
    curve = next(curve for curve in curves_of(with_logs(tmp_path / "made", {0: log}), "loss") if curve.label == "mrpo")
    np.testing.assert_allclose(curve.y, [0.25])


def test_held_out_curves_are_drawn_where_held_out_pairs_were_looked_at(tmp_path: Path) -> None:
    log: list[dict[str, object]] = [
        {"step": 1, "loss": 1.0},
        {"step": 1, "eval_accuracy/policy": 0.5},
        {"step": 2, "eval_accuracy/policy": 0.75},
    ]
    with plot_style():
        plots = {plot.name: plot for plot in curve_plots(with_logs(tmp_path / "made", {0: log}))}
    assert "curve-held-out-loss" not in plots
    assert "mrpo from 50.0 to 75.0" in plots["curve-held-out"].description
