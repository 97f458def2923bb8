"""Runs of a comparison: same starts, finished ones are kept, stopped ones resume, failures are reported."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import psutil
import pytest
from compared import recipe_of
from safetensors.numpy import load_file
from transformers import TrainerCallback

from mrpo_pipeline.compare import compare_recipe, job, worker_pool
from mrpo_pipeline.errors import RunError, UserError
from mrpo_pipeline.policy import train
from mrpo_pipeline.policy.sampler import StepSampler
from mrpo_pipeline.recipe import load_recipe


def adapter(folder: Path) -> dict[str, Any]:
    return load_file(folder / "adapter_model.safetensors")


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def test_for_a_seed_every_method_starts_from_the_same_adapter_and_takes_the_same_batches(
    tmp_path: Path, document: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    orders: list[tuple[int, list[Any]]] = []
    iterate = StepSampler.__iter__

    def watched(self: StepSampler) -> Any:
        steps = list(iterate(self))
        orders.append((self.seed, steps))
        return iter(steps)

    monkeypatch.setattr(StepSampler, "__iter__", watched)
    # With a learning rate of 0, the saved adapter is the initial one.
    compare = {"seeds": [0, 1], "methods": {"multi-dpo": {"name": "multi-dpo"}}}
    compare_recipe(recipe_of(document, tmp_path / "out", training={"learning_rate": 0.0}, compare=compare))
    methods = ("dpo-base", "dpo-other", "simpo", "multi-dpo")
    starts = {(name, seed): adapter(tmp_path / "out" / name / f"seed-{seed}") for name in methods for seed in (0, 1)}
    for name in methods:
        assert same(starts[name, 0], starts["multi-dpo", 0]) and same(starts[name, 1], starts["multi-dpo", 1])
    assert not same(starts["multi-dpo", 0], starts["multi-dpo", 1])
    by_seed = [[steps for seed, steps in orders if seed == wanted] for wanted in (0, 1)]
    assert all(len(found) >= len(methods) for found in by_seed)
    assert all(steps == by_seed[0][0] for steps in by_seed[0]) and all(steps == by_seed[1][0] for steps in by_seed[1])
    assert by_seed[0][0] != by_seed[1][0]


def test_a_comparison_is_complete_and_a_second_call_reuses_it(
    tmp_path: Path, document: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    listed = {"mrpo": {}, "mrpo-again": {"weights": "adaptive"}, "plain": {"name": "dpo"}}
    first = compare_recipe(recipe_of(document, out, compare={"methods": listed}))
    found = json.loads((out / "comparison.json").read_text())
    assert found == json.loads(json.dumps(first.as_dict()))
    assert [method["name"] for method in found["methods"]] == ["dpo-other", "simpo", "mrpo", "plain"]
    assert found["methods"][2]["also"] == ["mrpo-again"] and not (out / "mrpo-again").exists()
    assert [method["baseline"] for method in found["methods"]] == [True, False, False, True]
    assert [method["reference_free"] for method in found["methods"]] == [False, True, False, False]
    # The recipe beside its adapter has no references, so that it trains and evaluates as before.
    free = load_recipe(out / "simpo" / "seed-0" / "recipe.yaml")
    assert not free.references and free.method.reference == "none" and found["methods"][1]["diagnostics"] == {}
    assert "without a reference" in (out / "simpo" / "seed-0" / "README.md").read_text()
    assert any(one.startswith("Did references pay?") for one in found["verdict"]["sentences"])
    assert found["verdict"]["kind"] == "one seed"
    assert found["finished"].startswith("20") and {"python", "torch", "transformers", "peft"} <= set(found["versions"])
    assert found["start"]["accuracy/anchor"] == 0.5 and found["held_out"] == 10
    for name in (
        "recipe.yaml",
        "audit.json",
        "held_out.parquet",
        "comparison.md",
        "report.html",
        "start/pairs.parquet",
    ):
        assert (out / name).is_file(), name
    assert not list(out.glob(".*"))
    # The accuracy in the document is that of the sums stored beside it.
    frame = pl.read_parquet(out / "mrpo" / "seed-0" / "pairs.parquet")
    share = (frame["logps_chosen"] > frame["logps_rejected"]).mean()
    assert found["methods"][2]["metrics"]["accuracy/policy"]["per_seed"] == pytest.approx([share])
    held_out = pl.read_parquet(out / "held_out.parquet")
    # So is the drift, also of a method without a reference, per byte of the text.
    for place in (1, 2):
        name = found["methods"][place]["name"]
        sums = pl.read_parquet(out / name / "seed-0" / "pairs.parquet")
        sizes = held_out["rejected"].str.len_bytes()
        drift = ((sums["logps_rejected"] - held_out["anchor_logps_rejected"]) / sizes).mean()
        told = found["methods"][place]["metrics"]["drift/rejected_per_byte"]
        assert (told["mean"], told["per_seed"]) == (pytest.approx(drift), [pytest.approx(drift)]) and abs(drift) > 1e-3
    assert abs(found["start"]["drift/chosen_per_token"]) < 1e-5
    table = first.table()
    assert "drift" in table.splitlines()[0] and "likelier than the anchor does" in table
    assert held_out["pair_id"].to_list() == frame["pair_id"].to_list()

    trained: list[str] = []
    real = job.run_job
    monkeypatch.setattr("mrpo_pipeline.compare.worker_pool.run_job", lambda one: trained.append(one.title) or real(one))
    again = compare_recipe(recipe_of(document, out, compare={"methods": listed}))
    assert trained == [] and again.table() == first.table() and again.as_dict()["costs"] == found["costs"]
    measured = [out / name / "seed-0" / "evaluation.json" for name in ("mrpo", "plain")]
    for path in measured:
        path.write_text("{}")
        (path.parent / "tasks").mkdir()
    compare_recipe(recipe_of(document, out, compare={"methods": {**listed, "mrpo": {"beta": 0.7}}}))
    # An adapter's measurements are kept with it.
    assert [path.exists() for path in measured] == [False, True]
    assert [(path.parent / "tasks").exists() for path in measured] == [False, True]
    # Runs under another name are not searched for; changed ones are trained.
    assert trained == ["mrpo, seed 0", "mrpo-again, seed 0"]


def test_an_interrupted_run_resumes_from_its_checkpoint_with_the_same_result(
    tmp_path: Path, document: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    saving = {"save_strategy": "steps", "save_steps": 2}
    methods = {"plain": {"name": "dpo"}, "other": {"aggregate": "single:other"}}
    whole = recipe_of(document, tmp_path / "whole", training=saving, compare={"methods": methods})
    compare_recipe(whole)
    stopped = recipe_of(document, tmp_path / "stopped", training=saving, compare={"methods": methods})

    class Stop(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 3:
                raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train, "train_policy", partial(train.train_policy, callbacks=[Stop()]))
        with pytest.raises(KeyboardInterrupt):
            compare_recipe(stopped)
    assert (tmp_path / "stopped" / "simpo" / "seed-0" / "checkpoint-2").is_dir()
    assert not (tmp_path / "stopped" / "simpo" / "seed-0" / "result.json").exists()
    logging.getLogger("mrpo").propagate = True
    with caplog.at_level(logging.INFO, logger="mrpo"):
        compare_recipe(stopped)
    assert "Resuming from" in caplog.text and "checkpoint-2" in caplog.text
    for name in ("simpo", *methods):
        assert same(*(adapter(tmp_path / which / name / "seed-0") for which in ("whole", "stopped")))


def test_a_failed_run_is_reported_the_others_finish_and_complete_methods_are_compared(
    tmp_path: Path, document: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = job.run_job

    def failing(one: job.Job) -> Any:
        if one.title == "mrpo, seed 0":
            raise RunError("The loss is not finite.")
        return real(one)

    monkeypatch.setattr("mrpo_pipeline.compare.worker_pool.run_job", failing)
    run = recipe_of(document, tmp_path / "out")
    with pytest.raises(
        RunError, match=r"1 of 6 runs failed: mrpo, seed 0\. The loss is not finite.*same command again"
    ):
        compare_recipe(run)
    assert "mrpo, seed 0: failed. The loss is not finite." in capsys.readouterr().err
    found = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert [method["name"] for method in found["methods"]] == ["dpo-base", "dpo-other", "simpo", "multi-dpo"]
    assert found["failed"] == [{"run": "mrpo, seed 0", "reason": "The loss is not finite."}]
    monkeypatch.setattr("mrpo_pipeline.compare.worker_pool.run_job", real)
    assert len(compare_recipe(run).as_dict()["methods"]) == 5


def test_a_sweep_chooses_by_the_third_split_and_by_a_metric_that_moves(
    tmp_path: Path, document: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    sweep = {"sweep": {"beta": [0.05, 2.0]}, "methods": {"plain": {"name": "dpo"}}}
    with pytest.raises(UserError, match=r"pairs\.weights_fraction"):
        compare_recipe(recipe_of(document, tmp_path / "out", compare=sweep))
    # So little training changes no preference but moves every pair: the requested metric cannot choose.
    run = recipe_of(
        document, tmp_path / "out", compare=sweep, pairs={"weights_fraction": 0.3}, training={"learning_rate": 1e-5}
    )
    with caplog.at_level(logging.WARNING, "mrpo"):
        found = compare_recipe(run).as_dict()
    assert "The sweep chooses by “moved towards the chosen side" in caplog.text
    tried = [one for one in found["sweep"] if one["method"] == "plain"]
    assert [one["settings"] for one in tried] == [{"beta": 0.05}, {"beta": 2.0}]
    (chosen,) = [one for one in tried if one["chosen"]]
    assert {one["metric"] for one in tried} == {"accuracy/anchor"}
    assert chosen["accuracy/anchor"] == max(one["accuracy/anchor"] for one in tried)
    method = next(one for one in found["methods"] if one["name"] == "plain")
    assert method["swept"] == chosen["settings"] and method["method"]["beta"] == chosen["settings"]["beta"]
    # The trial of the chosen setting is the method's run: it is not trained twice.
    place = tmp_path / "out" / "sweep" / f"plain-beta-{chosen['settings']['beta']:g}" / "seed-0"
    assert same(adapter(place), adapter(tmp_path / "out" / "plain" / "seed-0"))
    assert found["costs"]["runs_made_now"] == 6


def test_if_no_metric_moves_a_sweep_keeps_the_recipes_own_setting(
    tmp_path: Path, document: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    sweep = {"sweep": {"beta": [0.05, 0.1, 2.0]}, "methods": {}}
    still = recipe_of(
        document, tmp_path / "out", compare=sweep, pairs={"weights_fraction": 0.3}, training={"learning_rate": 0.0}
    )
    with caplog.at_level(logging.INFO, "mrpo"):
        found = compare_recipe(still).as_dict()
    assert {method["swept"]["beta"] for method in found["methods"] if not method["reference_free"]} == {0.1}
    assert {one["metric"] for one in found["sweep"]} == {None}
    assert "The sweep cannot choose" in caplog.text and "the best on the third split" not in caplog.text


def _worker_on(folder: Path) -> int | None:
    """The process of the run in this folder: the one that writes its log."""
    for process in psutil.Process().children(recursive=True):
        try:
            if worker_pool._COMMAND in process.cmdline() and any(
                file.path == str(folder / "log.txt") for file in process.open_files()
            ):
                return process.pid
        except psutil.Error:
            continue
    return None


@pytest.mark.slow
def test_a_killed_process_is_reported_the_others_finish_and_the_same_call_resumes(
    tmp_path: Path, document: dict[str, Any]
) -> None:
    out = tmp_path / "out"
    listed = {"plain": {"name": "dpo"}, "other": {"aggregate": "single:other"}, "mrpo": {}}
    run = recipe_of(document, out, training={"max_steps": 40}, compare={"processes": 2, "methods": listed})
    killed: list[int] = []
    before = set(psutil.Process().children(recursive=True))

    def kill() -> None:
        for _ in range(3000):
            if (out / "other" / "seed-0" / "running.json").exists():
                pid = _worker_on(out / "other" / "seed-0")
                if pid is not None:
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)
                    return
            time.sleep(0.02)

    watcher = threading.Thread(target=kill)
    watcher.start()
    with pytest.raises(RunError, match=r"1 of 5 runs failed: other, seed 0\. Its process was killed by SIGKILL"):
        compare_recipe(run)
    watcher.join()
    assert len(killed) == 1
    found = json.loads((out / "comparison.json").read_text())
    assert [method["name"] for method in found["methods"]] == ["simpo", "plain", "mrpo"]
    again = compare_recipe(recipe_of(document, out, training={"max_steps": 40}, compare={"methods": listed}))
    assert again.as_dict()["costs"]["runs_made_now"] == 1 and len(again.as_dict()["methods"]) == 4
    assert not set(psutil.Process().children(recursive=True)) - before


@pytest.mark.slow
def test_ctrl_c_ends_every_process_and_keeps_what_is_done(tmp_path: Path, document: dict[str, Any]) -> None:
    out = tmp_path / "out"
    run = recipe_of(document, out, training={"max_steps": 2000}, compare={"processes": 2})
    run.write(tmp_path)
    command = [sys.executable, "-m", "mrpo_cli.main", "compare", str(tmp_path / "recipe.yaml")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 200
        begun = (out / "start" / "result.json", out / "dpo-base" / "seed-0" / "running.json")
        while not all(path.exists() for path in begun) and time.monotonic() < deadline:
            time.sleep(0.05)
        workers = [p.pid for p in psutil.Process(process.pid).children(recursive=True)]
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
    assert process.returncode == 130 and "run the same command again" in told and "Traceback" not in told
    assert len(workers) >= 2 and not any(psutil.pid_exists(pid) for pid in workers)
    assert (out / "start" / "result.json").exists() and not list(out.glob(".inputs-*"))
