"""A Ray cluster of several nodes on this machine, each a process tree that can be killed like a machine."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

RAY = [sys.executable, "-c", "from ray.scripts.scripts import main; main()"]


def kill_tree(pid: int) -> None:
    """`kill -9` of a process and its descendants, like a machine that loses power."""
    with_children = (
        [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)] if psutil.pid_exists(pid) else []
    )
    for process in with_children:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(with_children, timeout=10)


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class RayNodes:
    """`ray start --head` and `ray start --address` with one CPU each; a context manager that leaves nothing behind."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="mrpo-test-", dir="/tmp"))
        self._nodes: list[subprocess.Popen[bytes]] = []
        self.address = f"127.0.0.1:{_free_port()}"
        # As for `ray start` on two machines: one token, and early detection of a lost node.
        self.environment = {
            **os.environ,
            "RAY_ADDRESS": self.address,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_health_check_initial_delay_ms": "1000",
            "RAY_health_check_period_ms": "500",
            "RAY_health_check_timeout_ms": "1000",
            "RAY_health_check_failure_threshold": "3",
        }

    def __enter__(self) -> RayNodes:
        return self

    def __exit__(self, *_: object) -> None:
        for node in reversed(self._nodes):
            self.kill(self._nodes.index(node))
        shutil.rmtree(self._folder, ignore_errors=True)

    def start(self) -> int:
        """Start one more node (the first is the head); returns its number once it has joined the cluster."""
        common = ["--num-cpus=1", "--num-gpus=0", "--object-store-memory=80000000", "--block"]
        if self._nodes:
            arguments = [f"--address={self.address}", *common]
        else:
            port = self.address.rpartition(":")[2]
            arguments = ["--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={self._folder}", *common]
            arguments += ["--node-ip-address=127.0.0.1", f"--ray-client-server-port={_free_port()}"]
        number = len(self._nodes)
        log = self._folder / f"node-{number}.log"
        environment = {name: value for name, value in self.environment.items() if name != "RAY_ADDRESS"}
        with log.open("wb") as output:
            self._nodes.append(
                subprocess.Popen(
                    [*RAY, "start", *arguments],
                    env=environment, stdout=output, stderr=output, stdin=subprocess.DEVNULL, start_new_session=True,
                )
            )  # fmt: skip
        deadline = time.monotonic() + 60
        while b"Ray runtime started" not in log.read_bytes():
            assert self._nodes[-1].poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        return number

    def pid(self, number: int) -> int:
        return self._nodes[number].pid

    def kill(self, number: int) -> None:
        kill_tree(self._nodes[number].pid)
        self._nodes[number].wait(timeout=10)
