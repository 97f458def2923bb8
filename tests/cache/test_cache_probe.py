"""A probe in a manifest is compared within its tolerance, and by nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from mrpo_pipeline.cache.manifest import Manifest
from mrpo_pipeline.cache.probe_logps import Probe, difference

IDS = [[5, 6, 7], [8, 9]]
LOGPS = [np.array([-1.0, -2.0, -3.5], np.float32), np.array([-0.25, -9.0], np.float32)]


def probe(shift: float = 0.0, tolerance: float = 0.05, ids: list[list[int]] = IDS) -> str:
    return Probe.of(ids, [logps + np.float32(shift) for logps in LOGPS], tolerance).text()


def test_it_comes_back_from_its_text() -> None:
    assert Probe.read(probe()).text() == probe()
    assert Probe.read(probe()).logps == [[-1.0, -2.0, -3.5], [-0.25, -9.0]]


@pytest.mark.parametrize(
    ("shift", "tolerance", "same"), [(0.049, 0.05, True), (0.051, 0.05, False), (0.01, 0.005, False)]
)
def test_the_recorded_tolerance_decides(shift: float, tolerance: float, same: bool) -> None:
    assert (difference(probe(tolerance=tolerance), probe(shift, tolerance=9.0)) is None) is same


@pytest.mark.parametrize(
    "other", ["", "7", "[]", '{"token_ids":7}', probe(float("nan")), probe(ids=[[5, 6, 8], [8, 9]])]
)
def test_what_is_not_the_same_probe_differs(other: str) -> None:
    assert difference(probe(), other) is not None
    assert difference(other, probe()) is not None


def test_a_manifest_names_it_and_compares_it_where_both_have_one() -> None:
    recorded = Manifest("base", {"weights": "served as tiny", "probe": probe()})
    assert recorded.differences({"weights": "served as tiny", "probe": probe(0.01)}) == []
    assert recorded.differences({"weights": None, "probe": None}) == []
    ((field, _, found),) = recorded.differences({"probe": probe(2.0)})
    assert field == "probe" and "2 nats a token away on average (0.05 at most are of one model)" in found
    loaded = Manifest("base", {"weights": "abc"})
    assert [name for name, *_ in loaded.differences({"weights": "served as tiny", "probe": probe()})] == [
        "weights",
        "probe",
    ]


def test_a_servers_revision_is_compared_with_the_recorded_one() -> None:
    told = Manifest("base", {"weights": "served as tiny", "served_revision": "a" * 40})
    assert told.differences({"weights": "served as tiny", "served_revision": None}) == []
    assert [name for name, *_ in told.differences({"weights": "served as tiny", "served_revision": "b" * 40})] == [
        "served_revision"
    ]
    silent = Manifest("base", {"weights": "served as tiny"})
    assert silent.differences({"weights": "served as tiny", "served_revision": "a" * 40}) == []
