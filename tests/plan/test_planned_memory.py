"""Memory of stage two without memory: what is alive, against hand-worked sums and against real tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from torch import nn

from mrpo_pipeline.models.source import ModelSource
from mrpo_pipeline.plan import training_memory
from mrpo_pipeline.plan.activation_memory import LiveBytes, on_fake_device
from mrpo_pipeline.plan.training_memory import optimizer_bytes, policy_figures
from mrpo_pipeline.plan.worst_batch import PairLengths, heaviest
from mrpo_pipeline.policy.model import load_policy
from mrpo_pipeline.recipe import Lora, Policy


def test_what_autograd_keeps_and_makes_is_counted_by_hand() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(8, 16, bias=False), nn.ReLU(), nn.Linear(16, 4, bias=False))
    live = LiveBytes()
    with on_fake_device(model) as mode:
        live.hold(model)
        assert live.held == 4 * (8 * 16 + 16 * 4)
        with mode, live:
            x = torch.empty(32, 8)
            y = model(x)
            # The input, ReLU's output (what ReLU was given is gone), the result.
            assert live.now - live.held == 4 * 32 * (8 + 16 + 4)
            y.sum().backward()
            del x, y
        # Gradients of both weights are left, and the one of the sum's start is gone.
        assert live.now - live.held == live.held
    assert live.peak > live.now


def test_a_tensor_that_nothing_refers_to_any_more_is_not_alive() -> None:
    live = LiveBytes()
    with torch.device("meta"), live:
        a = torch.empty(1000)
        b = a * 2
        view = b.view(10, 100)  # the same memory
        del a
        assert live.now == 4000 and live.peak == 8000
        del b, view
    assert live.now == 0


LENGTHS = PairLengths(*(np.array(one) for one in ([40, 60, 20, 30], [50, 90, 30, 10], [20, 80, 60, 30])))


def figures(kind: str = "llama", lengths: PairLengths = LENGTHS, lora: Any = None, **training: Any) -> Any:
    settings = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 1, **training}
    return policy_figures(
        ModelSource(model="none").named("policy"), tiny_models.build_config(kind, num_hidden_layers=4),
        lora or Lora(r=4, target_modules="all-linear"), settings, lengths,
        dtype="float32", on_cpu=True, world_size=1,
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2", "gemma2", "phi3"])
def test_trainable_parameters_are_those_of_the_policy_that_is_trained(tmp_path: Path, kind: str) -> None:
    folder = tiny_models.build(kind, tmp_path, **({"n_layer": 4} if kind == "gpt2" else {"num_hidden_layers": 4}))
    lora = Lora(r=4, target_modules="all-linear")
    policy = load_policy(Policy(model=str(folder), lora=lora))
    found = figures(kind, lora=lora) if kind != "gpt2" else None
    expected = sum(parameter.numel() for parameter in policy.parameters() if parameter.requires_grad)
    if found is None:
        found = policy_figures(
            ModelSource(model="none").named("policy"), tiny_models.build_config(kind, n_layer=4), lora,
            {"per_device_train_batch_size": 2}, LENGTHS, dtype="float32", on_cpu=True, world_size=1,
        )  # fmt: skip
    assert found.trainable == expected
    assert found.activation_bytes, found.reason


def alive_in_training(folder: Path, found: Any, **training: Any) -> int:
    """Bytes alive at the peak of the same micro-batch on real tensors, counted by what each operation gives."""
    from mrpo_pipeline.models.head import Head
    from mrpo_pipeline.plan.worst_batch import run_through

    torch.manual_seed(0)
    policy = load_policy(Policy(model=str(folder), lora=Lora(r=4, target_modules="all-linear")))
    head = Head.of(policy.get_base_model())
    if training.get("gradient_checkpointing"):
        policy.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        policy.enable_input_require_grads()
    live = LiveBytes()
    live.hold(policy)
    with live:
        run_through(policy, head, found.pairs, training)
    return live.peak - live.held


@pytest.mark.parametrize("checkpointing", [False, True])
def test_without_memory_as_much_is_alive_as_with_it(tmp_path: Path, checkpointing: bool) -> None:
    folder = tiny_models.build("llama", tmp_path, num_hidden_layers=4)
    training = {"gradient_checkpointing": checkpointing}
    found = figures(**training)
    real = alive_in_training(folder, found, **training)
    gradients = 4 * found.trainable
    assert found.activation_bytes == pytest.approx(real, abs=2 * gradients)


def test_memory_grows_with_length_and_shrinks_with_gradient_checkpointing() -> None:
    twice = PairLengths(LENGTHS.prompts * 2, LENGTHS.chosen * 2, LENGTHS.rejected * 2)
    plain, longer = figures(micro_batch_tokens="off"), figures(lengths=twice, micro_batch_tokens="off")
    checkpointed = figures(gradient_checkpointing=True, micro_batch_tokens="off")
    assert 1.8 < longer.activation_bytes / plain.activation_bytes < 2.5
    assert checkpointed.activation_bytes < 0.7 * plain.activation_bytes


def test_the_heaviest_micro_batch_has_the_longest_pairs() -> None:
    draw = np.random.default_rng(0)
    lengths = PairLengths(*(draw.integers(1, 100, 400) for _ in range(3)))
    options = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "micro_batch_tokens": "off"}
    pairs, several = heaviest(lengths, options, shared=False, world_size=1, on_cpu=True)
    longest = (lengths.prompts + np.maximum(lengths.chosen, lengths.rejected)).max()
    assert several and len(pairs) == 4
    assert (pairs.prompts + np.maximum(pairs.chosen, pairs.rejected)).max() == longest
    pairs, _ = heaviest(lengths, {**options, "micro_batch_tokens": 500}, shared=True, world_size=1, on_cpu=True)
    tokens = int((pairs.prompts + pairs.chosen + pairs.rejected).sum())
    assert 400 < tokens <= 500


@pytest.mark.parametrize(("name", "each"), [("adamw_torch", 8), ("adamw_8bit", 2), ("sgd", 0), ("lion_32bit", 4)])
def test_the_optimizer_keeps_its_states_for_each_trained_parameter(name: str, each: int) -> None:
    assert optimizer_bytes({"optim": name}, 1000) == each * 1000
    assert optimizer_bytes({}, 1000) == 8000


def test_what_malloc_holds_is_added_on_a_cpu_alone_and_not_where_it_gives_blocks_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(training_memory.platform, "libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.delenv("MALLOC_MMAP_THRESHOLD_", raising=False)
    plain, checkpointed = (
        training_memory.resident_bytes(1000, device="cpu", checkpointing=kind) for kind in (False, True)
    )
    assert 1000 < plain < checkpointed
    assert training_memory.resident_bytes(1000, device="gpu", checkpointing=True) == 1000
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "131072")
    assert training_memory.resident_bytes(1000, device="cpu", checkpointing=True) == 1000
