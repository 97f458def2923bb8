"""GPUs a run may be planned for: how fast their makers say they are, and how much memory they have."""

from __future__ import annotations

from dataclasses import dataclass

from mrpo_pipeline.errors import UserError

ASSUMED = "h100"
EFFICIENCY = 0.4


@dataclass(frozen=True, slots=True)
class Gpu:
    """One kind of GPU.

    Attributes:
        name: as in ``--gpu``.
        label: as a person would write it.
        peak_tflops: dense bfloat16 matrix products with float32 sums, in 10¹² operations a second.
        memory_bytes: in decimal gigabytes as the maker counts them.
    """

    name: str
    label: str
    peak_tflops: float
    memory_bytes: int


# Makers' data sheets, figures without sparsity (those with it are twice as high). NVIDIA: "B200" in the DGX B200 data sheet,
# "H200", "H100 SXM and PCIe", "A100 80GB SXM", "L40S", "L4", "A10" data sheets; GeForce: appendix of the Ada (AD102) and
# Ampere (GA102) architecture white papers, the row of bfloat16 with float32 accumulation. AMD: "Instinct MI300X" data sheet.
_TABLE = (
    ("b200", "NVIDIA B200", 2250.0, 180),
    ("h200", "NVIDIA H200", 989.4, 141),
    ("h100", "NVIDIA H100 SXM", 989.4, 80),
    ("h100-pcie", "NVIDIA H100 PCIe", 756.0, 80),
    ("a100", "NVIDIA A100 80GB", 311.9, 80),
    ("a100-40gb", "NVIDIA A100 40GB", 311.9, 40),
    ("l40s", "NVIDIA L40S", 362.0, 48),
    ("a10", "NVIDIA A10", 125.0, 24),
    ("l4", "NVIDIA L4", 121.0, 24),
    ("rtx4090", "NVIDIA RTX 4090", 165.2, 24),
    ("rtx3090", "NVIDIA RTX 3090", 71.0, 24),
    ("mi300x", "AMD MI300X", 1307.4, 192),
)
GPUS = {name: Gpu(name, label, tflops, gigabytes * 10**9) for name, label, tflops, gigabytes in _TABLE}


def find_gpu(name: str) -> Gpu:
    """The GPU of that name.

    Raises:
        UserError: for one that is not in the table.
    """
    plain = name.lower().replace(" ", "").replace("_", "-")
    if plain not in GPUS:
        raise UserError(
            f"--gpu names {name!r}, whose speed this program does not know: expected one of {', '.join(GPUS)}, or none. "
            "Take the nearest of these, and correct it by --efficiency."
        )
    return GPUS[plain]


def gpu_here() -> Gpu | None:
    """The GPU of this machine with its own memory, where there is one that the table knows."""
    import torch

    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(0)
    found = properties.name.lower().replace(" ", "").replace("-", "")
    names = sorted(GPUS, key=len, reverse=True)
    for name in names:
        if name.replace("-", "") in found:
            known = GPUS[name]
            return Gpu(name, properties.name, known.peak_tflops, int(properties.total_memory))
    return None
