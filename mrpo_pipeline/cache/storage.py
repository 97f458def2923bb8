"""What the cache asks of the place that it is kept in: a few verbs over files that are there whole or not at all.

A folder (``LocalStorage``) and an object store (``ObjectStorage``) answer to them alike. Names are relative to the
reference's own folder, with ``/`` between folder and file.
"""

from __future__ import annotations

import hashlib
from typing import Protocol

import pyarrow as pa

from mrpo_pipeline.errors import RunError


class StoreError(RunError):
    """A store could not be reached, refused, or answered with an error: the message says which, and what to look at.

    It is never raised for a file that is not there, and says nothing about whether a file is sound.
    """


class Storage(Protocol):
    """The files of one reference's cache.

    Every verb may raise ``OSError`` (a disk) or ``StoreError`` (a store), and ``FileNotFoundError`` where a file that is
    read is not there.

    Attributes:
        at_once: how many requests at a time pay off: 1 for a disk, more where each one waits for a network.
    """

    at_once: int

    def __str__(self) -> str:
        """The reference's folder as the user writes it: a path or a URL."""

    def make_root(self) -> None:
        """Make the reference's folder, where folders are a thing of their own."""

    def list(self, folder: str, suffix: str = ".parquet") -> list[str]:
        """Names of the whole files in the folder, sorted; none where the folder is not there."""

    def size(self, name: str) -> int:
        """The file's size in bytes."""

    def read(self, name: str) -> pa.Buffer:
        """All of the file's bytes."""

    def open(self, name: str) -> pa.NativeFile:
        """The file for reading parts of it: only the parts that are read are fetched."""

    def put(self, folder: str, data: pa.Buffer | bytes, *, prefix: str = "", suffix: str = ".parquet") -> str:
        """Write a file named ``prefix`` + the SHA-256 of its bytes + ``suffix``, whole or not at all; its name.

        To repeat it is harmless: the same bytes have the same name.
        """

    def create(self, name: str, data: bytes) -> bool:
        """Write the file if there is none of that name; of several processes exactly one succeeds, and is told True."""

    def delete(self, name: str) -> None:
        """Remove the file; none there is as good."""

    def move(self, name: str, folder: str) -> str:
        """Put the file into another folder of the reference, under the name it has; its new name.

        On an object store it is copied, then removed: one that is killed in between has it in both places.
        """

    def can_write(self) -> bool:
        """Whether files may be made there, as far as can be told without making one."""

    def clear_leftovers(self, folder: str = ".") -> int:
        """Remove what writers that died have left behind; the number removed."""

    def delete_all(self, *, last: str) -> None:
        """Remove everything of the reference, and the file of this name after all others."""


def sha256_hex(data: pa.Buffer | bytes) -> str:
    """SHA-256 of the bytes, 64 hex digits."""
    return hashlib.sha256(memoryview(data)).hexdigest()
