"""Hand out units of missing completions to Ray workers; what a dead worker left unscored is handed out again."""

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

# Deaths after which a unit is not tried again; and consecutive deaths before scoring after which a place gets no other worker.
PATIENCE = 3
# Units that a dead worker's unscored completions are split into, to narrow down the completion that kills workers.
PARTS = 4
# Seconds without progress before a warning that workers wait for resources.
SILENCE = 60.0
# Seconds that workers have to write their rows when a run is stopped.
GRACE = 30.0
# Seconds that a network folder may take to show a file that another machine wrote.
SEEN_WITHIN = 45.0


@dataclass
class Unit:
    """Completions to score in one call, and the number of workers that died while scoring them."""

    frame: pl.DataFrame
    deaths: int = 0


def units_of(frame: pl.DataFrame, size: int, deaths: int = 0) -> Iterator[Unit]:
    """Split the frame into units of ``size`` rows; the last one has the remainder."""
    return (Unit(frame.slice(start, size), deaths) for start in range(0, frame.height, size))


@dataclass
class Task:
    """One reference: the resources of its workers, and the queue of units."""

    job: Job
    assignment: Assignment
    places: list[Place]
    queue: deque[Unit]
    began: float | None = None
    notices: set[str] = field(default_factory=set)
    scored_at: set[int] = field(default_factory=set)
    failed_starts: Counter[int] = field(default_factory=Counter)
    """By index of the place: consecutive workers that died before they could score."""

    @property
    def name(self) -> str:
        return self.job.source.name


@dataclass(eq=False)
class ActiveWorker:
    """A worker, the index of its place, and its pending call: an object reference of Ray, or a stream of them."""

    task: Task
    index: int
    actor: Any
    pending: Any
    call: Literal["open", "score", "close"] = "open"
    unit: Unit | None = None
    counted: int = 0
    machine: str = ""


class Scheduler:
    """Runs one worker per place. A worker scores one reference; when its queue is empty, the place goes to the next reference.

    Only ready workers get units. So a dead worker is replaced by a new actor and not by Ray's ``max_restarts``: a call that Ray
    retries on a restarted actor waits forever if the cluster has lost the resources for it.
    """

    def __init__(self, ray: Any, tasks: Sequence[Task], begin: Callable[[], Progress]) -> None:
        """
        Args:
            ray: the module, connected.
            tasks: the references, in the order in which they are scored.
            begin: called once, when the first worker is ready; returns the progress bar.
        """
        self._ray, self._tasks, self._begin = ray, list(tasks), begin
        self._workers: list[ActiveWorker] = []
        self._progress: Progress | None = None
        self._environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}

    def run(self) -> None:
        """Score and write every unit.

        Raises:
            UserError, RunError: see ``score_by_workers``. Before that, as on Ctrl-C, workers write what they have scored.
        """
        try:
            for index in range(max(len(task.places) for task in self._tasks)):
                self._start(index)
            while any(task.queue for task in self._tasks) or any(worker.call != "open" for worker in self._workers):
                self._wait()
                for worker in [worker for worker in self._workers if worker.call == "open" and not worker.task.queue]:
                    self._replace(worker)
        except BaseException:
            closing = [self._close(worker) for worker in self._workers if worker.call != "open"]
            if closing:
                self._ray.wait(closing, num_returns=len(closing), timeout=GRACE)
            raise
        finally:
            for worker in self._workers:
                self._ray.kill(worker.actor)

    def _start(self, index: int) -> None:
        """Start a worker at the place, for the first reference that has queued units and may use the place."""
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
        self._workers.append(ActiveWorker(task, index, actor, actor.open.remote()))

    def _replace(self, worker: ActiveWorker) -> None:
        """Stop the worker and start the next one at its place."""
        self._ray.kill(worker.actor)
        self._workers.remove(worker)
        self._start(worker.index)

    def _close(self, worker: ActiveWorker) -> Any:
        return worker.actor.close.options(concurrency_group="control").remote()

    def _next_unit(self, worker: ActiveWorker) -> None:
        worker.counted, worker.unit = 0, None
        if worker.task.queue:
            worker.unit = worker.task.queue.popleft()
            table = self._ray.put(worker.unit.frame.to_arrow(compat_level=pl.CompatLevel.oldest()))
            worker.call, worker.pending = "score", worker.actor.score.options(num_returns="streaming").remote(table)
        else:
            worker.call, worker.pending = "close", self._close(worker)

    def _wait(self) -> None:
        """Wait for one worker's result and handle it."""
        pending = {worker.pending: worker for worker in self._workers}
        ready, _ = self._ray.wait(list(pending), num_returns=1, timeout=SILENCE)
        if ready:
            self._handle(pending[ready[0]])
        elif all(worker.call == "open" for worker in self._workers):
            place = self._workers[0].task.places[self._workers[0].index]
            log.warning(
                "%s workers are starting, or wait for room (each takes %s CPUs and %s GPUs of one machine); `ray status` shows "
                "what is free.", len(self._workers), place.cpus, place.gpus,
            )  # fmt: skip

    def _handle(self, worker: ActiveWorker) -> None:
        errors, task = self._ray.exceptions, worker.task
        try:
            if worker.call == "open":
                self._ready(worker, self._ray.get(worker.pending))
                self._next_unit(worker)
            elif worker.call == "close":
                task.notices.update(self._ray.get(worker.pending))
                self._replace(worker)
            else:
                counts = self._ray.get(next(worker.pending))
                task.job.report.tokens += counts.tokens
                self._advance(worker, counts.done)
        except StopIteration:
            task.job.report.seconds = time.monotonic() - (task.began or 0.0)
            self._next_unit(worker)
        except errors.RayTaskError as error:
            if isinstance(error.cause, ProcessDiedError):
                self._died(worker, error.cause)
            elif isinstance(error.cause, UserError | RunError):
                raise error.cause from None
            else:
                raise RunError(
                    f"{task.name}: a worker failed on {worker.machine or 'its machine'} ({type(error.cause).__name__}: {error.cause}). "
                    "What was scored stays; `mrpo --verbose score-refs` shows where it failed."
                ) from error
        except errors.RayError as error:
            self._died(worker, error)

    def _ready(self, worker: ActiveWorker, ready: Ready) -> None:
        task, report = worker.task, worker.task.job.report
        if ready.version != mrpo_pipeline.__version__:
            raise UserError(
                f"{ready.machine} has mrpo {ready.version}, and this machine {mrpo_pipeline.__version__}: expected the same version "
                "on every machine of the cluster. Install it there."
            )
        _require_one_cache(task, ready)
        self._progress = self._progress or self._begin()
        worker.machine, task.failed_starts[worker.index] = ready.machine, 0
        task.scored_at.add(worker.index)
        report.workers = len(task.scored_at)
        if task.began is None:
            task.began = time.monotonic()
            report.engine, report.startup_seconds = ready.engine, ready.startup_seconds
            log.info("%s: scored by %s (%s)", task.name, ready.engine, ready.dtype)
            for notice in ready.notices:
                log.info("%s", notice)

    def _advance(self, worker: ActiveWorker, completions: int) -> None:
        worker.counted += completions
        if self._progress is not None:
            self._progress.advance(completions)

    def _died(self, worker: ActiveWorker, error: Exception) -> None:
        task, why = worker.task, (str(error).strip().splitlines() or ["no reason given"])[-1].strip()[:300]
        task.job.report.deaths += 1
        if worker.call != "open":
            log.warning("%s: a worker died on %s; what it had not written is scored again", task.name, worker.machine)
            self._requeue(worker, why)
            self._replace(worker)
            return
        task.failed_starts[worker.index] += 1
        last = task.failed_starts[worker.index] >= PATIENCE
        if last and not any(other.task is task and other.call != "open" for other in self._workers):
            raise RunError(
                f"{task.name}: {PATIENCE} workers died one after another before they could score; of the last one Ray says: {why}. "
                "Is mrpo installed on every machine of the cluster, and does the model fit in its memory? What was scored stays."
            )
        then = "the others continue without it" if last else "another one is started"
        log.warning("%s: a worker died before it could score; %s", task.name, then)
        self._replace(worker)

    def _requeue(self, worker: ActiveWorker, why: str) -> None:
        """Put what the cache lacks of a dead worker's unit back into the queue."""
        unit, task = worker.unit, worker.task
        if unit is None:
            return
        left = task.job.cache.missing(unit.frame)
        self._advance(worker, unit.frame.height - left.height - worker.counted)
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
    """Refuse a worker whose cache is not the one on this machine, but a folder of the same path on its own."""
    deadline = time.monotonic() + SEEN_WITHIN
    while manifest_digest(task.job.cache) != ready.cache:
        if time.monotonic() > deadline:
            raise UserError(
                f"{ready.machine} writes {task.name} to a folder {task.assignment.cache} that is not the one on this machine: "
                "expected a cache that all machines share. Name a folder of a shared file system under `cache:`, or an "
                "object store's URL."
            )
        time.sleep(1.0)
