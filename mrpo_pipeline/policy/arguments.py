"""The recipe's ``training`` keys as ``transformers.TrainingArguments`` and this project's ``FastPaths``."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.policy.argument_checks import check_settings, try_construction
from mrpo_pipeline.policy.distributed import needs_cpu
from mrpo_pipeline.policy.model import has_bfloat16
from mrpo_pipeline.recipe.messages import in_words
from mrpo_pipeline.recipe.training import FastPaths
from mrpo_pipeline.terminal import one_line

log = logging.getLogger("mrpo")

# Defaults that differ from transformers' because those suit preference training badly.
DEFAULTS: dict[str, Any] = {
    "report_to": "none",
    "logging_steps": 10,
    # Grouping by length does not help rows without padding, and mixes the pairs less well.
    "train_sampling_strategy": "random",
    "seed": 0,
    # The base's buffers are constants, so they need not be broadcast before every forward pass.
    "ddp_broadcast_buffers": False,
}

OWN_KEYS = tuple(FastPaths.model_fields)


def fast_paths(training: Mapping[str, Any]) -> FastPaths:
    """This project's own keys of ``training``.

    Raises:
        UserError: for an invalid value, naming the key.
    """
    given = {key: training[key] for key in OWN_KEYS if training.get(key) is not None}
    try:
        return FastPaths.model_validate(given)
    except ValidationError as error:
        key = str(error.errors()[0]["loc"][0])
        expected = in_words([problem for problem in error.errors() if problem["loc"][0] == key])
        raise UserError(f"The setting training.{key} is {given[key]!r}: expected {expected}. Correct it.") from None


def training_arguments(
    training: Mapping[str, Any], output_dir: str | Path, *, dtype: str, evaluates: bool, report: bool = True
) -> Any:
    """Check the keys (``argument_checks``) and set those that depend on the machine.

    bfloat16 autocast is on if the base weights are bfloat16 and the machine supports it.

    Args:
        training: this project's own keys are ignored, see :func:`fast_paths`.
        dtype: of the base weights. evaluates: whether there are held-out pairs.
        report: whether to log settings that the machine changes.

    Raises:
        UserError: for an invalid key or value, naming it.
    """
    import torch
    from transformers import TrainingArguments

    given = {key: value for key, value in training.items() if key not in OWN_KEYS}
    settings: dict[str, Any] = {**DEFAULTS, **given, "output_dir": str(output_dir)}
    check_settings(settings, evaluates=evaluates)
    level = logging.INFO if report else logging.DEBUG
    if not settings.get("fp16"):
        if settings.get("bf16") and not has_bfloat16():
            log.log(
                level, "training.bf16 is set, but this machine does not compute in bfloat16: training in %s.", dtype
            )
            settings["bf16"] = False
        settings.setdefault("bf16", dtype == "bfloat16" and has_bfloat16())
    elif not torch.cuda.is_available():
        log.log(level, "training.fp16 is set, but this machine has no accelerator for it: training in %s.", dtype)
        settings["fp16"] = False
    if settings.get("gradient_checkpointing"):
        given = settings.get("gradient_checkpointing_kwargs") or {}
        settings["gradient_checkpointing_kwargs"] = {"use_reentrant": False, **given}
    # `progress_callback.PlainProgress` replaces the progress bar.
    settings.setdefault("disable_tqdm", True)
    if needs_cpu():
        settings.setdefault("use_cpu", True)
    settings |= {
        "remove_unused_columns": False,
        # A non-finite loss stops the run. The filter would hide it, and synchronizes with the device per micro-batch.
        "logging_nan_inf_filter": False,
    }
    try:
        arguments = TrainingArguments(**settings)
    except Exception as error:  # libraries raise many types over named files, packages and combinations
        raise UserError(
            f"The settings under `training` can't be used: {one_line(error, 500)} They are those of "
            "transformers.TrainingArguments; correct the one named."
        ) from None
    if arguments.n_gpu > 1:
        log.log(
            level,
            "This machine has %d GPUs, and one is used; start with torchrun or accelerate launch to use all.",
            arguments.n_gpu,
        )
        arguments._n_gpu = 1
    try_construction(arguments)
    return arguments
