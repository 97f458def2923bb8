"""The policy's LoRA adapter in peft."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.models.adapters import put_adapter
from mrpo_pipeline.models.checks import reason_of, told
from mrpo_pipeline.policy.lora_targets import target_modules
from mrpo_pipeline.recipe import Lora


def lora_config(settings: Lora, model: Any) -> Any:
    """The peft ``LoraConfig`` for a base model.

    Raises:
        UserError: for target modules that the language model does not have; names those that it has.
    """
    from peft import LoraConfig
    from transformers.pytorch_utils import Conv1D

    targets, targeted = target_modules(model, settings.target_modules)
    modules = dict(model.named_modules())
    return LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=targets,
        use_rslora=settings.use_rslora,
        use_dora=settings.use_dora,
        # GPT-2's Conv1D stores its weight transposed.
        fan_in_fan_out=all(isinstance(modules[name], Conv1D) for name in targeted),
        task_type="CAUSAL_LM",
    )


def add_adapter(model: Any, settings: Lora, *, adapter: str | None = None, revision: str | None = None) -> Any:
    """Add a new LoRA adapter to a base model, or an existing one; only its parameters are trainable, in float32.

    Args:
        adapter: a folder or hub name of an adapter to train further, with its own settings.
        revision: the base model's, written into the adapter's config.

    Raises:
        UserError: for target modules that the model does not have, or an adapter that does not fit it.
    """
    from peft import get_peft_model

    with warnings.catch_warnings():
        # peft warns about tied, renamed or fp16 models, which a user of this command can't act on.
        warnings.simplefilter("ignore")
        if adapter is None:
            config = lora_config(settings, model)
            what = f"An adapter with the settings policy.lora can't be put on a {type(model).__name__}"
            with told(what, "expected settings that peft has for this architecture. Correct policy.lora."):
                policy: Any = get_peft_model(model, config, revision=revision)
        else:
            try:
                policy = put_adapter(model, adapter, is_trainable=True)
            except Exception as error:  # peft and safetensors raise many types over damaged files
                where = "the folder" if Path(adapter).is_dir() else "the hub name (no folder of that name is here)"
                raise UserError(
                    f"The adapter policy.adapter {adapter} can't be loaded onto the policy's model: "
                    f"{reason_of(error)}. Expected a LoRA adapter of that model. Check {where}, and that it was trained from policy.model."
                ) from None
            if policy.active_peft_config.peft_type != "LORA":
                raise UserError(
                    f"The adapter policy.adapter {adapter} is of kind {policy.active_peft_config.peft_type}: "
                    "expected LoRA. Give another one."
                )
    return policy
