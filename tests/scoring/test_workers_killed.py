"""Workers and nodes that die during a run: the run succeeds, and the cache equals that of a single process."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from many_workers import assert_serves_the_same, make_run, shards, start, wait_until, workers_below
from ray_nodes import RayNodes
from test_scoring import cached_rows

from mrpo_pipeline.recipe import load_recipe
from mrpo_pipeline.scoring import score_references

pytest.importorskip("ray")


# A worker that is only starting has nothing to lose.
SCORING = "ray::Worker.score"


def one_process(folder: Path, recipe: Path) -> dict[str, dict[str, Any]]:
    """The cache of the same recipe scored by a single process."""
    run = load_recipe(recipe, {"cache": str(folder / "alone"), "scoring.workers": 1, "scoring.max_batch_tokens": 4096})
    score_references(run)
    return cached_rows(folder / "alone", "base")


@pytest.mark.slow
def test_a_worker_killed_in_the_middle_costs_nothing(tmp_path: Path) -> None:
    recipe = make_run(tmp_path)
    run = start(recipe, "--workers", "2")
    wait_until(run, lambda: shards(tmp_path) >= 1)
    time.sleep(0.3)  # for finished units, none of whose rows are written yet
    before = shards(tmp_path)
    workers_below(run.pid)[0].kill()
    output, errors = run.communicate(timeout=180)
    assert run.returncode == 0, errors
    assert before < shards(tmp_path), "nothing was left to do when the worker was killed"
    (report,) = json.loads(output)
    expected = one_process(tmp_path, recipe)
    assert report["scored"] == report["wanted"] == len(expected)
    assert report["deaths"] == 1 and report["workers"] == 2
    assert report["control_strings"] == 4
    assert "a worker died" in errors and "ray" not in errors.replace("`ray status`", "").replace(
        "Ray", ""
    ).lower().replace("array", "")
    assert_serves_the_same(cached_rows(tmp_path / "cache", "base"), expected)


@pytest.mark.slow
def test_a_node_killed_in_the_middle_costs_nothing(tmp_path: Path) -> None:
    recipe = make_run(tmp_path, pairs=1000)
    with RayNodes() as nodes:
        nodes.start()
        second = nodes.start()
        run = start(recipe, "--runtime", "ray", environment=nodes.environment)
        wait_until(run, lambda: shards(tmp_path) >= 1 and bool(workers_below(nodes.pid(second), SCORING)))
        before = shards(tmp_path)
        nodes.kill(second)
        output, errors = run.communicate(timeout=240)
        assert run.returncode == 0, errors
    assert before < shards(tmp_path), "nothing was left to do when the node was killed"
    (report,) = json.loads(output)
    expected = one_process(tmp_path, recipe)
    assert report["scored"] == report["wanted"] == len(expected)
    assert report["deaths"] >= 1
    assert_serves_the_same(cached_rows(tmp_path / "cache", "base"), expected)


@pytest.mark.slow
def test_an_interrupt_keeps_what_workers_have_scored_and_leaves_no_process(tmp_path: Path) -> None:
    # No unit is finished at the interrupt: rows found afterwards were written because of it.
    recipe = make_run(tmp_path, pairs=10_000, unit=100_000, rows_per_shard=100_000)
    run = start(recipe, "--workers", "2")
    wait_until(run, lambda: bool(workers_below(run.pid, SCORING)))
    family = psutil.Process(run.pid).children(recursive=True)
    time.sleep(1.0)  # for some rows that are only in a worker's memory
    assert shards(tmp_path) == 0 and run.poll() is None
    # What a scheduler sends; the command handles it like Ctrl-C, although Ray has its own handler.
    run.send_signal(signal.SIGTERM)
    _, errors = run.communicate(timeout=60)
    assert run.returncode == 130, errors
    assert "interrupted" in errors and "Traceback" not in errors
    assert 1 <= shards(tmp_path) <= 2
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive
