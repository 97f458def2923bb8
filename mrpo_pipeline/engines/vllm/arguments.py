"""The arguments that vLLM starts with, for one model on this machine. Runs in the engine's process."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from mrpo_pipeline.engines.vllm.sizes import choose_sizes, first_model_length, kv_bytes_per_token
from mrpo_pipeline.models.files import header_dtype, locate


def inspect_here(registry: Any, architectures: list[str]) -> None:
    """On a CPU, load the model's class in this process: vLLM would start another process to inspect it.

    That process keeps CUDA uninitialised in this one, which does not matter on a CPU, and costs as much as the start itself, once
    for each architecture and machine.
    """
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    for name in architectures:
        load = getattr(getattr(registry, "models", {}).get(name), "load_model_cls", None)
        if load is not None:
            registry.register_model(name, load())


def engine_arguments(
    settings: dict[str, Any], options: dict[str, Any], config: Any, context: int | None
) -> tuple[dict[str, Any], list[str]]:
    """Arguments of vLLM's `EngineArgs` for this model and machine, and notices about them.

    Args:
        settings: `model`, `revision`, `dtype`, `quantization`, `trust_remote_code` and `longest` (tokens, 0 for unknown).
        options: the user's, which the caller applies on top.
        config: the model's transformers configuration. context: its positions, None without a limit.
    """
    import torch
    from vllm.platforms import current_platform

    on_cpu = bool(current_platform.is_cpu())
    text = config.get_text_config()
    length = first_model_length(context, settings["longest"], options.get("max_model_len"))
    free, total = _memory(current_platform)
    dtype = getattr(torch, settings["dtype"])
    # On a CPU the processes of one engine share the machine's memory; on GPUs each has its part of the weights.
    parts = 1 if on_cpu else options.get("tensor_parallel_size", 1) * options.get("pipeline_parallel_size", 1)
    sizes = choose_sizes(
        vocab_size=text.vocab_size,
        max_model_len=length,
        kv_bytes_per_token=-(-kv_bytes_per_token(text, dtype.itemsize) // parts),
        weight_bytes=_weight_bytes(settings, dtype) // parts,
        free_bytes=free,
        total_bytes=total,
        on_cpu=on_cpu,
        asked_tokens=options.get("max_num_batched_tokens"),
    )
    arguments: dict[str, Any] = {
        "model": settings["model"],
        "revision": settings["revision"],
        "dtype": settings["dtype"],
        "quantization": settings["quantization"],
        "trust_remote_code": settings["trust_remote_code"],
        "skip_tokenizer_init": True,
        "max_model_len": length,
        "max_num_batched_tokens": sizes.max_num_batched_tokens,
        # Useful for dense answers only (see `caching_if_dense`).
        "enable_prefix_caching": False,
        "enable_chunked_prefill": True,
        # Shapes differ from step to step; on a CPU compiling costs more than it saves.
        "enforce_eager": on_cpu,
        "disable_log_stats": True,
        "generation_config": "vllm",
    }
    if on_cpu:
        if not os.environ.get("VLLM_CPU_KVCACHE_SPACE"):
            arguments["kv_cache_memory_bytes"] = sizes.kv_cache_bytes
    else:
        arguments["gpu_memory_utilization"] = sizes.memory_share
    told = (
        [] if {"max_num_batched_tokens", "gpu_memory_utilization"} & set(options) else [sizes.notice(text.vocab_size)]
    )
    return arguments, told


def caching_if_dense(engine_args: Any, arguments: dict[str, Any]) -> bool | None:
    """`enable_prefix_caching` for these arguments of vLLM's `EngineArgs`: None (vLLM's choice for the model) if the model runner may
    give dense answers, else False, because other answers can't use the cache (see `logprobs`)."""
    config = engine_args(**arguments).create_engine_config()
    return None if getattr(config, "use_v2_model_runner", True) else False


def _weight_bytes(settings: dict[str, Any], dtype: Any) -> int:
    """Bytes of the loaded weights, from their file sizes; 0 if the files are not available."""
    folder = locate(settings["model"], settings["revision"])
    files = sorted(Path(folder).glob("*.safetensors")) if folder else []
    on_disk = sum(file.stat().st_size for file in files)
    stored = header_dtype(files[0]) if files else None
    widths = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
    return on_disk * dtype.itemsize // widths[stored] if stored in widths else on_disk


def _memory(platform: Any) -> tuple[int, int]:
    """(free, total) bytes of the device, without creating a CUDA context in this process."""
    if platform.is_cpu():
        import psutil

        memory = psutil.virtual_memory()
        return int(memory.available), int(memory.total)
    total = int(platform.get_device_total_memory())
    try:
        from vllm.third_party import pynvml

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(platform.device_id_to_physical_device_id(0))
        return int(pynvml.nvmlDeviceGetMemoryInfo(handle).free), total
    except Exception:  # no NVML (such as ROCm); vLLM itself reports too little free memory
        return total, total
