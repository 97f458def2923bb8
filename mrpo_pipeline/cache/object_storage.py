"""A cache in an object store: one PUT a file, listed by prefix, read in ranges."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pyarrow as pa

from mrpo_pipeline.cache.fsspec_backend import asking, connect, error_code, put_options
from mrpo_pipeline.cache.storage import StoreError, sha256_hex

# Between tries of a conditional PUT that met another one: S3 then asks for it again (ConditionalRequestConflict).
_CONFLICT_SECONDS = (0.1, 0.3, 1.0, 3.0)


class ObjectStorage:
    """The files of one reference's cache under a URL such as ``s3://bucket/folder/reference``.

    Nothing can be renamed there, and nothing has to be: a PUT shows its object whole or not at all. A PUT whose answer was
    lost may have been done all the same; repeated, it writes the same bytes under the same name. Nothing but the URL is
    kept of the connection, so that it may be sent to another process.
    """

    at_once = 8

    def __init__(self, url: str) -> None:
        """
        Args:
            url: as ``check_url`` gives it, and the reference's name at its end.
        """
        self.url = url
        # A shard's name fixes its content: its size, once listed, holds.
        self._sizes: dict[str, int] = {}

    def __str__(self) -> str:
        return self.url

    def make_root(self) -> None:
        """Nothing: there are no folders."""

    def list(self, folder: str, suffix: str = ".parquet") -> list[str]:
        """Names of the files in the folder, sorted, by one listing request for every thousand."""
        with asking(self.url):
            filesystem, root = connect(self.url)
            filesystem.invalidate_cache(f"{root}/{folder}")
            try:
                entries = filesystem.ls(f"{root}/{folder}", detail=True)
            except FileNotFoundError as error:
                if error_code(error) == "NoSuchBucket":
                    raise
                return []
        sizes = {}
        for entry in entries:
            name = str(entry["name"]).rstrip("/").rpartition("/")[2]
            if entry["type"] == "file" and name.endswith(suffix) and not name.startswith("."):
                sizes[f"{folder}/{name}"] = int(entry["size"])
        self._sizes |= sizes
        return sorted(sizes)

    def size(self, name: str) -> int:
        """The file's size in bytes, from the last listing that named it where there was one."""
        if name not in self._sizes:
            with asking(self.url):
                filesystem, root = connect(self.url)
                self._sizes[name] = int(filesystem.size(f"{root}/{name}"))
        return self._sizes[name]

    def read(self, name: str) -> pa.Buffer:
        """All of the file's bytes, in one request."""
        with asking(self.url):
            filesystem, root = connect(self.url)
            return pa.py_buffer(filesystem.cat_file(f"{root}/{name}"))

    def open(self, name: str) -> pa.NativeFile:
        """The file for reading parts of it: each read is one request for these bytes and no others."""
        return pa.PythonFile(_Ranges(self, name, self.size(name)), mode="r")

    def read_range(self, name: str, start: int, end: int) -> bytes:
        """The file's bytes from ``start`` up to ``end``, which is not read."""
        with asking(self.url):
            filesystem, root = connect(self.url)
            return bytes(filesystem.cat_file(f"{root}/{name}", start=start, end=end))

    def put(self, folder: str, data: pa.Buffer | bytes, *, prefix: str = "", suffix: str = ".parquet") -> str:
        """Write a file named ``prefix`` + the SHA-256 of its bytes + ``suffix`` by one PUT, whole or not at all.

        Up to S3's limit of 5 GiB, far above any shard; beyond it s3fs sends parts, and they show once all are there.

        Returns:
            the file's name.

        Raises:
            StoreError: where the store cannot be reached or refuses, after tries that end within a minute or two.
        """
        name = f"{folder}/{prefix}{sha256_hex(data)}{suffix}"
        with asking(self.url):
            filesystem, root = connect(self.url)
            filesystem.pipe_file(f"{root}/{name}", bytes(memoryview(data)), **put_options(self.url))
        return name

    def create(self, name: str, data: bytes) -> bool:
        """Write the file if there is none of that name, by a PUT on that condition (``If-None-Match: *`` on S3).

        A store that says that it knows no such condition gets a look and then a PUT; one that ignores it without a word
        overwrites. Two processes in the same moment may then both believe that they made the file: the later one's stays,
        and whoever reads it back sees which it is, as the cache does before it goes on and before every shard.

        Returns:
            whether this call made the file. A caller whose PUT was done and whose answer was lost may be told False.
        """
        for wait in (*_CONFLICT_SECONDS, None):
            try:
                with asking(self.url):
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
                    return self._create_after_a_look(name, data)
                if code not in ("ConditionalRequestConflict", "OperationAborted", "409") or wait is None:
                    raise
                time.sleep(wait)
        raise AssertionError("the last try returns or raises")

    def delete(self, name: str) -> None:
        """Remove the file; none there is as good."""
        with asking(self.url), suppress(FileNotFoundError):
            filesystem, root = connect(self.url)
            filesystem.rm_file(f"{root}/{name}")

    def move(self, name: str, folder: str) -> str:
        """Put the file into another folder of the reference, by a copy within the store; its new name."""
        moved = f"{folder}/{name.rpartition('/')[2]}"
        with asking(self.url):
            filesystem, root = connect(self.url)
            filesystem.cp_file(f"{root}/{name}", f"{root}/{moved}")
        self.delete(name)
        return moved

    def can_write(self) -> bool:
        """True: only a PUT tells."""
        return True

    def clear_leftovers(self, folder: str = ".") -> int:
        """Nothing: a PUT that broke off leaves nothing behind."""
        return 0

    def delete_all(self, *, last: str) -> None:
        """Remove every file under the URL, the one of this name after all others."""
        with asking(self.url), suppress(FileNotFoundError):
            filesystem, root = connect(self.url)
            filesystem.invalidate_cache()
            found = [str(path).removeprefix(f"{root}/") for path in filesystem.find(root)]
            with ThreadPoolExecutor(self.at_once) as pool:
                list(pool.map(self.delete, [name for name in found if name != last]))
        self.delete(last)

    def _create_after_a_look(self, name: str, data: bytes) -> bool:
        try:
            self.read(name)
        except FileNotFoundError:
            with asking(self.url):
                filesystem, root = connect(self.url)
                filesystem.pipe_file(f"{root}/{name}", data, **put_options(self.url))
            return bool(self.read(name).to_pybytes() == data)
        return False


def folders_holding(url: str, name: str) -> list[str]:
    """Names of the folders right under the URL that hold a file of this name, sorted."""
    with asking(url):
        filesystem, root = connect(url)
        filesystem.invalidate_cache()
        try:
            entries = filesystem.ls(root, detail=True)
        except FileNotFoundError as error:
            if error_code(error) == "NoSuchBucket":
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
    """An object as the readable, seekable file that Arrow asks for.

    What is read first, the end of a Parquet file, is held: the whole of a small file, and a large one's directory, which
    is looked at more than once.
    """

    def __init__(self, storage: ObjectStorage, name: str, size: int) -> None:
        self._storage = storage
        self._name = name
        self._size = size
        self._at = 0
        self._held_from = 0
        self._held = b""
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
        first, last = self._at - self._held_from, end - self._held_from
        if first >= 0 and last <= len(self._held):
            data = self._held[first:last]
        else:
            data = self._storage.read_range(self._name, self._at, end)
            if not self._held:
                self._held_from, self._held = self._at, data
        self._at += len(data)
        return data

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True
