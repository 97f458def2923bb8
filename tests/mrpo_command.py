"""The `mrpo` command in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def mrpo(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run it in a folder, offline, on a terminal of 200 columns."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
    command = [sys.executable, "-m", "mrpo_cli.main", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False)
