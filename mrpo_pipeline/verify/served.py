"""A served reference: its identity, by probing the server, and its recomputed log-probs."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress

import numpy as np
import numpy.typing as npt

from mrpo_pipeline.cache.probe_logps import FIELD, Probe
from mrpo_pipeline.engines.base import ScoringRequest, TokenIds
from mrpo_pipeline.engines.served import ServedEngine
from mrpo_pipeline.errors import RunError
from mrpo_pipeline.models.source import ModelSource, served_weights
from mrpo_pipeline.rendering import Renderer
from mrpo_pipeline.rendering.probe_texts import rendered_probe

_COMMIT = re.compile(r"/snapshots/([0-9a-f]{40})/?$")


def open_served(source: ModelSource, renderer: Renderer) -> ServedEngine:
    """The server's engine after its probe. Raises as ``ServedEngine``."""
    texts = rendered_probe(renderer)
    return ServedEngine(source, [ScoringRequest(one.prompt_ids, one.completion_ids, one.scored) for one in texts])


def served_identity(engine: ServedEngine) -> dict[str, str | None]:
    """Fingerprint fields of a served model: its name, the hub's commit if the server reports it, and the probe."""
    commit = _COMMIT.search(engine.root or "")
    return {
        "weights": served_weights(engine.model),
        "served_revision": commit[1] if commit else None,
        FIELD: Probe.of([text.scored_ids for text in engine.texts], engine.probe, engine.tolerance).text(),
    }


def confirmation(engine: ServedEngine) -> Callable[[], None]:
    """A function that checks, before a shard is written, that the server still runs the same model.

    If the server no longer answers, what it computed before is written.
    """

    def confirm() -> None:
        with suppress(RunError):
            engine.confirm()

    return confirm


class ServedModel:
    """A served reference with the interface of ``oracle.PlainModel``, one sequence at a time."""

    engine = "the server, one sequence at a time"
    note = "the server recomputed its own log-probs: this finds rows of another model, but not the faults of a server"
    without_adapter = None  # a server can't disable one

    def __init__(self, engine: ServedEngine) -> None:
        self._engine = engine
        self.dtype = engine.dtype
        self.device = engine.address
        self.context_length = engine.context_length

    def logps(
        self, prompt_ids: TokenIds, completion_ids: TokenIds, scored: npt.NDArray[np.bool_] | None = None
    ) -> npt.NDArray[np.float32]:
        ((_, found),) = self._engine.score([ScoringRequest(prompt_ids, completion_ids, scored)])
        return found

    def identity(self) -> dict[str, str | None]:
        """See ``served_identity``."""
        return served_identity(self._engine)

    def versions(self) -> dict[str, str]:
        return self._engine.versions()

    def close(self) -> None:
        self._engine.close()
