"""What values under ``training`` can be beyond their types: transformers finds some of it out late, some never."""

from __future__ import annotations

import math
from typing import Any

# key → (least, whether the least itself will do)
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
}
_SEEDS = ("seed", "data_seed")
MAX_SEED = 2**32 - 1  # numpy's


def out_of_bounds(key: str, value: Any) -> str | None:
    """What was expected of a value that its key cannot have; None where there is nothing against it."""
    from transformers.trainer_utils import IntervalStrategy, SaveStrategy, SchedulerType
    from transformers.training_args import OptimizerNames

    if isinstance(value, float) and (math.isnan(value) or (math.isinf(value) and key != "max_grad_norm")):
        return "a finite number"
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number and key in _SEEDS and not 0 <= value <= MAX_SEED:
        return f"a whole number from 0 to {MAX_SEED}"
    if number and key in _LEAST:
        least, will_do = _LEAST[key]
        if value < least or (value == least and not will_do):
            return f"{'at least' if will_do else 'more than'} {least:g}"
    choices = {
        "lr_scheduler_type": SchedulerType,
        "save_strategy": SaveStrategy,
        "eval_strategy": IntervalStrategy,
        "logging_strategy": IntervalStrategy,
        "optim": OptimizerNames,
    }.get(key)
    if choices is not None and isinstance(value, str):
        names = [one.value for one in choices]
        if value not in names:
            return f"one of {', '.join(names)}"
    return None
