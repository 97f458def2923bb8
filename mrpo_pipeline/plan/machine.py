"""What a run is planned for: the GPU of the hours, and the device whose memory is told."""

from __future__ import annotations

from dataclasses import dataclass

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.plan.estimate import Estimate
from mrpo_pipeline.plan.gpus import ASSUMED, GPUS, Gpu, find_gpu, gpu_here
from mrpo_pipeline.plan.report import GpuPlan

NONE = "none"


@dataclass(frozen=True, slots=True)
class Machine:
    """Where a run would be.

    Attributes:
        gpu: what hours are told for; None for no hours.
        assumed: that GPU was neither asked for nor found here.
        count: GPUs. efficiency: the share of their peak that is reached.
    """

    gpu: Gpu | None
    assumed: bool
    count: int
    efficiency: float

    @property
    def device(self) -> str:
        """What memory is told for: a GPU that was asked for or is here, else this machine's CPU."""
        return "cpu" if self.gpu is None or self.assumed else "gpu"

    @property
    def memory_bytes(self) -> int:
        """Of one device."""
        if self.device == "gpu" and self.gpu is not None:
            return self.gpu.memory_bytes
        import psutil

        return int(psutil.virtual_memory().total)

    def hours(self, flops: Estimate | None) -> Estimate | None:
        """How long so many operations take; never told for a CPU, whose speed at this is anyone's guess."""
        if flops is None or self.gpu is None:
            return None
        return flops.times(1 / (self.gpu.peak_tflops * 1e12 * self.efficiency * self.count * 3600))

    def describe(self) -> GpuPlan | None:
        gpu = self.gpu
        if gpu is None:
            return None
        return GpuPlan(
            gpu.name, gpu.label, gpu.peak_tflops, gpu.memory_bytes, self.efficiency, self.count, self.assumed
        )


def choose_machine(gpu: str | None, count: int, efficiency: float) -> Machine:
    """What was asked for; else the GPU of this machine; else an assumed one, for the hours alone.

    Raises:
        UserError: for a GPU that is not known, or numbers that can't be.
    """
    if count < 1:
        raise UserError(f"--gpus is {count}: expected 1 or more. Correct it.")
    if not 0 < efficiency <= 1:
        raise UserError(
            f"--efficiency is {efficiency:g}: expected a share of the GPU's peak, above 0 and at most 1 (0.4, say). Correct it."
        )
    if gpu == NONE:
        return Machine(None, False, count, efficiency)
    if gpu is not None:
        return Machine(find_gpu(gpu), False, count, efficiency)
    here = gpu_here()
    return Machine(here or GPUS[ASSUMED], here is None, count, efficiency)
