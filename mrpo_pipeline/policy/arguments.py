"""The recipe's ``training`` keys as ``transformers.TrainingArguments``, and those few that are this project's own."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.policy.argument_checks import refuse, try_late_parts
from mrpo_pipeline.policy.distributed import needs_cpu
from mrpo_pipeline.policy.model import has_bfloat16
from mrpo_pipeline.recipe.messages import in_words
from mrpo_pipeline.recipe.training import FastPaths
from mrpo_pipeline.terminal import one_line

log = logging.getLogger("mrpo")

# What a run gets that does not say otherwise, where transformers' own default would serve preference training badly.
DEFAULTS: dict[str, Any] = {
    "report_to": "none",
    "logging_steps": 10,
    # Steps of one length each gain nothing where rows are not padded, and mix the pairs less well.
    "train_sampling_strategy": "random",
    "seed": 0,
    # The base's buffers are constants: no need to send them round before every forward pass.
    "ddp_broadcast_buffers": False,
}

OWN_KEYS = tuple(FastPaths.model_fields)


def fast_paths(training: Mapping[str, Any]) -> FastPaths:
    """This project's own keys among those of ``training``.

    Raises:
        UserError: for a value that cannot be, naming the key.
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
    """Check the keys, fill in what the machine decides, and try what Trainer would find out late (``argument_checks``).

    bfloat16 autocast is on where the base weights are bfloat16, and never on a machine without it.

    Args:
        training: keys that are this project's own are passed by, see :func:`fast_paths`.
        dtype: of the base weights. evaluates: whether there are held-out pairs.
        report: whether to log what the machine changes.

    Raises:
        UserError: for a key or value that cannot be, naming it.
    """
    import torch
    from transformers import TrainingArguments

    given = {key: value for key, value in training.items() if key not in OWN_KEYS}
    settings: dict[str, Any] = {**DEFAULTS, **given, "output_dir": str(output_dir)}
    refuse(settings, evaluates=evaluates)
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
    # `progress_callback.PlainProgress` writes a line now and then, on a terminal as elsewhere.
    settings.setdefault("disable_tqdm", True)
    if needs_cpu():
        settings.setdefault("use_cpu", True)
    settings |= {
        "remove_unused_columns": False,
        # A broken loss stops the run; to average it away would hide it, and costs a look at the device per micro-batch.
        "logging_nan_inf_filter": False,
    }
    try:
        arguments = TrainingArguments(**settings)
    except Exception as error:  # whatever a library raises over files, packages and combinations that are named there
        raise UserError(
            f"The settings under `training` can't be used: {one_line(error, 500)} They are those of "
            "transformers.TrainingArguments; correct the one named."
        ) from None
    if arguments.n_gpu > 1:
        log.log(
            level,
            "%d GPUs are here and one is used; start with torchrun or accelerate launch for all.",
            arguments.n_gpu,
        )
        arguments._n_gpu = 1
    try_late_parts(arguments)
    return arguments
