"""What is wrong under ``training``, found before a model loads: Trainer finds much of it out when it is made, or steps later."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.policy.distributed import rank, world_size
from mrpo_pipeline.policy.metrics import EVALUATED
from mrpo_pipeline.recipe.training import REFUSED
from mrpo_pipeline.terminal import one_line

ORDERS = ("group_by_length", "random", "sequential")

# Reporters that need a package of their own, and what brings it.
_REPORTERS = {
    "tensorboard": (("tensorboard", "tensorboardX"), "mrpo[tensorboard]"),
    "wandb": (("wandb",), "mrpo[wandb]"),
}


def refuse(settings: Mapping[str, Any], *, evaluates: bool) -> None:
    """Refuse settings that this trainer cannot have, alone or beside each other.

    Args:
        evaluates: whether there are held-out pairs.

    Raises:
        UserError: naming the setting and what to do.
    """
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    for key, reason in REFUSED.items():
        if settings.get(key):
            raise UserError(f"The setting training.{key} is {settings[key]!r}: {reason}")
    order = settings["train_sampling_strategy"]
    if order not in ORDERS:
        raise UserError(
            f"The setting training.train_sampling_strategy is {order!r}: expected {', '.join(ORDERS)}. Correct it."
        )
    strategy = str(getattr(settings.get("eval_strategy", "no"), "value", settings.get("eval_strategy", "no")))
    needs_pairs = [("eval_strategy", strategy)] if strategy != "no" else []
    needs_pairs += [("eval_on_start", "true")] if settings.get("eval_on_start") else []
    for key, value in needs_pairs if not evaluates else ():
        raise UserError(
            f"The setting training.{key} is {value}, but there are no held-out pairs: expected pairs.eval or "
            "pairs.eval_fraction beside it. Add one, or take it out."
        )
    _check_choice(settings, strategy)
    for key in ("gradient_checkpointing_kwargs", "lr_scheduler_kwargs"):
        if settings.get(key) is not None and not isinstance(settings[key], Mapping):
            raise UserError(f"The setting training.{key} is {settings[key]!r}: expected keys under it. Correct it.")
    optimizer = settings.get("optim")
    if isinstance(optimizer, str) and ("lomo" in optimizer or "layerwise" in optimizer):
        raise UserError(
            f"The setting training.optim is {optimizer!r}, which moves the weights during the backward pass: here a step has several "
            "of these. Expected an optimizer that steps once, such as adamw_torch. Correct it."
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


def _check_choice(settings: Mapping[str, Any], eval_strategy: str) -> None:
    """The metric by which checkpoints and learning rates are chosen is one that evaluation logs."""
    metric = settings.get("metric_for_best_model")
    if metric is not None and str(metric).removeprefix("eval_") not in EVALUATED:
        raise UserError(
            f"The setting training.metric_for_best_model is {metric!r}, which evaluation does not log: expected one of "
            f"{', '.join(EVALUATED)} (with eval_ before it, or without). Correct it."
        )
    saves = str(getattr(settings.get("save_strategy"), "value", settings.get("save_strategy")))
    if saves == "best" and (eval_strategy == "no" or metric is None):
        raise UserError(
            f"The setting training.save_strategy is 'best', with training.eval_strategy {eval_strategy} and "
            f"training.metric_for_best_model {metric}: expected evaluations during training, and the metric that decides. Set them."
        )


def require_full_batch(settings: Any, pairs: int) -> None:
    """Refuse ``dataloader_drop_last`` where all pairs together are fewer than an optimizer step takes: none would be trained on.

    Args:
        settings: ``transformers.TrainingArguments``. pairs: of training.
    """
    step = settings.per_device_train_batch_size * settings.gradient_accumulation_steps * world_size()
    if settings.dataloader_drop_last and pairs < step:
        raise UserError(
            f"The setting training.dataloader_drop_last is true, with {pairs:,} training pairs and {step:,} pairs in an optimizer "
            "step: no step would be left. Expected a step's pairs at least. Set it to false, or lower "
            "training.gradient_accumulation_steps."
        )


def try_late_parts(arguments: Any) -> None:
    """Make, for a model of one layer, what Trainer makes once the policy is loaded: optimizer, schedule, reporters; look up the hub.

    Args:
        arguments: ``transformers.TrainingArguments``.

    Raises:
        UserError: naming the setting, with what the library says of it.
    """
    if arguments.fsdp and arguments.parallel_mode.value != "distributed":
        raise UserError(
            f"The setting training.fsdp is {arguments.fsdp!r} in one process, which has nothing to share: expected several. Start "
            "with torchrun or accelerate launch, or take it out."
        )
    optimizer = None
    if not arguments.deepspeed:  # which may bring its own
        with _named("optim", arguments.optim.value):
            optimizer = _optimizer(arguments)
        with _named("lr_scheduler_type", arguments.lr_scheduler_type.value):
            _schedule(arguments, optimizer)
    from transformers.integrations.integration_utils import get_reporting_integration_callbacks

    with _named("report_to", ", ".join(arguments.report_to)):
        for callback in get_reporting_integration_callbacks(arguments.report_to):
            # Made to be thrown away: some end a run that another has begun, or fail, when they are collected.
            type(callback.__name__, (callback,), {"__del__": lambda self: None})()
    if arguments.push_to_hub and rank() == 0:
        _require_hub()


@contextmanager
def _named(key: str, value: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # each library has its own
        raise UserError(
            f"The setting training.{key} is {value!r}, which can't be used here: {one_line(error, 400)} Expected what it needs to be "
            f"installed and set (training.{_NEEDS[key]}). Do so, or take another one."
        ) from None


_NEEDS = {"optim": "optim_args", "lr_scheduler_type": "lr_scheduler_kwargs", "report_to": "run_name"}


def _optimizer(arguments: Any) -> Any:
    """The optimizer over one layer; None where it is made of the policy's own modules."""
    import torch
    from transformers import Trainer

    model = torch.nn.ModuleDict({"layer": torch.nn.Linear(2, 2)})
    try:
        kind, options = Trainer.get_optimizer_cls_and_kwargs(arguments, model)
    except ValueError as error:
        if arguments.optim_target_modules is not None and "No target modules" in str(error):
            return None
        raise
    if not (isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)):
        return None
    return kind(**({"params": list(model.parameters())} | options))


def _schedule(arguments: Any, optimizer: Any) -> None:
    import torch
    from transformers import get_scheduler

    steps = max(arguments.max_steps, 100)
    get_scheduler(
        arguments.lr_scheduler_type,
        optimizer=optimizer or torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=arguments.learning_rate),
        num_warmup_steps=arguments.get_warmup_steps(steps),
        num_training_steps=steps,
        scheduler_specific_kwargs=arguments.lr_scheduler_kwargs,
    )


def _require_hub() -> None:
    """The hub can be reached with a token, as ``push_to_hub`` needs."""
    from huggingface_hub import constants, get_token, whoami

    problem = None
    if constants.HF_HUB_OFFLINE:
        problem = "the hub's libraries are in offline mode (HF_HUB_OFFLINE)"
    elif get_token() is None:
        problem = "there is no token"
    else:
        try:
            whoami()
        except Exception as error:  # of the network, the hub, or the token
            problem = one_line(error, 300)
    if problem:
        raise UserError(
            f"The setting training.push_to_hub is true, and {problem}: expected access to the hub with a token that may write "
            "(HF_TOKEN, or `hf auth login`). Give it, or take the setting out and upload the output folder afterwards."
        )
