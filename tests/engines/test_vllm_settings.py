"""Sizes with which vLLM is started, worked by hand: guaranteed sizes hold, and only free memory is used."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mrpo_pipeline.engines.vllm.sizes import choose_sizes, first_model_length, kv_bytes_per_token

GIB = 1 << 30
CARD = {
    "max_model_len": 8192,
    "kv_bytes_per_token": 131072,
    "weight_bytes": 4 * GIB,
    "free_bytes": 24 * GIB,
    "total_bytes": 24 * GIB,
}


def test_a_large_vocabulary_lowers_the_tokens_of_a_step() -> None:
    """152k entries: 8,192 tokens would take 14 GiB beyond what vLLM has measured."""
    card = CARD
    large = choose_sizes(vocab_size=151_936, on_cpu=False, **card)
    small = choose_sizes(vocab_size=320, on_cpu=False, **card)
    assert small.max_num_batched_tokens == 8192
    assert large.max_num_batched_tokens == 1408  # 2.4 GiB ÷ (151,936 × 12 bytes), in multiples of 64
    assert large.block_bytes <= 2.4 * GIB
    assert large.memory_share is not None
    assert large.memory_share * 24 * GIB + large.block_bytes <= 0.91 * 24 * GIB
    assert "1408 tokens a step" in large.notice(151_936)
    shared = choose_sizes(vocab_size=320, on_cpu=False, **(card | {"free_bytes": 12 * GIB}))
    assert shared.memory_share is not None
    assert shared.memory_share <= 0.5


def test_weights_and_one_sequence_come_before_the_block() -> None:
    """24 GiB, 0.9 of them usable; 19.2 for weights, 1 for a sequence, 1 of workspace: 0.4 GiB are left, 256 tokens of 152k."""
    full = choose_sizes(vocab_size=151_936, on_cpu=False, **(CARD | {"weight_bytes": int(19.2 * GIB)}))
    assert full.max_num_batched_tokens == 256
    assert full.memory_share is not None
    assert full.memory_share * 24 >= 19.2 + 1.0  # vLLM's share holds the weights and a sequence


@given(st.integers(1000, 300_000), st.floats(0.05, 1), st.floats(0, 0.9), st.integers(8, 192), st.booleans())
def test_share_and_block_stay_within_what_is_free(vocab, free, weights, card, asked) -> None:  # type: ignore[no-untyped-def]
    total = card * GIB
    sizes = choose_sizes(
        vocab_size=vocab,
        max_model_len=8192,
        kv_bytes_per_token=131072,
        weight_bytes=int(weights * free * total),
        free_bytes=int(free * total),
        total_bytes=total,
        on_cpu=False,
        asked_tokens=512 if asked else None,
    )
    assert sizes.max_num_batched_tokens == 512 if asked else sizes.max_num_batched_tokens >= 256
    assert sizes.memory_share is not None
    if sizes.memory_share > 0.05:  # otherwise the GPU is full, which vLLM reports
        assert sizes.memory_share * total + sizes.block_bytes <= (free - 0.019) * total


def test_a_cpu_gets_a_small_cache_that_holds_the_longest_sequence() -> None:
    machine = {"vocab_size": 32_000, "weight_bytes": 0, "free_bytes": 8 * GIB, "total_bytes": 16 * GIB, "on_cpu": True}
    tiny = choose_sizes(max_model_len=512, kv_bytes_per_token=512, **machine)
    assert tiny.kv_cache_bytes == 256 << 20
    assert tiny.block_bytes <= GIB
    large = choose_sizes(max_model_len=8192, kv_bytes_per_token=256 << 10, **machine)
    assert large.kv_cache_bytes is not None
    assert 8192 * (256 << 10) < large.kv_cache_bytes <= 2.1 * GIB


def test_lengths_to_start_with() -> None:
    assert first_model_length(None, 0, None) == 8192
    assert first_model_length(512, 0, None) == 512
    assert first_model_length(131_072, 0, None) == 8192
    assert first_model_length(131_072, 20_000, None) == 20_001
    assert first_model_length(131_072, 0, 1000) == 1000


def test_bytes_of_keys_and_values_by_hand() -> None:
    from tiny_models import build_config

    # 2 (keys, values) × 2 layers × 1 head × 32 × 4 bytes
    assert kv_bytes_per_token(build_config("llama"), 4) == 512
