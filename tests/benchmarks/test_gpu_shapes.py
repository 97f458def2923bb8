"""The shapes, operation counts and kernel calls of the GPU benchmark, on torch's meta device: shapes and dtypes without data."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from gpu_models import Pairs, Place, Work, architecture, config_of, made_up_pairs

from mrpo_pipeline.models import shared_prompt_attention

PLACE = Place("cuda", tiny=False, folder="", scratch="", max_length=2048)


@pytest.mark.parametrize(("shape", "parameters"), [("1B", 1_235_814_400), ("8B", 8_030_261_248)])
def test_the_shapes_are_llamas(shape: str, parameters: int) -> None:
    """The counts of Llama-3.2-1B and Llama-3.1-8B, tied embeddings counted once."""
    assert architecture(PLACE, shape).parameters == parameters


@pytest.mark.parametrize("shape", ["1B", "8B"])
def test_the_operations_of_a_forward_pass_are_those_that_torch_counts(shape: str) -> None:
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import LlamaForCausalLM

    with torch.device("meta"):
        model = LlamaForCausalLM(config_of(PLACE, shape)).to(torch.bfloat16)
        ids = torch.zeros(1, 2048, dtype=torch.long)
        mask = torch.zeros(1, 1, 2048, 2048, dtype=torch.bfloat16)  # transformers needs data to make one
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=ids, attention_mask=mask, use_cache=False)
    # torch counts attention as if every position attended to all others; a causal model computes half of that.
    expected = architecture(PLACE, shape).forward_flops(2048, 2 * 2048**2, 2048)
    assert counter.get_total_flops() == pytest.approx(expected, rel=1e-3)


def test_a_prompt_that_runs_once_is_counted_once() -> None:
    pairs = Pairs([[0] * 5, [0] * 3], [[0] * 4, [0] * 2], [[0] * 6, [0] * 1])
    assert Work.of(pairs, shared=False) == Work(9 + 11 + 5 + 4, 81 + 121 + 25 + 16, 13)
    assert Work.of(pairs, shared=True) == Work(5 + 4 + 6 + 3 + 2 + 1, 81 + 121 - 25 + 25 + 16 - 9, 13)
    assert pairs.tokens == 29


@pytest.mark.parametrize("equal", [False, True])
def test_made_up_pairs_fit_and_the_first_is_of_the_full_length(equal: bool) -> None:
    pairs = made_up_pairs(PLACE, 64, equal=equal)
    lengths = [len(p) + len(c) for p, c in zip(pairs.prompts, pairs.chosen, strict=True)]
    assert lengths[0] == 2048 and max(lengths) == 2048 and (min(lengths) == 2048) == equal
    ids = [int(ids.max()) for side in (pairs.prompts, pairs.chosen, pairs.rejected) for ids in side]
    assert max(ids) < PLACE.vocabulary


@pytest.mark.parametrize("window", [None, 256])
def test_the_variable_length_kernel_takes_8b_shapes_and_gives_gradients(window: int | None) -> None:
    """The kernel needs a GPU: here torch checks its arguments and gives its output shapes, without data."""
    config = config_of(PLACE, "8B")
    row = shared_prompt_attention.Row([(700, 500, 400), (300, 1, 900)], variable_length=True)
    total = sum(row.sizes)
    heads = (config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads)
    query, key, value = (
        torch.empty(1, count, total, config.head_dim, dtype=torch.bfloat16, device="meta", requires_grad=True)
        for count in heads
    )
    output = shared_prompt_attention._in_one_kernel(row, query, key, value, 0.1, window)
    assert output.shape == (1, total, heads[0], config.head_dim) and output.dtype == torch.bfloat16
    gradients = torch.autograd.grad(output, (query, key, value), torch.empty_like(output))
    assert [gradient.shape for gradient in gradients] == [query.shape, key.shape, value.shape]
