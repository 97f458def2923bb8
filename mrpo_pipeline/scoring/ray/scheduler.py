"""Workers on Ray: units handed out, the work of those that die handed out again, references side by side."""

from __future__ import annotations

import logging
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import polars as pl

import mrpo_pipeline
from mrpo_pipeline.errors import ProcessDiedError, RunError, UserError
from mrpo_pipeline.scoring.ray.state import Slot, Task, Unit
from mrpo_pipeline.scoring.ray.worker import PASSED_ON, Ready, Worker
from mrpo_pipeline.scoring.report import Counts, count_control_strings, texts_of, unfit_counts
from mrpo_pipeline.scoring.scorer import manifest_digest
from mrpo_pipeline.terminal import Progress

log = logging.getLogger("mrpo")

# A unit that so many workers died of, none of which got further in it, is not tried again; nor is a reference that so many
# workers died of in a row before their engine ran.
PATIENCE = 3
# Seconds without a sign from anyone after which a user is told what is waited for.
SILENCE = 60.0
# Seconds that workers have to write what is in hand when a run is broken off.
LAST_WORDS = 30.0
# Seconds that a network folder may take to show a file that another machine wrote.
SEEN_WITHIN = 45.0
AT_WORK = ("idle", "scoring", "finishing")


class Crew:
    """Workers in slots, each with one reference at a time; a slot whose reference has no unit left goes on with the next.

    A worker that dies costs what it had in hand: of that, what the cache cannot serve goes back to the front of the queue.
    Units go to workers that said they are ready and to no others, so that nothing waits for a worker that finds no room.
    """

    def __init__(self, ray: Any, tasks: Sequence[Task], slots: int, begin: Callable[[], Progress]) -> None:
        """
        Args:
            ray: the module, connected.
            tasks: the references, in the order in which they are scored.
            slots: workers at a time, at most.
            begin: called once, when the first worker is ready.
        """
        self._ray = ray
        self._tasks = list(tasks)
        self._slots = [Slot(index) for index in range(slots)]
        self._begin = begin
        self._progress: Progress | None = None
        self._environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        errors = ray.exceptions
        self._deaths = (
            errors.RayActorError,
            errors.WorkerCrashedError,
            errors.NodeDiedError,
            errors.ObjectLostError,
            errors.OutOfMemoryError,
        )
        self._heard = time.monotonic()

    def run(self) -> None:
        """Until everything is scored and written.

        Raises:
            UserError, RunError: see ``score_by_workers``.
        """
        try:
            while True:
                for slot in self._slots:
                    self._set_to_work(slot)
                if not any(slot.state in ("scoring", "finishing") for slot in self._slots) and not any(
                    task.queue for task in self._tasks
                ):
                    return
                self._wait()
        except BaseException:
            self._last_words(self._slots)
            raise
        finally:
            for slot in self._slots:
                self._dismiss(slot)

    def _set_to_work(self, slot: Slot) -> None:
        if slot.state == "idle" and slot.task is not None:
            if slot.task.queue:
                slot.unit = slot.task.queue.popleft()
                table = self._ray.put(slot.unit.frame.to_arrow(compat_level=pl.CompatLevel.oldest()))
                slot.pending = slot.actor.score.options(num_returns="streaming").remote(table)
                slot.state = "scoring"
            else:
                slot.pending = slot.actor.finish.remote()
                slot.state = "finishing"
            return
        if slot.state == "starting" and slot.task is not None and not slot.task.queue:
            # The others have taken all there was; the room that it may still wait for is for the next reference.
            self._dismiss(slot)
        if slot.state == "empty":
            task = next((task for task in self._tasks if self._has_room(task, slot)), None)
            if task is not None:
                self._hire(slot, task)

    def _has_room(self, task: Task, slot: Slot) -> bool:
        """Whether another worker would find work. Those that follow a dead one are not counted on: they may never start."""
        counted_on = sum(
            other.task is task and other.state == "starting" and not other.after_death for other in self._slots
        )
        usable = slot.index < len(task.places) and slot.failed_starts < PATIENCE
        return usable and counted_on < len(task.queue)

    def _hire(self, slot: Slot, task: Task) -> None:
        place = task.places[slot.index]
        settings = task.assignment.settings
        if place.threads is not None and "threads" not in settings.engine_options:
            settings = settings.model_copy(update={"threads": place.threads})
        assignment = replace(task.assignment, settings=settings)
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
        )(Worker)
        slot.task, slot.actor = task, actor.remote(assignment, self._environment, platform.node())
        slot.pending = slot.actor.open.remote()
        slot.state = "starting"
        slot.handed, slot.counts = [], Counts()

    def _wait(self) -> None:
        """For the next word of a worker, and act on it."""
        by_pending = {slot.pending: slot for slot in self._slots if slot.pending is not None}
        ready, _ = self._ray.wait(list(by_pending), num_returns=1, timeout=SILENCE)
        if ready:
            self._heard = time.monotonic()
            self._hear(by_pending[ready[0]])
        elif time.monotonic() - self._heard >= SILENCE and all(
            slot.state in ("empty", "starting") for slot in self._slots
        ):
            self._heard = time.monotonic()
            starting = [slot for slot in self._slots if slot.task is not None]
            place = starting[0].task.places[starting[0].index] if starting and starting[0].task else None
            log.warning(
                "%s workers are starting, or wait for room%s; `ray status` shows what is free.",
                len(starting),
                f" (each takes {place.cpus} CPUs and {place.gpus} GPUs of one machine)" if place else "",
            )

    def _hear(self, slot: Slot) -> None:
        errors = self._ray.exceptions
        assert slot.task is not None
        try:
            if slot.state == "scoring":
                try:
                    counts: Counts = self._ray.get(next(slot.pending))
                except StopIteration:
                    self._unit_done(slot)
                    return
                slot.counts.add(counts)
                self._advance(counts.done)
            elif slot.state == "starting":
                self._started(slot, self._ray.get(slot.pending))
            else:
                slot.task.notices.update(self._ray.get(slot.pending))
                slot.task.job.report.add(slot.counts)
                self._end(slot, slot.task)
        except errors.RayTaskError as error:
            if isinstance(error.cause, ProcessDiedError):
                self._last_words([slot])
                self._died(slot, slot.task, str(error.cause))
                return
            if isinstance(error.cause, UserError | RunError):
                raise error.cause from None
            raise RunError(
                f"{slot.task.name}: a worker failed on {slot.machine or 'its machine'} "
                f"({type(error.cause).__name__}: {error.cause}). What was scored stays; "
                "`mrpo --verbose score-refs` shows where it failed."
            ) from error
        except self._deaths as error:
            self._died(slot, slot.task, str(error))
        except errors.RuntimeEnvSetupError as error:
            raise RunError(f"{slot.task.name}: no worker could be set up on the cluster: {error}") from error

    def _started(self, slot: Slot, ready: Ready) -> None:
        assert slot.task is not None
        task, report = slot.task, slot.task.job.report
        if ready.version != mrpo_pipeline.__version__:
            raise UserError(
                f"{ready.machine} has mrpo {ready.version}, and this machine {mrpo_pipeline.__version__}: expected the same version "
                "on every machine of the cluster. Install it there."
            )
        self._require_one_cache(task, ready)
        self._progress = self._progress or self._begin()
        slot.state, slot.pending, slot.machine, slot.after_death = "idle", None, ready.machine, False
        task.failed_starts = slot.failed_starts = 0
        task.slots.add(slot.index)
        report.workers = len(task.slots)
        if task.began is None:
            task.began = time.monotonic()
            report.engine, report.startup_seconds = ready.engine, ready.startup_seconds
            log.info("%s: scored by %s (%s)", task.name, ready.engine, ready.dtype)
            for notice in ready.notices:
                log.info("%s", notice)

    def _require_one_cache(self, task: Task, ready: Ready) -> None:
        """Refuse workers that write where nobody will look: a folder of that name on a machine of their own."""
        deadline = time.monotonic() + SEEN_WITHIN
        while manifest_digest(task.job.cache) != ready.cache:
            if time.monotonic() > deadline:
                raise UserError(
                    f"{ready.machine} writes {task.name} to a folder {task.assignment.cache} that is not the one on this machine: "
                    "expected a cache that all machines share. Name a folder of a shared file system under `cache:`, or an "
                    "object store's URL."
                )
            time.sleep(1.0)

    def _advance(self, completions: int) -> None:
        if self._progress is not None:
            self._progress.advance(completions)

    def _unit_done(self, slot: Slot) -> None:
        assert slot.unit is not None
        slot.handed.append(slot.unit.frame)
        slot.unit, slot.pending, slot.state = None, None, "idle"

    def _end(self, slot: Slot, task: Task) -> None:
        """A worker has written everything and ended its engine."""
        self._dismiss(slot)
        if task.began is not None:
            task.job.report.seconds = time.monotonic() - task.began

    def _died(self, slot: Slot, task: Task, why: str) -> None:
        last_line = why.strip().splitlines()[-1].strip()[:300] if why.strip() else "no reason given"
        task.job.report.deaths += 1
        if slot.state == "starting":
            task.failed_starts += 1
            slot.failed_starts += 1
            alone = not any(other.task is task and other.state in AT_WORK for other in self._slots)
            if alone and task.failed_starts >= PATIENCE:
                raise RunError(
                    f"{task.name}: {PATIENCE} workers died one after another before they could score; of the last one Ray says: "
                    f"{last_line}. Is mrpo installed on every machine of the cluster, and does the model fit in its memory? What "
                    "was scored stays."
                )
            then = "another one is started" if slot.failed_starts < PATIENCE else "the others go on without it"
            log.warning("%s: a worker died before it could score; %s", task.name, then)
        else:
            log.warning("%s: a worker died on %s; what it had in hand is scored again", task.name, slot.machine)
            self._take_back(slot, task, last_line)
        self._dismiss(slot)
        slot.after_death = True

    def _take_back(self, slot: Slot, task: Task, why: str) -> None:
        """What a dead worker had in hand and the cache cannot serve goes to the front of the queue."""
        cache = task.job.cache
        frames = [*slot.handed, *([slot.unit.frame] if slot.unit else [])]
        if not frames:
            return
        everything = pl.concat(frames)
        lost = cache.missing(everything)
        unfit = unfit_counts(cache.unfit(everything))
        written = everything.join(lost, on="completion_id", how="anti")
        done = Counts(
            written.height - unfit.done,
            unfit.unfit,
            unfit.unwritten,
            slot.counts.tokens,
            count_control_strings(task.job.renderer, texts_of(written)),
        )
        self._advance(done.done - slot.counts.done)
        task.job.report.add(done)
        if slot.handed:
            again = lost.join(slot.unit.frame, on="completion_id", how="anti") if slot.unit else lost
            size = max(frame.height for frame in frames)
            task.queue.extendleft(Unit(again.slice(start, size)) for start in range(0, again.height, size))
        if slot.unit is None:
            return
        left = lost.join(slot.unit.frame, on="completion_id", how="semi", maintain_order="left")
        if left.is_empty():
            return
        deaths = slot.unit.deaths + 1 if left.height == slot.unit.frame.height else 1
        if deaths >= PATIENCE:
            raise RunError(
                f"{task.name}: {deaths} workers died of the same {left.height:,} completions (the first is "
                f"{left['completion_id'][0]}, {left['completion'].str.len_bytes()[0]:,} bytes); of the last one Ray says: {why}. "
                "What was scored stays. Too little memory is the commonest cause: fewer workers, a smaller "
                "`max_batch_tokens` (transformers) or `max_num_batched_tokens` (vllm), or a lower limits.max_length."
            )
        task.queue.appendleft(Unit(left, deaths))

    def _last_words(self, slots: Sequence[Slot]) -> None:
        """Have workers write what they have in hand, before they are dismissed."""
        told = [
            slot.actor.stop.options(concurrency_group="control").remote() for slot in slots if slot.state in AT_WORK
        ]
        if told:
            self._ray.wait(told, num_returns=len(told), timeout=LAST_WORDS)

    def _dismiss(self, slot: Slot) -> None:
        if slot.actor is not None:
            self._ray.kill(slot.actor)
        slot.state, slot.task, slot.actor, slot.pending, slot.unit, slot.machine = "empty", None, None, None, None, ""
        slot.handed, slot.counts = [], Counts()
