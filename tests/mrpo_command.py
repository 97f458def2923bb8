"""The `mrpo` command in a process of its own.

Importing torch, transformers and peft takes about eight CPU seconds. A server imports them once for each test worker
and forks a process for each command.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import subprocess
import sys
import tempfile
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path
from unittest import mock

IMPORTED = [
    "mrpo_cli.commands", "polars", "pyarrow.dataset", "pyarrow.parquet", "torch", "peft", "matplotlib.pyplot",
    "transformers.trainer", "transformers.models.auto.modeling_auto", "transformers.models.auto.tokenization_auto",
]  # fmt: skip

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}


def mrpo(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run the command in a folder, offline, on a terminal of 200 columns."""
    command = ["mrpo", *map(str, arguments)]
    environment = {**os.environ, **ENVIRONMENT}
    with tempfile.TemporaryDirectory() as folder:
        stdout, stderr = Path(folder, "stdout"), Path(folder, "stderr")
        process = _server().Process(target=_run, args=(command, cwd, environment, stdout, stderr))
        process.start()
        process.join(300)
        if process.exitcode is None:
            process.kill()
            raise subprocess.TimeoutExpired(command, 300, stdout.read_bytes(), stderr.read_bytes())
        written = [file.read_text(encoding="utf-8") for file in (stdout, stderr)]
    return subprocess.CompletedProcess(command, process.exitcode, *written)


@functools.cache
def _server() -> ForkServerContext:
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(IMPORTED)
    with mock.patch.dict(os.environ, ENVIRONMENT):  # libraries read it on import
        forkserver.ensure_running()
    return server


def _run(command: list[str], cwd: Path, environment: dict[str, str], stdout: Path, stderr: Path) -> None:
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    for number, file in ((1, stdout), (2, stderr)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    sys.argv[:] = command
    from mrpo_cli.main import main

    main()
