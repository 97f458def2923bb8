"""The number of workers of a reference, and the CPUs and GPUs of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.recipe import Scoring


@dataclass(frozen=True, slots=True)
class Place:
    """The resources of one worker.

    Attributes:
        cpus: Ray CPUs.
        gpus: number of GPUs, all on one machine.
        threads: of the engine; None: the engine's default (on a GPU).
        node: Ray's id of the preferred machine; None for any.
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
    """The live machines in the result of ``ray.nodes()``."""
    return [
        Node(row["NodeID"], int(row["Resources"].get("CPU", 0)), int(row["Resources"].get("GPU", 0)))
        for row in table
        if row["Alive"]
    ]


def places_here(name: str, settings: Scoring, node: Node, cores: int) -> list[Place]:
    """The resources of ``settings.workers`` workers on this machine.

    A worker gets the GPUs of one model (tensor × pipeline parallelism); on a machine without GPUs an equal share of the cores.

    Raises:
        UserError: if the machine has too few GPUs.
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
    """The resources of the workers on a cluster: ``settings.workers`` of them; None for as many as fit.

    On a cluster with GPUs a worker gets the GPUs of one model (tensor × pipeline parallelism). Without GPUs each machine gets one
    worker with all its cores; with ``threads`` set, as many workers with this number of cores as fit.

    Raises:
        UserError: if not even one worker fits.
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


def _gpus_each(settings: Scoring, has_gpus: bool) -> int:
    options = settings.engine_options
    if not has_gpus or str(options.get("device", "")).startswith("cpu"):
        return 0
    return int(options.get("tensor_parallel_size") or 1) * int(options.get("pipeline_parallel_size") or 1)


def _threads(settings: Scoring) -> int | None:
    threads = settings.engine_options.get("threads")
    return int(threads) if threads else None
