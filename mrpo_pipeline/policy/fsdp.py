"""FSDP: weights sharded over processes."""

from __future__ import annotations

import os
from typing import Any, cast

from torch import Tensor, nn


def enable_cpu_fsdp(accelerator: Any, arguments: Any) -> bool:
    """Turn on FSDP on a machine without GPUs if it is requested; returns whether it is on.

    accelerate supports FSDP on GPUs only, and silently uses DDP otherwise.
    """
    from accelerate import PartialState
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

    # The variable is set by `accelerate launch`, and by accelerate itself if a plugin is given.
    requested = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true" or arguments.fsdp
    if not requested or accelerator.distributed_type != DistributedType.MULTI_CPU:
        return False
    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(**(arguments.fsdp_plugin_args or {}))
    # Every access to the state copies the type from PartialState.
    PartialState._shared_state["distributed_type"] = accelerator.state.distributed_type = DistributedType.FSDP
    return True


def gather_adapter(model: nn.Module, *, frozen: bool = False) -> dict[str, Tensor]:
    """The trained parameters, with ``frozen`` also the base, gathered on rank 0's CPU. A collective call: all ranks make it."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=not frozen)
    return cast("dict[str, Tensor]", get_model_state_dict(model, options=options))
