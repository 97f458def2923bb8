"""The storage interface of the cache: operations on files that are complete or absent.

Implemented by a folder (``LocalStorage``) and an object store (``ObjectStorage``). Names are relative to the reference's folder, with
``/`` between folder and file.
"""

from __future__ import annotations

import hashlib
from typing import Protocol

import pyarrow as pa

from mrpo_pipeline.errors import RunError


class StoreError(RunError):
    """A store is unreachable, denies access, or returns an error.

    Not raised for a missing file; does not mean that a file is damaged.
    """


class Storage(Protocol):
    """The files of one reference's cache.

    Every method may raise ``OSError`` (disk) or ``StoreError`` (store), and ``FileNotFoundError`` for reading a missing file.

    Attributes:
        at_once: useful number of concurrent requests: 1 for a disk, more over a network.
    """

    at_once: int

    def __str__(self) -> str:
        """The reference's folder as the user writes it: a path or a URL."""

    def make_root(self) -> None:
        """Create the reference's folder, where the storage has folders."""

    def list(self, folder: str, suffix: str = ".parquet") -> list[str]:
        """Sorted names of the complete files in the folder; none for a missing folder."""

    def stamps(self, folder: str) -> dict[str, str]:
        """Name → stamp of each Parquet file that ``list`` gives: size, and times or tag, which change when the file does."""

    def size(self, name: str) -> int:
        """The file's size in bytes."""

    def read(self, name: str) -> pa.Buffer:
        """The bytes of a file."""

    def open(self, name: str) -> pa.NativeFile:
        """The file for partial reads."""

    def put(self, folder: str, data: pa.Buffer | bytes, *, prefix: str = "", suffix: str = ".parquet") -> str:
        """Write a file named ``prefix`` + the SHA-256 of its bytes + ``suffix`` atomically; returns its name.

        Repeating it is harmless: the same bytes have the same name.
        """

    def create(self, name: str, data: bytes) -> bool:
        """Create the file if it does not exist; of several processes exactly one succeeds and gets True."""

    def delete(self, name: str) -> None:
        """Delete the file if it exists."""

    def move(self, name: str, folder: str) -> str:
        """Move the file to another folder of the reference; returns its new name.

        An object store copies, then deletes: killed in between, the file is in both folders.
        """

    def can_write(self) -> bool:
        """Whether files can be created, as far as can be checked without creating one."""

    def clear_leftovers(self, folder: str = ".") -> int:
        """Remove temporary files of dead writers; returns their number."""

    def delete_all(self, *, last: str) -> None:
        """Delete all files of the reference, ``last`` after all others."""


def sha256_hex(data: pa.Buffer | bytes) -> str:
    """SHA-256 of the bytes, 64 hex digits."""
    return hashlib.sha256(memoryview(data)).hexdigest()
