"""What a model's configuration and the headers of its weight files tell: sizes, counts, work for each token. No weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.models.files import locate, read_config, weight_files
from mrpo_pipeline.models.source import ModelSource
from mrpo_pipeline.terminal import one_line, quiet_libraries

if TYPE_CHECKING:
    import torch

# Names under which configurations say how many experts a layer has, and how many of them a token goes through.
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_CHOSEN_EXPERTS = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "top_k")

ITEM_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}

# bitsandbytes, for each weight of a linear layer: 4 bits and a scale of 8 bits for 64 of them, itself scaled by a float32
# for 256 (QLoRA, arXiv 2305.14314, section 3); 8 bits and a float32 for each row.
_QUANTIZED_BYTES = {"nf4": 0.5 + 1 / 64 + 4 / (64 * 256), "int8": 1.0}
_HEADER_FLOATS = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2}
_HEADER_LIMIT = 100_000_000  # the format's own


@dataclass(frozen=True)
class Architecture:
    """A causal language model without its weights.

    Attributes:
        config: its transformers configuration.
        parameters: all of them. active: those that a token goes through (of a mixture of experts, a few).
        head: those of the output projection; table: those of the token embeddings where the projection has its own.
        linear: those of linear layers but the output projection: what is quantized.
        layers, width: attention layers, and heads × size of a head.
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
        """Operations of one forward pass: 2 for each parameter and token, and attention's own.

        Args:
            tokens: of all sequences; squares: Σ length² of them; projected: tokens that go through the output projection.
        """
        return 2 * self.body * tokens + 2 * self.head * projected + 2 * self.layers * self.width * squares


def read_model_config(source: ModelSource) -> Any | None:
    """The transformers configuration, fetched from the hub where it is not here; None where it can't be had.

    Raises:
        UserError: for one that is here and is no JSON object.
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
    except Exception:  # transformers raises any kind over settings that no model has; scoring says what is wrong
        return None


def empty_model(config: Any, *, dtype: torch.dtype, trust_remote_code: bool = False) -> Any:
    """The model on torch's meta device: shapes alone, no memory.

    Raises:
        UserError: for an architecture that transformers can't build.
    """
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with quiet_libraries(), torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise UserError(
            f"A model of type {getattr(config, 'model_type', '?')} can't be built to be counted "
            f"({one_line(error, 200)}): expected a causal language model that transformers knows."
        ) from error


def architecture_of(config: Any, trust_remote_code: bool = False) -> Architecture:
    """Count the model that a configuration describes.

    Raises:
        UserError: see ``empty_model``.
    """
    import torch

    return describe(empty_model(config, dtype=torch.float32, trust_remote_code=trust_remote_code))


def describe(model: Any) -> Architecture:
    """Count an empty model."""
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


def _active_share(config: Any) -> float:
    """The share of a layer's experts that one token goes through; 1 where there are none."""
    experts = next((n for n in (getattr(config, name, None) for name in _EXPERTS) if isinstance(n, int) and n), None)
    chosen = next((n for n in (getattr(config, name, None) for name in _CHOSEN_EXPERTS) if isinstance(n, int)), None)
    return 1.0 if experts is None or chosen is None else min(1.0, chosen / experts)


def weight_bytes(source: ModelSource, architecture: Architecture, dtype: str) -> int:
    """Bytes of the weights once they are loaded: from the files' headers where they are here, else from the counts.

    Args:
        dtype: what floating weights are loaded as.
    """
    item = ITEM_BYTES[dtype]
    made = _QUANTIZED_BYTES.get("nf4" if source.quantization in ("nf4", "4bit") else str(source.quantization))
    if made is not None:
        return int(architecture.linear * made + (architecture.parameters - architecture.linear) * item)
    folder = locate(source.model, source.revision)
    files = weight_files(source.name, folder) if folder is not None else None
    if not files:
        return architecture.parameters * item
    total = 0.0
    for kind, size in (one for path in files for one in _tensors(path)):
        total += size / _HEADER_FLOATS[kind] * item if kind in _HEADER_FLOATS else size
    return int(total)


def _tensors(path: Path) -> Iterator[tuple[str, int]]:
    """(dtype, bytes) of each tensor of a safetensors file, from its header: its length in 8 bytes, then JSON."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length)) if length <= _HEADER_LIMIT else {}
    for name, tensor in header.items():
        if name != "__metadata__":
            begin, end = tensor["data_offsets"]
            yield str(tensor["dtype"]), int(end) - int(begin)
