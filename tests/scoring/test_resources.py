"""Resources of each worker: a GPU, or a share of the cores, and never more than the machine has."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.recipe import Scoring
from mrpo_pipeline.scoring.ray.resources import Node, Place, nodes_of, places_here, places_on_cluster
from mrpo_pipeline.scoring.ray.session import ray_session, require_ray


def settings(**given: Any) -> Scoring:
    return Scoring.model_validate(given)


def test_workers_of_one_machine_share_its_cores() -> None:
    assert places_here("base", settings(workers=3), Node("a", 8, 0), 8) == [Place(2, 0, 2)] * 3
    assert places_here("base", settings(workers=4, threads=3), Node("a", 8, 0), 8) == [Place(2, 0, 3)] * 4
    assert places_here("base", settings(workers=4), Node("a", 4, 0), 2) == [Place(1, 0, 1)] * 4


def test_each_worker_of_one_machine_gets_the_gpus_of_one_model() -> None:
    machine = Node("a", 32, 4)
    assert places_here("base", settings(workers=4), machine, 32) == [Place(1, 1)] * 4
    spread = settings(workers=2, tensor_parallel_size=2)
    assert places_here("base", spread, machine, 32) == [Place(1, 2)] * 2
    assert places_here("base", settings(workers=2, device="cpu"), machine, 32) == [Place(16, 0, 16)] * 2
    with pytest.raises(UserError, match="takes 2 GPUs: expected no more than the 4"):
        places_here("base", settings(workers=3, tensor_parallel_size=2), machine, 32)


def test_a_cluster_gets_as_many_workers_as_its_gpus_carry() -> None:
    nodes = [Node("head", 4, 0), Node("a", 64, 8), Node("b", 64, 3)]
    assert places_on_cluster("base", settings(), nodes) == [Place(1, 1)] * 11
    both = settings(tensor_parallel_size=2, pipeline_parallel_size=2)
    assert places_on_cluster("base", both, nodes) == [Place(1, 4)] * 2
    assert places_on_cluster("base", settings(workers=2), nodes) == [Place(1, 1)] * 2
    with pytest.raises(UserError, match="takes 16 GPUs on one machine: found 0 GPUs and 4 cores, 8 GPUs"):
        places_on_cluster("base", settings(tensor_parallel_size=16), nodes)


def test_a_cluster_without_gpus_gets_a_worker_on_each_machine_with_its_cores() -> None:
    nodes = [Node("small", 4, 0), Node("large", 16, 0), Node("head", 0, 0)]
    assert places_on_cluster("base", settings(), nodes) == [Place(16, 0, 16, "large"), Place(4, 0, 4, "small")]
    assert places_on_cluster("base", settings(threads=8), nodes) == [Place(8, 0, 8, "large")] * 2
    three = places_on_cluster("base", settings(workers=3), nodes)
    assert three == [Place(8, 0, 8, "large")] * 2 + [Place(4, 0, 4, "small")]
    with pytest.raises(UserError, match="no room for a worker of base"):
        places_on_cluster("base", settings(), [Node("head", 0, 0)])
    # An autoscaling cluster has no machine yet.
    assert places_on_cluster("base", settings(workers=2), [Node("head", 0, 0)]) == [Place(1, 0, None)] * 2


def test_dead_machines_are_not_counted() -> None:
    table = [
        {"NodeID": "a", "Alive": True, "Resources": {"CPU": 2.0, "GPU": 1.0}},
        {"NodeID": "b", "Alive": False, "Resources": {"CPU": 2.0}},
        {"NodeID": "c", "Alive": True, "Resources": {}},
    ]
    assert nodes_of(table) == [Node("a", 2, 1), Node("c", 0, 0)]


def test_without_ray_the_error_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setattr("mrpo_pipeline.scoring.ray.session.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'mrpo\[ray\]'"):
        require_ray()


@pytest.mark.parametrize(
    ("address", "said"),
    [("127.0.0.1:1", "refused"), ("somewhere", "expected HOST:PORT"), ("ray://127.0.0.1:1", "Ray Client")],
)
def test_an_address_without_a_cluster_fails_at_once(monkeypatch: pytest.MonkeyPatch, address: str, said: str) -> None:
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(UserError, match=said), ray_session("ray", cores=1):
        pass
