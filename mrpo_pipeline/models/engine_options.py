"""Which engine options can change a reference's log-probs.

Memory, number of devices, batch size and kernels change log-probs by rounding only. Other options change the model
(``hf_overrides``), or store keys and values in fewer bits (``kv_cache_dtype``). Options that are known to be harmless are listed
here; all others are part of the fingerprint, including options of future vLLM versions: a cache that is refused without need
costs a line of a recipe, one that is used wrongly a training run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

NO_OPTIONS = "none"

_TRANSFORMERS = "device threads attn_implementation max_batch_tokens"
_MEMORY = """
    gpu_memory_utilization kv_cache_memory_bytes num_gpu_blocks_override block_size cpu_offload_gb cpu_offload_params
    offload_backend offload_group_size offload_num_in_group offload_prefetch_step offload_params kv_offloading_size
    kv_offloading_backend swap_space enable_sleep_mode enable_cumem_allocator max_model_len watermark
"""
_BATCHES = """
    max_num_batched_tokens max_num_seqs max_num_scheduled_tokens max_num_active_seqs max_num_queued_reqs max_num_queued_tokens
    long_prefill_token_threshold long_prefill_token_threshold_adaptive enable_chunked_prefill enable_prefix_caching
    prefix_caching_hash_algo prefix_cache_retention_interval scheduling_policy scheduler_reserve_full_isl
    prefill_schedule_interval async_scheduling stream_interval disable_hybrid_kv_cache_manager max_logprobs logprobs_mode seed
"""
_PARALLEL = """
    tensor_parallel_size pipeline_parallel_size prefill_context_parallel_size decode_context_parallel_size dcp_comm_backend
    dcp_q_replicate dcp_kv_cache_interleave_size cp_kv_cache_interleave_size data_parallel_size data_parallel_rank
    data_parallel_start_rank data_parallel_size_local data_parallel_address data_parallel_rpc_port data_parallel_hybrid_lb
    data_parallel_external_lb data_parallel_multi_port_external_lb data_parallel_backend enable_expert_parallel
    distributed_executor_backend nnodes node_rank master_addr master_port device_ids numa_bind numa_bind_nodes numa_bind_cpus
    distributed_timeout_seconds cpu_distributed_timeout_seconds disable_custom_all_reduce max_parallel_loading_workers
    all2all_backend enable_dbo ubatch_size enable_eplb eplb_config ray_workers_use_nsight
"""
_KERNELS = """
    enforce_eager compilation_config cudagraph_capture_sizes max_cudagraph_capture_size optimization_level performance_mode
    attention_backend moe_backend linear_backend mamba_backend enable_flashinfer_autotune gdn_prefill_backend
    kda_prefill_backend kda_decode_backend disable_cascade_attn model_impl
"""
_READING = """
    download_dir safetensors_load_strategy safetensors_prefetch_num_threads safetensors_prefetch_block_size hf_token
    pt_load_map_location tokenizer_mode tokenizer_revision skip_tokenizer_init served_model_name max_loras max_lora_rank
    max_cpu_loras fully_sharded_loras limit_mm_per_prompt skip_mm_profiling language_model_only mm_processor_cache_gb
    mm_processor_cache_type
"""
_WORDS = """
    disable_log_stats aggregate_engine_logging log_level log_config_file logging_config use_tqdm_on_load jit_monitor_mode
    jit_monitor_verbose show_hidden_metrics_for_version otlp_traces_endpoint collect_detailed_traces kv_cache_metrics
    kv_cache_metrics_sample cudagraph_metrics enable_layerwise_nvtx_tracing enable_mfu_metrics
    enable_logging_iteration_details shutdown_timeout profiler_config
"""

HARMLESS = frozenset(" ".join([_TRANSFORMERS, _MEMORY, _BATCHES, _PARALLEL, _KERNELS, _READING, _WORDS]).split())
"""Options that change no log-prob beyond rounding."""

# Values that are equivalent to omitting the option.
_SAME_AS_NONE: dict[str, tuple[Any, ...]] = {
    "hf_overrides": ({},),
    "kv_cache_dtype": ("auto",),
    "load_format": ("auto", "safetensors"),
    "disable_sliding_window": (False,),
}


def altering(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that may change a reference's log-probs."""
    return {
        name: value
        for name, value in options.items()
        if name not in HARMLESS and value is not None and value not in _SAME_AS_NONE.get(name, ())
    }


def describe_altering(options: Mapping[str, Any]) -> str:
    """The altering options as a field of the fingerprint: canonical JSON, or ``none``."""
    found = altering(options)
    if not found:
        return NO_OPTIONS
    return json.dumps(found, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)
