"""FSDP: weights spread over processes."""

from __future__ import annotations

import os
from typing import Any, cast

from torch import Tensor, nn


def shard_without_gpus(accelerator: Any, arguments: Any) -> bool:
    """Whether weights are to be spread over the processes of a machine without GPUs.

    accelerate knows FSDP for GPUs alone, and takes DDP without a word otherwise.
    """
    from accelerate import PartialState
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

    # Set by `accelerate launch`, and by accelerate itself where a plugin is given.
    asked = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true" or arguments.fsdp
    if not asked or accelerator.distributed_type != DistributedType.MULTI_CPU:
        return False
    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(**(arguments.fsdp_plugin_args or {}))
    # Every look at the state copies the type from there.
    PartialState._shared_state["distributed_type"] = accelerator.state.distributed_type = DistributedType.FSDP
    return True


def whole_adapter(model: nn.Module, *, frozen: bool = False) -> dict[str, Tensor]:
    """What trains, and with `frozen` the base as well, gathered on the first process's CPU; every process has to call this."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=not frozen)
    return cast("dict[str, Tensor]", get_model_state_dict(model, options=options))
