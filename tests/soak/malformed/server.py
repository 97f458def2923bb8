"""Commands run in forked children of a process that has imported the heavy libraries but not used them.

A child starts like a new process, without the seconds for imports, and has its own memory, time and exit.
This file is also the server's program: it reads one request a line from stdin and answers one line on stdout.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

HERE = Path(__file__).resolve()
PRELOADED = (
    "polars", "pyarrow.parquet", "torch", "peft", "transformers.models.auto.modeling_auto",
    "transformers.models.llama.modeling_llama", "mrpo_cli.main", "mrpo_cli.commands", "mrpo_pipeline.scoring", "mrpo_pipeline.audit",
    "mrpo_pipeline.plan", "mrpo_pipeline.exports.targets_file", "mrpo_pipeline.policy.trainer", "mrpo_pipeline.policy.train",
    "mrpo_pipeline.evaluation", "mrpo_pipeline.compare", "mrpo_pipeline.engines.transformers",
)  # fmt: skip
PAGE_MB = resource.getpagesize() / 2**20


@dataclass(frozen=True)
class Outcome:
    """How a command ended.

    Attributes:
        code: its exit code; negative where a signal ended it.
        seconds: from the fork or start to the end, less the time that it waited for a busy core.
        cpu: CPU seconds, including its children's.
        added_mb: its peak memory less that at the start (newly touched pages of libraries count as added).
        killed: it ran longer than its limit.
    """

    code: int
    stdout: str
    stderr: str
    seconds: float
    cpu: float
    added_mb: float
    killed: bool


class Server:
    """The process that forks; a context manager."""

    def __init__(self, home: Path) -> None:
        """``home``: a folder for the libraries' files, so that the user's are not read or written."""
        self._home = home

    def environment(self) -> dict[str, str]:
        """The environment of a command: no network, its own home."""
        told = {
            "HOME": str(self._home), "HF_HOME": str(self._home / "hf"), "MRPO_HOME": str(self._home / "mrpo"),
            "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "200", "NO_COLOR": "1", "CUDA_VISIBLE_DEVICES": "",
        }  # fmt: skip
        return {**os.environ, **told}

    def __enter__(self) -> Server:
        self._process = subprocess.Popen(
            [sys.executable, str(HERE)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=self.environment(),
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def run(self, arguments: Sequence[str], folder: Path, *, seconds: float) -> Outcome:
        """Run ``mrpo ARGUMENTS`` in the folder, for at most this many seconds."""
        return self._ask({"arguments": list(arguments)}, folder, seconds)

    def call(self, function: str, *arguments: str, folder: Path, seconds: float) -> Outcome:
        """Run ``module:function`` with strings as arguments."""
        return self._ask({"call": function, "arguments": list(arguments)}, folder, seconds)

    def _ask(self, request: Mapping[str, Any], folder: Path, seconds: float) -> Outcome:
        assert self._process.stdin is not None and self._process.stdout is not None
        said = [self._home / "stdout", self._home / "stderr"]
        asked = {**request, "folder": str(folder), "said": [str(path) for path in said], "seconds": seconds}
        asked["resting"] = str(self._home / "resting")
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        stdout, stderr = (path.read_text(encoding="utf-8", errors="replace") for path in said)
        return Outcome(stdout=stdout, stderr=stderr, **answer)


def start(arguments: Sequence[str], folder: Path, environment: Mapping[str, str], *, seconds: float) -> Outcome:
    """Run ``mrpo ARGUMENTS`` as a new process."""
    began = time.monotonic()
    program = [sys.executable, "-m", "mrpo_cli.main", *arguments]
    try:
        done = subprocess.run(
            program, check=False, cwd=folder, env=dict(environment), stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return Outcome(-9, "", "", seconds, 0.0, 0.0, True)
    stdout, stderr = (text.decode("utf-8", "replace") for text in (done.stdout, done.stderr))
    return Outcome(done.returncode, stdout, stderr, time.monotonic() - began, 0.0, 0.0, False)


def _serve() -> None:
    sys.path.insert(0, str(HERE.parents[1]))
    for name in PRELOADED:
        importlib.import_module(name)
    # Each child would write buffered output again.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in iter(sys.stdin.readline, ""):
        request = json.loads(line)
        began = time.monotonic()
        pid = os.fork()
        if pid == 0:
            _child(request)
        status, usage, killed, waited = _await(pid, began, request["seconds"])
        answer = {
            "code": os.waitstatus_to_exitcode(status),
            "seconds": time.monotonic() - began - waited,
            "cpu": usage.ru_utime + usage.ru_stime,
            "added_mb": max(0.0, usage.ru_maxrss / 1024 - float(Path(request["resting"]).read_text())),
            "killed": killed,
        }
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    os._exit(0)  # an interpreter with many libraries takes seconds to exit


def _await(pid: int, began: float, seconds: float) -> tuple[int, resource.struct_rusage, bool, float]:
    """Wait until the child ends, or kill it after this many seconds: its status, its usage, whether it was killed, how long
    it waited for a core."""
    killed = False
    while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if not killed and time.monotonic() - began - _waited(pid) > seconds:
            os.killpg(pid, signal.SIGKILL)
            killed = True
        time.sleep(0.005)
    waited = _waited(pid)
    _, status, usage = os.wait4(pid, 0)
    return status, usage, killed, waited


def _waited(pid: int) -> float:
    """Seconds that a process was ready to run while others had the core; 0 on systems that do not report it."""
    try:
        with open(f"/proc/{pid}/schedstat") as file:
            return int(file.read().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0


def _child(request: dict[str, Any]) -> None:
    """Never returns."""
    code = 99
    try:
        os.setsid()
        with open("/proc/self/statm") as statm, open(request["resting"], "w") as file:
            file.write(str(int(statm.read().split()[1]) * PAGE_MB))
        os.chdir(request["folder"])
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for descriptor, path in zip((1, 2), request["said"], strict=True):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
        if "call" in request:
            module, _, name = request["call"].partition(":")
            getattr(importlib.import_module(module), name)(*request["arguments"])
        else:
            from mrpo_cli.main import main

            sys.argv = ["mrpo", *request["arguments"]]
            main()
        code = 0
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else 1
    except BaseException:
        traceback.print_exc()
        code = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve()
