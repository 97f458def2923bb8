"""Unsupported settings under `training` are found before a model loads, and named; supported ones pass."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_recipes import QUICK, run_of
from tiny_references import reference
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from transformers.trainer_utils import SchedulerType
from transformers.training_args import OptimizerNames

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.policy.arguments import training_arguments
from mrpo_pipeline.policy.metrics import EVAL_METRICS
from mrpo_pipeline.policy.run import check_training, train_recipe
from mrpo_pipeline.recipe import parse_recipe
from mrpo_pipeline.recipe.training import REFUSED
from mrpo_pipeline.recipe.training_bounds import UNREAD
from mrpo_pipeline.recipe.without_effect import ignored_settings

# Optimizers that torch and transformers include.
PLAIN = {"adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop"}
# Schedules with required options.
NEEDS = {
    "cosine_with_min_lr": {"min_lr": 1e-6}, "cosine_warmup_with_min_lr": {"min_lr": 1e-6},
    "warmup_stable_decay": {"num_decay_steps": 2},
}  # fmt: skip
ALONG = {"eval_strategy": "steps", "eval_steps": 1}


@pytest.mark.parametrize(
    ("training", "says"),
    [
        ({}, r"micro_batch_tokens is 'auto'"),
        ({"micro_batch_tokens": 512}, "micro_batch_tokens is 512"),
        ({"micro_batch_tokens": "off", "per_device_train_batch_size": 1}, "of one pair it is the sigmoid loss"),
        ({"micro_batch_tokens": "off", "per_device_train_batch_size": 2}, None),
    ],
)
def test_a_loss_that_sorts_its_batch_asks_for_micro_batches_of_a_number_of_pairs(
    tmp_path: Path, training: dict[str, Any], says: str | None
) -> None:
    recipe = parse_recipe(
        {"method": {"loss": {"sigmoid": 1.0, "aot": 1.0}}, "training": training, "output_dir": str(tmp_path)}
    )
    if says is None:
        check_training(recipe)
    else:
        with pytest.raises(UserError, match=says):
            check_training(recipe)


def arguments(folder: Path, evaluates: bool = True, **training: Any) -> Any:
    """Arguments after the checks of the recipe and the machine."""
    recipe = parse_recipe({"training": training})
    return training_arguments(recipe.training, folder, dtype="float32", evaluates=evaluates)


def refusal(folder: Path, **training: Any) -> str:
    """What a setting is refused with; where the machine has what it needs, nothing is left to test."""
    try:
        arguments(folder, **training)
    except UserError as error:
        return str(error)
    pytest.skip(f"{training} is available here")


@pytest.mark.parametrize("name", [one.value for one in OptimizerNames])
def test_an_optimizer_is_there_or_refused(name: str, tmp_path: Path) -> None:
    if name in PLAIN:
        assert arguments(tmp_path, optim=name).optim == name
        return
    assert f"training.optim is '{name}'" in refusal(tmp_path, optim=name)


def test_a_package_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers.trainer_optimizer as optimizers

    monkeypatch.setattr(optimizers, "is_bitsandbytes_available", lambda: False)
    with pytest.raises(UserError, match=r"paged_adamw_8bit'.*bitsandbytes"):
        arguments(tmp_path, optim="paged_adamw_8bit")
    with pytest.raises(UserError, match="moves the weights during the backward pass"):
        arguments(tmp_path, optim="galore_adamw_layerwise", optim_target_modules="all-linear")


@pytest.mark.parametrize("name", [one.value for one in SchedulerType])
def test_a_schedule_has_what_it_needs_or_is_refused(name: str, tmp_path: Path) -> None:
    along = ALONG if name in ("reduce_lr_on_plateau", "greedy") else {}
    needs = {"lr_scheduler_kwargs": NEEDS[name]} if name in NEEDS else {}
    assert arguments(tmp_path, lr_scheduler_type=name, **along, **needs).lr_scheduler_type == name
    if along:
        with pytest.raises(UserError, match="requires an eval strategy"):
            arguments(tmp_path, lr_scheduler_type=name)
    if needs:
        with pytest.raises(UserError, match=f"training.lr_scheduler_type is '{name}'"):
            arguments(tmp_path, lr_scheduler_type=name)
    if name not in ("constant", "constant_with_warmup"):  # for methods that read no cache
        with pytest.raises(UserError, match=r"training\.lr_scheduler_type.*lr_scheduler_kwargs"):
            arguments(
                tmp_path, lr_scheduler_type=name, lr_scheduler_kwargs={"no_such": 1, **NEEDS.get(name, {})}, **along
            )


@pytest.mark.parametrize("name", sorted(INTEGRATION_TO_CALLBACK))
def test_a_reporter_is_there_or_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "training.report_to" in refusal(tmp_path, report_to=name)


WRONG: list[tuple[dict[str, Any], str]] = [
    (
        {"metric_for_best_model": "accuracy", "load_best_model_at_end": True, **ALONG},
        "does not log: expected one of loss",
    ),
    ({"metric_for_best_model": "eval_acc"}, r"metric_for_best_model is 'eval_acc'"),
    ({"metric_for_best_model": "accuracy", "lr_scheduler_type": "greedy", **ALONG}, "metric_for_best_model"),
    ({"load_best_model_at_end": True, "save_strategy": "epoch", **ALONG}, "strategy to match"),
    ({"load_best_model_at_end": True, "save_steps": 3, "eval_strategy": "steps", "eval_steps": 2}, "round multiple"),
    ({"save_strategy": "best", "metric_for_best_model": "loss"}, r"save_strategy is 'best'"),
    ({"save_strategy": "best", **ALONG}, r"save_strategy is 'best'"),
    ({"max_steps": 0}, r"max_steps` .* is 0: expected at least 1, or -1"),
    ({"max_steps": -5}, "max_steps"),
    ({"adam_beta1": 1.0}, "adam_beta1.*less than 1"),
    ({"adam_epsilon": -1e-8}, "adam_epsilon"),
    ({"save_total_limit": -1}, "save_total_limit"),
    ({"torch_empty_cache_steps": 0}, "torch_empty_cache_steps"),
    ({"optim_args": "rank"}, "training.optim"),
    ({"optim": "sgd", "optim_args": "momentum=much"}, "training.optim"),
    ({"gradient_checkpointing": True, "gradient_checkpointing_kwargs": "reentrant"}, "gradient_checkpointing_kwargs"),
    ({"deepspeed": "nowhere.json"}, "training"),
    ({"fsdp": "full_shard"}, "training"),
    ({"fsdp": "full_shard", "fsdp_config": "nowhere.json"}, "training"),
    ({"accelerator_config": "nowhere.json"}, "training"),
    ({"tf32": True}, "tf32|training"),
    ({"dataloader_prefetch_factor": 2}, "dataloader_prefetch_factor|training"),
    ({"push_to_hub": True}, "push_to_hub is true.*offline"),
    ({"hub_strategy": "sometimes"}, "hub_strategy"),
    ({"resume_from_checkpoint": "out/checkpoint-2"}, "--resume"),
    ({"hub_token": "hf_x"}, "HF_TOKEN"),
    ({"torch_compile": True}, "compile"),
    ({"auto_find_batch_size": True}, "auto_find_batch_size"),
    ({"bf16_full_eval": True}, "bf16_full_eval"),
    ({"group_by_length": True}, "train_sampling_strategy: group_by_length"),
    ({"warmup_ratio": 0.1}, "warmup_steps"),
    ({"beta": 0.1}, r"method\.beta"),
]


@pytest.mark.parametrize(("training", "says"), WRONG)
def test_what_cannot_be_is_refused(
    training: dict[str, Any], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    if training.get("tf32") and torch.cuda.is_available():
        pytest.skip("this machine has TF32")
    with pytest.raises(UserError, match=says):
        arguments(tmp_path, **training)


def test_without_held_out_pairs_nothing_is_evaluated(tmp_path: Path) -> None:
    for training in ({"eval_on_start": True}, ALONG):
        with pytest.raises(UserError, match="no held-out pairs"):
            arguments(tmp_path, evaluates=False, **training)
        arguments(tmp_path, **training)


def test_what_can_be_is_let_through(tmp_path: Path) -> None:
    for training in (
        {"max_steps": -1}, {"max_steps": 1}, {"hub_strategy": "end"}, {"optim": "sgd", "optim_args": "momentum=0.9"},
        {"metric_for_best_model": "eval_accuracy/anchor", "load_best_model_at_end": True, "save_steps": 2, **ALONG},
        {"save_strategy": "best", "metric_for_best_model": "rewards/margins", **ALONG}, {"save_total_limit": 0},
        {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}, {"warmup_steps": 0.1},
    ):  # fmt: skip
        arguments(tmp_path, **training)


def test_every_key_of_transformers_is_known_here() -> None:
    """Ignored keys are reported; the tables name existing keys."""
    import dataclasses

    from transformers import TrainingArguments

    every = {one.name: one for one in dataclasses.fields(TrainingArguments) if one.init}
    assert UNREAD.keys() | REFUSED.keys() <= every.keys()
    assert not UNREAD.keys() & REFUSED.keys()
    for key, value in {"prediction_loss_only": True, "do_train": True, "include_for_metrics": ["loss"]}.items():
        assert set(ignored_settings(parse_recipe({"training": {key: value}}))) == {f"training.{key}"}


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("arguments")
    return run_of(
        folder, {"base": reference(folder / "base", "llama", "qwen")},
        pairs={"train": str(folder / "pairs.jsonl"), "eval_fraction": 0.3},
    )  # fmt: skip


def trained(run: Any, folder: Path, **training: Any) -> Any:
    document = run.model_dump(mode="json") | {"training": {**QUICK, **training}, "output_dir": str(folder)}
    return parse_recipe(document)


def test_what_evaluation_logs_is_what_may_be_chosen_by(scored: Any, tmp_path: Path) -> None:
    train_recipe(trained(scored, tmp_path, eval_strategy="steps", eval_steps=2))
    history = json.loads((tmp_path / "trainer_state.json").read_text())["log_history"]
    logged = next(entry for entry in history if "eval_loss" in entry)
    timing = {"runtime", "samples_per_second", "steps_per_second"}
    assert {name.removeprefix("eval_") for name in logged if name.startswith("eval_")} - timing == set(EVAL_METRICS)


def test_fewer_pairs_than_a_step_are_not_dropped_in_silence(scored: Any, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"dataloader_drop_last is true, with 8 training pairs and 128 pairs in an optimizer"
    ):
        train_recipe(trained(scored, tmp_path, dataloader_drop_last=True, gradient_accumulation_steps=64))
    assert not (tmp_path / "adapter_model.safetensors").exists()


def test_an_earlier_run_in_the_folder_is_reported(
    scored: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = trained(scored, tmp_path, save_strategy="steps", save_steps=1)
    train_recipe(run)
    assert "This one starts again" not in caplog.text
    (tmp_path / "train_results.json").unlink()
    train_recipe(run)
    assert "holds an interrupted run. This one starts again" in caplog.text
    assert "--resume would continue from checkpoint-3" in caplog.text
    caplog.clear()
    train_recipe(run, resume=True)
    assert "starts again" not in caplog.text
    train_recipe(trained(scored, tmp_path))
    assert "holds a finished run. This one starts again" in caplog.text


def test_a_terminal_gets_the_lines_that_a_pipe_gets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert arguments(tmp_path).disable_tqdm
    assert not arguments(tmp_path, disable_tqdm=False).disable_tqdm
