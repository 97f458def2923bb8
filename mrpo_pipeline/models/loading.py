"""Load a reference by transformers, with its adapter and quantization."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.models.adapters import put_adapter
from mrpo_pipeline.models.attention import exact_attention
from mrpo_pipeline.models.checks import check_loaded, check_tensors, told
from mrpo_pipeline.models.files import locate
from mrpo_pipeline.models.source import ModelSource, resolve_dtype
from mrpo_pipeline.terminal import quiet_libraries

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

FOUR_BIT = ("nf4", "4bit", "bitsandbytes", "bitsandbytes-4bit")
EIGHT_BIT = ("int8", "8bit", "bitsandbytes-8bit")


def load_model(
    source: ModelSource, *, device: torch.device, attn_implementation: str | None = None, prefix: str | None = None
) -> tuple[PreTrainedModel, str]:
    """The frozen model in eval mode on `device`, without a key cache, and the name of its dtype.

    An adapter is not merged, so that a policy that starts from it computes the same log-probs.
    Quantizations: None (or the checkpoint's own: AWQ, GPTQ, FP8), `nf4` (bitsandbytes 4-bit, double quantization), `int8`
    (bitsandbytes).

    Args:
        prefix: start of error messages; "reference NAME: " by default.

    Raises:
        UserError: for an unknown quantization, a model that cannot be loaded, or one that is not causal.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from mrpo_pipeline.models.causality import require_causal

    dtype = resolve_dtype(source)
    settings: dict[str, Any] = {"revision": source.revision, "trust_remote_code": source.trust_remote_code}
    quantization = _quantization(source, getattr(torch, dtype))
    if quantization is not None:
        settings |= {"quantization_config": quantization, "device_map": {"": device}}
    folder = locate(source.model, source.revision)
    if folder is not None:
        check_tensors(source.name, folder)
    prefix = f"reference {source.name}: " if prefix is None else prefix
    what = f"{prefix}the model {source.model} cannot be loaded"
    with told(
        what, "expected a causal language model that transformers knows, whole. Fetch it again, or name another."
    ):
        config = AutoConfig.from_pretrained(
            source.model, revision=source.revision, trust_remote_code=source.trust_remote_code
        )
        attention = exact_attention(config, attn_implementation)
        if attention is not None:
            settings["attn_implementation"] = attention
        with quiet_libraries():
            model, loaded = AutoModelForCausalLM.from_pretrained(
                source.model, dtype=getattr(torch, dtype), use_safetensors=True, output_loading_info=True, **settings
            )
    check_loaded(source.name, source.model, loaded, type(model).__name__)
    if getattr(model, "hf_device_map", None) is None and getattr(model, "quantization_method", None) is None:
        model = model.to(device)
    if source.adapter is not None:
        what = f"{prefix}the adapter {source.adapter} can't be put on {source.model}"
        with told(what, "expected a LoRA adapter that was trained from this model. Correct `adapter` or `model`."):
            model = put_adapter(model, source.adapter)
    model.requires_grad_(False)
    require_causal(model.eval(), f"{source.model} of {source.name}", dtype)
    return model, dtype


def _quantization(source: ModelSource, dtype: torch.dtype) -> Any:
    if source.quantization is None:
        return None
    from transformers import BitsAndBytesConfig

    if source.quantization in FOUR_BIT:
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    if source.quantization in EIGHT_BIT:
        return BitsAndBytesConfig(load_in_8bit=True)
    raise UserError(
        f"reference {source.name}: quantization {source.quantization} is not one the transformers engine makes itself; it "
        "knows nf4 and int8 (bitsandbytes). A checkpoint that is quantized already (AWQ, GPTQ, FP8) needs no such key."
    )
