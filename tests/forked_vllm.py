"""vLLM's process, forked from a server that has imported vLLM.

Importing vLLM takes about ten CPU seconds of a start with a tiny model, which is all but one or two of them. The forked process has the
engine's arguments, environment, session, socket and output. `test_vllm_engine.py` also starts it as the engine does.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import select
import socket
import subprocess
import sys
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import IO

ENGINE = "mrpo_pipeline.engines.vllm.process"
IMPORTED = [
    ENGINE, "transformers.models.auto.modeling_auto", "vllm.v1.engine.llm_engine", "vllm.v1.engine.core",
    "vllm.v1.worker.cpu_worker", "vllm.v1.worker.cpu_model_runner", "vllm.lora.worker_manager", "vllm.model_executor.models.llama",
]  # fmt: skip
LARGEST = 1 << 20


class ForkedProcess:
    """What the engine uses of `subprocess.Popen`."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        pass_fds: Sequence[int],
        stdin: int,
        stdout: IO[bytes] | int,
        stderr: IO[bytes] | int,
        env: Mapping[str, str],
        start_new_session: bool,
    ) -> None:
        (descriptor,) = pass_fds
        assert command[-2:] == [ENGINE, str(descriptor)]
        assert stdin == subprocess.DEVNULL
        assert start_new_session
        asked = json.dumps({"folder": os.getcwd(), "environment": dict(env)}).encode()
        files = [file if isinstance(file, int) else file.fileno() for file in (descriptor, stdout, stderr)]
        self.returncode: int | None = None
        self._server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._server.connect("\0" + _address(os.getpid()))
        socket.send_fds(self._server, [asked], files)
        self.pid = int(self._server.recv(LARGEST))

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            self._server.settimeout(timeout)
            try:
                self.returncode = int(self._server.recv(LARGEST))
            except (TimeoutError, BlockingIOError):  # the latter at a timeout of 0
                raise subprocess.TimeoutExpired(ENGINE, timeout or 0) from None
            self._server.close()
        return self.returncode


@functools.cache
def _address(caller: int) -> str:
    """Start this process's server, which ends when the process does."""
    address = f"mrpo-tests-vllm-{caller}"
    variables = os.environ | {"VLLM_LOGGING_LEVEL": "WARNING", "VLLM_NO_USAGE_STATS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    server = subprocess.Popen(
        [sys.executable, "-P", __file__, address], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=variables
    )
    assert server.stdout is not None
    assert server.stdout.readline() == b"ready\n"
    return address


def serve(address: str) -> None:
    """Fork a process for every connection, until standard input is closed."""
    for name in IMPORTED:
        importlib.import_module(name)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind("\0" + address)
    listener.listen()
    print("ready", flush=True)
    while select.select([listener, sys.stdin], [], [])[0] == [listener]:
        connection, _ = listener.accept()
        if os.fork() == 0:
            _watch(connection)
        connection.close()
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def _watch(connection: socket.socket) -> None:
    """Fork the process, and send its pid and in the end its exit status."""
    asked, files, _, _ = socket.recv_fds(connection, LARGEST, 3)
    child = os.fork()
    if child == 0:
        try:
            _run(json.loads(asked), *files)
        except BaseException:
            traceback.print_exc()
        os._exit(1)
    for file in files:
        os.close(file)
    connection.send(str(child).encode())
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with suppress(OSError):
        connection.send(str(status).encode())
    os._exit(0)


def _run(asked: dict[str, object], descriptor: int, stdout: int, stderr: int) -> None:
    import torch

    os.setsid()
    os.chdir(str(asked["folder"]))
    os.environ.clear()
    os.environ.update(asked["environment"])  # type: ignore[call-overload]
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(stdout, 1)
    os.dup2(stderr, 2)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    sys.argv[:] = [ENGINE, str(descriptor)]
    importlib.import_module(ENGINE).main()


if __name__ == "__main__":
    serve(sys.argv[1])
