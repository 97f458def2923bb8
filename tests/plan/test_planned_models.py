"""Parameter counts of unloaded models against the real models."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_models
import torch

from mrpo_pipeline.models.source import ModelSource
from mrpo_pipeline.plan.architecture import Architecture, describe, empty_model, weight_bytes


def described(kind: str) -> Architecture:
    return describe(empty_model(tiny_models.build_config(kind), dtype=torch.float32))


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2", "mixtral", "gemma2", "mamba"])
def test_parameters_and_bytes_are_those_of_the_model(tmp_path: Path, kind: str) -> None:
    model = tiny_models.make(kind)
    folder = tiny_models.build(kind, tmp_path)
    found = described(kind)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert found.parameters == parameters
    source = ModelSource(model=str(folder)).named("m")
    # Saved in float32, each parameter once; loaded in half of that it takes half.
    assert weight_bytes(source, found, "float32") == 4 * parameters
    assert weight_bytes(source, found, "bfloat16") == 2 * parameters
    assert weight_bytes(ModelSource(model="nobody/has-this").named("m"), found, "bfloat16") == 2 * parameters


def test_active_parameters_of_a_mixture_of_experts() -> None:
    found = described("mixtral")
    # Two layers of 4 experts, 2 for each token, each of three matrices of 64 by 96.
    experts = 2 * 4 * 3 * 64 * 96
    assert found.active == found.parameters - experts // 2


def test_forward_flops_count_the_body_and_not_the_embedding_table() -> None:
    tied, untied = described("qwen2"), described("llama")
    assert tied.head == untied.head == 320 * 64
    assert (tied.table, untied.table) == (0, 320 * 64)
    # Per layer: q, k, v, o of 64 × 64 and 64 × 32 twice, three of 64 × 96, two norms; and the last norm.
    layer = 64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 96 + 2 * 64
    assert untied.body == 2 * layer + 64
    # 10 tokens in two sequences of 4 and 6, 3 of them through the head; attention of 2 layers, 2 heads of 32.
    expected = 2 * untied.body * 10 + 2 * 320 * 64 * 3 + 2 * 2 * 64 * (16 + 36)
    assert untied.forward_flops(10, 16 + 36, 3) == expected


def test_linear_layers_except_the_head_are_quantized() -> None:
    found = described("llama")
    linear = 2 * (64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 96)
    assert found.linear == linear
    source = ModelSource(model="nobody/has-this", quantization="nf4").named("m")
    rest = found.parameters - linear
    assert weight_bytes(source, found, "bfloat16") == pytest.approx(linear * 0.516 + rest * 2, rel=1e-3)


def test_a_model_of_seventy_billion_parameters_is_counted_without_memory() -> None:
    from transformers import LlamaConfig

    config = LlamaConfig(
        vocab_size=128256, hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64,
        num_key_value_heads=8,
    )  # fmt: skip
    assert describe(empty_model(config, dtype=torch.float32)).parameters == 70_553_706_496  # Llama-3-70B's own
