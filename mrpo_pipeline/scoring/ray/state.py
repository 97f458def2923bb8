"""What a crew keeps in mind: units of work, each reference's queue of them, and who works where on what."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any, Literal

import polars as pl

from mrpo_pipeline.scoring.job import Job
from mrpo_pipeline.scoring.ray.resources import Place
from mrpo_pipeline.scoring.report import Counts
from mrpo_pipeline.scoring.scorer import Assignment


@dataclass
class Unit:
    """Completions to score in one go, and how many workers died of them."""

    frame: pl.DataFrame
    deaths: int = 0


@dataclass
class Task:
    """One reference's work: what waits, and what became of its workers."""

    job: Job
    assignment: Assignment
    places: list[Place]
    queue: deque[Unit] = field(default_factory=deque)
    began: float | None = None
    failed_starts: int = 0
    notices: set[str] = field(default_factory=set)
    slots: set[int] = field(default_factory=set)
    """Those whose workers scored."""

    @property
    def name(self) -> str:
        return self.job.source.name


@dataclass
class Slot:
    """Room for one worker. ``pending`` is what its worker is asked now: a reference of Ray's, or a stream of them."""

    index: int
    state: Literal["empty", "starting", "idle", "scoring", "finishing"] = "empty"
    task: Task | None = None
    actor: Any = None
    pending: Any = None
    machine: str = ""
    unit: Unit | None = None
    handed: list[pl.DataFrame] = field(default_factory=list)
    """Units that this worker has scored; some of their rows may not be written yet."""
    counts: Counts = field(default_factory=Counts)
    after_death: bool = False
    """Whether the last worker here died: its machine may be gone, and the next one may never find room."""
    failed_starts: int = 0
    """Workers here, one after another, that died before their engine ran."""
