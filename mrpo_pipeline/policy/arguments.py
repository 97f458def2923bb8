"""The recipe's ``training`` keys as ``transformers.TrainingArguments``, and those few that are this project's own."""

from __future__ import annotations

import dataclasses
import importlib.util
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.policy.model import has_bfloat16
from mrpo_pipeline.policy.processes import needs_cpu
from mrpo_pipeline.policy.settings import FastPaths

log = logging.getLogger("mrpo")

ORDERS = ("group_by_length", "random", "sequential")

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

# Reporters that need a package of their own, and what brings it.
_REPORTERS = {
    "tensorboard": (("tensorboard", "tensorboardX"), "mrpo[tensorboard]"),
    "wandb": (("wandb",), "mrpo[wandb]"),
}


OWN_KEYS = tuple(field.name for field in dataclasses.fields(FastPaths))


def fast_paths(training: Mapping[str, Any]) -> FastPaths:
    """This project's own keys among those of ``training``.

    Raises:
        UserError: for a value that cannot be, naming the key.
    """
    given = {key: training[key] for key in OWN_KEYS if training.get(key) is not None}
    for key, value in given.items():
        if key == "micro_batch_tokens":
            good = value in ("auto", "off") or (isinstance(value, int) and not isinstance(value, bool) and value > 0)
            expected = "auto, off or a number of tokens"
        else:
            good, expected = isinstance(value, bool), "true or false"
        if not good:
            raise UserError(f"The setting training.{key} is {value!r}: expected {expected}. Correct it.")
    return FastPaths(**given)


def training_arguments(training: Mapping[str, Any], output_dir: str | Path, *, dtype: str, evaluates: bool) -> Any:
    """Check the keys and fill in what the machine decides.

    bfloat16 autocast is on where the base weights are bfloat16, and never on a machine without it.

    Args:
        training: keys that are this project's own are passed by, see :func:`fast_paths`.
        dtype: of the base weights. evaluates: whether there are held-out pairs.

    Raises:
        UserError: for a key or value that cannot be, naming it.
    """
    import torch
    from transformers import TrainingArguments

    given = {key: value for key, value in training.items() if key not in OWN_KEYS}
    settings: dict[str, Any] = {**DEFAULTS, **given, "output_dir": str(output_dir)}
    _refuse(settings, evaluates=evaluates)
    if not settings.get("fp16"):
        if settings.get("bf16") and not has_bfloat16():
            log.info("training.bf16 is set, but this machine does not compute in bfloat16: training in %s.", dtype)
            settings["bf16"] = False
        settings.setdefault("bf16", dtype == "bfloat16" and has_bfloat16())
    elif not torch.cuda.is_available():
        log.info("training.fp16 is set, but this machine has no accelerator for it: training in %s.", dtype)
        settings["fp16"] = False
    if settings.get("gradient_checkpointing"):
        given = settings.get("gradient_checkpointing_kwargs") or {}
        settings["gradient_checkpointing_kwargs"] = {"use_reentrant": False, **given}
    # A bar is for a terminal; elsewhere `reporting.PlainProgress` writes a line now and then.
    settings.setdefault("disable_tqdm", not sys.stderr.isatty())
    if needs_cpu():
        settings.setdefault("use_cpu", True)
    settings |= {
        "remove_unused_columns": False,
        # A broken loss stops the run; to average it away would hide it, and costs a look at the device per micro-batch.
        "logging_nan_inf_filter": False,
    }
    try:
        arguments = TrainingArguments(**settings)
    except (TypeError, ValueError, NotImplementedError, ImportError) as error:
        raise UserError(
            f"The settings under `training` can't be used: {' '.join(str(error).split())} They are those of "
            "transformers.TrainingArguments; correct the one named."
        ) from None
    if arguments.n_gpu > 1:
        log.info("%d GPUs are here and one is used; start with torchrun or accelerate launch for all.", arguments.n_gpu)
        arguments._n_gpu = 1
    return arguments


def _refuse(settings: Mapping[str, Any], *, evaluates: bool) -> None:
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    order = settings["train_sampling_strategy"]
    if order not in ORDERS:
        raise UserError(
            f"The setting training.train_sampling_strategy is {order!r}: expected {', '.join(ORDERS)}. Correct it."
        )
    if settings.get("label_smoothing_factor"):
        raise UserError(
            "The setting training.label_smoothing_factor smooths labels of a language model: for preferences, expected "
            "method.label_smoothing. Move it there."
        )
    if settings.get("auto_find_batch_size"):
        raise UserError(
            "The setting training.auto_find_batch_size would change the number of pairs in an optimizer step, and so the "
            "result: expected false. Lower training.per_device_train_batch_size and raise "
            "training.gradient_accumulation_steps by the same factor instead."
        )
    if settings.get("use_liger_kernel"):
        raise UserError(
            "The setting training.use_liger_kernel patches a loss that is not used here: expected false. Take it out."
        )
    for key in ("torch_compile", "torch_compile_backend", "torch_compile_mode"):
        if settings.get(key):
            raise UserError(
                f"The setting training.{key} would compile the policy anew for the lengths of the steps, which cost minutes "
                "a step where it was tried (a CPU): expected false. Take it out."
            )
    strategy = str(getattr(settings.get("eval_strategy", "no"), "value", settings.get("eval_strategy", "no")))
    if strategy != "no" and not evaluates:
        raise UserError(
            f"The setting training.eval_strategy is {strategy}, but there are no held-out pairs: expected pairs.eval or "
            "pairs.eval_fraction beside it. Add one, or take it out."
        )
    reporters = settings["report_to"]
    known = {"none", "all", *INTEGRATION_TO_CALLBACK}
    for reporter in [reporters] if isinstance(reporters, str) else reporters or []:
        if reporter not in known:
            raise UserError(
                f"The setting training.report_to names {reporter!r}: expected one of {', '.join(sorted(known))}. Correct it."
            )
        modules, extra = _REPORTERS.get(reporter, ((), ""))
        if modules and not any(importlib.util.find_spec(module) for module in modules):
            raise UserError(
                f"The setting training.report_to names {reporter}, which is not installed: expected the package "
                f"{modules[0]}. Install {extra}, or take it out."
            )
