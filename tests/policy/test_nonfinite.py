"""A number that is not finite stops training and evaluation, with the pairs named and good checkpoints kept."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_policy_loss import trainer_for
from tiny_policy import load_base, make_examples, write_policy
from transformers import TrainerCallback

from mrpo_pipeline.dataset.examples import PreferenceExamples
from mrpo_pipeline.errors import RunError
from mrpo_pipeline.evaluation.held_out import evaluate_policy
from mrpo_pipeline.policy import checkpoints
from mrpo_pipeline.recipe import Method
from mrpo_pipeline.recipe.training import FastPaths

# A token of one pair only.
RARE = 95
SLOW = FastPaths(share_prompt=False, micro_batch_tokens="off", fused_lora=False, chunked_head=False)
STEPS = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "train_sampling_strategy": "sequential"}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_policy(tmp_path_factory.mktemp("llama"))


def with_nan_word(source: Path, folder: Path) -> Path:
    """The same model with a NaN embedding of one token, as in a damaged file."""
    folder.mkdir()
    for path in source.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    weights = load_file(source / "model.safetensors")
    name = next(name for name in weights if "embed_tokens" in name)
    weights[name][RARE] = torch.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def examples_with_rare_word(at: int, count: int = 8) -> PreferenceExamples:
    examples = make_examples(count)
    for rows in (examples.prompt_ids, examples.chosen_ids, examples.rejected_ids):
        for ids in rows:
            ids[ids == RARE] = 3
    examples.rejected_ids[at][0] = RARE
    return examples


class Planted(TrainerCallback):  # type: ignore[misc]
    """NaN in a weight of the adapter after a step, as after a faulty kernel or a flipped bit."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if state.global_step == self.step:
            weight = next(p for n, p in model.named_parameters() if "lora_A" in n)
            with torch.no_grad():
                weight[0, 0] = torch.nan


def record_of(folder: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((folder / "nan_batch.json").read_text())
    return record


@pytest.mark.parametrize("fast", [FastPaths(), SLOW], ids=["fast", "slow"])
@pytest.mark.parametrize("max_grad_norm", [1.0, 0.0])
def test_nan_weights_that_one_pair_meets_stop_the_step_of_that_pair(
    llama: Path, tmp_path: Path, fast: FastPaths, max_grad_norm: float
) -> None:
    model = with_nan_word(llama, tmp_path / "model")
    examples = examples_with_rare_word(5)
    trainer = trainer_for(model, tmp_path / "out", examples, fast=fast, max_grad_norm=max_grad_norm, **STEPS)  # type: ignore[no-untyped-call]
    with pytest.raises(RunError, match=r"step 3: the loss is nan.*nan_batch\.json"):
        trainer.train()
    record = record_of(tmp_path / "out")
    assert sorted(record["pair_ids"]) == ["pair-4", "pair-5"]
    assert "pair-5" in record["pair_ids_of_broken_losses"]
    assert [entry["step"] for entry in trainer.state.log_history] == [1, 2]
    assert all(math.isfinite(entry["loss"]) for entry in trainer.state.log_history)
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters() if p.requires_grad)


@pytest.mark.parametrize("saved", [True, False])
def test_weights_that_become_nan_stop_a_run_and_it_resumes_from_the_checkpoint_before(
    llama: Path, tmp_path: Path, saved: bool
) -> None:
    """``saved``: whether a checkpoint is due at the step that broke the weights; it must not be written."""

    def run(folder: Path, *, planted: int | None = None, resume: bool = False) -> list[float]:
        every = 1 if saved else 10
        trainer = trainer_for(llama, folder, make_examples(8), save_strategy="steps", save_steps=every, **STEPS)  # type: ignore[no-untyped-call]
        if planted is not None:
            trainer.add_callback(Planted(planted))
        whole = checkpoints.latest_complete(folder, trainer.identity) if resume else None
        trainer.train(resume_from_checkpoint=str(whole) if whole else None)
        return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

    undisturbed = run(tmp_path / "whole")
    with pytest.raises(RunError, match="stopped after step 2" if saved else "stopped in step 3"):
        run(tmp_path / "out", planted=2)
    record = record_of(tmp_path / "out")
    assert record["pair_ids"] == (["pair-2", "pair-3"] if saved else ["pair-4", "pair-5"])
    if saved:
        assert [path.name for path in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-1"]
    else:
        assert record["pair_ids_of_broken_losses"] == record["pair_ids"]
    assert run(tmp_path / "out", resume=True) == undisturbed


@pytest.mark.parametrize("while_training", [True, False])
def test_figures_of_held_out_pairs_are_not_made_of_nan(llama: Path, tmp_path: Path, while_training: bool) -> None:
    model = with_nan_word(llama, tmp_path / "model")
    held_out = examples_with_rare_word(2)
    trainer = trainer_for(model, tmp_path / "out", make_examples(2), eval_examples=held_out, **STEPS)  # type: ignore[no-untyped-call]
    with pytest.raises(RunError, match=r"not finite on 1 of 8 held-out pairs \(pair-2\)"):
        _ = trainer.evaluate() if while_training else evaluate_policy(load_base(model), held_out, Method())


@pytest.mark.parametrize(
    "column", ["reference_chosen", "reference_rejected", "weights", "anchor_chosen", "anchor_rejected"]
)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_no_number_that_is_none_reaches_training(column: str, value: float) -> None:
    good = make_examples(4, references=2)
    columns = {name: getattr(good, name) for name in PreferenceExamples.__dataclass_fields__}
    columns[column] = columns[column].copy()
    columns[column][2] = value
    with pytest.raises(RunError, match=rf"{column.replace('_', ' ')}.*pair-2.*1 of 4 pairs"):
        PreferenceExamples(**columns)
