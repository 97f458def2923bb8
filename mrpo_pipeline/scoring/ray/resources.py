"""How many workers a reference gets, and what of a machine each of them takes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.recipe import Scoring


@dataclass(frozen=True, slots=True)
class Place:
    """What one worker takes.

    Attributes:
        cpus: as Ray counts them.
        gpus: whole GPUs of one machine.
        threads: that the engine computes with; None for what it chooses itself (on a GPU).
        node: Ray's id of the machine where it should run; None for any.
    """

    cpus: int
    gpus: int
    threads: int | None = None
    node: str | None = None


@dataclass(frozen=True, slots=True)
class Node:
    """A machine as Ray counts it."""

    identifier: str
    cpus: int
    gpus: int


def nodes_of(table: Sequence[Mapping[str, Any]]) -> list[Node]:
    """The machines that are alive, from what ``ray.nodes()`` tells."""
    return [
        Node(row["NodeID"], int(row["Resources"].get("CPU", 0)), int(row["Resources"].get("GPU", 0)))
        for row in table
        if row["Alive"]
    ]


def places_here(name: str, settings: Scoring, node: Node, cores: int) -> list[Place]:
    """Places for ``settings.workers`` workers of this machine: a GPU (or as many as the model is spread over) each where
    there are any, else a share of the cores each.

    Raises:
        UserError: where the machine has too few GPUs.
    """
    workers = settings.workers or 1
    gpus = _gpus_each(settings, node.gpus > 0)
    if gpus * workers > node.gpus:
        raise UserError(
            f"scoring.workers is {workers}, and each worker of {name} takes {gpus} GPU{'s' * (gpus > 1)}: expected no more than "
            f"the {node.gpus} of this machine. Lower --workers to {node.gpus // gpus}, or give `device: cpu`."
        )
    if gpus:
        return [Place(1, gpus)] * workers
    share = max(1, cores // workers)
    return [Place(share, 0, _threads(settings) or share)] * workers


def places_on_cluster(name: str, settings: Scoring, nodes: Sequence[Node]) -> list[Place]:
    """Places for workers on these machines.

    Where the cluster has GPUs, a worker takes one, or as many as the model is spread over. Where it has none, each machine
    gets one worker with all its cores (or, with ``threads`` given, as many workers of so many cores as it has room for).
    ``settings.workers`` is the number of workers; None for as many as there is room for.

    Raises:
        UserError: where there is room for none.
    """
    gpus = _gpus_each(settings, any(node.gpus for node in nodes))
    if gpus:
        count = settings.workers or sum(node.gpus // gpus for node in nodes)
        places = [Place(1, gpus)] * count
    else:
        places = _cpu_places(settings.workers, _threads(settings), nodes)
    if not places:
        wanted = f"{gpus} GPUs on one machine" if gpus else f"{_threads(settings) or 1} cores"
        found = ", ".join(f"{node.gpus} GPUs and {node.cpus} cores" for node in nodes) or "no machine"
        raise UserError(
            f"The Ray cluster has no room for a worker of {name}, which takes {wanted}: found {found}. Start a machine that has "
            "them (`ray start --address=…`), or give --workers N to wait until one joins."
        )
    return places


def _cpu_places(workers: int | None, threads: int | None, nodes: Sequence[Node]) -> list[Place]:
    largest_first = sorted((node for node in nodes if node.cpus), key=lambda node: -node.cpus)
    if not largest_first:
        return [Place(threads or 1, 0, threads)] * (workers or 0)
    if workers is None:
        on_node = [node.cpus // threads if threads else 1 for node in largest_first]
    else:
        turns = Counter(index % len(largest_first) for index in range(workers))
        on_node = [turns[index] for index in range(len(largest_first))]
    return [
        Place(share, 0, share, node.identifier)
        for node, count in zip(largest_first, on_node, strict=True)
        for share in [threads or max(1, node.cpus // max(1, count))]
        for _ in range(count)
    ]


def _gpus_each(settings: Scoring, there_are_some: bool) -> int:
    options = settings.engine_options
    if not there_are_some or str(options.get("device", "")).startswith("cpu"):
        return 0
    return int(options.get("tensor_parallel_size") or 1) * int(options.get("pipeline_parallel_size") or 1)


def _threads(settings: Scoring) -> int | None:
    threads = settings.engine_options.get("threads")
    return int(threads) if threads else None
