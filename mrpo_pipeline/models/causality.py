"""Check that a model is causal by two forward passes: changing later tokens must not change earlier log-probs.

A masked or bidirectional model computes log-probs that depend on the answer, without an error. (vLLM's process compares a text
with its first half at its start, which checks the same.)
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.models.context_length import context_length
from mrpo_pipeline.models.probe_token_ids import ordinary_ids, special_ids
from mrpo_pipeline.terminal import one_line

log = logging.getLogger("mrpo")

LENGTH = 24
# The first token that is changed. An odd position: a model that sees to the end of its block (of 2, 4, 8, … tokens) sees this
# token from the one before it.
CHANGED_FROM = 15
# Rounding that differs between passes (an expert with other tokens, a kernel that is still being chosen) may move one
# position once. A model that sees later tokens moves it in every trial.
TRIALS = 3

# How far log-probs may move, as a share of their spread over the vocabulary. Dense layers compute each position
# independently of what follows, so mostly nothing moves; untrained masked models move by 1e-3, trained ones by 0.1 and more.
_MOVES = {"float32": 1e-4, "float64": 1e-6}
_MOVES_HALF = 2e-3
# Experts get a varying number of tokens, so their products round differently.
_EXPERTS = 10
# Activations that are quantized together share a scale.
_QUANTIZED = 0.2

Ids = npt.NDArray[np.int64]


def require_causal(model: Any, name: str, dtype: str) -> None:
    """Refuse a model whose log-probs depend on later tokens.

    Args:
        model: a Hugging Face causal LM, bare or in a peft ``PeftModel``, in eval mode. name: for the message.
        dtype: of its weights.

    Raises:
        UserError: if they do; the message states by how much they move.
    """
    import torch

    rows = int(model.get_input_embeddings().weight.shape[0])
    allowed = _allowed(model, dtype)
    moved = 0.0
    for first, second, changed in _trials(model.config.to_dict(), rows, context_length(model.config)):
        try:
            moved = _distance(_logps(model, first, changed), _logps(model, second, changed))
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # an architecture that does not run on random ids
            log.warning("%s: could not be tried for whether it sees what follows (%s).", name, one_line(error, 200))
            return
        if not moved > allowed:  # NaN is reported elsewhere
            return
    if not moved > allowed:  # the context is too short for a trial
        return
    raise UserError(
        f"The model {name} sees what follows: when later tokens are changed, the log-probs of earlier ones move by {moved:.2g} of "
        f"their spread, so every log-prob of this {type(_base(model)).__name__} has seen the answer that it is to predict. Expected "
        "a causal (left-to-right) language model, not a masked, bidirectional or diffusion one"
        f"{_hint(model.config.to_dict())}. Name another model."
    )


def _trials(config: dict[str, Any], vocab_size: int, positions: int | None) -> Iterator[tuple[Ids, Ids, int]]:
    """(first, second, changed): two texts of (T,) ids that are equal before position `changed`."""
    length = min(LENGTH, positions or LENGTH)
    changed = min(CHANGED_FROM, length // 2 | 1)
    special = list(special_ids(config))
    if changed >= length:
        return
    for trial in range(TRIALS):
        first = ordinary_ids(vocab_size, special, length, seed=2 * trial)
        later = ordinary_ids(vocab_size, special, length - changed, seed=2 * trial + 1)
        yield first, np.concatenate([first[:changed], later]), changed


def _logps(model: Any, ids: Ids, changed: int) -> Any:
    """(changed, V) float32 log-probs at the positions before the change."""
    import torch

    row = torch.from_numpy(ids)[None].to(model.get_input_embeddings().weight.device)
    given = {"use_cache": False} if "use_cache" in inspect.signature(_base(model).forward).parameters else {}
    with torch.inference_mode():
        return model(input_ids=row, **given).logits[0, -len(ids) :][:changed].float().log_softmax(-1)


def _distance(before: Any, after: Any) -> float:
    """How far log-probs moved, as a share of their spread: at the last position or the median one, whichever is larger."""
    moved = (before - after).square().mean(-1).sqrt() / before.std(-1).clamp_min(1e-12)  # (changed,)
    return float(moved[-1].maximum(moved.median()))


def _allowed(model: Any, dtype: str) -> float:
    if getattr(_base(model), "quantization_method", None) or getattr(model.config, "quantization_config", None):
        return _QUANTIZED
    share = _MOVES.get(dtype, _MOVES_HALF)
    kinds = {type(module).__name__.lower() for module in model.modules()}
    return share * (_EXPERTS if any("expert" in kind or "moe" in kind for kind in kinds) else 1)


def _base(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _hint(config: dict[str, Any]) -> str:
    """The configuration key that makes the model bidirectional, for the message."""
    for one in (config, config.get("text_config")):
        for key, value in (("use_bidirectional_attention", True), ("is_causal", False)):
            if isinstance(one, dict) and one.get(key) == value:
                return f" (its config.json says {key}: {str(value).lower()})"
    return ""
