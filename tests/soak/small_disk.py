"""A real small disk: a tmpfs of a given size that can be filled, enlarged, made read-only and unmounted."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

PAGE = 4096


class NoMountError(Exception):
    """This process may not mount a file system."""


def _mount(*arguments: str) -> None:
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise NoMountError(done.stderr.strip())


class SmallDisk:
    """A context manager; ``path`` is where it is mounted.

    Args:
        path: created if missing. size: bytes.
    """

    def __init__(self, path: Path, size: int = 64 << 20) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        _mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path))
        self.size = size
        self.mounted = True

    def __enter__(self) -> SmallDisk:
        return self

    def __exit__(self, *_: object) -> None:
        self.take_away()

    @property
    def free(self) -> int:
        """Bytes."""
        found = os.statvfs(self.path)
        return found.f_bavail * found.f_frsize

    @property
    def used(self) -> int:
        """Bytes."""
        found = os.statvfs(self.path)
        return (found.f_blocks - found.f_bfree) * found.f_frsize

    def leave(self, pages: int) -> None:
        """Change its size so that this many pages are free."""
        self.size = self.used + pages * PAGE
        _mount("-o", f"remount,size={max(self.size, PAGE)}", str(self.path))

    def enlarge(self) -> None:
        """Room for everything."""
        _mount("-o", f"remount,size={64 << 20}", str(self.path))

    def read_only(self, on: bool) -> None:
        _mount("-o", f"remount,{'ro' if on else 'rw'}", str(self.path))

    def take_away(self) -> None:
        """Unmount it, even while processes use it: the folder is then empty."""
        if self.mounted:
            subprocess.run(["umount", "-l", str(self.path)], check=True)
            self.mounted = False


def can_mount(folder: Path) -> str:
    """Why a file system cannot be mounted here; empty if it can."""
    try:
        with SmallDisk(folder / "tried", PAGE):
            return ""
    except (NoMountError, FileNotFoundError) as error:
        return str(error) or type(error).__name__
