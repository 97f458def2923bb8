"""A run left by an earlier call is reused if its files are as written, and repeated if not."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from mrpo_pipeline.compare.job import PAIRS, RESULT, Job, finished
from mrpo_pipeline.files.hashing import sha256_of_small


def run_left(folder: Path) -> Job:
    sums = {"pair_id": ["a", "b"], "logps_chosen": [-1.0, -2.0], "logps_rejected": [-3.0, -4.0]}
    pl.DataFrame(sums).write_parquet(folder / PAIRS)
    result = {"key": "k", "metrics": {}, "sums": {PAIRS: sha256_of_small(folder / PAIRS)}}
    (folder / RESULT).write_text(json.dumps(result))
    return Job("dpo", 0, str(folder), "held_out", {}, {}, "k")


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def change_a_number(path: Path) -> None:
    frame = pl.read_parquet(path)
    frame.with_columns(pl.col("logps_chosen") + 1).write_parquet(path)


@pytest.mark.parametrize("damage", [cut_short, empty, Path.unlink])
def test_a_run_with_damaged_sums_is_repeated(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    job = run_left(tmp_path)
    assert finished(job) is not None
    damage(tmp_path / PAIRS)
    assert finished(job) is None


def test_a_run_with_replaced_sums_is_repeated(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    job = run_left(tmp_path)
    change_a_number(tmp_path / PAIRS)
    assert finished(job) is None
    assert "dpo, seed 0" in caplog.text and "is made again" in caplog.text


def test_a_run_without_the_sums_that_a_sweep_chooses_by_is_repeated(tmp_path: Path) -> None:
    job = run_left(tmp_path)
    assert finished(replace(job, choice="inputs/choice-ab12")) is None
    sums = tmp_path / "choice-ab12.parquet"
    sums.write_bytes((tmp_path / PAIRS).read_bytes())
    written = {path.name: sha256_of_small(path) for path in (tmp_path / PAIRS, sums)}
    (tmp_path / RESULT).write_text(json.dumps({"key": "k", "metrics": {}, "sums": written}))
    assert finished(replace(job, choice="inputs/choice-ab12")) is not None
    assert finished(replace(job, choice="inputs/choice-cd34")) is None
