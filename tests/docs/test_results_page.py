"""`docs/results.md` is what the benchmarks' summary writes from their results: no figure is typed by hand."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"

# A benchmark with two figures in its own process, which writes results like all of them.
BENCHMARK = """
import sys
sys.argv[:] = ["benchmarks/bench_cache.py", "--scratch", "/tmp/some/where", "--pairs", "/home/alice/pairs.jsonl", "--rows", "7"]
from measuring import claim, machine, write_results
claims = [claim("targets of 7 pairs, seconds", 1.5, at_most=2.0), claim("memory ÷ before", 1.25, at_most=1.1)]
write_results("cache-7", {"machine": machine(), "claims": claims}, "told")
"""


@pytest.fixture
def summary(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import summary

    return summary


def test_the_page_is_written_from_the_published_results(summary: Any) -> None:
    found = json.loads((ROOT / "docs" / "results.json").read_text())
    assert (ROOT / "docs" / "results.md").read_text() == summary.page(found)


def test_a_run_is_published_with_its_machine_and_command_and_without_folders(
    summary: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = {"MRPO_BENCH_RESULTS": str(tmp_path / "left"), "PYTHONPATH": str(BENCHMARKS)}
    subprocess.run([sys.executable, "-c", BENCHMARK], env=environment, check=True, capture_output=True)
    monkeypatch.setattr(summary, "RESULTS", tmp_path / "left")
    summary.publish(summary.read_documents(), tmp_path)
    text = (tmp_path / "results.md").read_text()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    assert ["targets of 7 pairs, seconds", "1.50×", "≤ 2.00×", "yes", "cache-7"] in rows
    assert ["memory ÷ before", "1.25×", "≤ 1.10×", "no", "cache-7"] in rows
    assert "`python benchmarks/bench_cache.py --pairs pairs.jsonl --rows 7`" in text
    assert not any(private in text for private in (socket.gethostname(), "alice", "/tmp", str(ROOT)))
    left_out = {row[0].strip("`") for row in rows if "not run" in row}
    assert left_out == {path.name for path in BENCHMARKS.glob("bench_*.py")} - {"bench_cache.py"}


def test_earlier_results_stay_until_their_benchmark_runs_again(summary: Any, tmp_path: Path) -> None:
    machine = {
        "processor": "CPU",
        "cores": 2,
        "system": "Linux",
        "load_before": 0.1,
        "date": "then",
        "versions": {"mrpo": "1"},
    }

    def run(name: str, value: str, date: str) -> dict[str, Any]:
        claims = [{"what": f"figure of {name}", "value": value, "goal": "", "met": None, "number": 1.0}]
        how = {"command": f"python benchmarks/bench_{name}.py", "wall_s": 60, "load_after": 0.2}
        return {"machine": machine | {"date": date}, "claims": claims, "run": how}

    summary.publish({"plan": run("plan", "1.00×", "then"), "head": run("head", "2.00×", "then")}, tmp_path)
    summary.publish({"head": run("head", "3.00×", "now")}, tmp_path)
    text = (tmp_path / "results.md").read_text()
    assert "1.00×" in text and "3.00×" in text and "2.00×" not in text and text.count("1. CPU, 2 cores") == 1
    (tmp_path / "real_models.md").write_text("# Real\n")
    summary.publish({}, tmp_path)
    assert "[real_models.md](real_models.md)" in (tmp_path / "results.md").read_text()
