"""Traced memory of stage two against hand-worked sums and real tensors."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from torch import nn

from mrpo_pipeline.dataset.examples import PreferenceExamples
from mrpo_pipeline.plan import training_memory as training_memory_module
from mrpo_pipeline.plan.activation_memory import LiveBytes, on_fake_device
from mrpo_pipeline.plan.architecture import architecture_of
from mrpo_pipeline.plan.training_memory import TrainingMemory, optimizer_bytes, training_memory
from mrpo_pipeline.plan.worst_batch import PairLengths, heaviest
from mrpo_pipeline.policy.arguments import fast_paths, training_arguments
from mrpo_pipeline.policy.model import load_policy
from mrpo_pipeline.policy.trainer import PreferenceTrainer
from mrpo_pipeline.recipe import Lora, Method, Policy


def test_live_bytes_of_forward_and_backward_match_a_hand_count() -> None:
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
        # Gradients of both weights remain; that of the initial sum is freed.
        assert live.now - live.held == live.held
    assert live.peak > live.now


def test_freed_tensors_are_not_live() -> None:
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


LORA = Lora(r=4, target_modules="all-linear")
SETTINGS = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 1}


def figures(kind: str = "llama", lengths: PairLengths = LENGTHS, **training: Any) -> TrainingMemory:
    layers = {"n_layer": 4} if kind == "gpt2" else {"num_hidden_layers": 4}
    architecture = architecture_of(tiny_models.build_config(kind, **layers))
    policy = Policy(model="nobody/has-this", lora=LORA)
    return training_memory(policy, architecture, {**SETTINGS, **training}, lengths, dtype="float32", device="cpu")


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2", "gemma2", "phi3"])
def test_trainable_parameters_are_those_of_the_policy_that_is_trained(tmp_path: Path, kind: str) -> None:
    folder = tiny_models.build(kind, tmp_path, **({"n_layer": 4} if kind == "gpt2" else {"num_hidden_layers": 4}))
    policy = load_policy(Policy(model=str(folder), lora=LORA))
    found = figures(kind)
    assert found.trainable_parameters == sum(one.numel() for one in policy.parameters() if one.requires_grad)
    assert found.activation_bytes, found.untraced
    assert found.weights_bytes == sum(4 * one.numel() for one in policy.parameters() if not one.requires_grad)
    states = 4 * 4 * found.trainable_parameters  # weights, gradients, and AdamW's two states
    assert found.peak_bytes == found.weights_bytes + states + found.activation_bytes


def alive_in_training(folder: Path, shared: bool, **training: Any) -> int:
    """Peak live bytes of the same micro-batch on real tensors."""
    from mrpo_pipeline.models.head import Head
    from mrpo_pipeline.plan.worst_batch import run_through

    torch.manual_seed(0)
    policy = load_policy(Policy(model=str(folder), lora=LORA))
    pairs, _ = heaviest(LENGTHS, {**SETTINGS, **training}, shared=shared, world_size=1, on_cpu=True)
    head = Head.of(policy.get_base_model())
    if training.get("gradient_checkpointing"):
        policy.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        policy.enable_input_require_grads()
    live = LiveBytes()
    live.hold(policy)
    with live:
        run_through(policy, head, pairs, training)
    return live.peak - live.held


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_traced_peak_is_that_of_real_tensors(tmp_path: Path, checkpointing: bool) -> None:
    folder = tiny_models.build("llama", tmp_path, num_hidden_layers=4)
    training = {"gradient_checkpointing": checkpointing}
    found = figures(**training)
    real = alive_in_training(folder, found.shared_prompt, **training)
    gradients = 4 * found.trainable_parameters
    assert found.activation_bytes == pytest.approx(real, abs=2 * gradients)


def ranked_examples() -> PreferenceExamples:
    """All pairs of 3 to 7 answers to each of 8 prompts, shuffled."""
    draw = np.random.default_rng(0)

    def ids(least: int, most: int) -> np.ndarray:
        return draw.integers(3, 300, draw.integers(least, most + 1)).astype(np.int32)

    rows = []
    for answers in (7, 3, 4, 7, 5, 3, 6, 4):
        prompt, completions = ids(10, 90), [ids(5, 60) for _ in range(answers)]
        rows += [(prompt, one, other) for one, other in combinations(completions, 2)]
    prompts, chosen, rejected = zip(*(rows[at] for at in draw.permutation(len(rows))), strict=True)
    sums = np.full((len(rows), 1), -9.0)
    return PreferenceExamples(
        pair_ids=[str(at) for at in range(len(rows))], prompt_ids=prompts, chosen_ids=chosen, rejected_ids=rejected,
        reference_chosen=sums, reference_rejected=sums, weights=np.ones_like(sums), anchor_chosen=sums[:, 0],
        anchor_rejected=sums[:, 0],
    )  # fmt: skip


@pytest.mark.parametrize(("share_prompt", "size"), [(True, 8), (False, 8), (True, 21)])
def test_the_planned_peak_of_ranked_answers_is_that_of_the_trainers_heaviest_micro_batch(
    tmp_path: Path, share_prompt: bool, size: int
) -> None:
    examples = ranked_examples()
    settings = {"per_device_train_batch_size": size, "share_prompt": share_prompt, "seed": 3}
    folder = tiny_models.build("llama", tmp_path / "model", num_hidden_layers=4)
    policy = load_policy(Policy(model=str(folder), lora=LORA))
    trainer = PreferenceTrainer(
        policy,
        training_arguments(settings | {"use_cpu": True}, tmp_path, dtype="float32", evaluates=False),
        Method(),
        examples,
        fast=fast_paths(settings | {"group_by_prompt": True}),
    )
    batches = [batch for step in trainer.get_train_dataloader() for batch in step]
    laid = [trainer.policy_forward.inputs(batch) for batch in batches]
    peaks = []
    policy.train()
    for batch in batches:
        live = LiveBytes()
        live.hold(policy)
        with live:
            trainer.compute_loss(policy, batch).backward()
        trainer.policy_forward.release()
        peaks.append(live.peak - live.held)
        policy.zero_grad()
    grouped = figures(lengths=PairLengths.of(examples, grouped=True), **settings)
    alone = figures(lengths=PairLengths.of(examples, grouped=False), **settings)
    assert grouped.batch_pairs == len(batches[int(np.argmax([one["input_ids"].numel() for one in laid]))]["prompts"])
    if share_prompt:
        assert grouped.activation_bytes == pytest.approx(max(peaks), abs=2 * 4 * grouped.trainable_parameters)
    else:  # padded rows: the traced peak is above the real one
        assert max(peaks) < grouped.activation_bytes < 1.2 * max(peaks)
    assert not share_prompt or alone.activation_bytes != pytest.approx(
        max(peaks), rel=0.2
    )  # pairs one by one are another micro-batch


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


def test_malloc_overhead_applies_only_on_a_cpu_whose_malloc_keeps_blocks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(training_memory_module.platform, "libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.delenv("MALLOC_MMAP_THRESHOLD_", raising=False)
    plain, checkpointed = (
        training_memory_module.resident_bytes(1000, device="cpu", checkpointing=kind) for kind in (False, True)
    )
    assert 1000 < plain < checkpointed
    assert training_memory_module.resident_bytes(1000, device="gpu", checkpointing=True) == 1000
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "131072")
    assert training_memory_module.resident_bytes(1000, device="cpu", checkpointing=True) == 1000
