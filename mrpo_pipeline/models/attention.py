"""Choose the attention implementation that computes a model exactly, for references and policy alike."""

from __future__ import annotations

from typing import Any

from mrpo_pipeline.errors import UserError


def exact_attention(config: Any, asked: str | None = None) -> str | None:
    """The attention implementation to ask transformers for; None for its own choice.

    transformers' default, SDPA attention, silently ignores a soft cap on the attention scores (Gemma-2's
    `attn_logit_softcapping`): log-probs are then off by hundredths of a nat and more. Such a model is loaded with `eager`
    attention unless another implementation is requested by name.

    Raises:
        UserError: `sdpa` is requested for a model whose attention scores are capped.
    """
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    if getattr(text, "attn_logit_softcapping", None) is None:
        return asked
    if asked == "sdpa":
        raise UserError(
            "scoring.attn_implementation: sdpa leaves out the cap on attention scores that this model has "
            f"(attn_logit_softcapping {text.attn_logit_softcapping}); use eager, flex_attention or flash_attention_2."
        )
    return asked or "eager"
