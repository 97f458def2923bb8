"""Checks of the ``training`` settings before a model loads; Trainer would fail on many of them much later."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from mrpo_pipeline.dataset.completion_numbering import is_ranked
from mrpo_pipeline.dataset.examples import PreferenceExamples
from mrpo_pipeline.errors import UserError
from mrpo_pipeline.losses.functional import LOSSES
from mrpo_pipeline.losses.settings import LossSettings
from mrpo_pipeline.policy.distributed import rank, world_size
from mrpo_pipeline.policy.metrics import ANCHOR_METRICS, EVAL_METRICS
from mrpo_pipeline.recipe.training import REFUSED, FastPaths
from mrpo_pipeline.terminal import one_line

ORDERS = ("group_by_length", "random", "sequential")

# Reporters that need a package: its modules, and the extra that installs it.
_REPORTERS = {
    "tensorboard": (("tensorboard", "tensorboardX"), "mrpo[tensorboard]"),
    "wandb": (("wandb",), "mrpo[wandb]"),
}


def check_settings(settings: Mapping[str, Any], *, evaluates: bool) -> None:
    """Refuse settings that this trainer does not support, alone or in combination.

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
    """Check that evaluation logs the metric that selects checkpoints and learning rates."""
    metric = settings.get("metric_for_best_model")
    if metric is not None and str(metric).removeprefix("eval_") not in EVAL_METRICS:
        raise UserError(
            f"The setting training.metric_for_best_model is {metric!r}, which evaluation does not log: expected one of "
            f"{', '.join(EVAL_METRICS)} (with eval_ before it, or without). Correct it."
        )
    saves = str(getattr(settings.get("save_strategy"), "value", settings.get("save_strategy")))
    if saves == "best" and (eval_strategy == "no" or metric is None):
        raise UserError(
            f"The setting training.save_strategy is 'best', with training.eval_strategy {eval_strategy} and "
            f"training.metric_for_best_model {metric}: expected evaluations during training, and the metric to select by. Set them."
        )


def require_anchor_for_choice(settings: Any) -> None:
    """Refuse to select checkpoints by a metric that compares with the anchor, for training without references.

    Args:
        settings: ``transformers.TrainingArguments``.
    """
    metric = str(settings.metric_for_best_model or "").removeprefix("eval_")
    if metric in ANCHOR_METRICS:
        raise UserError(
            f"The setting training.metric_for_best_model is {metric}, which compares with the anchor, and method.reference is none: no "
            f"cache is read. Expected one of {', '.join(name for name in EVAL_METRICS if name not in ANCHOR_METRICS)}. Correct it."
        )


def require_full_batch(settings: Any, pairs: int) -> None:
    """Refuse ``dataloader_drop_last`` if all pairs together do not fill an optimizer step.

    Args:
        settings: ``transformers.TrainingArguments``. pairs: number of training pairs.
    """
    step = settings.per_device_train_batch_size * settings.gradient_accumulation_steps * world_size()
    if settings.dataloader_drop_last and pairs < step:
        raise UserError(
            f"The setting training.dataloader_drop_last is true, with {pairs:,} training pairs and {step:,} pairs in an optimizer "
            "step: no step would be left. Expected a step's pairs at least. Set it to false, or lower "
            "training.gradient_accumulation_steps."
        )


def require_sorted_batches(method: LossSettings, fast: FastPaths, settings: Any) -> None:
    """Refuse a loss that sorts its batch if batches are packed by the lengths of pairs.

    As in TRL, the batch is a micro-batch: ``per_device_train_batch_size`` pairs of one process.

    Args:
        settings: ``transformers.TrainingArguments``.
    """
    sorting = [name for name in method.losses if LOSSES[name].sorts_batch]
    if not sorting:
        return
    if fast.micro_batch_tokens != "off":
        raise UserError(
            f"The loss {sorting[0]} (method.loss) sorts log-ratios over a micro-batch, and training.micro_batch_tokens is "
            f"{fast.micro_batch_tokens!r}, which packs micro-batches by the lengths of their pairs: expected off, so that each holds "
            "training.per_device_train_batch_size pairs. Set it (`micro_batch_tokens: 'off'`)."
        )
    if settings.per_device_train_batch_size < 2:
        raise UserError(
            f"The loss {sorting[0]} (method.loss) sorts log-ratios over a micro-batch, and training.per_device_train_batch_size is 1: of "
            "one pair it is the sigmoid loss. Expected 2 or more. Raise it."
        )


def groups_by_prompt(fast: FastPaths, method: LossSettings, examples: PreferenceExamples, *, drop_last: bool) -> bool:
    """Whether pairs are grouped by prompt, from ``training.group_by_prompt``; ``auto`` groups ranked completions.

    Args:
        drop_last: ``training.dataloader_drop_last``.

    Raises:
        UserError: if it is set beside a setting that needs steps or micro-batches of a fixed number of pairs.
    """
    against = {f"method.loss {name}": "sorts micro-batches" for name in method.losses if LOSSES[name].sorts_batch}
    against |= {"training.dataloader_drop_last": "drops smaller steps"} if drop_last else {}
    for name, what in against.items() if fast.group_by_prompt is True else ():
        raise UserError(
            f"The setting training.group_by_prompt is true beside {name}, which {what} of a fixed number of pairs: grouped by "
            "prompt, their number changes. Expected one of the two. Take the other one out."
        )
    if fast.group_by_prompt == "auto":
        return not against and is_ranked(examples)
    return fast.group_by_prompt


def try_construction(arguments: Any) -> None:
    """Construct optimizer, schedule and reporters for a model of one layer, as Trainer does later; check access to the hub.

    Args:
        arguments: ``transformers.TrainingArguments``.

    Raises:
        UserError: naming the setting, with the library's error.
    """
    if arguments.fsdp and arguments.parallel_mode.value != "distributed":
        raise UserError(
            f"The setting training.fsdp is {arguments.fsdp!r} in one process, which has nothing to shard: expected several. Start "
            "with torchrun or accelerate launch, or take it out."
        )
    optimizer = None
    if not arguments.deepspeed:  # DeepSpeed may define its own
        with _named("optim", arguments.optim.value):
            optimizer = _optimizer(arguments)
        with _named("lr_scheduler_type", arguments.lr_scheduler_type.value):
            _schedule(arguments, optimizer)
    from transformers.integrations.integration_utils import get_reporting_integration_callbacks

    with _named("report_to", ", ".join(arguments.report_to)):
        for callback in get_reporting_integration_callbacks(arguments.report_to):
            # Discarded at once, without __del__: some end another reporter's run, or fail, when they are collected.
            type(callback.__name__, (callback,), {"__del__": lambda self: None})()
    if arguments.push_to_hub and rank() == 0:
        _require_hub()


@contextmanager
def _named(key: str, value: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # each library has its own
        raise UserError(
            f"The setting training.{key} is {value!r}, which can't be used here: {one_line(error, 400)} Expected its packages to be "
            f"installed and its options set (training.{_NEEDS[key]}). Do so, or set another one."
        ) from None


_NEEDS = {"optim": "optim_args", "lr_scheduler_type": "lr_scheduler_kwargs", "report_to": "run_name"}


def _optimizer(arguments: Any) -> Any:
    """The optimizer over one layer; None if it depends on the policy's modules."""
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
    """Raise UserError if the hub can't be reached with a token, which ``push_to_hub`` needs."""
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
