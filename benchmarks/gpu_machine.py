"""Stage ``machine`` of the GPU benchmark: the peak speeds for the other stages' shares, and the fast paths that this torch has."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from gpu_cells import Cell, LeftOut
from gpu_models import Meter, Place, matmul_flops


def product(place: Place, dtype: torch.dtype) -> dict[str, Any]:
    from mrpo_pipeline.plan.gpus import gpu_here

    measured = matmul_flops(place, dtype, place.pick(8192, 256))
    found: dict[str, Any] = {"value": measured / 1e12, "unit": "TFLOP/s"}
    gpu = gpu_here() if place.device == "cuda" and dtype == torch.bfloat16 else None
    if gpu is not None and gpu.peak_tflops:
        found |= {"ratio": measured / 1e12 / gpu.peak_tflops, "of": f"the data sheet's {gpu.peak_tflops:,.0f}"}
    return found


def copy(place: Place) -> dict[str, Any]:
    source = torch.zeros(place.pick(1 << 30, 1 << 22), dtype=torch.uint8, device=place.device)
    target = torch.empty_like(source)
    seconds = Meter(place.device).seconds(lambda: target.copy_(source), repeats=10, warm=3)
    return {"value": 2 * source.numel() / seconds / 1e9, "unit": "GB/s", "note": "bytes read and written"}


def variable_length(place: Place) -> dict[str, Any]:
    """Which arguments this torch's variable-length attention kernel takes."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError as error:
        raise LeftOut(
            f"torch {torch.__version__} has no torch.nn.attention.varlen: shared prompts run by SDPA"
        ) from error
    taken = set(inspect.signature(varlen_attn).parameters)
    wanted = ("scale", "window_size", "enable_gqa")
    lacking = [name for name in wanted if name not in taken]
    return {
        "value": float(len(wanted) - len(lacking)),
        "unit": f"of {len(wanted)} arguments",
        "note": f"lacks {', '.join(lacking)}: shared prompts run by SDPA" if lacking else "the kernel is complete",
    }


def cells(place: Place) -> list[Cell]:
    return [
        Cell(f"matrix product, {str(place.dtype).removeprefix('torch.')}", lambda: product(place, place.dtype)),
        Cell("copy of memory", lambda: copy(place)),
        Cell("attention over uneven lengths", lambda: variable_length(place)),
    ]
