"""Load the policy: the frozen base model without dropout, and an adapter."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.models.attention import exact_attention
from mrpo_pipeline.models.checks import check_tensors, told
from mrpo_pipeline.models.files import locate, require_weights
from mrpo_pipeline.models.quantization import quantized_loading
from mrpo_pipeline.models.source import ModelSource, auto_dtype, gpu_computes_in, resolve_dtype
from mrpo_pipeline.policy.lora import add_adapter
from mrpo_pipeline.recipe import Policy
from mrpo_pipeline.terminal import quiet_libraries

log = logging.getLogger("mrpo")

DTYPES = ("float32", "bfloat16", "float16")

# Names of dropout settings in transformers' configs, and of the noise that some routers add in training. Both would shift
# the policy's sums by nats against references that were scored without.
_NOISE = re.compile(r"drop|jitter")


def load_config(settings: ModelSource) -> Any:
    """The model's configuration with dropout and router noise set to 0.

    Raises:
        UserError: if the model does not exist or can't be read.
    """
    from transformers import AutoConfig

    expected = "expected a folder with config.json and weights, or a hub name. Correct policy.model."
    with told(f"The policy's model {settings.model} can't be read", expected):
        config = AutoConfig.from_pretrained(
            settings.model, revision=settings.revision, trust_remote_code=settings.trust_remote_code
        )
    disable_config_dropout(config)
    return config


def disable_config_dropout(config: Any) -> None:
    """Set every dropout probability and router noise of a configuration and its nested ones to 0."""
    from transformers import PretrainedConfig

    for name, value in list(vars(config).items()):
        if isinstance(value, PretrainedConfig):
            disable_config_dropout(value)
        elif isinstance(value, float) and _NOISE.search(name):
            setattr(config, name, 0.0)


def disable_base_dropout(model: Any) -> None:
    """Set the dropout of every base module to 0, except the adapter's."""
    from torch.nn.modules.dropout import _DropoutNd

    for name, module in model.named_modules():
        if isinstance(module, _DropoutNd) and "lora_dropout" not in name:
            module.p = 0.0


def has_bfloat16() -> bool:
    """Whether this machine's accelerator computes in bfloat16; False on a CPU, where bfloat16 is slower."""
    return gpu_computes_in("bfloat16")


def base_dtype(policy: ModelSource, config: Any, device: str | None = None) -> str:
    """The dtype of the base weights; ``auto`` resolves as for a reference of the same model (``source.auto_dtype``).

    Args:
        config: the model's, used for a hub model that is not on this machine. device: as in ``auto_dtype``.

    Raises:
        UserError: for an unsupported dtype.
    """
    if policy.dtype != "auto":
        if policy.dtype not in DTYPES:
            raise UserError(
                f"The setting policy.dtype is {policy.dtype!r}: expected auto, {', '.join(DTYPES)}. Correct policy.dtype."
            )
        return policy.dtype
    if locate(policy.model, policy.revision) is not None:
        return resolve_dtype(policy, device)
    own = str(getattr(config, "dtype", None) or "float32").removeprefix("torch.")
    return auto_dtype(own, quantized=getattr(config, "quantization_config", None) is not None, device=device)


def load_policy(settings: Policy) -> Any:
    """The policy as a ``PeftModel`` in eval mode, on the CPU, or for a quantized base on this process's GPU.

    The base is frozen and has no dropout; the adapter's parameters are trainable and float32. A new adapter is initialized
    from torch's generator, so seed it first.

    Raises:
        UserError: for a missing model, adapter or target module.
    """
    import torch
    from transformers import AutoModelForCausalLM

    config = load_config(settings)
    dtype = base_dtype(settings, config)
    # The adapter's config gets the full path of a folder, so that the adapter finds its base from any working directory.
    name = str(Path(settings.model).resolve()) if Path(settings.model).is_dir() else settings.model
    folder = locate(settings.model, settings.revision)
    if folder is not None:
        require_weights("the policy", folder)
        check_tensors("the policy", folder)
    expected = "expected the weights of a causal language model. Correct policy.model."
    with told(f"The policy's model {settings.model} can't be loaded", expected), quiet_libraries():
        model, loaded = AutoModelForCausalLM.from_pretrained(
            name,
            config=config,
            revision=settings.revision,
            dtype=getattr(torch, dtype),
            attn_implementation=exact_attention(config),
            trust_remote_code=settings.trust_remote_code,
            output_loading_info=True,
            use_safetensors=True,
            **quantized_loading(settings.quantization, getattr(torch, dtype)),
        )
    if loaded["missing_keys"]:
        missing = sorted(loaded["missing_keys"])
        raise UserError(
            f"The weights of the policy's model {settings.model} lack {len(missing)} of the tensors that a "
            f"{type(model).__name__} has ({', '.join(missing[:3])}{', …' if len(missing) > 3 else ''}): they would be drawn "
            "at random. Expected a whole checkpoint of a causal language model. Correct policy.model."
        )
    policy = add_adapter(model, settings.lora, adapter=settings.adapter, revision=settings.revision)
    disable_base_dropout(policy)
    if settings.adapter is not None:
        log.debug("Training starts from the adapter %s, with its own LoRA settings.", settings.adapter)
    return policy
