"""For the stage ``correctness`` of the GPU benchmark: how much dtype, 4 bits and the choice of engine change a token's log-prob."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from gpu_cells import LeftOut
from gpu_engines import saved_model, scored, vllm_scored
from gpu_models import Pairs, Place, made_up_pairs, random_model, requests_of
from torch import Tensor

SHAPE = "1B"
# In bfloat16, a multiple of the plain computation's difference from float32: two correct computations round in different places.
ROUNDING = 2.0


def named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def pairs_of(place: Place) -> Pairs:
    return made_up_pairs(place, place.pick(12, 5), seed=1)


def within(difference: float, limit: float, unit: str, note: str = "", **more: Any) -> dict[str, Any]:
    found = {"value": difference, "unit": unit, "ratio": difference / limit, "of": f"the limit {limit:g}"}
    return found | {"ok": difference <= limit, "note": note, **more}


def gradients(model: Any) -> Tensor:
    found = [p.grad.flatten().float() for p in model.parameters() if p.requires_grad]
    model.zero_grad()
    return torch.cat(found)


def nf4(place: Place) -> dict[str, Any]:
    """A 4-bit base: the average change of a log-prob, and whether the gradient through it is finite."""
    from mrpo_pipeline.models.loading import load_model
    from mrpo_pipeline.models.source import ModelSource
    from mrpo_pipeline.policy.lora import add_adapter
    from mrpo_pipeline.recipe import Lora

    if place.device != "cuda":
        raise LeftOut("4-bit arithmetic needs a CUDA device")
    requests = requests_of(pairs_of(place))
    with saved_model(place, SHAPE) as folder:
        source = ModelSource(model=folder, dtype="bfloat16", quantization="nf4").named("nf4")
        model, _ = load_model(source, device=torch.device(place.device))
    quantized = scored(model, torch.bfloat16, requests)
    plain = scored(random_model(place, SHAPE, torch.bfloat16), torch.bfloat16, requests)
    policy = add_adapter(model, Lora(target_modules="all-linear"))
    ids = torch.from_numpy(requests[0].completion_ids.astype("int64"))[None].to(place.device)
    policy(input_ids=ids).logits.float().logsumexp(-1).sum().backward()
    if not bool(torch.isfinite(gradients(policy)).all()):
        raise RuntimeError("the adapter's gradient over a 4-bit base is not finite")
    return {"value": mean_difference(quantized, plain), "unit": "nats/token", "note": "the gradient is finite"}


def mean_difference(found: Iterable[Tensor], expected: Iterable[Tensor]) -> float:
    """Average |difference| of a token's log-prob, nats."""
    return float((torch.cat([*found]) - torch.cat([*expected])).abs().mean())


def rounding(place: Place) -> dict[str, Any]:
    """The effect of bfloat16 itself: the transformers engine in both dtypes. It depends on the random weights, so it has no limit."""
    requests = requests_of(pairs_of(place))
    half, whole = (
        scored(random_model(place, SHAPE, dtype), dtype, requests) for dtype in (torch.bfloat16, torch.float32)
    )
    return {"value": mean_difference(half, whole), "unit": "nats/token"}


def vllm_drift(place: Place) -> dict[str, Any]:
    """vLLM against the transformers engine in float32; in bfloat16, beside the error of the transformers engine in bfloat16."""
    from mrpo_pipeline.verify.tolerances import limits_for

    requests, dtype = requests_of(pairs_of(place)), place.dtype
    exact = scored(random_model(place, SHAPE, torch.float32), torch.float32, requests)
    with saved_model(place, SHAPE) as folder:
        found, _ = vllm_scored(place, folder, requests)
    limit = limits_for("float32").token_mean
    if dtype == torch.bfloat16:
        limit = ROUNDING * mean_difference(scored(random_model(place, SHAPE, dtype), dtype, requests), exact)
    return within(mean_difference(found, exact), limit, "nats/token", named(dtype))
