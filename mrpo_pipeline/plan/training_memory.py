"""The memory that stage two takes at its peak.

Modelled is what is alive at once: the base weights in the dtype they are loaded in; the adapter's weights and gradients and
AdamW's two states for each, in float32; and everything that comes and goes while the heaviest micro-batch runs forward and
backward, counted by running the trainer's own forward pass on tensors without memory (see ``live_bytes``), with gradient
checkpointing and autocast as the run would have them. Gradients of an earlier micro-batch and the optimizer's states are
there from the start, as from the second step on.

Not modelled is what an allocator keeps beyond that. PyTorch's allocator for GPUs keeps freed blocks for use (its "reserved"
memory). glibc's malloc keeps them as well, in pieces that the next step does not always fit into: with glibc 2.36 a process on
a CPU was seen to take 1.3 to 3 times what it had alive (benchmarks/bench_plan.py). ``MALLOC_MMAP_THRESHOLD_=131072`` in the
environment gives freed blocks back at once, for about a quarter more CPU time.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.models.source import ModelSource
from mrpo_pipeline.plan.activation_memory import head_for, traced_bytes
from mrpo_pipeline.plan.architecture import ITEM_BYTES, Architecture, empty_model
from mrpo_pipeline.plan.worst_batch import PairLengths, heaviest, pair_attention, run_through
from mrpo_pipeline.policy.arguments import fast_paths
from mrpo_pipeline.policy.lora import add_adapter
from mrpo_pipeline.policy.model import silence_config, silence_modules
from mrpo_pipeline.recipe import Lora

# What a process takes beside its tensors and what it has imported: code pages of torch's libraries that training alone
# touches, buffers of the matrix library, Trainer's own objects. Measured with models of no size (benchmarks/bench_plan.py);
# on a GPU, the CUDA context and the libraries' own workspaces.
PROCESS_BYTES = {"cpu": 30 << 20, "gpu": 600 << 20}

# How many times what is alive glibc's malloc holds at the peak of a training run on a CPU: 1.26 to 1.40 were seen without
# gradient checkpointing and 1.58 to 1.71 with it, whose short-lived blocks come in more sizes (benchmarks/bench_plan.py, fast
# paths on, glibc 2.36). A property of that allocator, not to be had from the model.
GLIBC_HOLDS = {"plain": 1.3, "checkpointing": 1.6}


def resident_bytes(alive: int, *, device: str, checkpointing: bool) -> int:
    """What the process takes where so many bytes of it are alive: on a CPU, what its malloc holds."""
    returns_blocks = "MALLOC_MMAP_THRESHOLD_" in os.environ or platform.libc_ver()[0] != "glibc"
    if device != "cpu" or returns_blocks:
        return alive
    return round(alive * GLIBC_HOLDS["checkpointing" if checkpointing else "plain"])


@dataclass(frozen=True)
class PolicyFigures:
    """The policy by numbers.

    Attributes:
        trainable: parameters of the adapter.
        shared: whether a prompt stands once for both of its completions.
        pairs: of the heaviest micro-batch.
        activation_bytes: most bytes alive within a step beside weights, one gradient for each trained parameter, and the
            optimizer's states; None where it can't be told, for the ``reason``.
    """

    trainable: int
    shared: bool
    pairs: PairLengths
    activation_bytes: int | None
    reason: str = ""


def adapted(model: Any, lora: Lora, adapter: str | None) -> Any:
    """An empty model with its adapter, as the trainer puts it on; a folder's or hub name's own settings where one is given.

    Raises:
        UserError: for target modules that the model does not have, or an adapter whose settings can't be had.
    """
    if adapter is None:
        return add_adapter(model, lora)
    from peft import PeftConfig, get_peft_model

    try:
        config = PeftConfig.from_pretrained(adapter)
    except (OSError, ValueError) as error:
        raise UserError(
            f"The settings of the adapter policy.adapter {adapter} can't be had ({str(error).splitlines()[0]}): expected "
            "a folder or a hub name with adapter_config.json. Correct it."
        ) from None
    config.inference_mode = False
    return get_peft_model(model, config)


def policy_figures(
    source: ModelSource,
    config: Any,
    lora: Lora,
    training: Mapping[str, Any],
    lengths: PairLengths,
    *,
    dtype: str,
    on_cpu: bool,
    world_size: int,
) -> PolicyFigures:
    """Count the policy's adapter, and run its heaviest micro-batch through.

    Args:
        config: the model's; its dropout is set to 0. lengths: see ``micro_batch.heaviest``.

    Raises:
        UserError: for a model or adapter that can't be.
    """
    import torch

    silence_config(config)
    model = empty_model(config, dtype=getattr(torch, dtype), trust_remote_code=source.trust_remote_code)
    with torch.device("meta"):
        policy = adapted(model, lora, source.adapter)
    silence_modules(policy)
    trainable = sum(parameter.numel() for parameter in policy.parameters() if parameter.requires_grad)
    shared = pair_attention(head_for(policy.get_base_model()), fast_paths(training)) is not None
    pairs, several = heaviest(lengths, training, shared=shared, world_size=world_size, on_cpu=on_cpu)
    if training.get("gradient_checkpointing"):
        given = training.get("gradient_checkpointing_kwargs") or {}
        policy.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False, **given})
        policy.enable_input_require_grads()

    def run() -> None:
        run_through(policy, head_for(policy.get_base_model()), pairs, training)

    found, reason = traced_bytes(policy, run, as_gpu=not on_cpu, computing=_autocast(dtype, on_cpu))
    # Of one micro-batch the gradients come when the most is over; of several, those of the first are there all along.
    grown = 0 if several else lora_bytes(trainable)
    return PolicyFigures(trainable, shared, pairs, None if found is None else max(0, found - grown), reason)


def optimizer_bytes(training: Mapping[str, Any], trainable: int) -> int:
    """Bytes of the optimizer's states, as transformers names optimizers; AdamW's two for each parameter where not given."""
    name = str(training.get("optim", "adamw_torch")).lower()
    if "adam" in name or "lamb" in name or "lion" in name:
        each = 1 if "lion" in name else 2
        return trainable * each * (1 if "8bit" in name else 4)
    if name == "sgd":
        return 0
    return trainable * (4 if name in ("adagrad", "rmsprop") else 8)


def _autocast(dtype: str, on_cpu: bool) -> AbstractContextManager[Any]:
    """As the trainer computes: bfloat16 weights in autocast on a GPU, float32 as it is."""
    import torch

    if on_cpu or dtype not in ("bfloat16", "float16"):
        return nullcontext()
    return torch.autocast("cpu", dtype=torch.bfloat16)


def lora_bytes(trainable: int) -> int:
    """The adapter is float32 whatever the base is."""
    return trainable * ITEM_BYTES["float32"]


def training_flops(
    architecture: Architecture, trainable: int, tokens: float, squares: float, projected: float, *, recomputed: bool
) -> float:
    """Operations of training on so many tokens.

    Frozen weights take 2 forward and 2 for the gradient that passes through (none for their own), trained ones 2 more;
    attention's backward pass is 2.5 times its forward pass (arXiv 2205.14135: five products in the place of two); with
    gradient checkpointing the forward pass of the layers is done twice.

    Args:
        tokens: run through the model. squares: Σ length² of the sequences. projected: tokens that go through the output
            projection, with their gradient.
    """
    attention = 2 * architecture.layers * architecture.width * squares
    passes = 3 if recomputed else 2
    body = 2 * architecture.body * tokens
    return (
        passes * body
        + (passes - 1 + 2.5) * attention
        + 2 * 2 * architecture.head * projected
        + (passes + 1) * 2 * trainable * tokens
    )
