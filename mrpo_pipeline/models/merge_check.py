"""Check that a merged model equals the adapted one: layer by layer in float32, tensor by tensor on disk, and by its log-probs."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mrpo_pipeline.models.context_length import context_length

if TYPE_CHECKING:
    import torch

_ROW = 32  # tokens of a text of probe ids
_SPREAD = 64  # ids, spread over the vocabulary
_SPECIAL = 64  # at most, of the ids that the adapter trains or adds
# How far a layer's output may move when its change is merged in float32, as a share of the largest output. Sums in another
# order give 1e-6; a change that is dropped, transposed or scaled wrongly gives about its own size.
_LAYER = 1e-4
# Largest mean difference of log-probs at one position or of one token, in nats, by the dtype of the weights.
# Measured (SmolLM2-135M, Gemma-3-270M, the demo's models; LoRA of any strength): 4e-5 in float32; in 16 bits it is the
# rounding of weights and activations, 0.14 in float16 and 0.7 in bfloat16. The comparisons of layers and tensors detect
# even small losses in merging or saving; this one is for faults that neither detects.
TOLERANCE = {"float64": 2e-3, "float32": 2e-3, "float16": 0.4, "bfloat16": 2.0}


class NotMergeableError(Exception):
    """The adapter's effect cannot be expressed in the base model's weights."""


@dataclass(frozen=True, slots=True)
class Differences:
    """Nats per token, over the texts and the vocabulary.

    Attributes:
        effect: mean distance of the adapted model from its base. rounding: mean distance of the merged model from the adapted
            one. apart: the largest mean over one position or one token. allowed: the maximum of ``apart``.
    """

    effect: float
    rounding: float
    apart: float
    allowed: float

    @classmethod
    def between(cls, base: torch.Tensor, adapted: torch.Tensor, merged: torch.Tensor, dtype: str) -> Differences:
        """Compare (N, V) log-probs. The result's `apart` is infinite where a number is not finite or a size differs."""
        import torch

        allowed = TOLERANCE.get(dtype, TOLERANCE["bfloat16"])
        effect = float((adapted - base).abs().mean()) if base.shape == adapted.shape else float("nan")
        if merged.shape != adapted.shape or not bool(torch.isfinite(merged).all()):
            return cls(effect, float("inf"), float("inf"), allowed)
        distance = (merged - adapted).abs()
        apart = max(float(distance.mean(0).max()), float(distance.mean(1).max()))
        return cls(effect, float(distance.mean()), apart, allowed)

    @property
    def agree(self) -> bool:
        return self.apart <= self.allowed


def probe_rows(config: Any, vocab_size: int, special: Sequence[int]) -> list[list[int]]:
    """Texts of token ids, each within the model's context: ids spread over the vocabulary, and some of the `special` ones."""
    length = min(_ROW, context_length(config) or _ROW)
    spread = [index * (vocab_size - 1) // _SPREAD for index in range(1, _SPREAD + 1)]
    step = max(1, -(-len(special) // _SPECIAL))
    return [row[start : start + length] for row in (spread, [*special[::step]]) for start in range(0, len(row), length)]


def logps(model: Any, rows: Sequence[Sequence[int]]) -> torch.Tensor:
    """(N, V) float32 log-probs after every position of the rows of ids, in nats."""
    import torch

    parts = [model(input_ids=torch.tensor([list(row)])).logits[0].float().log_softmax(-1) for row in rows]
    return torch.cat(parts)


def fingerprint(model: torch.nn.Module) -> dict[str, str]:
    """Dtype, shape and content of every tensor, by name."""
    import torch

    found = {}
    for name, tensor in model.state_dict().items():
        content = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data
        digest = hashlib.blake2b(content, digest_size=16).hexdigest()
        found[name] = f"{tensor.dtype} {tuple(tensor.shape)} {digest}"
    return found


def merge_layer(name: str, layer: Any) -> tuple[float, float]:
    """Merge one of peft's layers in float32, and round its weights once to the dtypes they had.

    Returns:
        sums of squares over the weights: of the adapter's change, and of the rounding.

    Raises:
        NotMergeableError: peft cannot merge it, or its output changes.
    """
    base = layer.get_base_layer()
    dtypes = [(parameter, parameter.dtype) for parameter in base.parameters()]
    layer.float()
    unchanged = [parameter.detach().clone() for parameter, _ in dtypes]
    example = _example(base)
    before = None if example is None else layer(example)
    try:
        layer.merge(safe_merge=True)
    except Exception as error:  # the type depends on the kind of adapter
        raise NotMergeableError(f"{name}: {str(error) or type(error).__name__}") from error
    if before is not None:
        moved = float((layer(example) - before).abs().max())
        if not moved <= _LAYER * max(float(before.abs().max()), 1e-6):
            raise NotMergeableError(f"peft merges {name} into another layer: its output moves by {moved:.2g}")
    change = rounding = 0.0
    for (parameter, dtype), start in zip(dtypes, unchanged, strict=True):
        wide = parameter.data
        parameter.data = wide.to(dtype)
        change += float((wide - start).square().sum())
        rounding += float((parameter.data.float() - wide).square().sum())
    return change, rounding


def _example(layer: Any) -> torch.Tensor | None:
    """An example input of the layer; None for an unknown kind."""
    import torch
    from transformers.pytorch_utils import Conv1D

    if isinstance(layer, torch.nn.Embedding):
        return torch.linspace(0, layer.num_embeddings - 1, 256).long()[None]
    width = layer.in_features if isinstance(layer, torch.nn.Linear) else None
    width = layer.weight.shape[0] if isinstance(layer, Conv1D) else width
    if width is None:
        return None
    return torch.randn(1, 8, width, generator=torch.Generator().manual_seed(0))
