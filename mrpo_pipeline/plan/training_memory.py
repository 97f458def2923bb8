"""Peak memory of stage two.

The peak is the sum of what is live at once: the base weights in their dtype; the adapter's weights, gradients and optimizer states
in float32; and the activations of the heaviest micro-batch, traced by running the trainer's forward and backward pass on fake
tensors (see ``activation_memory``), with the run's gradient checkpointing and autocast.

A process holds more. PyTorch's GPU allocator keeps freed blocks ("reserved" memory). So does glibc's malloc: with glibc 2.36 a
process on a CPU took 1.3 to 3 times its live bytes (benchmarks/bench_plan.py). ``MALLOC_MMAP_THRESHOLD_=131072`` in the
environment returns freed blocks at once, for about a quarter more CPU time.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.plan.activation_memory import head_for, traced_bytes
from mrpo_pipeline.plan.architecture import ITEM_BYTES, Architecture, empty_model, weight_bytes
from mrpo_pipeline.plan.scoring_memory import process_bytes
from mrpo_pipeline.plan.worst_batch import PairLengths, heaviest, pair_attention, run_through
from mrpo_pipeline.policy.arguments import fast_paths
from mrpo_pipeline.policy.lora import add_adapter
from mrpo_pipeline.policy.model import disable_base_dropout, disable_config_dropout
from mrpo_pipeline.recipe import Policy

# Beside tensors and imports: code pages of torch that only training touches, matrix library buffers, Trainer's objects, measured
# with models of no size (benchmarks/bench_plan.py); on a GPU the CUDA context and library workspaces.
TRAINER_BYTES = {"cpu": 30 << 20, "gpu": 600 << 20}

# Resident over live bytes of glibc's malloc at the peak of a training run: 1.26 to 1.40 without gradient checkpointing, 1.58 to 1.71
# with it, whose short-lived blocks come in more sizes (benchmarks/bench_plan.py, fast paths on, glibc 2.36).
GLIBC_FACTOR, GLIBC_FACTOR_CHECKPOINTING = 1.3, 1.6


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes of stage two at its peak, on one device.

    Attributes:
        trainable_parameters: of the adapter.
        shared_prompt: whether both completions of a pair share one copy of the prompt.
        batch_pairs, batch_longest_tokens: of the heaviest micro-batch.
        lora_bytes: the adapter's weights; its gradients take as much again.
        activation_bytes: everything allocated and freed within a step; None where the architecture can't be traced.
        process_bytes: interpreter, libraries and tokenizer, or the CUDA context; not in ``peak_bytes``.
        peak_bytes: live tensors. resident_bytes: the process as the system sees it, with ``process_bytes`` and what malloc keeps.
        untraced: why ``activation_bytes`` is None.
    """

    trainable_parameters: int
    shared_prompt: bool
    batch_pairs: int
    batch_longest_tokens: int
    weights_bytes: int
    lora_bytes: int
    optimizer_bytes: int
    activation_bytes: int | None
    process_bytes: int
    peak_bytes: int | None
    resident_bytes: int | None
    untraced: str


def training_memory(
    policy: Policy,
    architecture: Architecture,
    training: Mapping[str, Any],
    lengths: PairLengths,
    *,
    dtype: str,
    device: str,
    world_size: int = 1,
) -> TrainingMemory:
    """Trace the heaviest micro-batch and add up the peak.

    Args:
        training: the recipe's keys. lengths: of the training pairs (N >= 1).
        dtype: of the base weights. device: ``cpu`` or ``gpu``.

    Raises:
        UserError: for target modules that the model does not have, or an adapter whose settings can't be read.
    """
    import torch

    config, on_cpu = architecture.config, device == "cpu"
    disable_config_dropout(config)
    model = empty_model(config, dtype=getattr(torch, dtype), trust_remote_code=policy.trust_remote_code)
    with torch.device("meta"):
        adapted = _with_adapter(model, policy)
    disable_base_dropout(adapted)
    trainable = sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)
    shared = pair_attention(head_for(adapted.get_base_model()), fast_paths(training)) is not None
    pairs, several = heaviest(lengths, training, shared=shared, world_size=world_size, on_cpu=on_cpu)
    checkpointing = bool(training.get("gradient_checkpointing"))
    if checkpointing:
        given = training.get("gradient_checkpointing_kwargs") or {}
        adapted.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False, **given})
        adapted.enable_input_require_grads()

    def run() -> None:
        run_through(adapted, head_for(adapted.get_base_model()), pairs, training)

    found, untraced = traced_bytes(adapted, run, as_gpu=not on_cpu, computing=_autocast(dtype, on_cpu))
    weights, lora = weight_bytes(policy, architecture, dtype), lora_bytes(trainable)
    states, process = optimizer_bytes(training, trainable), process_bytes(architecture.vocabulary, device)
    activations = peak = resident = None
    if found is not None:
        # With one micro-batch per step gradients are allocated after the peak; with several, the first one's are live at the peak.
        activations = max(0, found - (0 if several else lora))
        peak = weights + 2 * lora + states + activations
        resident = process + resident_bytes(peak + TRAINER_BYTES[device], device=device, checkpointing=checkpointing)
    return TrainingMemory(
        trainable, shared, len(pairs), int(pairs.longest.max()), weights, lora, states, activations,
        process + TRAINER_BYTES[device], peak, resident, untraced,
    )  # fmt: skip


def resident_bytes(alive: int, *, device: str, checkpointing: bool) -> int:
    """Resident bytes of a process with this many live bytes: on a CPU with what malloc keeps."""
    returns_blocks = "MALLOC_MMAP_THRESHOLD_" in os.environ or platform.libc_ver()[0] != "glibc"
    if device != "cpu" or returns_blocks:
        return alive
    return round(alive * (GLIBC_FACTOR_CHECKPOINTING if checkpointing else GLIBC_FACTOR))


def _with_adapter(model: Any, policy: Policy) -> Any:
    """The empty model with the recipe's LoRA, or with the settings of ``policy.adapter``."""
    if policy.adapter is None:
        return add_adapter(model, policy.lora)
    from peft import PeftConfig, get_peft_model

    try:
        config = PeftConfig.from_pretrained(policy.adapter)
    except (OSError, ValueError) as error:
        raise UserError(
            f"policy.adapter {policy.adapter}: its settings can't be read ({str(error).splitlines()[0]}): expected a folder or a "
            "hub name with adapter_config.json."
        ) from None
    config.inference_mode = False
    return get_peft_model(model, config)


def optimizer_bytes(training: Mapping[str, Any], trainable: int) -> int:
    """Bytes of the optimizer states by transformers' ``optim``; AdamW's two per parameter by default."""
    name = str(training.get("optim", "adamw_torch")).lower()
    if "adam" in name or "lamb" in name or "lion" in name:
        each = 1 if "lion" in name else 2
        return trainable * each * (1 if "8bit" in name else 4)
    if name == "sgd":
        return 0
    return trainable * (4 if name in ("adagrad", "rmsprop") else 8)


def _autocast(dtype: str, on_cpu: bool) -> AbstractContextManager[Any]:
    """Autocast as the trainer uses it: bfloat16 on a GPU, none in float32."""
    import torch

    if on_cpu or dtype not in ("bfloat16", "float16"):
        return nullcontext()
    return torch.autocast("cpu", dtype=torch.bfloat16)


def lora_bytes(trainable: int) -> int:
    """Bytes of the adapter: float32 whatever the base's dtype is."""
    return trainable * ITEM_BYTES["float32"]
