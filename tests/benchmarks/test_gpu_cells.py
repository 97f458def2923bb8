"""Cells of the GPU benchmark: results of one that lacks memory, a package or time, or kills its process; and what runs again."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import gpu_cells  # noqa: E402
import gpu_table  # noqa: E402
from gpu_cells import Cell, LeftOut, Record, run_cells  # noqa: E402

SETTINGS = {"device": "cpu", "tiny": True, "max_length": 96, "gradient_checkpointing": False}


def figure(value: float) -> dict[str, Any]:
    return {"value": value, "unit": "tokens/s"}


def too_large() -> dict[str, Any]:
    return {"value": float(torch.empty(1 << 60, dtype=torch.uint8).sum()), "unit": "bytes"}


def not_here() -> dict[str, Any]:
    raise LeftOut("needs two GPUs, and 1 is here")


def newer_torch() -> dict[str, Any]:
    from torch import a_kernel_of_a_later_release  # noqa: F401

    return figure(1.0)


def wrong() -> dict[str, Any]:
    return {"value": 3.0, "unit": "nats/token", "ratio": 60.0, "of": "the limit 0.05", "ok": False}


def measured(tmp_path: Path, cells: list[Cell], seconds: float = 60.0) -> Record:
    record = Record(tmp_path, "some", SETTINGS)
    record.plan(cells, device="CPU", bases={cell.name: cell.base for cell in cells if cell.base})
    run_cells(record, cells, seconds)
    return record


def test_whatever_happens_to_a_cell_is_a_result_and_the_others_run(tmp_path: Path) -> None:
    cells = [
        Cell("plain", lambda: figure(10.0)),
        Cell("large", too_large, base="plain"),
        Cell("lacking", lambda: figure(1.0), ("json", "a_package_of_nobody")),
        Cell("older", newer_torch),
        Cell("one GPU", not_here),
        Cell("fast", lambda: figure(25.0), base="plain"),
        Cell("of a large one", lambda: figure(1.0), base="large"),
    ]
    record = measured(tmp_path, cells)
    document = json.loads((tmp_path / "some.json").read_text())
    assert not (tmp_path / "some.partial.json").exists()
    found = document["cells"]
    assert found == record.cells and list(found) == document["planned"]
    assert [cell["state"] for cell in found.values()] == [
        "done", "out of memory", "left out", "left out", "left out", "done", "done",
    ]  # fmt: skip
    assert found["lacking"]["why"] == "not installed: a_package_of_nobody"
    assert "a_kernel_of_a_later_release" in found["older"]["why"]
    lines = {line[0].removeprefix("some: "): line[1:] for line in gpu_table.rows("some", document)}
    assert lines["large"][0] == "out of memory"
    assert lines["one GPU"] == ["left out", "", "", "", "needs two GPUs, and 1 is here"]
    assert lines["fast"][:2] == ["25 tokens/s", "2.50 × plain"]
    assert lines["of a large one"][1] == "no large"
    assert gpu_table.sound({"some": document})


@pytest.mark.parametrize("run", [wrong, lambda: 1 / 0])
def test_a_wrong_number_or_a_failure_makes_the_whole_unsound(run: Any, tmp_path: Path) -> None:
    document = measured(tmp_path, [Cell("a path", run), Cell("next", lambda: figure(1.0))]).document
    assert document["cells"]["next"]["state"] == "done"
    assert not gpu_table.sound({"some": document})


def test_when_the_time_is_up_what_was_measured_is_written_and_nothing_runs_again(tmp_path: Path) -> None:
    began = time.monotonic()
    cells = [Cell("quick", lambda: figure(1.0)), Cell("slow", lambda: time.sleep(60) or {}), Cell("never", not_here)]
    record = measured(tmp_path, cells, seconds=0.5)
    assert time.monotonic() - began < 30
    assert [cell["state"] for cell in record.cells.values()] == ["done", "no time left", "no time left"]
    assert record.is_complete and Record(tmp_path, "some", SETTINGS).is_complete


def test_a_killed_stage_continues_with_the_cells_that_have_no_result(tmp_path: Path) -> None:
    cells = [Cell("first", lambda: figure(1.0)), Cell("second", lambda: figure(2.0))]
    before = Record(tmp_path, "some", SETTINGS)
    before.plan(cells)
    before.put("first", {"state": "done", **figure(99.0)})
    before.begin("second")  # killed at this point
    record = measured(tmp_path, cells)
    assert [cell["value"] for cell in record.cells.values()] == [99.0, 2.0]


def test_results_with_other_settings_are_not_mixed_in(tmp_path: Path) -> None:
    measured(tmp_path, [Cell("first", lambda: figure(1.0))])
    with pytest.raises(SystemExit, match="another folder by --out"):
        Record(tmp_path, "some", SETTINGS | {"max_length": 2048})


def test_a_broken_device_ends_the_process_and_the_result_stays(tmp_path: Path) -> None:
    def broken() -> dict[str, Any]:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    record = Record(tmp_path, "some", SETTINGS)
    cells = [Cell("broken", broken), Cell("next", lambda: figure(1.0))]
    record.plan(cells)
    with pytest.raises(SystemExit) as ended:
        run_cells(record, cells, 60)
    assert ended.value.code == gpu_cells.BROKEN_DEVICE
    assert Record(tmp_path, "some", SETTINGS).cells["broken"]["state"] == "failed" and not record.is_complete


PLANTED = """
import os, signal
from gpu_cells import Cell

def cells(place):
    figure = {"value": 1.0, "unit": "tokens/s"}
    return [
        Cell("before", lambda: figure),
        Cell("deadly", lambda: os.kill(os.getpid(), signal.SIGKILL)),
        Cell("after", lambda: figure),
    ]
"""
SCRIPT = f"""
import sys
sys.path[:0] = [{str(BENCHMARKS)!r}]
import gpu
gpu.STAGES = {{"planted": ("planted_cells", ())}}
gpu.main()
"""


def test_a_cell_that_ends_its_process_is_a_failure_and_the_next_process_measures_the_rest(tmp_path: Path) -> None:
    (tmp_path / "planted_cells.py").write_text(PLANTED)
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "script.py"), "--device", "cpu", "--tiny", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    path = tmp_path / "out" / "planted.json"
    document = json.loads(path.read_text())
    assert [cell["state"] for cell in document["cells"].values()] == ["done", "failed", "done"]
    assert document["cells"]["deadly"]["why"] == "its process ended with exit status -9"
    written = path.read_bytes()
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "not run again" in again.stdout and again.returncode == 1
    assert path.read_bytes() == written
