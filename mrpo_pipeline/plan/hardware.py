"""What a run is planned for: the device whose hours and memory are given."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.plan.extrapolation import Estimate
from mrpo_pipeline.plan.gpus import EFFICIENCY, Gpu, find_gpu, gpu_here
from mrpo_pipeline.plan.result import CpuPlan, GpuPlan

NONE = "none"

# The share of the speed of plain matrix products that scoring and training reach on a CPU: the rest is attention, norms, softmax
# and rows that are padded. Scoring by transformers in float32 on one core was measured at 0.64 (SmolLM2-135M) and 0.56
# (Gemma-3-270m, vocabulary 262,144).
CPU_EFFICIENCY = 0.55
_MEASURE_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Machine:
    """Where a run would be.

    Attributes:
        gpu: the one that was asked for or is here; None for this machine's CPU.
        count: GPUs. efficiency: the share of the device's speed that is reached.
        timed: whether hours are given.
    """

    gpu: Gpu | None
    count: int
    efficiency: float
    timed: bool = True

    @property
    def device(self) -> str:
        return "cpu" if self.gpu is None else "gpu"

    @property
    def memory_bytes(self) -> int:
        """Of one device."""
        if self.gpu is not None:
            return self.gpu.memory_bytes
        import psutil

        return int(psutil.virtual_memory().total)

    def hours(self, flops: Estimate | None, dtype: str | None) -> Estimate | None:
        """How long so many operations take; None where the speed is unknown.

        Args:
            dtype: what the model computes in: a CPU is far slower in some. None: unknown.
        """
        if flops is None or not self.timed:
            return None
        if self.gpu is not None:
            speed = self.gpu.peak_tflops and self.gpu.peak_tflops * 1e12 * self.count
        else:
            speed = cpu_flops(dtype) if dtype else None
        return flops.times(1 / (speed * self.efficiency * 3600)) if speed else None

    def describe(self) -> GpuPlan | None:
        """The GPU; None where the plan is for the CPU."""
        return None if self.gpu is None else GpuPlan(**asdict(self.gpu), efficiency=self.efficiency, count=self.count)

    def describe_cpu(self, dtypes: Iterable[str | None]) -> CpuPlan | None:
        """The CPU, with its speed in these dtypes; None where hours are for a GPU, or for nothing."""
        if self.gpu is not None or not self.timed:
            return None
        import torch

        measured = {dtype: cpu_flops(dtype) / 1e9 for dtype in sorted({one for one in dtypes if one is not None})}
        return CpuPlan(torch.get_num_threads(), measured, self.efficiency)


def choose_machine(gpu: str | None, count: int, efficiency: float | None = None) -> Machine:
    """What was asked for; else the GPU of this machine; else its CPU.

    Args:
        efficiency: None for the usual one of the device.

    Raises:
        UserError: for a GPU that is not known, or numbers that can't be.
    """
    if count < 1:
        raise UserError(f"--gpus is {count}: expected 1 or more. Correct it.")
    if efficiency is not None and not 0 < efficiency <= 1:
        raise UserError(
            f"--efficiency is {efficiency:g}: expected a share of the device's speed, above 0 and at most 1 (0.4, say). Correct it."
        )
    found = None if gpu == NONE else find_gpu(gpu) if gpu is not None else gpu_here()
    usual = CPU_EFFICIENCY if found is None else EFFICIENCY
    return Machine(found, count, usual if efficiency is None else efficiency, timed=gpu != NONE)


@functools.cache
def cpu_flops(dtype: str) -> float:
    """Operations a second of matrix products on this CPU, with the threads that torch takes here: measured, to two digits.

    By processor time, so that other programs do not count: the machine is assumed to be free for the run.
    """
    import torch

    rows, inner, columns = 256, 1024, 1024
    kind = getattr(torch, dtype)
    with torch.inference_mode():
        a, b = torch.ones(rows, inner, dtype=kind), torch.ones(inner, columns, dtype=kind)
        a @ b  # the first one sets up the library
        done, began = 0, time.process_time()
        while (spent := time.process_time() - began) < _MEASURE_SECONDS:
            a @ b
            done += 1
    threads = torch.get_num_threads()
    return float(f"{2 * rows * inner * columns * done * threads / spent:.1e}")
