"""With what arguments vLLM is started for one model on this machine. Runs in the engine's process."""

from __future__ import annotations

import os
from typing import Any

from mrpo_pipeline.engines.vllm_settings import choose_sizes, first_model_length, kv_bytes_per_token


class UnsupportedError(Exception):
    """vLLM has no implementation for this model or adapter; another engine may."""


def inspect_here(registry: Any, architectures: list[str]) -> None:
    """On a CPU, load the model's class in this process: vLLM would import itself in another one to look at it.

    That other process keeps CUDA uninitialised in this one, which does not matter on a CPU, and costs as much as the
    start itself, once per architecture and machine.
    """
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    for name in architectures:
        load = getattr(getattr(registry, "models", {}).get(name), "load_model_cls", None)
        if load is not None:
            registry.register_model(name, load())


def engine_arguments(settings: dict[str, Any], config: Any, context: int | None) -> tuple[dict[str, Any], list[str]]:
    """Arguments of vLLM's `EngineArgs` for this model and machine, and what to tell the user about them."""
    import torch
    from vllm.platforms import current_platform

    on_cpu = bool(current_platform.is_cpu())
    text = config.get_text_config()
    options = settings["options"]
    length = first_model_length(context, settings["longest"], options.get("max_model_len"))
    free, total = _memory(current_platform)
    sizes = choose_sizes(
        vocab_size=text.vocab_size,
        max_model_len=length,
        kv_bytes_per_token=kv_bytes_per_token(text, getattr(torch, settings["dtype"]).itemsize),
        free_bytes=free,
        total_bytes=total,
        on_cpu=on_cpu,
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
        # With it on, vLLM has returned wrong prompt log-probs for cached positions.
        "enable_prefix_caching": False,
        "enable_chunked_prefill": True,
        # A run scores prompts of ever new shapes; compiling costs more than it brings on a CPU.
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


def _memory(platform: Any) -> tuple[int, int]:
    """(free, total) bytes of the device, without making a CUDA context that would stay in this process."""
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
    except Exception:  # no NVML here (ROCm, say); vLLM itself complains where less is free than it is given
        return total, total


def lora(path: str | None) -> tuple[Any, dict[str, Any]]:
    """The LoRA request for an adapter and the engine arguments it needs; (None, {}) without one."""
    if path is None:
        return None, {}
    from peft import PeftConfig
    from vllm.lora.request import LoRARequest

    config = PeftConfig.from_pretrained(path)
    targets = config.target_modules if isinstance(config.target_modules, list | set | tuple) else []
    names = {name.rsplit(".", 1)[-1] for name in targets}
    outside = sorted(names & {"lm_head", "embed_out", "embed_tokens", "wte", "word_embeddings"})
    if config.peft_type != "LORA" or config.modules_to_save or outside or getattr(config, "use_dora", False):
        what = ", ".join(outside) or str(config.modules_to_save or config.peft_type)
        raise UnsupportedError(f"vLLM would leave out part of the adapter {path} in prompt log-probs ({what})")
    rank = max([config.r, *(config.rank_pattern or {}).values()])
    allowed = next(size for size in (8, 16, 32, 64, 128, 256, 320, 512) if size >= rank)
    return LoRARequest("reference", 1, path), {"enable_lora": True, "max_lora_rank": allowed, "max_loras": 1}
