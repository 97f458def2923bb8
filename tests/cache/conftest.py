"""Storages of these tests: a folder, or a bucket of a real S3 server on loopback."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from places import BucketPlace, FolderPlace, Place

_numbers = itertools.count()


@pytest.fixture
def new_connections() -> Iterator[None]:
    """Drop cached connections before and after, so that the environment applies."""
    from s3fs import S3FileSystem

    S3FileSystem.clear_instance_cache()
    yield
    S3FileSystem.clear_instance_cache()


@pytest.fixture(params=["folder", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """Each storage in turn."""
    if request.param == "folder":
        return FolderPlace(tmp_path / "place")
    s3 = request.getfixturevalue("s3")
    return BucketPlace(s3, s3.bucket(f"place-{next(_numbers)}") + "/some/folder")
