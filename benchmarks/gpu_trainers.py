"""Stage two in the GPU benchmark: this project's trainer and TRL's with the same random model and token ids."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_models import Meter, Pairs, Place, random_model
from transformers import TrainerCallback

RANK = 16
# Pairs per micro-batch and micro-batches per optimizer step, the same for all.
MICRO, ACCUMULATION = 2, 4
STEP = MICRO * ACCUMULATION

LORA = {"r": RANK, "target_modules": "all-linear"}
TRAINING: dict[str, Any] = {
    "per_device_train_batch_size": MICRO,
    "gradient_accumulation_steps": ACCUMULATION,
    "learning_rate": 1e-5,
    "lr_scheduler_type": "constant",
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "seed": 0,
    # The pairs in order, so that all have the same pairs in the same step.
    "train_sampling_strategy": "sequential",
}
REFERENCE_FREE = {"reference": "none", "loss": "simpo", "beta": 2.0, "simpo_gamma": 0.6, "normalize": "token"}


class Clock(TrainerCallback):  # type: ignore[misc]
    """Seconds of each optimizer step, from begin to end, synchronized with the device."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter
        self.seconds: list[float] = []
        self._began = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._began = self.meter.now()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds.append(self.meter.now() - self._began)


def settings_of(place: Place, training: Mapping[str, Any]) -> dict[str, Any]:
    own = {"gradient_checkpointing": place.checkpointing} | ({"use_cpu": True} if place.device == "cpu" else {})
    return TRAINING | own | dict(training)


def examples_of(pairs: Pairs, references: int = 1, anchor: tuple[Any, Any] | None = None) -> Any:
    """The pairs with random sums of K references, which do not affect the time.

    Args:
        references: K; 0 for training without. anchor: (N,) each, the anchor's real sums, used as the reference's.
    """
    from mrpo_pipeline.dataset.examples import PreferenceExamples

    lengths = [np.array([len(ids) for ids in side], dtype=np.float64) for side in (pairs.chosen, pairs.rejected)]
    sums = anchor or (-9.0 * lengths[0], -9.0 * lengths[1])
    columns = max(references, 1)
    given: dict[str, Any] = {}
    if references == 0:
        sums = tuple(np.zeros_like(side) for side in lengths)
        given = {"chosen_units": lengths[0], "rejected_units": lengths[1]}
    else:
        given = {"anchor_chosen": sums[0], "anchor_rejected": sums[1]}
    return PreferenceExamples(
        pair_ids=[f"pair-{number}" for number in range(len(pairs))],
        prompt_ids=pairs.prompts, chosen_ids=pairs.chosen, rejected_ids=pairs.rejected,
        reference_chosen=np.repeat(sums[0][:, None], columns, 1),
        reference_rejected=np.repeat(sums[1][:, None], columns, 1),
        weights=np.full((len(pairs), columns), 1 / columns),
        **given,
    )  # fmt: skip


def method_of(references: int) -> Any:
    """SimPO without references, DPO with one, Multi-DPO with several (all their columns are kept)."""
    from mrpo_pipeline.recipe import Method

    if references == 0:
        return Method.model_validate(REFERENCE_FREE)
    if references == 1:
        return Method(name="dpo")
    return Method.model_validate({"name": "multi-dpo", "weights": "uniform"})


def mrpo_trainer(
    place: Place,
    shape: str,
    pairs: Pairs,
    *,
    references: int = 1,
    resident: int = 0,
    dtype: torch.dtype | None = None,
    examples: Any = None,
    training: Mapping[str, Any] | None = None,
    nonzero: bool = False,
) -> Any:
    """This project's trainer with a random model, created as by ``mrpo train``.

    Args:
        references: K cached ones. resident: this many are also in memory and run at every step; their output is dropped.
        nonzero: draw the whole adapter at random, so that it changes the outputs from the start.
    """
    from mrpo_pipeline.models.completion_forward import to_device
    from mrpo_pipeline.models.head import Head
    from mrpo_pipeline.policy import trainer as trainer_module
    from mrpo_pipeline.policy.arguments import fast_paths, training_arguments
    from mrpo_pipeline.policy.forward import PolicyForward
    from mrpo_pipeline.policy.lora import add_adapter
    from mrpo_pipeline.recipe import Lora

    dtype = dtype or place.dtype
    settings = settings_of(place, training or {})
    arguments = training_arguments(
        settings, Path(place.scratch) / "train", dtype=str(dtype).removeprefix("torch."), evaluates=False
    )
    policy = add_adapter(random_model(place, shape, dtype), Lora.model_validate(LORA | {"alpha": 2 * RANK}))
    if arguments.gradient_checkpointing:
        policy.enable_input_require_grads()
    if nonzero:
        torch.manual_seed(1)
        with torch.no_grad():
            for parameter in (p for p in policy.parameters() if p.requires_grad):
                parameter.normal_(std=0.02)
    forwards = [
        PolicyForward(Head.of(random_model(place, shape, dtype, seed=number + 1))) for number in range(resident)
    ]

    class Trainer(trainer_module.PreferenceTrainer):
        def training_step(self, model: Any, inputs: list[Any], num_items_in_batch: Any = None) -> Any:
            with torch.inference_mode():
                for forward in forwards:
                    for batch in inputs:
                        forward(**to_device(forward.inputs(batch), self.args.device))
            return super().training_step(model, inputs, num_items_in_batch)

    examples = examples_of(pairs, references) if examples is None else examples
    return Trainer(policy, arguments, method_of(references), examples, fast=fast_paths(settings))


def trl_trainer(
    place: Place, shape: str, pairs: Pairs, *, precompute: bool, training: Mapping[str, Any] | None = None
) -> Any:
    """TRL's ``DPOTrainer`` with the same model and adapter, and with the same ids, so that it does not tokenize."""
    from datasets import Dataset, disable_progress_bars
    from peft import LoraConfig
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast
    from trl import DPOConfig, DPOTrainer
    from trl.trainer import dpo_trainer

    class Tokenized(DPOTrainer):  # type: ignore[misc]
        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

    disable_progress_bars()
    # TRL names its file of precomputed log-probs by a hash of all weights, whose computation takes longer than the steps.
    dpo_trainer.hash_module = lambda _: f"{shape} {os.getpid()} {time.monotonic()}"
    words = Tokenizer(models.WordLevel({"<pad>": 0, "<s>": 1, "</s>": 2}, unk_token="<pad>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    columns = {"prompt_ids": pairs.prompts, "chosen_ids": pairs.chosen, "rejected_ids": pairs.rejected}
    half = place.dtype == torch.bfloat16
    return Tokenized(
        model=random_model(place, shape),
        args=DPOConfig(
            **settings_of(place, training or {}),
            output_dir=str(Path(place.scratch) / "trl"),
            max_length=None,
            precompute_ref_log_probs=precompute,
            bf16=half,
        ),
        train_dataset=Dataset.from_dict({name: [ids.tolist() for ids in rows] for name, rows in columns.items()}),
        processing_class=tokenizer,
        peft_config=LoraConfig(lora_alpha=2 * RANK, lora_dropout=0.0, task_type="CAUSAL_LM", **LORA),
    )


@contextmanager
def without_triton() -> Any:
    """Compute TRL's log-probs with torch instead of its Triton kernels, if this TRL has them."""
    from trl.kernels import chunked_logprob
    from trl.trainer import utils

    before = chunked_logprob._use_triton
    chunked_logprob._use_triton = utils._use_triton = lambda _: False
    try:
        yield
    finally:
        chunked_logprob._use_triton = utils._use_triton = before
