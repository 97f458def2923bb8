"""Stage ``correctness`` of the GPU benchmark: every fast path against the plain computation, in bfloat16 and in float32.

A value is a difference, and its ratio the share of the program's own limit: above 1 it is wrong. As in the program's own checks,
float32 uses the worst completion, bfloat16 the average.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from gpu_cells import Cell, LeftOut
from gpu_drift import ROUNDING, SHAPE, gradients, named, nf4, pairs_of, rounding, vllm_drift, within
from gpu_engines import scored
from gpu_models import Pairs, Place, cast, config_of, random_model, requests_of
from gpu_trainers import examples_of, mrpo_trainer
from torch import Tensor

# Share of a gradient's norm: two orders of summation over dozens of layers in float32, and one product in bfloat16.
GRADIENT = {"float32": 1e-3, "bfloat16": 5e-2}


def apart(found: Tensor, expected: Tensor) -> float:
    """|difference| ÷ |expected|, as norms."""
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def compared(
    dtype: torch.dtype, found: Tensor, plain: Tensor, exact: Tensor | Callable[[], Tensor], note: str = ""
) -> dict[str, Any]:
    """In float32, compare with the plain computation; in bfloat16, compare both with the plain one in float32 (``exact``)."""
    unit = "of the norm"
    if dtype == torch.float32:
        return within(apart(found, plain), GRADIENT["float32"], unit, note)
    truth = exact if isinstance(exact, Tensor) else exact()
    worst = apart(found, truth), apart(plain, truth)
    return within(worst[0], ROUNDING * worst[1], unit, f"the plain way {worst[1]:.2g}{'; ' if note else ''}{note}")


def nats(found: Tensor, expected: Tensor, counts: Tensor, dtype: torch.dtype) -> float:
    """Difference of completions' sums, nats per token: of the worst completion in float32, else the average over all tokens."""
    gap = (found.double() - expected.double()).abs().cpu()
    return float((gap / counts).max() if dtype == torch.float32 else gap.sum() / counts.sum())


def tolerance(dtype: torch.dtype) -> float:
    from mrpo_pipeline.models.prompt_sharing_check import TOLERANCE

    return TOLERANCE[named(dtype)]


def uneven_attention(place: Place, window: int | None) -> dict[str, Any]:
    """The variable-length kernel's output and gradients against SDPA's in float32, beside the error of SDPA in bfloat16."""
    from mrpo_pipeline.models import shared_prompt_attention as attention

    if place.device != "cuda":
        raise LeftOut("the kernel for sequences of uneven length needs a CUDA device")
    config = config_of(place, "8B")
    heads, groups, size = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    row = attention.Row([(700, 500, 400), (300, 1, 900), (64, 200, 200, 200)], variable_length=True)
    generator = torch.Generator(place.device).manual_seed(0)
    given = [
        torch.randn(1, count, sum(row.sizes), size, device=place.device, generator=generator)
        for count in (heads, groups, groups)
    ]
    by_output = torch.randn(1, sum(row.sizes), heads, size, device=place.device, generator=generator)

    def run(dtype: torch.dtype, attend: Callable[..., Tensor], *more: Any) -> list[Tensor]:
        leaves = [tensor.to(dtype).requires_grad_() for tensor in given]
        output = attend(row, *leaves, size**-0.5, window, *more)
        return [output, *torch.autograd.grad(output, leaves, by_output.to(dtype))]

    runs = [run(torch.bfloat16, attention._in_one_kernel), run(torch.bfloat16, attention._one_by_one, None)]
    runs.append(run(torch.float32, attention._one_by_one, None))
    each = [compared(torch.bfloat16, *one) for one in zip(*runs, strict=True)]
    return max(each, key=lambda one: float(one["ratio"]))  # of the output and the three gradients


def shared_prompts(place: Place, dtype: torch.dtype) -> dict[str, Any]:
    """Sums of completions with every prompt run once, against a padded row for each completion."""
    from mrpo_pipeline.models.completion_forward import CompletionForward, to_device
    from mrpo_pipeline.models.head import Head
    from mrpo_pipeline.models.input_layouts import Group
    from mrpo_pipeline.models.prompt_sharing_check import Trial, share_prompts

    pairs, device = pairs_of(place), torch.device(place.device)
    groups = [
        Group(p, [c, r], [None, None]) for p, c, r in zip(pairs.prompts, pairs.chosen, pairs.rejected, strict=True)
    ]
    counts = torch.tensor([count for group in groups for count in group.counts])
    forward = CompletionForward(Head.of(random_model(place, SHAPE, dtype)))

    def run(some: list[Any]) -> Tensor:
        return forward.sums(**to_device(forward.rows(some), device))

    with torch.no_grad():
        plain = run(groups)
        reason = share_prompts(forward, run, [Trial.of(groups, run)], dtype=named(dtype), device=device)
        if reason is not None or forward.attention is None:
            raise RuntimeError(f"prompts are not shared: {reason}")
        one_kernel = forward.attention.variable_length and place.device == "cuda" and dtype != torch.float32
        found = nats(run(groups), plain, counts, dtype)
    return within(found, tolerance(dtype), "nats/token", f"by {'the variable-length kernel' if one_kernel else 'SDPA'}")


def adapted(place: Place, dtype: torch.dtype) -> Any:
    """A model with a nonzero adapter on every linear layer."""
    from peft import LoraConfig, get_peft_model

    settings = LoraConfig(
        r=16, lora_alpha=32, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM"
    )
    return get_peft_model(random_model(place, SHAPE, dtype), settings)


@contextmanager
def whole_precision(model: Any, dtype: torch.dtype) -> Iterator[None]:
    """Temporarily hold the frozen weights in float32; the adapter is in float32 anyway."""
    adapter = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    cast(model, torch.float32)
    yield
    cast(model, dtype)
    for name, value in adapter.items():
        model.get_parameter(name).data = value


def fused_lora(place: Place, dtype: torch.dtype) -> dict[str, Any]:
    """The adapter's gradient with layer and adapter as one operation, against peft's."""
    from mrpo_pipeline.policy.fused_lora import fuse_adapters

    model = adapted(place, dtype)
    ids = torch.from_numpy(pairs_of(place).chosen[0].astype("int64"))[None].to(place.device)

    def run() -> tuple[Tensor, Tensor]:
        half = next(model.parameters()).dtype == torch.bfloat16
        with torch.autocast(place.device, torch.bfloat16, enabled=half):
            hidden = model.get_base_model().model(input_ids=ids, use_cache=False).last_hidden_state
        (hidden.float() * torch.linspace(-1, 1, hidden.shape[-1], device=hidden.device)).sum().backward()
        return hidden.detach(), gradients(model)

    plain = run()
    with whole_precision(model, dtype):
        exact = run()[1]
    layers = fuse_adapters(model)
    if not layers:
        raise RuntimeError("no layer was fused")
    found = run()
    note = f"{layers} layers, output apart by {apart(found[0], plain[0]):.2g}"
    return compared(dtype, found[1], plain[1], exact, note)


def chunked_head(place: Place, dtype: torch.dtype) -> dict[str, Any]:
    """Log-probs and gradient in chunks of positions, against the logits of all positions."""
    from mrpo_pipeline.models.head import Head

    model = random_model(place, SHAPE, dtype)
    head = Head.of(model)
    generator = torch.Generator(place.device).manual_seed(0)
    positions = place.pick(4096, 200)
    hidden = torch.randn(positions, model.config.hidden_size, device=place.device, generator=generator).to(dtype)
    targets = torch.randint(0, place.vocabulary, (positions,), device=place.device, generator=generator)

    def run(chunked: bool) -> tuple[Tensor, Tensor]:
        leaf = hidden.clone().requires_grad_()
        logps = head.token_logps(leaf, targets, chunked=chunked)
        logps.sum().backward()
        return logps.detach(), leaf.grad  # type: ignore[return-value]

    found, plain = run(True), run(False)
    difference = nats(found[0], plain[0], torch.ones(positions), dtype)
    by_hidden = apart(found[1], plain[1])
    limits = tolerance(dtype), GRADIENT[named(dtype)]
    return within(difference, limits[0], "nats/token", f"gradient apart by {by_hidden:.2g} of its norm") | {
        "ok": difference <= limits[0] and by_hidden <= limits[1]
    }


def training_step(place: Place, dtype: torch.dtype) -> dict[str, Any]:
    """A step's loss and gradient with every fast path on, against all off."""
    off = {"share_prompt": False, "micro_batch_tokens": "off", "fused_lora": False, "chunked_head": False}
    pairs = pairs_of(place)

    def run(fast: dict[str, Any], precision: torch.dtype) -> tuple[float, Tensor, bool]:
        training = {"max_steps": 1, **fast}
        trainer = mrpo_trainer(place, SHAPE, pairs, dtype=precision, training=training, nonzero=True)
        step = next(iter(trainer.get_train_dataloader()))
        loss = trainer.training_step(trainer.model, step, sum(batch["pairs"] for batch in step))
        return float(loss), gradients(trainer.model).cpu(), trainer.policy_forward.is_shared

    (loss, found, shared), (expected, plain, _) = run({}, dtype), run(off, dtype)
    note = f"loss {loss:.5f}, plain {expected:.5f}; prompts {'shared' if shared else 'not shared'}"
    return compared(dtype, found, plain, lambda: run(off, torch.float32)[1], note)


def anchor_check(place: Place, dtype: torch.dtype) -> dict[str, Any]:
    """The anchor as scored by stage one against the policy's start in stage two; and with wrong prompts, which must be refused."""
    from mrpo_pipeline.dataset.anchor_mismatch import AnchorStart
    from mrpo_pipeline.errors import UserError
    from mrpo_pipeline.policy.anchor_check import TOLERANCE, check_start

    pairs = pairs_of(place)
    moved = Pairs(pairs.prompts[1:] + pairs.prompts[:1], pairs.chosen, pairs.rejected)
    sums = [
        torch.stack([logps.sum() for logps in scored(random_model(place, SHAPE, dtype), dtype, requests_of(given))])
        for given in (pairs, moved)
    ]
    agreed, refused = 0.0, ""
    for number, anchor in enumerate(sums):
        examples = examples_of(pairs, anchor=(anchor[0::2].numpy(), anchor[1::2].numpy()))
        trainer = mrpo_trainer(place, SHAPE, pairs, dtype=dtype, examples=examples, training={"max_steps": 1})
        try:
            difference = check_start(trainer, AnchorStart(named(dtype)), named(dtype))
        except UserError as error:
            refused = str(error)
            if number == 0:
                raise
        else:
            agreed = difference if number == 0 else agreed
        del trainer
    if not refused:
        raise RuntimeError("an anchor scored with the wrong prompts was taken for the right one")
    return within(agreed, TOLERANCE[named(dtype)], "nats/token", "an anchor with the wrong prompts is refused")


def cells(place: Place) -> list[Cell]:
    trainer = ("peft", "accelerate", "pydantic")
    kinds = (
        ("shared prompts", shared_prompts, ()),
        ("fused LoRA", fused_lora, ("peft",)),
        ("chunked head", chunked_head, ()),
        ("a training step, all paths on and off", training_step, trainer),
        ("the anchor check", anchor_check, trainer),
    )
    found = [
        Cell("variable-length attention, bfloat16", partial(uneven_attention, place, None)),
        Cell("variable-length attention, window of 256", partial(uneven_attention, place, 256)),
    ]
    for name, run, needs in kinds:
        for dtype in (torch.bfloat16, torch.float32):
            found.append(Cell(f"{name}, {named(dtype)}", partial(run, place, dtype), needs))
    return [
        *found,
        Cell("transformers engine, bfloat16 against float32", partial(rounding, place), ("pydantic",)),
        Cell("nf4 against bfloat16", partial(nf4, place), ("bitsandbytes", "peft", "pydantic")),
        Cell("vLLM against transformers", partial(vllm_drift, place), ("vllm", "pydantic")),
    ]
