"""A cache in an object store: one PUT per file, prefix listings, range reads."""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa

from mrpo_pipeline.cache.storage import StoreError, sha256_hex
from mrpo_pipeline.cache.store_connections import NO_PLACE, READ_ONLY, connect, error_code, put_options, store_errors

# Waits between tries of a conditional PUT that conflicts with another: S3 expects a retry (ConditionalRequestConflict).
_CONFLICT_SECONDS = (0.1, 0.3, 1.0, 3.0)


class ObjectStorage:
    """The files of one reference's cache under a URL such as ``s3://bucket/folder/reference``.

    A PUT is atomic, so no rename is needed. A PUT whose response was lost may have succeeded; repeating it writes the same bytes under
    the same name. Keeps only the URL of the connection, so that it can be pickled.
    """

    at_once = 8

    def __init__(self, url: str) -> None:
        """
        Args:
            url: of ``check_url``, followed by the reference's name.
        """
        self.url = url
        # A shard's name fixes its content: its size, once listed, holds.
        self._sizes: dict[str, int] = {}

    def __str__(self) -> str:
        return self.url

    def make_root(self) -> None:
        """Does nothing: there are no folders."""

    def list(self, folder: str, suffix: str = ".parquet") -> list[str]:
        """Names of the files in the folder, sorted, by one listing request per thousand."""
        return sorted(self._entries(folder, suffix))

    def stamps(self, folder: str) -> dict[str, str]:
        """Name → size, and tag or time of the last write, of each Parquet file in the folder; none of a store that gives neither."""
        entries = self._entries(folder, ".parquet")
        stamps = {name: entry.get("ETag") or modified(entry) for name, entry in entries.items()}
        return {name: f"{entries[name]['size']}-{stamp}" for name, stamp in stamps.items() if stamp}

    def modified(self, folder: str) -> dict[str, datetime]:
        """Name → time of the last write, by the store's clock, of each file in the folder; none of a store that gives no times."""
        entries = self._entries(folder, "").items()
        return {name: time for name, entry in entries if (time := modified(entry)) is not None}

    def write(self, name: str, data: bytes) -> None:
        """Write a file, or replace it. Raises StoreError."""
        self._require_writable()
        write_object(self.url, name, data)

    def _entries(self, folder: str, suffix: str) -> dict[str, dict[str, Any]]:
        with store_errors(self.url):
            filesystem, root = connect(self.url)
            filesystem.invalidate_cache(f"{root}/{folder}")
            try:
                entries = filesystem.ls(f"{root}/{folder}", detail=True)
            except FileNotFoundError as error:
                if error_code(error) in NO_PLACE:
                    raise
                return {}
        found = {}
        for entry in entries:
            name = str(entry["name"]).rstrip("/").rpartition("/")[2]
            if entry["type"] == "file" and name.endswith(suffix) and not name.startswith("."):
                found[f"{folder}/{name}"] = entry
        self._sizes |= {name: int(entry["size"]) for name, entry in found.items()}
        return found

    def size(self, name: str) -> int:
        """The file's size in bytes, from the last listing if it was in one."""
        if name not in self._sizes:
            with store_errors(self.url):
                filesystem, root = connect(self.url)
                self._sizes[name] = int(filesystem.size(f"{root}/{name}"))
        return self._sizes[name]

    def read(self, name: str) -> pa.Buffer:
        """The bytes of a file, in one request."""
        with store_errors(self.url):
            filesystem, root = connect(self.url)
            return pa.py_buffer(filesystem.cat_file(f"{root}/{name}"))

    def open(self, name: str) -> pa.NativeFile:
        """The file for partial reads: each read is one range request."""
        return pa.PythonFile(_Ranges(self, name, self.size(name)), mode="r")

    def read_range(self, name: str, start: int, end: int) -> bytes:
        """The file's bytes from ``start`` up to but excluding ``end``."""
        with store_errors(self.url):
            filesystem, root = connect(self.url)
            return bytes(filesystem.cat_file(f"{root}/{name}", start=start, end=end))

    def put(self, folder: str, data: pa.Buffer | bytes, *, prefix: str = "", suffix: str = ".parquet") -> str:
        """Write a file named ``prefix`` + the SHA-256 of its bytes + ``suffix`` by one atomic PUT.

        Beyond S3's limit of 5 GiB, far above any shard, s3fs uploads parts, which appear once all are there.

        Returns:
            the file's name.

        Raises:
            StoreError: where the store fails after retries of a minute or two.
        """
        name = f"{folder}/{prefix}{sha256_hex(data)}{suffix}"
        self._require_writable()
        write_object(self.url, name, bytes(memoryview(data)))
        return name

    def create(self, name: str, data: bytes) -> bool:
        """Create the file if it does not exist, by a conditional PUT (``If-None-Match: *`` on S3).

        A store that reports no support for conditions gets a read and then a PUT; one that ignores them overwrites. Two processes may then
        both believe that they created the file: the later one's stays. The cache reads it back before it continues and before
        every shard.

        Returns:
            whether this call created the file; may be False where it did and the response was lost.
        """
        self._require_writable()
        for wait in (*_CONFLICT_SECONDS, None):
            try:
                with store_errors(self.url):
                    filesystem, root = connect(self.url)
                    filesystem.pipe_file(f"{root}/{name}", data, mode="create", **put_options(self.url))
                return True
            except FileExistsError:
                return False
            except StoreError as error:
                code = error_code(error)
                if code in ("PreconditionFailed", "412"):
                    return False
                if code in ("NotImplemented", "501") or isinstance(error.__cause__, NotImplementedError):
                    return self._create_after_reading(name, data)
                if code not in ("ConditionalRequestConflict", "OperationAborted", "409") or wait is None:
                    raise
                time.sleep(wait)
        raise AssertionError("the last try returns or raises")

    def delete(self, name: str) -> None:
        """Delete the file if it exists."""
        self._require_writable()
        with store_errors(self.url), suppress(FileNotFoundError):
            filesystem, root = connect(self.url)
            filesystem.rm_file(f"{root}/{name}")

    def move(self, name: str, folder: str) -> str:
        """Move the file to another folder of the reference, by a copy within the store; returns its new name."""
        self._require_writable()
        moved = f"{folder}/{name.rpartition('/')[2]}"
        with store_errors(self.url):
            filesystem, root = connect(self.url)
            filesystem.cp_file(f"{root}/{name}", f"{root}/{moved}")
        self.delete(name)
        return moved

    def can_write(self) -> bool:
        """Whether the store supports writing single files; only a PUT shows whether this user may write."""
        return urlsplit(self.url).scheme not in READ_ONLY

    def _require_writable(self) -> None:
        if not self.can_write():
            raise StoreError(
                f"{self.url} is read in place; only `mrpo cache push` writes there. Copy it (`mrpo cache pull`) and set that folder "
                "in `cache:`."
            )

    def clear_leftovers(self, folder: str = ".") -> int:
        """Does nothing: an interrupted PUT leaves no file."""
        return 0

    def delete_all(self, *, last: str) -> None:
        """Delete every file under the URL, ``last`` after all others."""
        self._require_writable()
        with store_errors(self.url), suppress(FileNotFoundError):
            filesystem, root = connect(self.url)
            filesystem.invalidate_cache()
            found = [str(path).removeprefix(f"{root}/") for path in filesystem.find(root)]
            with ThreadPoolExecutor(self.at_once) as pool:
                list(pool.map(self.delete, [name for name in found if name != last]))
        self.delete(last)

    def _create_after_reading(self, name: str, data: bytes) -> bool:
        try:
            self.read(name)
        except FileNotFoundError:
            with store_errors(self.url):
                filesystem, root = connect(self.url)
                filesystem.pipe_file(f"{root}/{name}", data, **put_options(self.url))
            return bool(self.read(name).to_pybytes() == data)
        return False


def modified(entry: Mapping[str, Any]) -> datetime | None:
    """The time of the last write of a listed file, under any of the names that file systems have for it."""
    for key in ("LastModified", "last_modified", "updated", "mtime", "created"):
        if isinstance(time := entry.get(key), str):
            time = datetime.fromisoformat(time)
        if isinstance(time, datetime):
            return time
    return None


def write_object(url: str, name: str, data: bytes) -> None:
    """Write one file under the URL. Raises StoreError."""
    with store_errors(url):
        filesystem, root = connect(url)
        filesystem.pipe_file(f"{root}/{name}", data, **put_options(url))


def folders_holding(url: str, name: str) -> list[str]:
    """Sorted names of the folders directly under the URL that contain a file of this name."""
    with store_errors(url):
        filesystem, root = connect(url)
        filesystem.invalidate_cache()
        try:
            entries = filesystem.ls(root, detail=True)
        except FileNotFoundError as error:
            if error_code(error) in NO_PLACE:
                raise
            return []
    folders = [str(one["name"]).rstrip("/").rpartition("/")[2] for one in entries if one["type"] == "directory"]

    def holds(folder: str) -> bool:
        try:
            ObjectStorage(f"{url}/{folder}").read(name)
        except FileNotFoundError:
            return False
        return True

    with ThreadPoolExecutor(ObjectStorage.at_once) as pool:
        return sorted(folder for folder, held in zip(folders, pool.map(holds, folders), strict=True) if held)


class _Ranges:
    """An object as a readable, seekable file for Arrow.

    The first read is kept: the end of a Parquet file, with its footer, which is read more than once, or all of a small file.
    """

    def __init__(self, storage: ObjectStorage, name: str, size: int) -> None:
        self._storage = storage
        self._name = name
        self._size = size
        self._at = 0
        self._buffer_start = 0
        self._buffer = b""
        self.closed = False

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def writable(self) -> bool:
        return False

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, count: int = -1) -> bytes:
        end = self._size if count < 0 else min(self._at + count, self._size)
        if end <= self._at:
            return b""
        first, last = self._at - self._buffer_start, end - self._buffer_start
        if first >= 0 and last <= len(self._buffer):
            data = self._buffer[first:last]
        else:
            data = self._storage.read_range(self._name, self._at, end)
            if not self._buffer:
                self._buffer_start, self._buffer = self._at, data
        self._at += len(data)
        return data

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True
