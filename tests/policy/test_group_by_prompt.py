"""Ranked answers: pairs of a prompt in one step, each completion run once, with the losses and gradients of single pairs."""

from __future__ import annotations

import json
from itertools import combinations

import numpy as np
import pytest
import torch
from test_share_prompts import SHARED, assert_equal, policy
from tiny_policy import VOCABULARY, make_examples

from mrpo_pipeline.dataset.completion_numbering import Distinct, is_ranked, of_ranked, pairs_by_prompt
from mrpo_pipeline.dataset.examples import PreferenceExamples
from mrpo_pipeline.errors import UserError
from mrpo_pipeline.evaluation.held_out import evaluate_policy
from mrpo_pipeline.losses.settings import LossSettings
from mrpo_pipeline.models.head import Head
from mrpo_pipeline.models.input_layouts import plain_rows, shared_row
from mrpo_pipeline.models.shared_prompt_attention import SharedPromptAttention
from mrpo_pipeline.policy.argument_checks import groups_by_prompt
from mrpo_pipeline.policy.arguments import fast_paths, training_arguments
from mrpo_pipeline.policy.collate import lay_out_pairs
from mrpo_pipeline.policy.forward import PolicyForward
from mrpo_pipeline.policy.micro_batching import Measure, micro_batches
from mrpo_pipeline.policy.sampler import EvalDataset, EvalSampler, PairLoader, StepDataset, StepSampler
from mrpo_pipeline.policy.train import train_policy
from mrpo_pipeline.policy.trainer import PreferenceTrainer
from mrpo_pipeline.recipe import Lora, Method, Policy
from mrpo_pipeline.recipe.training import FastPaths


def ranked(answers: tuple[int, ...] = (7, 3, 2, 4), *, longest: int = 20, seed: int = 0) -> PreferenceExamples:
    """Every pair of each prompt's answers, shuffled; a completion has the same log-probs in all its pairs."""
    draw = np.random.default_rng(seed)

    def ids(least: int) -> np.ndarray:
        return draw.integers(3, VOCABULARY, draw.integers(least, longest + 1)).astype(np.int32)

    rows = []
    for count in answers:
        prompt, completions = ids(longest // 2), [ids(2) for _ in range(count)]
        numbers = [-4.5 * len(one) + draw.normal(0, 2) for one in completions]
        rows += [
            (prompt, completions[a], completions[b], numbers[a], numbers[b]) for a, b in combinations(range(count), 2)
        ]
    rows = [rows[at] for at in draw.permutation(len(rows))]
    prompts, chosen, rejected, up, down = zip(*rows, strict=True)
    columns = [np.array(side) for side in (up, down)]
    return PreferenceExamples(
        pair_ids=[f"pair-{at}" for at in range(len(rows))], prompt_ids=list(prompts), chosen_ids=list(chosen),
        rejected_ids=list(rejected), reference_chosen=columns[0][:, None], reference_rejected=columns[1][:, None],
        weights=np.ones((len(rows), 1)), anchor_chosen=columns[0], anchor_rejected=columns[1],
    )  # fmt: skip


def distinct_tokens(examples: PreferenceExamples, picked: list[int]) -> int:
    """Tokens of a forward pass: every prompt once, and every completion without its last token."""
    prompts = {examples.prompt_ids[at].tobytes(): len(examples.prompt_ids[at]) for at in picked}
    sides = [(at, side) for at in picked for side in (examples.chosen_ids[at], examples.rejected_ids[at])]
    completions = {(examples.prompt_ids[at].tobytes(), side.tobytes()): len(side) - 1 for at, side in sides}
    return sum(prompts.values()) + sum(completions.values())


@pytest.mark.parametrize("layout", [shared_row, plain_rows])
@pytest.mark.parametrize("kind", [kind for kind in SHARED if kind in ("llama", "gemma2", "mistral", "mixtral")])
def test_sums_and_gradients_are_those_of_the_pairs_one_by_one(kind, layout):
    examples = ranked((4, 3), longest=24)
    model = policy(kind)
    head = Head.of(model.get_base_model())
    forward = PolicyForward(head, SharedPromptAttention(head.model) if layout is shared_row else None)
    picked = list(range(len(examples)))
    (batch,) = StepDataset(examples, Distinct.of(examples)).__getitems__([picked])
    laid = lay_out_pairs(batch, layout)
    assert laid["count"] == 4 + 3
    if layout is shared_row:
        assert laid["input_ids"].numel() == distinct_tokens(examples, picked)
    assert_equal(model, forward, laid, batch)


@pytest.mark.parametrize("order", ["random", "group_by_length", "sequential"])
@pytest.mark.parametrize(("size", "accumulation", "world_size"), [(21, 1, 1), (8, 4, 1), (2, 4, 1), (4, 2, 2)])
def test_pairs_of_a_prompt_are_in_one_step_and_every_pair_once(order, size, accumulation, world_size):
    examples = ranked((7, 3, 2, 4, 7, 2, 2, 5))
    distinct = Distinct.of(examples)
    options = {"size": size, "accumulation": accumulation, "world_size": world_size, "order": order, "seed": 3}
    sampler, again = (StepSampler(examples.lengths, **options, distinct=distinct) for _ in range(2))
    epochs = [sampler.steps(epoch) for epoch in range(3)]
    for steps in epochs:
        assert sorted(np.concatenate(steps).tolist()) == list(range(len(examples)))
        assert len(steps) == len(sampler) <= len(examples)
        assert max(map(len, steps)) <= sampler.pairs_per_step
        for prompt, count in zip(*np.unique(distinct.prompts, return_counts=True), strict=True):
            holding = sum(bool((distinct.prompts[step] == prompt).any()) for step in steps)
            assert holding == -(-int(count) // sampler.pairs_per_step)
    assert [step.tolist() for step in again.steps(1)] == [step.tolist() for step in epochs[1]]
    same = [step.tolist() for step in epochs[0]] == [step.tolist() for step in epochs[1]]
    assert same == (order == "sequential")
    if order != "sequential":
        assert examples.lengths[epochs[0][0]].max() == examples.lengths.max()


def test_steps_are_as_full_as_prompts_allow():
    prompts = np.repeat(np.arange(12), [6] * 4 + [3] * 4 + [1] * 4)
    assert [len(unit) for unit in pairs_by_prompt(np.repeat([0, 1], [5, 2]), 2)] == [2, 2, 1, 2]
    examples = make_examples(len(prompts))
    numbers = np.stack([prompts, 2 * np.arange(len(prompts)), 2 * np.arange(len(prompts)) + 1], axis=1)
    sampler = StepSampler(examples.lengths, size=10, distinct=Distinct(numbers, np.ones_like(numbers)))
    assert len(sampler) == 4
    assert sorted(len(step) for step in sampler.steps(0)) == [10, 10, 10, 10]


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_a_prompts_pairs_stay_in_one_micro_batch_where_they_fit(world_size):
    examples = ranked((5, 4, 3, 3))
    distinct = Distinct.of(examples)
    step = np.arange(len(examples))
    measure = Measure(examples.shared_lengths, False, distinct)
    ranks = [micro_batches(step, measure, tokens=220, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert len({len(batches) for batches in ranks}) == 1
    batches = [np.array(batch) for own in ranks for batch in own]
    real = np.concatenate([batch[batch >= 0] for batch in batches])
    assert sorted(real.tolist()) == step.tolist()
    for batch in batches:
        assert len(batch) == 1 or distinct.tokens(batch) <= 220
    if world_size == 1:
        for prompt in range(4):
            assert sum(bool((distinct.prompts[batch] == prompt).any()) for batch in batches) == 1


def trainer_of(examples, folder, kind="llama", *, alone=False, **training):
    """A run grouped by prompt; with ``alone``, the same steps with each pair run separately."""
    settings = {"per_device_train_batch_size": 21, "max_steps": 3, "disable_tqdm": True, "logging_steps": 1,
                "learning_rate": 1e-2, "save_strategy": "no", "group_by_prompt": True} | training  # fmt: skip
    arguments = training_arguments(settings, folder, dtype="float32", evaluates=False)
    method = Method(beta=0.3, loss={"sigmoid": 0.8, "bco": 0.2})
    trainer = PreferenceTrainer(policy(kind), arguments, method, examples, fast=fast_paths(settings))
    if alone:
        sampler = trainer.train_sampler()
        trainer.distinct = None
        trainer.get_train_dataloader = lambda: PairLoader.of(StepDataset(examples), sampler, arguments)
    return trainer


@pytest.mark.parametrize("kind", ["llama", "mamba"])
def test_the_losses_are_those_of_single_pairs_in_the_same_steps(kind, tmp_path):
    examples = ranked((7, 3, 7, 4))
    grouped, alone = (trainer_of(examples, tmp_path, kind, alone=alone) for alone in (False, True))
    for trainer in (grouped, alone):
        trainer.train()
    logged = [[e for e in trainer.state.log_history if "learning_rate" in e] for trainer in (grouped, alone)]
    assert len(logged[0]) == 3
    for ours, theirs in zip(*logged, strict=True):
        assert theirs["loss"] == pytest.approx(ours["loss"], rel=1e-5)
        assert theirs["grad_norm"] == pytest.approx(ours["grad_norm"], rel=1e-4)
    assert grouped.tokens_run < 0.5 * alone.tokens_run
    if kind == "llama":
        steps = grouped.train_sampler().steps(0)
        assert grouped.tokens_run == sum(distinct_tokens(examples, step.tolist()) for step in steps)


def test_ranked_answers_are_grouped_by_themselves_and_others_are_not():
    assert is_ranked(ranked()) and not is_ranked(make_examples(20))
    assert not is_ranked(ranked((2, 2, 2)))
    contextual = ranked((3, 3))
    contextual.prompt_ids[-1] = np.empty(0, np.int32)  # sides that begin with different tokens
    assert is_ranked(contextual)
    assert groups_by_prompt(FastPaths(), LossSettings(), ranked(), drop_last=False)
    assert not groups_by_prompt(FastPaths(group_by_prompt=False), LossSettings(), ranked(), drop_last=False)
    assert not groups_by_prompt(FastPaths(), LossSettings(loss="aot"), ranked(), drop_last=False)
    assert not groups_by_prompt(FastPaths(), LossSettings(), ranked(), drop_last=True)
    with pytest.raises(UserError, match=r"group_by_prompt is true beside training\.dataloader_drop_last"):
        groups_by_prompt(FastPaths(group_by_prompt=True), LossSettings(), make_examples(4), drop_last=True)


def test_completions_are_equal_by_tokens_prompt_and_mask():
    examples = ranked((3,))
    numbers = Distinct.of(examples).numbers
    assert len(np.unique(numbers[:, 0])) == 1 and len(np.unique(numbers[:, 1:])) == 3
    masks = [np.ones(len(ids), np.bool_) for ids in examples.chosen_ids]
    masks[0][0] = False
    examples.chosen_scored, examples.rejected_scored = masks, [np.empty(0, np.bool_)] * 3
    examples.__post_init__()
    assert len(np.unique(Distinct.of(examples).numbers[:, 1:])) >= 3
    other = ranked((2, 2))
    other.chosen_ids[1] = other.chosen_ids[0]
    other.__post_init__()
    assert len(np.unique(Distinct.of(other).numbers[:, 1:])) == 4
    assert isinstance(torch.from_numpy(numbers), torch.Tensor)


def test_a_resumed_run_goes_through_the_same_steps(tmp_path):
    """Grouped by ``auto``; three epochs, stopped within the second one."""
    from tiny_policy import write_policy
    from transformers import TrainerCallback

    class Stop(TrainerCallback):
        def on_step_begin(self, args, state, control, **_):
            if state.global_step == 5:
                raise KeyboardInterrupt

    def run(folder, *callbacks, resume=False, **changes):
        settings = {"num_train_epochs": 3, "per_device_train_batch_size": 6, "gradient_accumulation_steps": 1,
                    "logging_steps": 1, "save_steps": 1, "learning_rate": 1e-2} | changes  # fmt: skip
        output = tmp_path / folder
        train_policy(chosen, examples, None, Method(beta=0.3), settings, output, resume=resume, callbacks=callbacks)
        state = json.loads((output / "trainer_state.json").read_text())
        return [(entry["step"], entry["loss"]) for entry in state["log_history"] if "learning_rate" in entry]

    examples = ranked((4, 3, 4, 2, 3))
    chosen = Policy(
        model=str(write_policy(tmp_path / "model")), lora=Lora(r=4, dropout=0.1, target_modules="all-linear")
    )
    expected = run("alone")
    assert len(expected) == 3 * len(StepSampler(examples.lengths, size=6, distinct=Distinct.of(examples))) == 12
    with pytest.raises(KeyboardInterrupt):
        run("stopped", Stop())
    with pytest.raises(UserError, match=r"training\.group_by_prompt \(was true, now absent\)"):
        run("stopped", resume=True, group_by_prompt=False)
    assert run("stopped", resume=True) == expected


def test_evaluation_runs_each_completion_of_ranked_answers_once_and_gives_the_same_sums(tmp_path):
    examples = ranked((7, 7, 5, 3), longest=24)
    assert of_ranked(examples) is not None and of_ranked(make_examples(8)) is None
    trainer = trainer_of(ranked(), tmp_path, per_device_eval_batch_size=4)
    run: list[int] = []
    inputs = trainer.policy_forward.inputs
    trainer.policy_forward.inputs = lambda batch: run.append(len(batch["prompts"])) or inputs(batch)
    plain = PairLoader(EvalDataset(examples), EvalSampler(examples.lengths, size=4))
    expected = torch.stack(trainer.policy_sums(examples, plain))
    assert max(run) == 4
    run.clear()
    found = torch.stack(trainer.policy_sums(examples))
    assert sum(run) == len(examples) and max(run) > 4  # more pairs with no more tokens
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert np.isfinite(trainer.evaluate(examples)["eval_loss"])
    figures = evaluate_policy(
        policy("llama"), examples, Method(beta=0.3, loss={"sigmoid": 0.8, "bco": 0.2}), batch_size=4
    )
    # The trainer's adapters are fused.
    np.testing.assert_allclose(np.stack([figures.chosen, figures.rejected]), expected.numpy(), atol=1e-3)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_every_ranked_pair_is_evaluated_once_in_batches_of_no_more_completions(world_size):
    examples = ranked((7, 3, 2, 4, 7, 2, 2, 5))
    distinct = Distinct.of(examples)
    samplers = [
        EvalSampler(examples.lengths, size=4, rank=rank, world_size=world_size, distinct=distinct)
        for rank in range(world_size)
    ]
    batches = [np.array(batch) for sampler in samplers for batch in sampler]
    assert len({len(sampler) for sampler in samplers}) == 1
    assert sorted(np.concatenate([batch[batch >= 0] for batch in batches]).tolist()) == list(range(len(examples)))
    most = 2 * 4 * examples.lengths.max()
    assert all(
        distinct.rows(np.abs(batch)) * examples.lengths[batch].max() <= most for batch in batches if (batch >= 0).all()
    )
