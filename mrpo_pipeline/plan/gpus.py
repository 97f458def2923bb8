"""Known GPUs with the peak speed of their data sheets, and how a driver's name is matched to one."""

from __future__ import annotations

import re
from dataclasses import dataclass

from mrpo_pipeline.errors import UserError

EFFICIENCY = 0.4


@dataclass(frozen=True, slots=True)
class Gpu:
    """One kind of GPU.

    Attributes:
        name: the value of ``--gpu``; the driver's name for a GPU that is not in the table.
        label: the product name.
        peak_tflops: dense bfloat16 matrix products with float32 accumulation, 10¹² operations a second; None where unknown.
        memory_bytes: of the data sheet (decimal gigabytes), or as the driver reports.
    """

    name: str
    label: str
    peak_tflops: float | None
    memory_bytes: int


# Data sheets, figures without sparsity (with it they are twice as high). NVIDIA: "B200" in the DGX B200 data sheet,
# "GH200", "H200", "H100 SXM, PCIe and NVL", "A100 80GB SXM", "A30", "A40", "A10", "L40", "L40S", "L4", "RTX A6000", "RTX A5000",
# "RTX 6000 Ada" data sheets, A10G by AWS and NVIDIA; GeForce: appendices of the Blackwell (GB202), Ada (AD102) and Ampere (GA102)
# architecture white papers, the row of bfloat16 with float32 accumulation. AMD: "Instinct MI300X" data sheet.
_TABLE = (
    ("b200", "NVIDIA B200", 2250.0, 180),
    ("gh200", "NVIDIA GH200", 989.4, 96),
    ("h200", "NVIDIA H200", 989.4, 141),
    ("h200-nvl", "NVIDIA H200 NVL", 835.5, 141),
    ("h100", "NVIDIA H100 SXM", 989.4, 80),
    ("h100-nvl", "NVIDIA H100 NVL", 835.5, 94),
    ("h100-pcie", "NVIDIA H100 PCIe", 756.0, 80),
    ("a100", "NVIDIA A100 80GB", 311.9, 80),
    ("a100-40gb", "NVIDIA A100 40GB", 311.9, 40),
    ("a30", "NVIDIA A30", 165.0, 24),
    ("a40", "NVIDIA A40", 149.7, 48),
    ("a10", "NVIDIA A10", 125.0, 24),
    ("a10g", "NVIDIA A10G", 70.0, 24),
    ("l40s", "NVIDIA L40S", 362.0, 48),
    ("l40", "NVIDIA L40", 181.0, 48),
    ("l4", "NVIDIA L4", 121.0, 24),
    ("rtx6000-ada", "NVIDIA RTX 6000 Ada", 364.2, 48),
    ("rtx-a6000", "NVIDIA RTX A6000", 154.8, 48),
    ("rtx-a5000", "NVIDIA RTX A5000", 111.1, 24),
    ("rtx5090", "NVIDIA RTX 5090", 209.5, 32),
    ("rtx4090", "NVIDIA RTX 4090", 165.2, 24),
    ("rtx3090", "NVIDIA RTX 3090", 71.0, 24),
    ("mi300x", "AMD MI300X", 1307.4, 192),
)
GPUS = {name: Gpu(name, label, tflops, gigabytes * 10**9) for name, label, tflops, gigabytes in _TABLE}

# Words of a driver's name that do not identify the chip. "GRID", "Laptop", "MIG", "Quadro", "Max-Q" and "D" do: such a GPU is
# another chip, or a part of one.
_IGNORED = {"nvidia", "amd", "geforce", "instinct", "tesla", "oam", "hbm2", "hbm2e", "hbm3", "hbm3e"}
_MEMORY = re.compile(r"(\d+)gb?")
_FORM = re.compile(r"sxm\d*|pcie")
# Other spellings of a name of the table.
_ALIASES = {"rtx6000adageneration": "rtx6000ada", "rtx6000ada": "rtx6000ada"}


def recognize(name: str) -> str | None:
    """The table's name of a GPU, from the driver's or a user's spelling; None where the table does not have it.

    Every word has to match: "L40" is not an L4, "RTX A1000" is not an A100, "RTX 4090 Laptop GPU" is not an RTX 4090, and a
    MIG instance ("MIG 1g.10gb") is not the GPU.
    """
    words = [word for word in re.split(r"[\s_/-]+", name.lower()) if word and word not in _IGNORED]
    form = {"pcie" if word == "pcie" else "sxm" for word in words if _FORM.fullmatch(word)}
    sizes = [int(found[1]) for word in words if (found := _MEMORY.fullmatch(word))]
    chip = "".join(word for word in words if not _FORM.fullmatch(word) and not _MEMORY.fullmatch(word))
    if chip == "h100" and "pcie" in form:
        return "h100-pcie"
    if chip == "a100":
        return {(): "a100", (80,): "a100", (40,): "a100-40gb"}.get(tuple(sizes))
    return _NAMES.get(_ALIASES.get(chip, chip))


_NAMES = {name.replace("-", ""): name for name in GPUS}


def find_gpu(name: str) -> Gpu:
    """The GPU of this name. Raises UserError where the table does not have it."""
    found = recognize(name)
    if found is None:
        raise UserError(
            f"--gpu is {name!r}, a GPU of unknown speed: expected one of {', '.join(GPUS)}, or none. Use the nearest one and "
            "adjust --efficiency."
        )
    return GPUS[found]


def gpu_here() -> Gpu | None:
    """This machine's first GPU, with the memory that its driver reports; None without a GPU.

    The speed of a GPU that is not in the table is None.
    """
    import torch

    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(0)
    found = recognize(properties.name)
    speed = GPUS[found].peak_tflops if found else None
    return Gpu(found or properties.name, properties.name, speed, int(properties.total_memory))
