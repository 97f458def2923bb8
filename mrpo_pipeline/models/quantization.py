"""A frozen 4-bit base (QLoRA, arXiv 2305.14314) by bitsandbytes."""

from __future__ import annotations

import importlib.util
import os
from typing import Any

from mrpo_pipeline.errors import UserError

FOUR_BIT = ("nf4", "4bit")


def check_quantization(quantization: str | None) -> None:
    """Refuse an unsupported quantization before anything is read.

    Raises:
        UserError: for another kind than nf4, a machine without a GPU, or without bitsandbytes.
    """
    if quantization is None:
        return
    if quantization not in FOUR_BIT:
        raise UserError(
            f"The setting policy.quantization is {quantization!r}: expected nf4, which the frozen base can be trained over. "
            "A checkpoint that is quantized already needs no such key. Correct it, or take it out."
        )
    import torch

    lacking = [
        what
        for what, here in (
            ("a CUDA device", torch.cuda.is_available()),
            ("the package bitsandbytes", importlib.util.find_spec("bitsandbytes") is not None),
        )
        if not here
    ]
    if lacking:
        raise UserError(
            f"The setting policy.quantization is {quantization}, and this machine has not {' nor '.join(lacking)}: expected "
            "both, for the 4-bit arithmetic is theirs. Train on a GPU with bitsandbytes installed, or take the setting out "
            "(policy.quantization: null), which trains over the weights as they are and needs about four times their memory."
        )


def quantized_loading(quantization: str | None, dtype: Any) -> dict[str, Any]:
    """Arguments of ``from_pretrained``; empty without quantization.

    Args:
        dtype: torch dtype of products with the 4-bit weights.
    """
    if quantization is None:
        return {}
    check_quantization(quantization)
    from transformers import BitsAndBytesConfig

    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        # FSDP cannot shard integer tensors: the packed bits are stored in the compute dtype.
        bnb_4bit_quant_storage=dtype,
    )
    return {"quantization_config": settings, "device_map": {"": int(os.environ.get("LOCAL_RANK", "0"))}}
