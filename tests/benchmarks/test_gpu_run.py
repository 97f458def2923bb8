"""`make gpu TINY=1`: the complete GPU benchmark with tiny models on a CPU, with vLLM hidden as if not installed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

STAGES = ("machine", "correctness", "stage_one", "stage_two_1B", "stage_two_8B", "fsdp2")
# Optional packages, which this Python does not find. bitsandbytes needs a GPU anyway.
HIDING = """
from importlib.machinery import PathFinder
find = PathFinder.find_spec

def hidden(cls, name, path=None, target=None):
    return None if name.partition(".")[0] in ("vllm", "bitsandbytes") else find(name, path, target)

PathFinder.find_spec = classmethod(hidden)
"""

pytestmark = pytest.mark.slow


def run(out: Path, hiding: Path, *options: str) -> subprocess.CompletedProcess[str]:
    paths = [str(hiding), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    script = str(ROOT / "benchmarks" / "gpu.py")
    # A machine that is busy with other tests must not fail this.
    command = [sys.executable, script, "--device", "cpu", "--tiny", "--minutes", "60", "--out", str(out)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.run([*command, *options], capture_output=True, text=True, env=environment, check=False)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    folder = tmp_path_factory.mktemp("gpu")
    hiding = folder / "hiding"
    hiding.mkdir()
    (hiding / "sitecustomize.py").write_text(HIDING)
    done = run(folder / "out", hiding)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    return folder / "out", hiding, done.stdout


def documents(out: Path) -> dict[str, dict[str, Any]]:
    return {stage: json.loads((out / f"{stage}.json").read_text()) for stage in STAGES}


def test_every_cell_is_measured_or_says_what_is_missing(whole: tuple[Path, Path, str]) -> None:
    out, _, _ = whole
    for stage, document in documents(out).items():
        assert list(document["cells"]) == document["planned"] and document["device"].startswith("CPU")
        for name, cell in document["cells"].items():
            assert cell["state"] in ("done", "left out"), (stage, name, cell)
            if cell["state"] == "done":
                assert cell["value"] >= 0 and cell["unit"] and cell.get("ok", True)
            else:
                assert any(why in cell["why"] for why in ("not installed", "CUDA device", "Triton"))
    assert documents(out)["stage_one"]["cells"]["mrpo, vLLM engine"]["why"] == "not installed: vllm"
    assert documents(out)["correctness"]["cells"]["nf4 against bfloat16"]["why"] == "not installed: bitsandbytes"


def test_every_speed_has_its_share_of_the_peak_its_memory_and_a_ratio(whole: tuple[Path, Path, str]) -> None:
    out, _, printed = whole
    table = {line.split("|")[1].strip(): line.split("|")[2:] for line in printed.splitlines() if line.startswith("| ")}
    for stage, document in documents(out).items():
        for name, cell in document["cells"].items():
            line = [part.strip() for part in table[f"{stage}: {name}"]]
            assert line[0].startswith("left out") == (cell["state"] == "left out")
            if cell["state"] == "done" and cell["unit"] == "tokens/s":
                assert cell["peak_share"] > 0 and cell["memory_bytes"] > 0
                base = document["bases"].get(name)
                if base:
                    times = cell["value"] / document["cells"][base]["value"]
                    assert line[1] == f"{times:.2f} × {base}"
    assert (out / "table.md").read_text().strip() in printed


def test_references_that_are_cached_train_the_same_and_those_in_memory_cost_time(whole: tuple[Path, Path, str]) -> None:
    cells = documents(whole[0])["stage_two_8B"]["cells"]
    cached, memory = (cells[f"mrpo, K = 1 {where}"] for where in ("cached", "in memory"))
    assert cached["losses"] == pytest.approx(memory["losses"])
    assert memory["flops"] > 1.3 * cached["flops"]


def test_a_stage_that_has_ended_is_not_run_again_and_one_without_its_json_is(
    whole: tuple[Path, Path, str], tmp_path: Path
) -> None:
    out, hiding, _ = whole
    copy = tmp_path / "out"
    shutil.copytree(out, copy)
    (copy / "machine.json").unlink()
    before = {stage: (copy / f"{stage}.json").read_bytes() for stage in STAGES[1:]}
    done = run(copy, hiding)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("not run again") == len(before)
    assert {stage: (copy / f"{stage}.json").read_bytes() for stage in before} == before
    again = json.loads((copy / "machine.json").read_text())
    assert list(again["cells"]) == list(documents(out)["machine"]["cells"])


@pytest.mark.vllm
def test_vllm_scores_what_the_transformers_engine_scores(tmp_path: Path) -> None:
    import gpu_drift
    from gpu_models import Place

    place = Place("cpu", tiny=True, folder=str(tmp_path), scratch=str(tmp_path), max_length=96)
    found = gpu_drift.vllm_drift(place)
    assert found["ok"] and 0 <= found["value"] < 1e-3
