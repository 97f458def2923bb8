"""The device that hours and memory are planned for."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.plan.extrapolation import Estimate
from mrpo_pipeline.plan.gpus import EFFICIENCY, Gpu, find_gpu, gpu_here

NO_GPU = "none"

# Share of a CPU's matrix-product speed that scoring and training reach; the rest is attention, norms, softmax and padding.
# Scoring by transformers in float32 on one core reached 0.64 (SmolLM2-135M) and 0.56 (Gemma-3-270m, vocabulary 262,144).
CPU_EFFICIENCY = 0.55
_MEASURE_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Machine:
    """The hardware of a run.

    Attributes:
        gpu: None for this machine's CPU.
        count: number of GPUs. efficiency: share of the device's peak speed that is reached.
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
        """Memory of one device."""
        if self.gpu is not None:
            return self.gpu.memory_bytes
        import psutil

        return int(psutil.virtual_memory().total)

    def hours(self, flops: Estimate | None, dtype: str | None) -> Estimate | None:
        """Hours for this many operations; None where the speed is unknown.

        Args:
            dtype: of the model's computation: a CPU is far slower in some. None: unknown.
        """
        if flops is None or not self.timed:
            return None
        if self.gpu is not None:
            speed = self.gpu.peak_tflops and self.gpu.peak_tflops * 1e12 * self.count
        else:
            speed = cpu_flops(dtype) if dtype else None
        return flops.times(1 / (speed * self.efficiency * 3600)) if speed else None

    def describe_gpu(self) -> dict[str, Any] | None:
        """``Gpu``'s fields, ``efficiency`` and ``count``; None where the plan is for the CPU."""
        return None if self.gpu is None else {**asdict(self.gpu), "efficiency": self.efficiency, "count": self.count}

    def describe_cpu(self, dtypes: Iterable[str | None]) -> dict[str, Any] | None:
        """``threads``, ``gflops`` (10⁹ operations a second, by dtype) and ``efficiency``; None where no hours are for the CPU."""
        if self.gpu is not None or not self.timed:
            return None
        import torch

        measured = {dtype: cpu_flops(dtype) / 1e9 for dtype in sorted({one for one in dtypes if one is not None})}
        return {"threads": torch.get_num_threads(), "gflops": measured, "efficiency": self.efficiency}


def choose_machine(gpu: str | None, count: int, efficiency: float | None = None) -> Machine:
    """The requested GPU, else this machine's GPU, else its CPU.

    Args:
        efficiency: None for the device's default.

    Raises:
        UserError: for an unknown GPU, or a count or efficiency out of range.
    """
    if count < 1:
        raise UserError(f"--gpus is {count}: expected 1 or more.")
    if efficiency is not None and not 0 < efficiency <= 1:
        raise UserError(f"--efficiency is {efficiency:g}: expected a share of the peak speed, above 0 and at most 1.")
    found = None if gpu == NO_GPU else find_gpu(gpu) if gpu is not None else gpu_here()
    default = CPU_EFFICIENCY if found is None else EFFICIENCY
    return Machine(found, count, default if efficiency is None else efficiency, timed=gpu != NO_GPU)


@functools.cache
def cpu_flops(dtype: str) -> float:
    """Matrix-product operations a second on this CPU with torch's threads, to two digits.

    Measured in CPU time, which other programs hardly affect: the plan assumes an idle machine.
    """
    import torch

    rows, inner, columns = 256, 1024, 1024
    kind = getattr(torch, dtype)
    with torch.inference_mode():
        a, b = torch.ones(rows, inner, dtype=kind), torch.ones(inner, columns, dtype=kind)
        a @ b  # warm-up
        done, began = 0, time.process_time()
        while (spent := time.process_time() - began) < _MEASURE_SECONDS:
            a @ b
            done += 1
    threads = torch.get_num_threads()
    return float(f"{2 * rows * inner * columns * done * threads / spent:.1e}")
