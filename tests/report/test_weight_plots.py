"""The weights of the references: by step as logged, and as bars from the diagnostics."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from made_comparison import make_comparison

from mrpo_pipeline.report.results_folder import read_folder
from mrpo_pipeline.report.weight_plots import mean_weights, weights_by_step


def test_weights_by_step_are_the_mean_over_seeds_and_every_method_s_own(tmp_path: Path) -> None:
    folder = make_comparison(
        tmp_path / "made", methods=("dpo", "mrpo"), references=("base",), seeds=(0, 1), stepwise=(), steps=20
    )
    for seed, first in ((0, 0.25), (1, 0.75)):
        frame = pl.DataFrame(
            {"step": [0, 0, 1, 1], "reference": ["base", "big"] * 2, "weight": [first, 1 - first, 1.0, 0.0]},
            schema_overrides={"step": pl.Int32},
        )
        frame.write_parquet(folder / "mrpo" / f"seed-{seed}" / "weights.parquet")
    found = read_folder(folder)
    base, big = weights_by_step(found, "mrpo")
    assert (base.label, big.label) == ("base", "big") and weights_by_step(found, "dpo") == []
    np.testing.assert_allclose(base.x, [0, 1], atol=1e-6)
    np.testing.assert_allclose(base.y, [50, 100])
    np.testing.assert_allclose(big.y, [50, 0])


def test_bars_are_the_weights_of_the_diagnostics_and_of_no_single_reference(tmp_path: Path) -> None:
    folder = make_comparison(
        tmp_path / "made", methods=("dpo-a", "dpo-b", "mrpo"), references=("a", "b"), stepwise=(), steps=20
    )
    document = json.loads((folder / "comparison.json").read_text())
    for method in document["methods"]:
        method["diagnostics"] = {"refs/a/weight": 0.25, "refs/b/weight": 0.75, "refs/effective_k": 1.2}
    (folder / "comparison.json").write_text(json.dumps(document))
    assert mean_weights(read_folder(folder)) == {"mrpo": pytest.approx({"a": 25, "b": 75})}
