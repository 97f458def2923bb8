"""Workers on Ray: units of what the cache lacks handed out, and what a dead worker left unscored handed out again."""

from __future__ import annotations

import logging
import os
import platform
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import polars as pl

import mrpo_pipeline
from mrpo_pipeline.errors import ProcessDiedError, RunError, UserError
from mrpo_pipeline.scoring.job import Job
from mrpo_pipeline.scoring.ray.resources import Place
from mrpo_pipeline.scoring.ray.worker import PASSED_ON, Ready, Worker
from mrpo_pipeline.scoring.scorer import Assignment, manifest_digest
from mrpo_pipeline.terminal import Progress

log = logging.getLogger("mrpo")

# A unit that so many workers died of is not tried again; nor is a place where so many died in a row before they could score.
PATIENCE = 3
# What a dead worker left unscored is cut into so many units: of one deadly completion fewer others share the fate.
PARTS = 4
# Seconds without a message after which a warning says what is waited for.
SILENCE = 60.0
# Seconds that workers have to write their rows when a run is stopped.
GRACE = 30.0
# Seconds that a network folder may take to show a file that another machine wrote.
SEEN_WITHIN = 45.0


@dataclass
class Unit:
    """Completions to score in one call, and how many workers died of them."""

    frame: pl.DataFrame
    deaths: int = 0


def units_of(frame: pl.DataFrame, size: int, deaths: int = 0) -> Iterator[Unit]:
    """The frame in units of ``size`` rows, the last one of what is left."""
    return (Unit(frame.slice(start, size), deaths) for start in range(0, frame.height, size))


@dataclass
class Task:
    """One reference: its places, and the units that wait."""

    job: Job
    assignment: Assignment
    places: list[Place]
    queue: deque[Unit]
    began: float | None = None
    notices: set[str] = field(default_factory=set)
    scored_at: set[int] = field(default_factory=set)
    failed_starts: Counter[int] = field(default_factory=Counter)
    """By place: workers in a row that died before they could score."""

    @property
    def name(self) -> str:
        return self.job.source.name


@dataclass(eq=False)
class Seat:
    """A worker at its place, and the call that it works on: an object reference of Ray's, or a stream of them."""

    task: Task
    index: int
    actor: Any
    pending: Any
    call: Literal["open", "score", "close"] = "open"
    unit: Unit | None = None
    counted: int = 0
    machine: str = ""


class Scheduler:
    """One worker a place, each with one reference; where no unit of it waits, the place passes on to the next reference.

    Units go to workers that are ready and to no others. For that reason a dead worker is replaced by a new actor and not by
    Ray's ``max_restarts``: a call that Ray retries on a restarted actor waits for ever where its machine's room is gone.
    """

    def __init__(self, ray: Any, tasks: Sequence[Task], begin: Callable[[], Progress]) -> None:
        """
        Args:
            ray: the module, connected.
            tasks: the references, in the order in which they are scored.
            begin: called once, when the first worker is ready.
        """
        self._ray, self._tasks, self._begin = ray, list(tasks), begin
        self._seats: list[Seat] = []
        self._progress: Progress | None = None
        self._environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}

    def run(self) -> None:
        """Until every unit is scored and written.

        Raises:
            UserError, RunError: see ``score_by_workers``. Workers write what they have scored first, as on Ctrl-C.
        """
        try:
            for index in range(max(len(task.places) for task in self._tasks)):
                self._hire(index)
            while any(task.queue for task in self._tasks) or any(seat.call != "open" for seat in self._seats):
                self._wait()
                for seat in [seat for seat in self._seats if seat.call == "open" and not seat.task.queue]:
                    self._dismiss(seat)
        except BaseException:
            closing = [self._close(seat) for seat in self._seats if seat.call != "open"]
            if closing:
                self._ray.wait(closing, num_returns=len(closing), timeout=GRACE)
            raise
        finally:
            for seat in self._seats:
                self._ray.kill(seat.actor)

    def _hire(self, index: int) -> None:
        """Start a worker at the place, for the first reference that has units left and room there."""
        task = next(
            (x for x in self._tasks if x.queue and index < len(x.places) and x.failed_starts[index] < PATIENCE), None
        )
        if task is None:
            return
        place, settings = task.places[index], task.assignment.settings
        if place.threads is not None and "threads" not in settings.engine_options:
            settings = settings.model_copy(update={"threads": place.threads})
        strategy: Any = "SPREAD"
        if place.node is not None:
            from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

            strategy = NodeAffinitySchedulingStrategy(place.node, soft=True)
        actor = self._ray.remote(
            num_cpus=place.cpus,
            num_gpus=place.gpus,
            max_restarts=0,
            concurrency_groups={"control": 1},
            scheduling_strategy=strategy,
        )(Worker).remote(replace(task.assignment, settings=settings), self._environment, platform.node())
        self._seats.append(Seat(task, index, actor, actor.open.remote()))

    def _dismiss(self, seat: Seat) -> None:
        self._ray.kill(seat.actor)
        self._seats.remove(seat)
        self._hire(seat.index)

    def _close(self, seat: Seat) -> Any:
        return seat.actor.close.options(concurrency_group="control").remote()

    def _next_unit(self, seat: Seat) -> None:
        seat.counted, seat.unit = 0, None
        if seat.task.queue:
            seat.unit = seat.task.queue.popleft()
            table = self._ray.put(seat.unit.frame.to_arrow(compat_level=pl.CompatLevel.oldest()))
            seat.call, seat.pending = "score", seat.actor.score.options(num_returns="streaming").remote(table)
        else:
            seat.call, seat.pending = "close", self._close(seat)

    def _wait(self) -> None:
        """Wait for one worker's answer and handle it."""
        pending = {seat.pending: seat for seat in self._seats}
        ready, _ = self._ray.wait(list(pending), num_returns=1, timeout=SILENCE)
        if ready:
            self._handle(pending[ready[0]])
        elif all(seat.call == "open" for seat in self._seats):
            place = self._seats[0].task.places[self._seats[0].index]
            log.warning(
                "%s workers are starting, or wait for room (each takes %s CPUs and %s GPUs of one machine); `ray status` shows "
                "what is free.", len(self._seats), place.cpus, place.gpus,
            )  # fmt: skip

    def _handle(self, seat: Seat) -> None:
        errors, task = self._ray.exceptions, seat.task
        try:
            if seat.call == "open":
                self._ready(seat, self._ray.get(seat.pending))
                self._next_unit(seat)
            elif seat.call == "close":
                task.notices.update(self._ray.get(seat.pending))
                self._dismiss(seat)
            else:
                counts = self._ray.get(next(seat.pending))
                task.job.report.tokens += counts.tokens
                self._advance(seat, counts.done)
        except StopIteration:
            task.job.report.seconds = time.monotonic() - (task.began or 0.0)
            self._next_unit(seat)
        except errors.RayTaskError as error:
            if isinstance(error.cause, ProcessDiedError):
                self._died(seat, error.cause)
            elif isinstance(error.cause, UserError | RunError):
                raise error.cause from None
            else:
                raise RunError(
                    f"{task.name}: a worker failed on {seat.machine or 'its machine'} ({type(error.cause).__name__}: {error.cause}). "
                    "What was scored stays; `mrpo --verbose score-refs` shows where it failed."
                ) from error
        except errors.RayError as error:
            self._died(seat, error)

    def _ready(self, seat: Seat, ready: Ready) -> None:
        task, report = seat.task, seat.task.job.report
        if ready.version != mrpo_pipeline.__version__:
            raise UserError(
                f"{ready.machine} has mrpo {ready.version}, and this machine {mrpo_pipeline.__version__}: expected the same version "
                "on every machine of the cluster. Install it there."
            )
        _require_one_cache(task, ready)
        self._progress = self._progress or self._begin()
        seat.machine, task.failed_starts[seat.index] = ready.machine, 0
        task.scored_at.add(seat.index)
        report.workers = len(task.scored_at)
        if task.began is None:
            task.began = time.monotonic()
            report.engine, report.startup_seconds = ready.engine, ready.startup_seconds
            log.info("%s: scored by %s (%s)", task.name, ready.engine, ready.dtype)
            for notice in ready.notices:
                log.info("%s", notice)

    def _advance(self, seat: Seat, completions: int) -> None:
        seat.counted += completions
        if self._progress is not None:
            self._progress.advance(completions)

    def _died(self, seat: Seat, error: Exception) -> None:
        task, why = seat.task, (str(error).strip().splitlines() or ["no reason given"])[-1].strip()[:300]
        task.job.report.deaths += 1
        if seat.call != "open":
            log.warning("%s: a worker died on %s; what it had not written is scored again", task.name, seat.machine)
            self._take_back(seat, why)
            self._dismiss(seat)
            return
        task.failed_starts[seat.index] += 1
        last = task.failed_starts[seat.index] >= PATIENCE
        if last and not any(other.task is task and other.call != "open" for other in self._seats):
            raise RunError(
                f"{task.name}: {PATIENCE} workers died one after another before they could score; of the last one Ray says: {why}. "
                "Is mrpo installed on every machine of the cluster, and does the model fit in its memory? What was scored stays."
            )
        then = "the others continue without it" if last else "another one is started"
        log.warning("%s: a worker died before it could score; %s", task.name, then)
        self._dismiss(seat)

    def _take_back(self, seat: Seat, why: str) -> None:
        """Queue again what the cache lacks of a dead worker's unit."""
        unit, task = seat.unit, seat.task
        if unit is None:
            return
        left = task.job.cache.missing(unit.frame)
        self._advance(seat, unit.frame.height - left.height - seat.counted)
        deaths = unit.deaths + 1 if left.height == unit.frame.height else 1
        if deaths >= PATIENCE and left.height:
            raise RunError(
                f"{task.name}: {deaths} workers died of the same {left.height:,} completions (the first is "
                f"{left['completion_id'][0]}, {left['completion'].str.len_bytes()[0]:,} bytes); of the last one Ray says: {why}. "
                "What was scored stays. Too little memory is the commonest cause: fewer workers, a smaller "
                "`max_batch_tokens` (transformers) or `max_num_batched_tokens` (vllm), or a lower limits.max_length."
            )
        size = max(1, -(-left.height // PARTS))
        task.queue.extendleft(reversed([*units_of(left, size, deaths)]))


def _require_one_cache(task: Task, ready: Ready) -> None:
    """Refuse workers that write to another folder of the same name, on a machine of their own."""
    deadline = time.monotonic() + SEEN_WITHIN
    while manifest_digest(task.job.cache) != ready.cache:
        if time.monotonic() > deadline:
            raise UserError(
                f"{ready.machine} writes {task.name} to a folder {task.assignment.cache} that is not the one on this machine: "
                "expected a cache that all machines share. Name a folder of a shared file system under `cache:`, or an "
                "object store's URL."
            )
        time.sleep(1.0)
