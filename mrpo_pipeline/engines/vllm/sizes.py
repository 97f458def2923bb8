"""Sizes for vLLM by vocabulary and free memory: its own profiling does not include prompt log-probs."""

from __future__ import annotations

from dataclasses import dataclass

GIB = 1 << 30
# Bytes per vocabulary entry that the prompt log-prob of one position takes while it is computed (vLLM's V1 runner,
# `_get_prompt_logprobs_dict`), on each GPU, even if the vocabulary is sharded, because logits are gathered:
#   logits 2 or 4 (of the model's dtype), their conversion to float32 4 (16-bit only), log-softmax 4, the mask for counting
#   the rank 1; before that, gathering holds its own part, the pieces and their concatenation: at most 2.5 times the logits.
# The largest sum is 11 (16-bit) and 10 (float32 on two GPUs); allocators round up. (On a CPU malloc keeps freed blocks of
# other sizes: 17 were measured with 9 in use.) A request's block is still held while the next one's is allocated, but the
# rows of both are in one step, so the step's tokens are the bound. The V2 runner takes 1,024 rows at a time and computes no
# log-softmax, so it needs less.
BYTES_PER_LOGIT = {"cpu": 18, "gpu": 12}
FEWEST_BATCHED_TOKENS = 256
MOST_BATCHED_TOKENS = {"cpu": 2048, "gpu": 8192}
# Longer requests restart vLLM: memory for the longest sequence is reserved at the start, and few completions are longer.
FIRST_MODEL_LENGTH = 8192
# vLLM's memory beside weights and keys: activations of a step, CUDA graphs, libraries.
_WORKING_BYTES = GIB
_LARGEST_SHARE = 0.9


@dataclass(frozen=True, slots=True)
class Sizes:
    """Chosen sizes; `memory_share` is None on a CPU, `kv_cache_bytes` None on a GPU (vLLM takes what the share leaves)."""

    max_num_batched_tokens: int
    block_bytes: int
    kv_cache_bytes: int | None
    memory_share: float | None

    def notice(self, vocab_size: int) -> str:
        text = (
            f"vLLM: {self.max_num_batched_tokens} tokens a step, so that prompt log-probs over a vocabulary of {vocab_size} "
            f"take at most {self.block_bytes / GIB:.1f} GiB"
        )
        if self.kv_cache_bytes is not None:
            return f"{text}; {self.kv_cache_bytes / GIB:.2f} GiB for keys and values"
        return f"{text}; memory share {self.memory_share:.2f}"


def choose_sizes(
    *,
    vocab_size: int,
    max_model_len: int,
    kv_bytes_per_token: int,
    weight_bytes: int,
    free_bytes: int,
    total_bytes: int,
    on_cpu: bool,
    asked_tokens: int | None = None,
) -> Sizes:
    """Sizes for one engine; all bytes are of one GPU, or of the machine's memory on a CPU.

    The block of prompt log-probs gets a tenth of the free memory (on a CPU at most 1 GiB: a larger one is no faster there),
    or less if weights and one of the longest sequences would not fit beside it. On a CPU, keys and values get the size of
    two full steps and two of the longest sequences, limited to a quarter of the free memory if that holds one sequence. On a
    GPU, vLLM's share is the free part of 0.9 of the memory, less the block: it contains weights, keys and values and working
    memory, but not the prompt log-probs.

    Args:
        asked_tokens: the user's `max_num_batched_tokens`.
    """
    one_sequence = max_model_len * kv_bytes_per_token
    usable = free_bytes if on_cpu else int(min(_LARGEST_SHARE * total_bytes, free_bytes - 0.02 * total_bytes))
    beside = usable - weight_bytes - one_sequence - _WORKING_BYTES
    allowed = max(0, min(free_bytes // 10, beside))
    if on_cpu:
        allowed = min(allowed, GIB)
    kind = "cpu" if on_cpu else "gpu"
    row_bytes = vocab_size * BYTES_PER_LOGIT[kind]
    tokens = min(MOST_BATCHED_TOKENS[kind], max(FEWEST_BATCHED_TOKENS, allowed // row_bytes))
    tokens = asked_tokens or tokens - tokens % 64
    block = tokens * row_bytes
    if not on_cpu:
        return Sizes(tokens, block, None, max(0.05, round((usable - block) / total_bytes, 3)))
    wanted = max(256 << 20, 2 * (tokens * kv_bytes_per_token + one_sequence))
    return Sizes(tokens, block, max(min(wanted, free_bytes // 4), one_sequence + (64 << 20)), None)


def kv_bytes_per_token(config: object, element_bytes: int) -> int:
    """Bytes of keys and values that one token takes in all layers, from a transformers text configuration."""
    heads = getattr(config, "num_attention_heads", 1) or 1
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    size = getattr(config, "head_dim", None) or getattr(config, "hidden_size", 64) // heads
    layers = getattr(config, "num_hidden_layers", 1)
    return int(2 * layers * kv_heads * size * element_bytes)


def first_model_length(context: int | None, longest: int, asked: int | None) -> int:
    """Positions to start with: the user's, else as many as the longest request needs and at least the default.

    Args:
        context: the model's own limit, None without one.
        longest: tokens of the longest known request, 0 if unknown.
        asked: the user's `max_model_len`.
    """
    if asked is not None:
        return asked
    wanted = max(FIRST_MODEL_LENGTH, longest + 1)
    return wanted if context is None else min(wanted, context)
