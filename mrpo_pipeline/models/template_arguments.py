"""Arguments of a chat template in a recipe: which of them a user may set."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

# Set by this program, or by `apply_chat_template` itself.
_OURS = """
    messages tools add_generation_prompt continue_final_message strftime_now raise_exception
    conversation chat_template tokenize padding truncation max_length return_tensors return_dict return_assistant_tokens_mask
    tokenizer_kwargs
    bos_token eos_token unk_token sep_token pad_token cls_token mask_token additional_special_tokens
"""
RESERVED = frozenset(_OURS.split())


def reserved(arguments: Mapping[str, Any]) -> str | None:
    """The first argument that a user cannot set, and why, or None."""
    try:
        json.dumps(dict(arguments), allow_nan=False)
    except (TypeError, ValueError) as error:
        return f"what JSON does not ({error})"
    for key in arguments:
        if key in RESERVED:
            return f"{key!r}, which rendering itself decides"
        if not key.isidentifier():
            return f"{key!r}, which is no name that a template can use"
    return None
