"""Check engine options of the recipe before vLLM gets them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from difflib import get_close_matches
from typing import Any

from mrpo_pipeline.engines.vllm.adapters import UnsupportedError
from mrpo_pipeline.errors import UserError
from mrpo_pipeline.models.loading import EIGHT_BIT, FOUR_BIT

# Keys of the reference: its fingerprint covers them, and an engine option would bypass it.
_OF_THE_REFERENCE = {
    "model": "model",
    "revision": "revision",
    "dtype": "dtype",
    "quantization": "quantization",
    "trust_remote_code": "trust_remote_code",
    "tokenizer": "tokenizer",
}
_LOG_PROBS = ("raw_logprobs", "processed_logprobs")


def check_here(options: Mapping[str, Any], reference: str) -> None:
    """Refuse, without vLLM, options that are keys of the reference and those that make its numbers wrong.

    Raises:
        UserError: naming the option.
    """
    for name, value in options.items():
        if name in _OF_THE_REFERENCE:
            key = f"references.{reference}.{_OF_THE_REFERENCE[name]}"
            raise UserError(
                f"scoring.{name}: {value!r} found; this is a key of the reference, whose cache records it. Give it as {key}."
            )
    mode = options.get("logprobs_mode")
    if mode is not None and mode not in _LOG_PROBS:
        raise UserError(
            f"scoring.logprobs_mode: {mode!r} found, one of {', '.join(_LOG_PROBS)} expected. Leave it out."
        )
    if options.get("kv_sharing_fast_prefill"):
        raise UserError("scoring.kv_sharing_fast_prefill: vLLM's prompt log-probs are wrong with it. Leave it out.")
    for name in ("tensor_parallel_size", "pipeline_parallel_size"):
        value = options.get(name, 1)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UserError(f"scoring.{name}: {value!r} found, the number of GPUs expected (1, 2, …). Correct it.")


def checked(options: Mapping[str, Any], arguments: Any) -> dict[str, Any]:
    """The options with the types of `arguments`, vLLM's `EngineArgs`: "4" for a number becomes 4.

    Raises:
        UserError: an option of another type, with what vLLM expects.
    """
    from pydantic import TypeAdapter, ValidationError

    types = {field.name: field.type for field in fields(arguments)}
    found = dict(options)
    for name, value in options.items():
        if value is None or isinstance(types[name], str):  # an annotation that only a type checker can resolve
            continue
        try:
            wanted: Any = types[name]
            adapter: Any = TypeAdapter(wanted)
        except Exception:  # a class of vLLM's own with a configuration of its own
            continue
        try:
            typed = adapter.validate_python(value)
        except ValidationError as error:
            said = "; ".join(dict.fromkeys(one["msg"] for one in error.errors()))
            raise UserError(
                f"scoring.{name}: {value!r} found; vLLM says: {said}. Correct it, or leave it out."
            ) from None
        if isinstance(typed, bool | int | float):
            found[name] = typed
    return found


def vllm_quantization(name: str | None, methods: Sequence[str]) -> str | None:
    """vLLM's name of a reference's quantization.

    Raises:
        UnsupportedError: one that transformers makes (bitsandbytes) and this vLLM does not.
        UserError: one that neither knows.
    """
    if name is None:
        return None
    wanted = "bitsandbytes" if name in FOUR_BIT else name
    if wanted in methods:
        return wanted
    if name in FOUR_BIT or name in EIGHT_BIT:
        raise UnsupportedError(f"the vLLM installed does not quantize with bitsandbytes ({name})")
    near = get_close_matches(name, [*methods, *FOUR_BIT, *EIGHT_BIT], 1)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise UserError(
        f"quantization: {name!r} is known neither to the vLLM installed ({', '.join(methods)}) nor to the transformers engine "
        f"(nf4, int8).{hint} A checkpoint that is quantized already needs no such key."
    )
