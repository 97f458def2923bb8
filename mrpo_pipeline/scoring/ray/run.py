"""Stage one by several processes: Ray, what each worker takes of it, and the units of work."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Literal

from mrpo_pipeline.scoring.job import Job
from mrpo_pipeline.scoring.ray.resources import nodes_of, places_here, places_on_cluster
from mrpo_pipeline.scoring.ray.scheduler import Crew
from mrpo_pipeline.scoring.ray.session import ray_session
from mrpo_pipeline.scoring.ray.state import Task, Unit
from mrpo_pipeline.terminal import track

log = logging.getLogger("mrpo")

# Units for each worker, where the data are few: so that all have work and end together.
UNITS_PER_WORKER = 4


def score_by_workers(jobs: Sequence[Job], where: Literal["local", "ray"]) -> None:
    """Score what is missing of the references by several processes, here or on a Ray cluster; the jobs' reports say how.

    Raises:
        UserError: for settings, files or a cluster that are wrong.
        RunError: when an engine fails, or workers die of the same completions again and again. What was scored stays.
    """
    # Fetched and fingerprinted here first: every worker must come to the same.
    assignments = [job.assignment_elsewhere() for job in jobs]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    most = max(job.settings.workers or 1 for job in jobs)
    with ray_session(where, cores=max(cores, most)) as ray:
        nodes = nodes_of(ray.nodes())
        tasks = []
        for job, assignment in zip(jobs, assignments, strict=True):
            if where == "local":
                places = places_here(job.source.name, job.settings, nodes[0], cores)
            else:
                places = places_on_cluster(job.source.name, job.settings, nodes)
            tasks.append(Task(job, assignment, places, units_of(job, len(places))))
        names = ", ".join(task.name for task in tasks)
        slots = max(len(task.places) for task in tasks)
        total = sum(job.missing.height for job in jobs)
        log.info("%s: %s completions to score by %s workers", names, f"{total:,}", slots)
        with ExitStack() as bars:
            Crew(ray, tasks, slots, lambda: bars.enter_context(track(f"scoring {names}", total, "completions"))).run()
    for task in tasks:
        for notice in sorted(task.notices):
            log.info("%s: %s", task.name, notice)


def units_of(job: Job, workers: int) -> deque[Unit]:
    """The missing completions cut into units of ``scoring.unit``, or smaller ones where there would be too few of them."""
    size = max(1, min(job.settings.unit, -(-job.missing.height // (UNITS_PER_WORKER * workers))))
    return deque(Unit(job.missing.slice(start, size)) for start in range(0, job.missing.height, size))
