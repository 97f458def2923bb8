"""A tiny model with an adapter of any kind, unmerged, as an oracle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tiny_models import build, make


def adapted(kind: str, folder: Path, *, dtype: str = "float32", **lora: Any) -> torch.nn.Module:
    """A tiny model with an adapter that changes its numbers by nats; both written under `folder`.

    Args:
        lora: settings of peft's `LoraConfig`.
    """
    from peft import LoraConfig, get_peft_model

    build(kind, folder / "base", dtype=dtype)
    torch.manual_seed(1)
    model = get_peft_model(make(kind), LoraConfig(**({"r": 4, "init_lora_weights": False} | lora)))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "modules_to_save" in name:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(folder / "adapter")
    return model.eval()
