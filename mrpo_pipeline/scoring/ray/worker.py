"""A process that scores one reference, as an actor of Ray. What it imports at its top must not import torch."""

from __future__ import annotations

import os
import platform
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import polars as pl
import pyarrow as pa

import mrpo_pipeline
from mrpo_pipeline.errors import RunError, UserError
from mrpo_pipeline.scoring.report import Counts
from mrpo_pipeline.scoring.scorer import Assignment, Scorer

# Variables that a worker takes over from the process that started the run: what is said to nobody, and how threads wait.
PASSED_ON = (
    "HF_HUB_DISABLE_TELEMETRY",
    "VLLM_NO_USAGE_STATS",
    "DO_NOT_TRACK",
    "TOKENIZERS_PARALLELISM",
    "OMP_WAIT_POLICY",
)


@dataclass(frozen=True)
class Ready:
    """What a worker says of itself once its engine runs."""

    machine: str
    pid: int
    version: str
    engine: str
    dtype: str
    startup_seconds: float
    notices: tuple[str, ...]
    cache: str
    """Which cache it writes to (``Scorer.cache_identity``)."""


class Worker:
    """Scores units of one reference into the cache.

    ``open``, ``score`` and ``finish`` run one after another in one thread; ``stop`` comes from another, at any time.
    """

    def __init__(self, assignment: Assignment, environment: Mapping[str, str], started_on: str) -> None:
        os.environ.update(environment)
        self._assignment = assignment
        self._started_on = started_on
        self._scorer: Scorer | None = None
        self._stopping = threading.Event()
        self._working = threading.Lock()

    def open(self) -> Ready:
        """Start the engine."""
        try:
            with self._working:
                scorer = self._scorer = Scorer(self._assignment)
        except (UserError, RunError) as error:
            if platform.node() != self._started_on:  # what is missing there may well lie on the machine of the user
                error.args = (f"{error} (So the worker on {platform.node()}.)",)
            raise
        engine = scorer.engine
        return Ready(
            platform.node(),
            os.getpid(),
            mrpo_pipeline.__version__,
            engine.name,
            engine.dtype,
            scorer.startup_seconds,
            tuple(engine.notices),
            scorer.cache_identity(),
        )

    def score(self, unit: pa.Table) -> Iterator[Counts]:
        """Score a unit; yields what was done since the last time."""
        with self._working:
            if self._scorer is None:
                return
            frame = pl.from_arrow(unit)
            assert isinstance(frame, pl.DataFrame)
            for counts in self._scorer.score(frame):
                if self._stopping.is_set():
                    return
                yield counts

    def finish(self) -> tuple[str, ...]:
        """Write what is in hand and end the engine.

        Returns:
            what the renderer has to say.
        """
        with self._working:
            return self._close()

    def stop(self) -> None:
        """Leave the unit in the middle, and write what is in hand."""
        self._stopping.set()
        with self._working:
            self._close()

    def _close(self) -> tuple[str, ...]:
        scorer, self._scorer = self._scorer, None
        if scorer is None:
            return ()
        with scorer:
            return tuple(scorer.renderer.notices)
