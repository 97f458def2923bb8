"""Stages ``stage_two_1B`` and ``stage_two_8B`` of the GPU benchmark: LoRA on every linear layer, beside TRL.

All train on the same pairs in the same steps. Tokens are those of both completions with the prompt, even if the prompt runs only once;
a share of the peak counts the operations of the tokens that run, without padding and gradients of frozen weights. Memory is the
peak of an optimizer step, including weights. TRL's ``precomputed`` computes its reference's log-probs before training, like the cache.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from gpu_cells import Cell, LeftOut
from gpu_models import Meter, Place, Work, architecture, made_up_pairs, speed

WARM, STEPS = 2, 6
BASE = "mrpo, K = 1 cached"
EQUAL = "mrpo, K = 1 cached, equal lengths"
MRPO, TRL = ("peft", "accelerate", "pydantic"), ("trl", "datasets", "peft", "accelerate")


def steps_of(place: Place) -> tuple[int, int]:
    """Numbers of optimizer steps: warm-up, and measured."""
    return place.pick(WARM, 1), place.pick(STEPS, 2)


def train(
    place: Place, shape: str, trainer: Any, pairs: Any, *, shared: bool | None = None, resident: int = 0
) -> dict[str, Any]:
    """Figures of a training run, without the first steps.

    Args:
        shared: whether prompts run once; None to read it from the trainer afterwards.
        resident: references that run at every step, prompts not shared.
    """
    from gpu_trainers import STEP, Clock

    meter = Meter(place.device)
    clock = Clock(meter)
    trainer.add_callback(clock)
    meter.start_memory()
    trainer.train()
    warm, steps = steps_of(place)
    seconds, measured = sum(clock.seconds[warm:]), pairs[warm * STEP : (warm + steps) * STEP]
    if len(clock.seconds) != warm + steps:
        raise RuntimeError(f"{len(clock.seconds)} optimizer steps ran: expected {warm + steps}")
    shared = trainer.policy_forward.is_shared if shared is None else shared
    work = Work.of(measured, shared=shared)
    flops = training_flops(place, shape, trainer, work) + resident * forward_flops(place, shape, measured)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return speed(place, measured.tokens, flops, seconds) | {
        "memory_bytes": meter.peak_bytes(),
        "losses": losses,
        "steps_s": clock.seconds,
        "note": "each prompt once" if shared else "",
    }


def training_flops(place: Place, shape: str, trainer: Any, work: Work) -> float:
    from mrpo_pipeline.plan.architecture import training_flops

    trainable = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    recomputed = bool(trainer.args.gradient_checkpointing)
    return training_flops(
        architecture(place, shape), trainable, work.tokens, work.squares, work.projected, recomputed=recomputed
    )


def forward_flops(place: Place, shape: str, pairs: Any) -> float:
    """Operations of one reference's forward pass, prompts not shared."""
    work = Work.of(pairs, shared=False)
    flops: float = architecture(place, shape).forward_flops(work.tokens, work.squares, work.projected)
    return flops


def pairs_of(place: Place, *, equal: bool = False) -> Any:
    from gpu_trainers import STEP

    return made_up_pairs(place, STEP * sum(steps_of(place)), equal=equal)


def by_mrpo(place: Place, shape: str, references: int, *, resident: int = 0, equal: bool = False) -> dict[str, Any]:
    from gpu_trainers import mrpo_trainer

    pairs = pairs_of(place, equal=equal)
    trainer = mrpo_trainer(
        place, shape, pairs, references=references, resident=resident, training={"max_steps": sum(steps_of(place))}
    )
    return train(place, shape, trainer, pairs, resident=resident)


def by_trl(place: Place, shape: str, *, precompute: bool, triton: bool, equal: bool = False) -> dict[str, Any]:
    from contextlib import nullcontext

    from gpu_trainers import trl_trainer, without_triton

    if triton:
        import torch
        from trl.kernels.chunked_logprob import _use_triton

        if not _use_triton(torch.device(place.device)):
            raise LeftOut(f"TRL's Triton kernels do not run on {place.device}, or Triton is not installed")
    pairs = pairs_of(place, equal=equal)
    with nullcontext() if triton else without_triton():
        trainer = trl_trainer(place, shape, pairs, precompute=precompute, training={"max_steps": sum(steps_of(place))})
        return train(place, shape, trainer, pairs, shared=False)


def cells(place: Place, shape: str) -> list[Cell]:
    found = [Cell(BASE, partial(by_mrpo, place, shape, 1), MRPO)]
    if place.tiny and shape != "8B":
        return found  # in a tiny run the shapes are alike, and the other one measures everything
    found += [Cell(f"mrpo, K = {k} cached", partial(by_mrpo, place, shape, k), MRPO, BASE) for k in (0, 3)]
    found += [
        Cell(f"mrpo, K = {k} in memory", partial(by_mrpo, place, shape, k, resident=k), MRPO, BASE) for k in (1, 3)
    ]
    for precompute, what in ((False, "reference in every step"), (True, "precomputed")):
        for triton in (True, False):
            name = f"TRL, {what}, {'Triton' if triton else 'without Triton'}"
            run = partial(by_trl, place, shape, precompute=precompute, triton=triton)
            found.append(Cell(name, run, TRL, BASE))
    equal = partial(by_trl, place, shape, precompute=True, equal=True)
    return [
        *found,
        Cell(EQUAL, partial(by_mrpo, place, shape, 1, equal=True), MRPO),
        Cell("TRL, precomputed, equal lengths, Triton", partial(equal, triton=True), TRL, EQUAL),
        Cell("TRL, precomputed, equal lengths, without Triton", partial(equal, triton=False), TRL, EQUAL),
    ]
