"""Stage ``fsdp2`` of the GPU benchmark: one policy trained on two GPUs under FSDP2, beside one GPU; on a CPU, two processes.

The same pairs are in the same optimizer steps, so the losses must agree. Each run starts this file as a program.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from gpu_cells import Cell, LeftOut
from gpu_models import Place, measured_peak
from gpu_stage_two import MRPO, pairs_of, steps_of, train

SHAPE = "8B"
ONE, TWO = "mrpo, one process", "mrpo, two processes, FSDP2"
# nats: two orders of summation in bfloat16 change a loss of about 0.7 by at most this.
LOSS_TOLERANCE = {"cuda": 2e-2, "cpu": 1e-4}


def launch(place: Place, processes: int) -> dict[str, Any]:
    """Run this file in this many processes; returns the figures of the first."""
    if place.device == "cuda" and torch.cuda.device_count() < 2:
        raise LeftOut(f"needs two GPUs, and {torch.cuda.device_count()} is here")
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    with tempfile.TemporaryDirectory(dir=place.scratch) as folder:
        path = Path(folder) / "figures.json"
        command = [sys.executable, *launcher, __file__, json.dumps(asdict(place)), str(processes), str(path)]
        child = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        try:
            said, _ = child.communicate()
        except BaseException:
            child.terminate()  # the launcher then ends its processes
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(15)
            child.kill()
            raise
        if child.returncode or not path.is_file():
            raise RuntimeError(f"exit status {child.returncode}: {said[-1500:]}")
        figures: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return figures


def two(place: Place) -> dict[str, Any]:
    found = launch(place, 2)
    alone = Path(place.folder) / "fsdp2.partial.json"
    expected = json.loads(alone.read_text(encoding="utf-8"))["cells"].get(ONE, {}).get("losses")
    if expected:
        gap = max(abs(a - b) for a, b in zip(found["losses"], expected, strict=True))
        found |= {"note": f"losses apart by {gap:.1g}", "ok": gap <= LOSS_TOLERANCE[place.device]}
    if measured_peak(place) and "peak_share" in found:
        found["peak_share"] /= 2  # of both
    return found


def cells(place: Place) -> list[Cell]:
    return [Cell(ONE, partial(launch, place, 1), MRPO), Cell(TWO, partial(two, place), MRPO, ONE)]


def main() -> None:
    place, processes = Place(**json.loads(sys.argv[1])), int(sys.argv[2])
    from gpu_trainers import ACCUMULATION, mrpo_trainer

    from mrpo_pipeline.policy.distributed import join_process_group, leave_process_group, rank

    training: dict[str, Any] = {
        "max_steps": sum(steps_of(place)),
        "gradient_accumulation_steps": ACCUMULATION // processes,
    } | ({"fsdp": True} if processes > 1 else {})
    join_process_group(training)
    pairs = pairs_of(place)
    trainer = mrpo_trainer(place, SHAPE, pairs, training=training)
    if processes > 1 and not trainer.is_fsdp_enabled:
        raise SystemExit("The trainer does not run under FSDP: expected it to.")
    found = train(place, SHAPE, trainer, pairs)
    if rank() == 0:
        Path(sys.argv[3]).write_text(json.dumps(found), encoding="utf-8")
    leave_process_group()


if __name__ == "__main__":
    main()
