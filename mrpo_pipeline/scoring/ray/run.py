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
from mrpo_pipeline.scoring.ray.scheduler import Scheduler, Task, units_of
from mrpo_pipeline.scoring.ray.session import ray_session
from mrpo_pipeline.scoring.report import count_control_strings, texts_of, unfit_counts
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
    """Count from the cache what workers have scored: their own counts are lost with those that die."""
    found = unfit_counts(job.cache.unfit(job.missing))
    found.scored = job.missing.height - found.done
    found.control_strings = count_control_strings(job.renderer, texts_of(job.missing))
    job.report.add(found)
