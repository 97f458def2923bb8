"""The loss, its gradient and the metrics of the real Trainer, against full logits of unpadded rows."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_policy import KINDS, load_base, make_examples, plain_sum, plain_sums, write_policy

from mrpo_pipeline.errors import RunError
from mrpo_pipeline.policy.arguments import training_arguments
from mrpo_pipeline.policy.metrics import METRICS
from mrpo_pipeline.policy.model import load_policy
from mrpo_pipeline.policy.trainer import PreferenceTrainer
from mrpo_pipeline.recipe import Lora, Method, Policy

LORA = Lora(r=4, alpha=8, target_modules="all-linear")


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return write_policy(tmp_path_factory.mktemp("llama"))


def trainer_for(
    folder, output_dir, examples, settings=None, *, eval_examples=None, lora=LORA, moved=0.0, fast=None, **training
):
    torch.manual_seed(1)
    model = load_policy(Policy(model=str(folder), lora=lora))
    with torch.no_grad():
        # A new adapter's output is 0; with other weights, all its effects are visible.
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, moved)
    defaults = {"logging_steps": 1, "save_strategy": "no", "num_train_epochs": 1, "disable_tqdm": True}
    arguments = training_arguments(
        defaults | training, output_dir, dtype="float32", evaluates=eval_examples is not None
    )
    return PreferenceTrainer(model, arguments, settings or Method(), examples, eval_examples, fast=fast)


def plain_loss(chosen, rejected, examples, settings):
    """Mean over pairs of Σ_k α_k L(z_k), computed independently from the policy's (N,) sums."""
    total = 0.0
    for i in range(len(examples)):
        lengths = len(examples.chosen_ids[i]), len(examples.rejected_ids[i])
        for k in range(examples.weights.shape[1]):
            up = chosen[i] - examples.reference_chosen[i, k]
            down = rejected[i] - examples.reference_rejected[i, k]
            z = settings.beta * (up - down)
            s = settings.label_smoothing
            if settings.loss == "sigmoid":
                loss = (1 - s) * torch.log1p(torch.exp(-z)) + s * torch.log1p(torch.exp(z))
            elif settings.loss == "hinge":
                loss = torch.clamp(1 - z, min=0)
            else:
                loss = (up / lengths[0] - down / lengths[1] - 1 / (2 * settings.beta)) ** 2
            total = total + examples.weights[i, k] * loss
        total = total - settings.sft_weight * chosen[i] / lengths[0]
    return total / len(examples)


def plain_step(trainer, examples, settings):
    """Loss and gradient norm of the trainer's model by full logits."""
    model = trainer.model
    kept = model.__dict__.pop("forward")  # the peft model's own
    model.train()
    sides = [
        torch.stack([plain_sum(model, p, c) for p, c in zip(examples.prompt_ids, side, strict=True)])
        for side in (examples.chosen_ids, examples.rejected_ids)
    ]
    loss = plain_loss(*sides, examples, settings)
    parameters = [p for p in model.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(loss, parameters)
    model.forward = kept
    return float(loss.detach()), math.sqrt(sum(float(g.double().pow(2).sum()) for g in gradients))


SETTINGS = {
    "sigmoid": Method(beta=0.3, label_smoothing=0.1),
    "hinge": Method(beta=0.3, loss="hinge"),
    "ipo": Method(beta=0.3, loss="ipo"),
    "sft": Method(beta=0.3, sft_weight=0.7),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_loss_and_gradient_are_those_of_full_logits(llama, tmp_path, name):
    examples = make_examples(6, references=2)
    trainer = trainer_for(llama, tmp_path, examples, SETTINGS[name], moved=0.2, per_device_train_batch_size=6)
    loss, norm = plain_step(trainer, examples, SETTINGS[name])
    trainer.train()
    logged = trainer.state.log_history[0]
    assert logged["loss"] == pytest.approx(loss, rel=1e-5)
    assert logged["grad_norm"] == pytest.approx(norm, rel=1e-4)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "llama"])
def test_other_architectures_give_the_loss_of_full_logits(tmp_path, kind):
    folder = write_policy(tmp_path / "model", kind)
    examples = make_examples(5)
    trainer = trainer_for(folder, tmp_path / "out", examples, moved=0.2, per_device_train_batch_size=5)
    loss, norm = plain_step(trainer, examples, Method())
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(loss, rel=1e-5)
    assert trainer.state.log_history[0]["grad_norm"] == pytest.approx(norm, rel=1e-4)


@pytest.mark.parametrize("extra", [{}, {"gradient_checkpointing": True}])
def test_a_step_is_the_same_however_it_is_split(llama, tmp_path, extra):
    examples = make_examples(8, longest=30)
    seen = []
    for size, accumulation in ((8, 1), (2, 4), (1, 8)):
        trainer = trainer_for(
            llama,
            tmp_path,
            examples,
            moved=0.2,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
            **extra,
        )
        trainer.train()
        assert trainer.state.global_step == 1
        seen.append(trainer.state.log_history[0])
    for other in seen[1:]:
        assert other["loss"] == pytest.approx(seen[0]["loss"], rel=1e-5)
        assert other["grad_norm"] == pytest.approx(seen[0]["grad_norm"], rel=1e-5)
        for name in METRICS:
            assert other[name] == pytest.approx(seen[0][name], rel=1e-5, abs=1e-6)


def test_gradient_checkpointing_changes_nothing_and_does_recompute(llama, tmp_path):
    examples = make_examples(4)
    logs, passes = [], []
    for checkpointing in (False, True):
        trainer = trainer_for(
            llama, tmp_path, examples, moved=0.2, per_device_train_batch_size=4, gradient_checkpointing=checkpointing
        )
        count = []
        trainer.model.get_base_model().model.layers[0].mlp.register_forward_pre_hook(
            lambda module, *_, c=count: c.append(1) if module.training else None
        )
        trainer.train()
        logs.append(trainer.state.log_history[0])
        passes.append(len(count))
    assert passes == [1, 2]
    assert logs[1]["loss"] == pytest.approx(logs[0]["loss"], rel=1e-6)
    assert logs[1]["grad_norm"] == pytest.approx(logs[0]["grad_norm"], rel=1e-5)


def test_a_last_incomplete_step_is_divided_by_its_own_number_of_pairs(llama, tmp_path):
    examples = make_examples(7)
    trainer = trainer_for(
        llama,
        tmp_path,
        examples,
        moved=0.2,
        learning_rate=0.0,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        train_sampling_strategy="sequential",
    )
    trainer.train()
    steps = [entry for entry in trainer.state.log_history if "learning_rate" in entry]
    assert len(steps) == 2
    trainer.model.__dict__.pop("forward")
    sides = [torch.tensor(side) for side in plain_sums(trainer.model.eval(), examples)]
    for entry, picked in zip(steps, (range(4), range(4, 7)), strict=True):
        part = replace(
            examples,
            **{
                name: [getattr(examples, name)[i] for i in picked]
                if isinstance(getattr(examples, name), list)
                else getattr(examples, name)[list(picked)]
                for name in examples.__dataclass_fields__
                if getattr(examples, name) is not None
            },
        )
        expected = plain_loss(*(side[list(picked)] for side in sides), part, Method())
        assert entry["loss"] == pytest.approx(float(expected), rel=1e-5)


def test_with_its_own_sums_as_the_reference_the_loss_starts_at_ln_2_and_margins_at_0(llama, tmp_path):
    base = load_base(llama)
    examples = make_examples(8, base=base)
    held_out = make_examples(5, seed=9, base=base)
    trainer = trainer_for(llama, tmp_path, examples, eval_examples=held_out, per_device_train_batch_size=8)
    evaluation = trainer.evaluate()
    trainer.train()
    first = next(entry for entry in trainer.state.log_history if "loss" in entry)
    for loss, prefix, entry in ((first["loss"], "", first), (evaluation["eval_loss"], "eval_", evaluation)):
        assert loss == pytest.approx(math.log(2), abs=1e-4)
        assert entry[f"{prefix}rewards/margins"] == pytest.approx(0, abs=1e-4)
        # Every pair is a tie, which counts one half.
        assert entry[f"{prefix}rewards/accuracies"] == 0.5
        assert entry[f"{prefix}accuracy/anchor"] == 0.5
    assert evaluation["eval_accuracy/anchor_ties"] == 1
    assert evaluation["eval_accuracy/policy_ties"] == 0


def test_metrics_are_averages_over_pairs_between_logs(llama, tmp_path):
    examples = make_examples(10)
    settings = Method(beta=0.2)
    trainer = trainer_for(
        llama,
        tmp_path,
        examples,
        settings,
        eval_examples=examples,
        moved=0.2,
        learning_rate=0.0,
        per_device_train_batch_size=4,
        per_device_eval_batch_size=3,
        logging_steps=3,
    )
    trainer.train()
    logged = trainer.state.log_history[0]
    evaluation = trainer.evaluate()
    trainer.model.__dict__.pop("forward")
    chosen, rejected = plain_sums(trainer.model.eval(), examples)
    rewards = [
        0.2 * (chosen - examples.reference_chosen[:, 0]),
        0.2 * (rejected - examples.reference_rejected[:, 0]),
    ]
    per_token = chosen / examples.chosen_lengths - rejected / examples.rejected_lengths
    anchor = (chosen - examples.anchor_chosen) - (rejected - examples.anchor_rejected)
    expected = {
        "rewards/chosen": rewards[0].mean(),
        "rewards/rejected": rewards[1].mean(),
        "rewards/margins": (rewards[0] - rewards[1]).mean(),
        "rewards/accuracies": (rewards[0] > rewards[1]).mean(),
        "logps/chosen": chosen.mean(),
        "logps/rejected": rejected.mean(),
        "accuracy/policy": (chosen > rejected).mean(),
        "accuracy/policy_per_token": (per_token > 0).mean(),
        "accuracy/anchor": (anchor > 0).mean(),
    }
    assert set(expected) == set(METRICS)
    tokens = sum(
        2 * len(p) + len(c) + len(r)
        for p, c, r in zip(examples.prompt_ids, examples.chosen_ids, examples.rejected_ids, strict=True)
    )
    assert logged["num_tokens"] == evaluation["eval_num_tokens"] == tokens
    for name, value in expected.items():
        assert logged[name] == pytest.approx(value, rel=1e-5), name
        assert evaluation[f"eval_{name}"] == pytest.approx(value, rel=1e-5), name
    expected_loss = plain_loss(torch.tensor(chosen), torch.tensor(rejected), examples, settings)
    assert evaluation["eval_loss"] == pytest.approx(float(expected_loss), rel=1e-5)


def test_evaluation_on_the_way_does_not_change_training(llama, tmp_path):
    examples = make_examples(8)
    lora = LORA.model_copy(update={"dropout": 0.3})
    losses = []
    for extra in ({}, {"eval_strategy": "steps", "eval_steps": 1}):
        trainer = trainer_for(
            llama, tmp_path, examples, eval_examples=examples, lora=lora, per_device_train_batch_size=2, **extra
        )
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert losses[0] == losses[1]
    assert len(losses[0]) == 4


def test_the_adapters_dropout_is_on_in_training_and_off_in_evaluation(llama, tmp_path):
    examples = make_examples(6)
    lora = LORA.model_copy(update={"dropout": 0.5})
    options = {"moved": 0.2, "learning_rate": 0.0, "per_device_train_batch_size": 6, "num_train_epochs": 2}
    trainer = trainer_for(llama, tmp_path, examples, eval_examples=examples, lora=lora, **options)
    expected = trainer_for(llama, tmp_path, examples, eval_examples=examples, **options).evaluate()["eval_loss"]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-6)
    trainer.train()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-6)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 2
    assert losses[0] != pytest.approx(losses[1], rel=1e-3)


@pytest.mark.parametrize(("kind", "dropouts"), [
    ("gpt2", {"resid_pdrop": 0.5, "embd_pdrop": 0.5, "attn_pdrop": 0.5}),
    ("llama", {"attention_dropout": 0.5}),
])  # fmt: skip
def test_the_base_has_no_dropout_in_training_and_the_adapter_keeps_its_own(tmp_path, kind, dropouts):
    folder = write_policy(tmp_path / "model", kind, **dropouts)
    base = load_base(folder)
    assert base.config.to_dict() | dropouts == base.config.to_dict()
    examples = make_examples(4, base=base)
    trainer = trainer_for(folder, tmp_path / "out", examples, per_device_train_batch_size=4)
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)

    model = load_policy(Policy(model=str(folder), lora=LORA.model_copy(update={"dropout": 0.25})))
    kept = {module.p for name, module in model.named_modules() if type(module) is torch.nn.Dropout}
    assert kept == ({0.0, 0.25} if kind == "gpt2" else {0.25})


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_broken_number_stops_the_run_before_the_weights_move_and_names_the_pairs(llama, tmp_path, where):
    examples = make_examples(4)
    trainer = trainer_for(
        llama,
        tmp_path,
        examples,
        moved=0.2,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=2,
        train_sampling_strategy="sequential",
    )
    if where == "loss":
        examples.reference_chosen[1] = np.nan
    else:
        weight = next(p for n, p in trainer.model.named_parameters() if "lora_B" in n)
        weight.register_hook(lambda gradient: gradient * float("nan"))
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
    with pytest.raises(RunError, match=r"nan_batch\.json"):
        trainer.train()
    record = json.loads((tmp_path / "nan_batch.json").read_text())
    assert sorted(record["pair_ids"]) == ["pair-0", "pair-1"]
    assert record["pair_ids_of_broken_losses"] == (["pair-1"] if where == "loss" else [])
    for name, parameter in trainer.model.named_parameters():
        if name in before:
            assert torch.equal(parameter, before[name])


def test_only_the_adapter_trains_and_in_float32(tmp_path):
    folder = write_policy(tmp_path / "model")
    model = load_policy(Policy(model=str(folder), dtype="bfloat16", lora=LORA))
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == ("lora_" in name)
        assert parameter.dtype == (torch.float32 if "lora_" in name else torch.bfloat16)
