"""The Ray actor that scores one reference. Its top-level imports must not import torch."""

from __future__ import annotations

import os
import platform
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import cast

import polars as pl
import pyarrow as pa

import mrpo_pipeline
from mrpo_pipeline.errors import RunError, UserError
from mrpo_pipeline.scoring.report import Counts
from mrpo_pipeline.scoring.scorer import Assignment, Scorer

# Environment variables passed from the process that started the run to workers: no usage reports, and how threads wait.
PASSED_ON = (
    "HF_HUB_DISABLE_TELEMETRY",
    "VLLM_NO_USAGE_STATS",
    "DO_NOT_TRACK",
    "TOKENIZERS_PARALLELISM",
    "OMP_WAIT_POLICY",
)


@dataclass(frozen=True)
class Ready:
    """A worker's report once its engine runs; ``cache`` identifies the cache it writes to (``Scorer.cache_identity``)."""

    machine: str
    version: str
    engine: str
    dtype: str
    startup_seconds: float
    notices: tuple[str, ...]
    cache: str


class Worker:
    """Scores units of one reference and writes each unit to the cache when it is complete.

    ``open`` and ``score`` run one after another in one thread; ``close`` runs in another, at any time.
    """

    def __init__(self, assignment: Assignment, environment: Mapping[str, str], started_on: str) -> None:
        os.environ.update(environment)
        self._assignment = assignment
        self._started_on = started_on
        self._scorer: Scorer | None = None
        self._closing = threading.Event()
        self._working = threading.Lock()

    def open(self) -> Ready:
        """Start the engine."""
        try:
            with self._working:
                scorer = self._scorer = Scorer(self._assignment)
        except (UserError, RunError) as error:
            if platform.node() != self._started_on:  # a file that is missing here may exist on the user's machine
                error.args = (f"{error} (Reported by the worker on {platform.node()}.)",)
            raise
        return Ready(
            platform.node(),
            mrpo_pipeline.__version__,
            scorer.engine.name,
            scorer.engine.dtype,
            scorer.startup_seconds,
            tuple(scorer.engine.notices),
            scorer.cache_identity(),
        )

    def score(self, unit: pa.Table) -> Iterator[Counts]:
        """Score a unit and write it; yields the counts since the last yield."""
        with self._working:
            if self._scorer is None:
                return
            try:
                for counts in self._scorer.score(cast(pl.DataFrame, pl.from_arrow(unit))):
                    if self._closing.is_set():
                        return
                    yield counts
                self._scorer.flush()
            except BaseException:
                self._end()
                raise

    def close(self) -> tuple[str, ...]:
        """Stop a unit that is being scored, write what is scored, and stop the engine; returns the renderer's notices."""
        self._closing.set()
        with self._working:
            return self._end()

    def _end(self) -> tuple[str, ...]:
        scorer, self._scorer = self._scorer, None
        if scorer is None:
            return ()
        with scorer:
            return tuple(scorer.renderer.notices)
