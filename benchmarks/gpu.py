"""Everything on a GPU with one command: correctness, both stages beside their peers, FSDP2. Writes one table and JSON.

    python benchmarks/gpu.py [--only STAGE …] [--minutes 8] [--out FOLDER]        (make gpu)
    python benchmarks/gpu.py --device cpu --tiny                                  (make gpu TINY=1)

Needs torch and transformers, and no network: weights and token ids are random. Rows that need other packages (peft, pydantic, trl,
vllm, bitsandbytes) are left out if these are missing, and the table says so. Every stage runs in its own process with a
time limit, and writes each figure as soon as it is measured. A finished stage is not run again unless you remove its JSON; a killed one
continues.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import gpu_table
import measuring
from gpu_cells import FAILED, Record

# Stage → module and further arguments of its `cells`.
STAGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "machine": ("gpu_machine", ()),
    "correctness": ("gpu_correctness", ()),
    "stage_one": ("gpu_stage_one", ()),
    "stage_two_1B": ("gpu_stage_two", ("1B",)),
    "stage_two_8B": ("gpu_stage_two", ("8B",)),
    "fsdp2": ("gpu_fsdp", ()),
}
# Before a stage that is over its time limit is killed; what it has written stays.
GRACE_SECONDS = 30


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """The settings that all results of one table share."""
    return {name: getattr(args, name) for name in ("device", "tiny", "max_length", "gradient_checkpointing")}


def run_stage(stage: str, args: argparse.Namespace) -> dict[str, Any]:
    """Run the cells of the stage that have no result yet, in as many processes as needed; returns its document."""
    record = Record(args.out, stage, settings_of(args))
    if record.is_complete:
        print(f"{stage}: {record.path} is complete and not run again")
        return record.document
    print(f"{stage}:", flush=True)
    end = time.monotonic() + 60 * args.minutes
    while True:
        left = end - time.monotonic()
        before = set(record.cells)
        status, said = _process(stage, args, left) if left > 0 else (None, "")
        record = Record(args.out, stage, settings_of(args))
        if record.is_complete:
            return record.document
        if status is None:  # out of time
            record.finish()
            return record.document
        if record.running is not None:
            why = f"its process ended with exit status {status}{': ' + said if said else ''}"
            print(f"  {record.running}: {why}", flush=True)
            record.put(record.running, {"state": FAILED, "why": why})
        elif set(record.cells) == before:
            record.document["planned"] = record.document["planned"] or ["(the stage)"]
            record.finish(rest={"state": FAILED, "why": f"exit status {status}: {said}"})
            return record.document


def _process(stage: str, args: argparse.Namespace, seconds: float) -> tuple[int | None, str]:
    """Run one process of the stage; returns its exit status (None if it had to be killed) and the last line of its stderr."""
    options = [*_options(args), "--stage", stage, "--seconds", str(seconds)]
    with tempfile.TemporaryFile() as errors:
        command = [sys.executable, str(Path(sys.argv[0]).resolve()), *options]
        child = subprocess.Popen(command, env=_environment(stage, args), stderr=errors, start_new_session=True)
        try:
            status: int | None = child.wait(seconds + GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            status = None
        finally:  # and the engines and processes that it started, which would keep GPU memory
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        errors.seek(0)
        lines = errors.read().decode(errors="replace").split("\n")
    if status != 0 and args.verbose:
        print("\n".join(lines), file=sys.stderr)
    return status, next((line.strip() for line in reversed(lines) if line.strip()), "")[:300]


def _options(args: argparse.Namespace) -> list[str]:
    sizes = ["--device", args.device, "--max-length", str(args.max_length), "--out", str(args.out)]
    flags = {"--tiny": args.tiny, "--gradient-checkpointing": args.gradient_checkpointing}
    return [*sizes, *(flag for flag, given in flags.items() if given)]


def _environment(stage: str, args: argparse.Namespace) -> dict[str, str]:
    """One visible GPU for all stages except FSDP2's, since libraries use every GPU that they see; none with ``--device cpu``."""
    paths = [str(measuring.ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    found = {**os.environ, **measuring.QUIET, "PYTHONPATH": os.pathsep.join(paths)}
    if args.device == "cpu":
        found["CUDA_VISIBLE_DEVICES"] = ""
    elif stage != "fsdp2":
        found["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    return found


def stage_process(stage: str, args: argparse.Namespace) -> None:
    """The process of a stage: plan its cells and measure those without a result."""
    import torch
    from gpu_cells import run_cells
    from gpu_models import Place

    began = time.monotonic()
    device = torch.cuda.get_device_name() if args.device == "cuda" else f"CPU, {measuring.machine()['processor']}"
    module, more = STAGES[stage]
    with tempfile.TemporaryDirectory(prefix="mrpo-gpu-") as scratch:
        place = Place(args.device, args.tiny, str(args.out), scratch, args.max_length, args.gradient_checkpointing)
        cells = importlib.import_module(module).cells(place, *more)
        record = Record(args.out, stage, settings_of(args))
        known = record.document.get("device")
        if known not in (None, device):
            raise SystemExit(f"{args.out} holds results of {known}, and this is {device}: give another --out.")
        versions = measuring.machine()["versions"]
        record.plan(
            cells, device=device, versions=versions, bases={cell.name: cell.base for cell in cells if cell.base}
        )
        run_cells(record, cells, args.seconds - (time.monotonic() - began))


def find_device() -> str:
    """``cuda`` if torch finds a GPU.

    Raises:
        SystemExit: without a GPU, since a full run on a CPU would take days; and without torch.
    """
    asked = "import torch; print(torch.cuda.is_available())"
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=False)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:]
        raise SystemExit(
            f"torch cannot be imported by {sys.executable}: {' '.join(last)}. Install it, or give another PYTHON."
        )
    if done.stdout.split()[-1:] != ["True"]:
        raise SystemExit(
            "torch finds no GPU here. To run everything in small on the CPU: --device cpu --tiny (TINY=1)."
        )
    return "cuda"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), help="cuda where it is not given")
    parser.add_argument("--tiny", action="store_true", help="models of two layers and short pairs: to test this script")
    parser.add_argument("--only", nargs="+", choices=STAGES, metavar="STAGE", help=", ".join(STAGES))
    parser.add_argument("--minutes", type=float, default=8.0, help="of each stage at most")
    parser.add_argument("--max-length", type=int, help="tokens of prompt and completion (2048; tiny: 96)")
    parser.add_argument(
        "--gradient-checkpointing", action="store_true", help="train with it, everyone alike: for small GPUs"
    )
    parser.add_argument("--out", type=Path, help="folder of the results (benchmarks/results/gpu)")
    parser.add_argument("--verbose", action="store_true", help="what a stage's process that failed wrote")
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.device = args.device or find_device()
    args.max_length = args.max_length or (96 if args.tiny else 2048)
    args.out = (args.out or measuring.RESULTS / ("gpu_tiny" if args.tiny else "gpu")).resolve()
    if args.stage:
        stage_process(args.stage, args)
        return
    if args.device == "cpu" and not args.tiny:
        raise SystemExit("--device cpu without --tiny would take days: give --tiny as well.")
    # Shares of the peak refer to the peak measured by the stage `machine`.
    stages = [stage for stage in STAGES if stage == "machine" or stage in (args.only or STAGES)]
    try:
        documents = {stage: run_stage(stage, args) for stage in stages}
    except KeyboardInterrupt:
        raise SystemExit(f"\nInterrupted. What was measured is in {args.out}; the same command continues.") from None
    text = gpu_table.text(documents, measuring.machine())
    (args.out / "table.md").write_text(text + "\n", encoding="utf-8")
    if not args.tiny:
        document = {"machine": measuring.machine(), "claims": gpu_table.claims(documents), "stages": documents}
        (measuring.RESULTS / "gpu.json").write_text(json.dumps(document, indent=1), encoding="utf-8")
    print(f"\n{text}\n\nWritten to {args.out}.")
    if not gpu_table.sound(documents):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
