"""A model's context length, from its configuration."""

from __future__ import annotations

from typing import Any

from mrpo_pipeline.models.files import locate
from mrpo_pipeline.models.source import ModelSource

_NAMES = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "n_ctx")
# Their positions are a bias or a state without a limit, whatever length the configuration mentions.
_UNLIMITED = ("bloom", "mamba", "mamba2", "falcon_mamba", "rwkv", "xlstm")


def context_length(config: Any) -> int | None:
    """Maximum number of positions of a model, from its transformers configuration; None for no limit.

    ALiBi (BLOOM, Falcon and MPT with `alibi`) and recurrent models have none.
    """
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    attention = getattr(text, "attn_config", None)
    alibi = getattr(text, "alibi", False) or getattr(attention, "alibi", False)
    if alibi or getattr(text, "model_type", "") in _UNLIMITED:
        return None
    lengths = [getattr(text, name, None) for name in _NAMES]
    found = [length for length in lengths if isinstance(length, int) and length > 0]
    return min(found) if found else None


def known_context(source: ModelSource) -> int | None:
    """Maximum number of positions of a model with local files; None for no limit, or if the files are not on this machine."""
    from transformers import AutoConfig

    folder = locate(source.model, source.revision)
    if folder is None:
        return None
    try:
        return context_length(AutoConfig.from_pretrained(folder, trust_remote_code=source.trust_remote_code))
    except Exception:  # loading the model reports unreadable files
        return None
