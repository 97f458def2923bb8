"""A storage as an independent reader sees it: by pathlib for a folder, by boto3 for a bucket."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from loopback_s3 import LoopbackS3


class Place(Protocol):
    root: str

    def files(self, below: str = "") -> dict[str, bytes]:
        """Name → content of every file with this prefix."""

    def names(self, below: str = "") -> list[str]:
        """Names of the files with this prefix."""

    def write(self, name: str, data: bytes) -> None: ...

    def delete(self, name: str) -> None: ...


class FolderPlace:
    def __init__(self, folder: Path) -> None:
        self.root = str(folder)
        self._folder = folder

    def files(self, below: str = "") -> dict[str, bytes]:
        return {name: (self._folder / name).read_bytes() for name in self.names(below)}

    def names(self, below: str = "") -> list[str]:
        found = [path.relative_to(self._folder).as_posix() for path in self._folder.rglob("*") if path.is_file()]
        return [name for name in found if name.startswith(below)]

    def write(self, name: str, data: bytes) -> None:
        (self._folder / name).write_bytes(data)

    def delete(self, name: str) -> None:
        (self._folder / name).unlink()


class BucketPlace:
    def __init__(self, s3: LoopbackS3, url: str) -> None:
        self.root = url
        self._s3 = s3

    def files(self, below: str = "") -> dict[str, bytes]:
        return {name: self._s3.get(self.root, name) for name in self.names(below)}

    def names(self, below: str = "") -> list[str]:
        return [name for name in self._s3.keys(self.root) if name.startswith(below)]

    def write(self, name: str, data: bytes) -> None:
        self._s3.put(self.root, name, data)

    def delete(self, name: str) -> None:
        self._s3.delete(self.root, name)
