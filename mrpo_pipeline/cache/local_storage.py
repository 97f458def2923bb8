"""A cache in a local folder: files are written atomically and named by their content."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from contextlib import suppress
from pathlib import Path

import pyarrow as pa

from mrpo_pipeline.cache.storage import sha256_hex
from mrpo_pipeline.files.atomic import remove_leftovers, sync_folder, temporary_name


class LocalStorage:
    """The files of one reference's cache in a local folder.

    Names are relative to that folder. A file is written to a temporary name in its folder, flushed to disk, renamed, and the folder
    flushed: under its name it is always complete.
    """

    at_once = 1

    def __init__(self, root: Path) -> None:
        self.root = root

    def __str__(self) -> str:
        return str(self.root)

    def make_root(self) -> None:
        """Create the reference's folder and its parents, and flush their names to disk."""
        fresh = []
        folder = self.root
        while not folder.exists():
            fresh.append(folder)
            folder = folder.parent
        self.root.mkdir(parents=True, exist_ok=True)
        for made in fresh:
            sync_folder(made.parent)

    def list(self, folder: str, suffix: str = ".parquet") -> list[str]:
        """Sorted names of the complete files in the folder; none for a missing folder."""
        try:
            names = os.listdir(self.root / folder)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(f"{folder}/{name}" for name in names if name.endswith(suffix) and not name.startswith("."))

    def stamps(self, folder: str) -> dict[str, str]:
        """Name → size, inode and times of each complete Parquet file in the folder. Programs can't set the change time."""
        found = {}
        for name in self.list(folder):
            with suppress(FileNotFoundError):  # another process removed it
                now = (self.root / name).stat()
                found[name] = f"{now.st_size}-{now.st_ino}-{now.st_mtime_ns}-{now.st_ctime_ns}"
        return found

    def size(self, name: str) -> int:
        """The file's size in bytes."""
        return (self.root / name).stat().st_size

    def read(self, name: str) -> pa.Buffer:
        """The bytes of a file."""
        return pa.py_buffer(self._file(name).read_bytes())

    def open(self, name: str) -> pa.NativeFile:
        """The file for partial reads (not memory-mapped: truncating a mapped file kills the process)."""
        return pa.OSFile(str(self._file(name)), "rb")

    def _file(self, name: str) -> Path:
        """The path of a regular file. Raises OSError for others: a pipe would block, and /dev/zero never ends."""
        path = self.root / name
        # One stat: between two, another process may create the file.
        try:
            regular = stat.S_ISREG(path.stat().st_mode)
        except FileNotFoundError:
            regular = not path.is_symlink()  # opening it reports a missing file
        if not regular:
            raise OSError("it is not a regular file but a folder, a pipe, a device, or a dangling link")
        return path

    def put(self, folder: str, data: pa.Buffer | bytes, *, prefix: str = "", suffix: str = ".parquet") -> str:
        """Write a file named ``prefix`` + the SHA-256 of its bytes + ``suffix`` atomically.

        Returns:
            the file's name.

        Raises:
            OSError: full, read-only or missing disk; nothing is left behind. The reference's folder is not made here: if it
                vanished, that is an error and not a new cache.
        """
        name = f"{folder}/{prefix}{sha256_hex(data)}{suffix}"
        where = self.root / folder
        if not where.is_dir():
            where.mkdir(exist_ok=True)
            sync_folder(self.root)
        temporary = self._write_temporary(where, data)
        try:
            os.replace(temporary, self.root / name)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(where)
        return name

    def create(self, name: str, data: bytes) -> bool:
        """Create the file if it does not exist; of several processes exactly one succeeds.

        Returns:
            whether this call created the file.
        """
        target = self.root / name
        temporary = self._write_temporary(target.parent, data)
        try:
            os.link(temporary, target)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
                raise
            return self._create_without_links(target, data)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(target.parent)
        return True

    def delete(self, name: str) -> None:
        """Delete the file if it exists."""
        (self.root / name).unlink(missing_ok=True)

    def move(self, name: str, folder: str) -> str:
        """Move the file to another folder of the reference; returns its new name."""
        moved = f"{folder}/{name.rpartition('/')[2]}"
        (self.root / folder).mkdir(exist_ok=True)
        os.replace(self.root / name, self.root / moved)
        for touched in (self.root / folder, (self.root / name).parent, self.root):
            sync_folder(touched)
        return moved

    def can_write(self) -> bool:
        """Whether the file system and permissions allow creating files."""
        folder = self.root
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        return os.access(folder, os.W_OK | os.X_OK)

    def clear_leftovers(self, folder: str = ".") -> int:
        """Remove temporary files of dead processes, and very old ones; returns their number."""
        where = self.root / folder
        return remove_leftovers(where) if where.is_dir() else 0

    def delete_all(self, *, last: str) -> None:
        """Delete the reference's folder, the file ``last`` after all others."""
        for path in self.root.iterdir() if self.root.is_dir() else ():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name != last:
                path.unlink()
        self.delete(last)
        if self.root.is_dir():
            self.root.rmdir()

    def _write_temporary(self, where: Path, data: pa.Buffer | bytes) -> Path:
        path = where / temporary_name()
        try:
            with open(path, "xb") as file:
                file.write(memoryview(data))
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return path

    def _create_without_links(self, target: Path, data: bytes) -> bool:
        """For file systems without hard links: exclusive, and complete unless killed during one small write."""
        try:
            with open(target, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except FileExistsError:
            return False
        sync_folder(target.parent)
        return True
