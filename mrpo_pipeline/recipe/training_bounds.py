"""Bounds of the values under ``training``, which transformers checks late or never."""

from __future__ import annotations

import math
from typing import Any

from mrpo_pipeline.recipe.training_arguments_source import training_keys

# key → (minimum, whether the minimum itself is valid)
_LEAST: dict[str, tuple[float, bool]] = {
    "per_device_train_batch_size": (1, True),
    "per_device_eval_batch_size": (1, True),
    "gradient_accumulation_steps": (1, True),
    "learning_rate": (0, True),
    "num_train_epochs": (0, False),
    "weight_decay": (0, True),
    "max_grad_norm": (0, True),
    "warmup_steps": (0, True),
    "logging_steps": (0, False),
    "eval_steps": (0, False),
    "save_steps": (0, False),
    "dataloader_num_workers": (0, True),
    "dataloader_prefetch_factor": (1, True),
    "save_total_limit": (0, True),
    "eval_delay": (0, True),
    "adam_beta1": (0, True),
    "adam_beta2": (0, True),
    "adam_epsilon": (0, True),
    "neftune_noise_alpha": (0, True),
    "torch_empty_cache_steps": (1, True),
    "ddp_timeout": (1, True),
    "ddp_bucket_cap_mb": (1, True),
}
_WORDS = ("lr_scheduler_type", "save_strategy", "eval_strategy", "logging_strategy", "optim", "hub_strategy")
_BELOW_ONE = ("adam_beta1", "adam_beta2")
_SEEDS = ("seed", "data_seed")
MAX_SEED = 2**32 - 1  # numpy's


def out_of_bounds(key: str, value: Any) -> str | None:
    """What was expected instead of an invalid value; None for a valid one."""
    if isinstance(value, float) and (math.isnan(value) or (math.isinf(value) and key != "max_grad_norm")):
        return "a finite number"
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number and key in _SEEDS and not 0 <= value <= MAX_SEED:
        return f"a whole number from 0 to {MAX_SEED}"
    if number and key in _LEAST:
        least, inclusive = _LEAST[key]
        if value < least or (value == least and not inclusive):
            return f"{'at least' if inclusive else 'more than'} {least:g}"
    if number and key in _BELOW_ONE and value >= 1:
        return "less than 1"
    if number and key == "max_steps" and value != -1 and value < 1:
        return "at least 1, or -1 to use training.num_train_epochs"
    choices = training_keys()[key].choices if key in _WORDS and isinstance(value, str) else ()
    return f"one of {', '.join(choices)}" if choices and value not in choices else None


# Keys of earlier transformers versions or of other trainers, and what replaces them.
RENAMED = {
    "group_by_length": "train_sampling_strategy: group_by_length",
    "warmup_ratio": "warmup_steps, a share if below 1",
    "evaluation_strategy": "eval_strategy",
    "no_cuda": "use_cpu",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
    "overwrite_output_dir": "no key: a run without --resume starts again",
    "save_safetensors": "no key: weights are always safetensors",
    "max_seq_length": "limits.max_length",
    "max_length": "limits.max_length",
    "max_prompt_length": "limits.max_prompt_length",
    "beta": "method.beta",
    "loss_type": "method.loss",
    "label_smoothing": "method.label_smoothing",
}

# Keys that have no effect in this trainer, and the reason.
UNREAD = {
    "prediction_loss_only": "evaluation always computes the same metrics",
    "eval_do_concat_batches": "evaluation keeps only sums",
    "eval_use_gather_object": "evaluation keeps only sums",
    "eval_accumulation_steps": "evaluation keeps only sums",
    "include_for_metrics": "the metrics are mrpo's",
    "batch_eval_metrics": "the metrics are mrpo's",
    "remove_unused_columns": "batches are mrpo's",
    "label_names": "batches are mrpo's",
    "length_column_name": "lengths are those of the pairs",
    "average_tokens_across_devices": "a step's loss is divided by its pairs, over all processes",
    "include_num_input_tokens_seen": "tokens are always counted",
    "logging_nan_inf_filter": "a loss that is not finite ends the run",
    "dataloader_multiprocessing_context": "the data loader is mrpo's",
    "dataloader_in_order": "the data loader is mrpo's",
    "torch_empty_cache_steps": "the training step is mrpo's",
    "liger_kernel_config": "use_liger_kernel is refused",
    "do_train": "the command decides",
    "do_eval": "pairs.eval and training.eval_strategy decide",
    "do_predict": "the command decides",
    "local_rank": "the launcher decides",
}
