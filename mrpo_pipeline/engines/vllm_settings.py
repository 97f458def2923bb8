"""What vLLM is started with: sizes chosen from vocabulary and free memory, which its own profiling does not see."""

from __future__ import annotations

from dataclasses import dataclass

GIB = 1 << 30
# Bytes that one position's prompt log-prob takes for each vocabulary entry while it is computed: the logits, their
# float32 copy, the log-softmax, and what the rank is counted with.
BYTES_PER_LOGIT = 16
FEWEST_BATCHED_TOKENS = 256
MOST_BATCHED_TOKENS = {"cpu": 4096, "gpu": 8192}
# Contexts longer than this are served after a restart, when a request asks for one: memory for the longest sequence is
# reserved at the start, and few completions are longer.
FIRST_MODEL_LENGTH = 8192


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
    *, vocab_size: int, max_model_len: int, kv_bytes_per_token: int, free_bytes: int, total_bytes: int, on_cpu: bool
) -> Sizes:
    """Sizes for one engine.

    A tenth of the free memory may go to the block of prompt log-probs (on a CPU at most 1 GiB: a larger one is no
    faster there). On a CPU, keys and values get what two full steps and two of the longest sequences take, within a
    quarter of the free memory where that is enough; on a GPU vLLM gets 0.9 of the memory less the block.
    """
    allowed = free_bytes // 10
    if on_cpu:
        allowed = min(allowed, GIB)
    most = MOST_BATCHED_TOKENS["cpu" if on_cpu else "gpu"]
    tokens = min(most, max(FEWEST_BATCHED_TOKENS, allowed // (BYTES_PER_LOGIT * vocab_size)))
    tokens -= tokens % 64
    block = tokens * vocab_size * BYTES_PER_LOGIT
    if not on_cpu:
        share = min(0.9, free_bytes / total_bytes - 0.02) - block / total_bytes
        return Sizes(tokens, block, None, max(0.1, round(share, 3)))
    one_sequence = max_model_len * kv_bytes_per_token
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
    """Positions to start with: what was asked for, else what the longest request needs and at least the usual.

    Args:
        context: the model's own limit, None where it has none.
        longest: tokens of the longest request known, 0 where none is.
        asked: the user's `max_model_len`.
    """
    if asked is not None:
        return asked
    wanted = max(FIRST_MODEL_LENGTH, longest + 1)
    return wanted if context is None else min(wanted, context)
