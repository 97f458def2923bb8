"""Remove entries of mrpo's own caches that no process used for a month."""

from __future__ import annotations

import shutil
import time
from contextlib import suppress
from pathlib import Path

UNUSED_DAYS = 30


def remove_unused(folder: Path) -> None:
    """Remove the files and folders in a folder whose times are older; a use of an entry sets its time. Raises OSError."""
    oldest = time.time() - UNUSED_DAYS * 86_400
    for entry in folder.iterdir():
        with suppress(OSError):  # another process may have removed it
            if entry.stat().st_mtime >= oldest:
                continue
            if entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink()
