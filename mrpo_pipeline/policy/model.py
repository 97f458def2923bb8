"""Loading the policy: the base model frozen, its own dropout off, an adapter on top."""

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

# Dropout of every architecture in transformers, and the noise that some routers add in training; both would shift the
# policy's sums by nats against references that were scored without.
_NOISE = re.compile(r"drop|jitter")


def load_config(settings: ModelSource) -> Any:
    """The model's configuration, with its dropout and router noise at 0.

    Raises:
        UserError: where there is no such model.
    """
    from transformers import AutoConfig

    expected = "expected a folder with config.json and weights, or a hub name. Correct policy.model."
    with told(f"The policy's model {settings.model} can't be read", expected):
        config = AutoConfig.from_pretrained(
            settings.model, revision=settings.revision, trust_remote_code=settings.trust_remote_code
        )
    silence_config(config)
    return config


def silence_config(config: Any) -> None:
    """Set every dropout probability and router noise of a configuration to 0, those of nested configurations too."""
    from transformers import PretrainedConfig

    for name, value in list(vars(config).items()):
        if isinstance(value, PretrainedConfig):
            silence_config(value)
        elif isinstance(value, float) and _NOISE.search(name):
            setattr(config, name, 0.0)


def silence_modules(model: Any) -> None:
    """Set the dropout of every base module to 0; an adapter's own stays."""
    from torch.nn.modules.dropout import _DropoutNd

    for name, module in model.named_modules():
        if isinstance(module, _DropoutNd) and "lora_dropout" not in name:
            module.p = 0.0


def has_bfloat16() -> bool:
    """Whether this machine's accelerator computes in bfloat16. Without an accelerator: no, for it is slower there."""
    return gpu_computes_in("bfloat16")


def base_dtype(policy: ModelSource, config: Any, device: str | None = None) -> str:
    """The dtype of the base weights; ``auto`` is what it is for a reference of the same model (``references.auto_dtype``).

    Args:
        config: the model's, for a hub model that is not on this machine. device: as in ``auto_dtype``.

    Raises:
        UserError: for a dtype that a policy cannot have.
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
    """The policy as a ``PeftModel`` in eval mode; on the CPU, or where its base is quantized on this process's GPU.

    The base is frozen and has no dropout; the adapter's parameters are float32 and train. A new adapter's start is drawn
    from torch's generator, so seed it first.

    Raises:
        UserError: for a model, adapter or target modules that are not there.
    """
    import torch
    from transformers import AutoModelForCausalLM

    config = load_config(settings)
    dtype = base_dtype(settings, config)
    # A folder is written into the adapter's config with its full path, so that the adapter finds its base from anywhere.
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
    silence_modules(policy)
    if settings.adapter is not None:
        log.debug("Training goes on from the adapter %s; its own LoRA settings hold.", settings.adapter)
    return policy
