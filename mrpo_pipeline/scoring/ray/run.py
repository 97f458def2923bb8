"""Stage one in several processes: connect to Ray, allocate workers, split the work into units, and schedule them."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Literal

from mrpo_pipeline.scoring.job import Job
from mrpo_pipeline.scoring.ray.resources import nodes_of, places_here, places_on_cluster
from mrpo_pipeline.scoring.ray.scheduler import Scheduler, Task, units_of
from mrpo_pipeline.scoring.ray.session import ray_session
from mrpo_pipeline.scoring.report import count_control_strings, texts_of, unfit_counts
from mrpo_pipeline.terminal import track

log = logging.getLogger("mrpo")

# Units per worker on small data, so that all workers have work and finish together.
UNITS_PER_WORKER = 4


def score_by_workers(jobs: Sequence[Job], where: Literal["local", "ray"]) -> None:
    """Score the jobs' missing completions in several processes, on this machine or a Ray cluster, and fill in the jobs' reports.

    Raises:
        UserError: for invalid settings, files or cluster.
        RunError: if an engine fails, or workers die repeatedly on the same completions. What was scored stays.
    """
    # Fetched and fingerprinted here first, so that every worker can compare its files.
    assignments = [job.assignment_elsewhere() for job in jobs]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    most = max(job.settings.workers or 1 for job in jobs)
    with ray_session(where, cores=max(cores, most)) as ray, ExitStack() as bars:
        nodes = nodes_of(ray.nodes())
        tasks = []
        for job, assignment in zip(jobs, assignments, strict=True):
            name, settings, missing = job.source.name, job.settings, job.missing
            if where == "local":
                places = places_here(name, settings, nodes[0], cores)
            else:
                places = places_on_cluster(name, settings, nodes)
            size = max(1, min(settings.unit, -(-missing.height // (UNITS_PER_WORKER * len(places)))))
            units = deque(units_of(missing, size))
            tasks.append(Task(job, assignment, places[: len(units)], units))
        names, total = ", ".join(task.name for task in tasks), sum(job.missing.height for job in jobs)
        log.info("%s: %s completions to score by %s workers", names, f"{total:,}", max(len(x.places) for x in tasks))
        Scheduler(ray, tasks, lambda: bars.enter_context(track(f"scoring {names}", total, "completions"))).run()
    for task in tasks:
        _report(task.job)
        for notice in sorted(task.notices):
            log.info("%s: %s", task.name, notice)


def _report(job: Job) -> None:
    """Count what the workers scored from the cache: the counts of a dead worker are lost."""
    found = unfit_counts(job.cache.unfit(job.missing))
    found.scored = job.missing.height - found.done
    found.control_strings = count_control_strings(job.renderer, texts_of(job.missing))
    job.report.add(found)
