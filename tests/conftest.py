"""Skip tests that need a missing GPU or vLLM, with the reason; no deadlines for property tests.

Fixtures for several packages: an S3 server on loopback, a forked vLLM process.
"""

from __future__ import annotations

import itertools
import subprocess
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from forked_vllm import ForkedProcess
from hypothesis import HealthCheck, settings
from loopback_s3 import LoopbackS3

settings.register_profile("shared-machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared-machine")

_numbers = itertools.count()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    from mrpo_pipeline.engines import engine_available

    missing = {"vllm": engine_available("vllm")}
    if any(item.get_closest_marker("gpu") for item in items):
        import torch

        missing["gpu"] = None if torch.cuda.is_available() else "this machine has no CUDA device"
    for item in items:
        for marker, reason in missing.items():
            if reason is not None and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def forked_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fork vLLM's process from one that has imported it, see `forked_vllm.py`."""
    from mrpo_pipeline.engines.vllm import engine

    only = SimpleNamespace(Popen=ForkedProcess, DEVNULL=subprocess.DEVNULL, TimeoutExpired=subprocess.TimeoutExpired)
    monkeypatch.setattr(engine, "subprocess", only)


@pytest.fixture(scope="session")
def _server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackS3]:
    pytest.importorskip("s3fs")
    server = LoopbackS3(tmp_path_factory.mktemp("s3"))
    yield server
    server.close()


@pytest.fixture
def s3(_server: LoopbackS3, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackS3]:
    """The server, with its environment set."""
    for name, value in _server.environment.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    yield _server
    _server.line.cut()
    _server.line.lose_answers = 0
    _server.line.restore()


@pytest.fixture
def bucket(s3: LoopbackS3) -> str:
    """The URL of a new bucket."""
    return s3.bucket(f"bucket-{next(_numbers)}")
