"""Where a cache is kept in these tests: a folder, or a bucket of a real S3 server on loopback."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from loopback_s3 import LoopbackS3
from places import BucketPlace, FolderPlace, Place

_numbers = itertools.count()


@pytest.fixture(scope="session")
def _server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackS3]:
    pytest.importorskip("s3fs")
    server = LoopbackS3(tmp_path_factory.mktemp("s3"))
    yield server
    server.close()


@pytest.fixture
def s3(_server: LoopbackS3, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackS3]:
    """The server, with the environment that finds it set."""
    for name, value in _server.environment.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    yield _server
    _server.line.cut()
    _server.line.lose_answers = 0
    _server.line.restore()


@pytest.fixture
def new_connections() -> Iterator[None]:
    """For what the environment says when a connection is made: none of before, none for after."""
    from s3fs import S3FileSystem

    S3FileSystem.clear_instance_cache()
    yield
    S3FileSystem.clear_instance_cache()


@pytest.fixture
def bucket(s3: LoopbackS3) -> str:
    """The URL of a bucket of its own."""
    return s3.bucket(f"bucket-{next(_numbers)}")


@pytest.fixture(params=["folder", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """Where a cache may be kept, one after the other."""
    if request.param == "folder":
        return FolderPlace(tmp_path / "place")
    s3 = request.getfixturevalue("s3")
    return BucketPlace(s3, s3.bucket(f"place-{next(_numbers)}") + "/some/folder")
