"""Parameter counts, bytes and operations of a model, from its configuration and the headers of its weight files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.models.files import locate, read_config, weight_files
from mrpo_pipeline.terminal import one_line, quiet_libraries

if TYPE_CHECKING:
    import torch

    from mrpo_pipeline.models.source import ModelSource

# Configuration fields of the number of experts in a layer, and of the active ones per token.
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_ACTIVE_EXPERTS = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "top_k")

ITEM_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}

# bitsandbytes, bytes per weight of a linear layer: 4 bits, an 8-bit scale for 64 of them and a float32 for 256 scales (QLoRA, arXiv
# 2305.14314, section 3); or 8 bits.
_QUANTIZED_BYTES = {"nf4": 0.5 + 1 / 64 + 4 / (64 * 256), "int8": 1.0}
_HEADER_FLOATS = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2}


@dataclass(frozen=True, eq=False)
class Architecture:
    """A causal language model without its weights.

    Attributes:
        config: its transformers configuration.
        parameters: all. active: those used per token (of a mixture of experts, a part).
        head: of the output projection. table: of the token embeddings, where they are not tied to it.
        linear: of linear layers except the output projection: those that are quantized.
        layers, width: attention layers, and heads × head size.
        vocabulary: rows of the output projection.
    """

    config: Any
    parameters: int
    active: int
    head: int
    table: int
    linear: int
    layers: int
    width: int
    vocabulary: int

    @property
    def body(self) -> int:
        """Parameters that every token of prompt and completion is multiplied with."""
        return self.active - self.head - self.table

    def forward_flops(self, tokens: float, squares: float, projected: float) -> float:
        """Operations of one forward pass: 2 per parameter and token, and those of attention.

        Args:
            tokens: of all sequences. squares: Σ length² of them. projected: tokens that go through the output projection.
        """
        return 2 * self.body * tokens + 2 * self.head * projected + 2 * self.layers * self.width * squares


def read_model_config(source: ModelSource) -> Any | None:
    """The transformers configuration, downloaded where it is not in the local cache; None where it is not available.

    Raises:
        UserError: for a local one that is not a JSON object.
    """
    from transformers import AutoConfig

    folder = locate(source.model, source.revision)
    if folder is not None:
        read_config(source.name, folder / "config.json")
    try:
        with quiet_libraries():
            return AutoConfig.from_pretrained(
                source.model, revision=source.revision, trust_remote_code=source.trust_remote_code
            )
    except Exception:  # transformers raises any kind over invalid settings; scoring reports the cause
        return None


def empty_model(config: Any, *, dtype: torch.dtype, trust_remote_code: bool = False) -> Any:
    """The model on torch's meta device. Raises UserError for an architecture that transformers can't build."""
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with quiet_libraries(), torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise UserError(
            f"A model of type {getattr(config, 'model_type', '?')} can't be built ({one_line(error, 200)}): expected a causal "
            "language model that transformers supports."
        ) from error


def architecture_of(config: Any, trust_remote_code: bool = False) -> Architecture:
    """Count the parameters of a configuration's model. Raises UserError: see ``empty_model``."""
    import torch

    return describe(empty_model(config, dtype=torch.float32, trust_remote_code=trust_remote_code))


def describe(model: Any) -> Architecture:
    """Count the parameters of an empty model."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    config = model.config
    text = config.get_text_config()
    share = _active_share(text)
    parameters = active = 0.0
    for name, parameter in model.named_parameters():
        count = parameter.numel()
        parameters += count
        active += count * share if ".experts." in name and "shared" not in name else count
    output, inputs = model.get_output_embeddings(), model.get_input_embeddings()
    head = 0 if output is None else sum(parameter.numel() for parameter in output.parameters())
    tied = output is not None and inputs is not None and output.weight is inputs.weight
    table = 0 if tied or inputs is None else sum(parameter.numel() for parameter in inputs.parameters())
    linear = sum(
        module.weight.numel()
        for module in model.modules()
        if isinstance(module, (nn.Linear, Conv1D)) and module is not output
    )
    heads = getattr(text, "num_attention_heads", None) or 0
    size = getattr(text, "head_dim", None) or (text.hidden_size // heads if heads else 0)
    return Architecture(
        config, int(parameters), int(active), int(head), int(table), int(linear),
        layers=int(getattr(text, "num_hidden_layers", 0) or 0), width=int(heads * size),
        vocabulary=int(output.weight.shape[0]) if output is not None else int(text.vocab_size),
    )  # fmt: skip


def training_flops(
    architecture: Architecture, trainable: int, tokens: float, squares: float, projected: float, *, recomputed: bool
) -> float:
    """Operations of training on this many tokens.

    Frozen weights take 2 operations per token forward and 2 backward for the gradient that passes through them, trained ones 2
    more. Attention's backward pass is 2.5 times its forward pass (arXiv 2205.14135: five products instead of two). Gradient
    checkpointing runs the layers' forward pass twice.

    Args:
        tokens: run through the model. squares: Σ length² of the sequences. projected: tokens that go through the output
            projection, with gradient.
    """
    attention = 2 * architecture.layers * architecture.width * squares
    passes = 3 if recomputed else 2
    body = 2 * architecture.body * tokens
    return (
        passes * body
        + (passes - 1 + 2.5) * attention
        + 2 * 2 * architecture.head * projected
        + (passes + 1) * 2 * trainable * tokens
    )


def _active_share(config: Any) -> float:
    """The share of a layer's experts that are active for a token; 1 without experts."""
    experts = next((n for n in (getattr(config, name, None) for name in _EXPERTS) if isinstance(n, int) and n), None)
    chosen = next((n for n in (getattr(config, name, None) for name in _ACTIVE_EXPERTS) if isinstance(n, int)), None)
    return 1.0 if experts is None or chosen is None else min(1.0, chosen / experts)


def weight_bytes(source: ModelSource, architecture: Architecture, dtype: str) -> int:
    """Bytes of the loaded weights: by the headers of local files, else by the parameter count.

    Args:
        dtype: of floating-point weights.
    """
    from huggingface_hub import parse_local_safetensors_file_metadata

    item = ITEM_BYTES[dtype]
    quantized = _QUANTIZED_BYTES.get("nf4" if source.quantization in ("nf4", "4bit") else str(source.quantization))
    if quantized is not None:
        return int(architecture.linear * quantized + (architecture.parameters - architecture.linear) * item)
    folder = locate(source.model, source.revision)
    files = weight_files(source.name, folder) if folder is not None else None
    if not files:
        return architecture.parameters * item
    total = 0.0
    for path in files:
        for tensor in parse_local_safetensors_file_metadata(path).tensors.values():
            size = tensor.data_offsets[1] - tensor.data_offsets[0]
            total += size / _HEADER_FLOATS[tensor.dtype] * item if tensor.dtype in _HEADER_FLOATS else size
    return int(total)
