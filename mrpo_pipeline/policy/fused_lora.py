"""A linear layer and its LoRA adapter as one autograd function: peft's result with fewer passes over memory.

peft computes, scales and adds the adapter's output in separate passes over a tensor of the layer's size. Here the product
is accumulated into the layer's output, and the operands of every low-rank product are in the faster order.
"""

from __future__ import annotations

from types import MethodType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class _LinearWithAdapter(torch.autograd.Function):
    """y = x·Wᵀ + b + s·(x·Aᵀ)·Bᵀ, W and b frozen."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        scaling: float,
        dtype: torch.dtype,
    ) -> Tensor:
        """(…, I) with weight (O, I), a (r, I), b (O, r) to (…, O), in ``dtype``."""
        flat = x.reshape(-1, x.shape[-1]).to(dtype)  # (N, I)
        frozen = weight.to(dtype)
        y = flat @ frozen.t() if bias is None else torch.addmm(bias.to(dtype), flat, frozen.t())  # (N, O)
        low = flat @ a.to(dtype).t()  # (N, r)
        y.addmm_(low, b.to(dtype).t(), alpha=scaling)
        ctx.save_for_backward(flat, weight, a, b, low)
        ctx.scaling, ctx.shape, ctx.dtype = scaling, x.shape, x.dtype
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *incoming: Tensor) -> tuple[Tensor | None, ...]:
        flat, weight, a, b, low = ctx.saved_tensors
        by_y = incoming[0].reshape(-1, weight.shape[0])  # (N, O)
        dtype = by_y.dtype
        by_low = (b.to(dtype).t() @ by_y.t()).mul_(ctx.scaling)  # (r, N)
        by_b = (low.t() @ by_y).mul_(ctx.scaling).t()  # (O, r)
        by_a = by_low @ flat  # (r, I)
        by_x = None
        if ctx.needs_input_grad[0]:
            by_x = (by_y @ weight.to(dtype)).addmm_(by_low.t(), a.to(dtype)).view(ctx.shape).to(ctx.dtype)
        return by_x, None, None, by_a.to(a.dtype), by_b.to(b.dtype).contiguous(), None, None


def fuse_adapters(model: nn.Module) -> int:
    """Fuse every plain linear layer with its one plain LoRA adapter; returns the number of fused layers.

    Other layers (quantized, DoRA, adapter bias, hooks) keep peft's forward. So do calls with the adapter disabled, merged,
    or with active dropout.
    """
    from peft.tuners.lora.layer import Linear

    fused = 0
    for module in model.modules():
        if type(module) is Linear and _is_plain(module):
            module.forward = MethodType(_forward, module)
            fused += 1
    return fused


def _is_plain(module: Any) -> bool:
    base = module.base_layer
    return (
        type(base) is nn.Linear
        and not (base._forward_hooks or base._forward_pre_hooks or hasattr(base, "_hf_hook"))
        and not any(parameter.requires_grad for parameter in base.parameters())
        and len(module.active_adapters) == 1
        and module.active_adapters[0] in module.lora_A
        and not module.lora_variant
        and all(type(part) is nn.Linear and part.bias is None for part in _parts(module))
    )


def _parts(module: Any) -> tuple[nn.Module, nn.Module]:
    name = module.active_adapters[0]
    return module.lora_A[name], module.lora_B[name]


def _forward(module: Any, x: Tensor, *args: Any, **options: Any) -> Tensor:
    adapters = module.active_adapters
    usual = not (args or options or module.disable_adapters or module.merged) and len(adapters) == 1
    if usual and adapters[0] in module.lora_A:
        name = adapters[0]
        dropout = module.lora_dropout[name]
        a, b = module.lora_A[name].weight, module.lora_B[name].weight
        weight, bias = module.base_layer.weight, module.base_layer.bias
        device = x.device.type
        mixed = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if mixed else x.dtype
        drops = module.training and getattr(dropout, "p", 0.0) > 0
        if not drops and (mixed or x.dtype == weight.dtype == a.dtype == b.dtype):
            # torch does not annotate `apply`.
            return cast(
                Tensor,
                _LinearWithAdapter.apply(x, weight, bias, a, b, module.scaling[name], dtype),  # type: ignore[no-untyped-call]
            )
    return cast(Tensor, type(module).forward(module, x, *args, **options))
