"""The process in which vLLM runs: `python -m mrpo_pipeline.engines.vllm.process FD`, started by `engines.vllm`.

A separate process frees all memory when it ends, does not depend on the caller's `__main__`, and keeps vLLM's environment
variables, logging and signal handlers out of the caller. It reads requests from the socket FD and
asks for more before it runs out, so that the scheduler can always fill a step.
"""

from __future__ import annotations

import os
import select
import shutil
import sys
import threading
import traceback
from contextlib import suppress
from multiprocessing.connection import Connection

import numpy as np

from mrpo_pipeline.engines.vllm.adapters import UnsupportedError
from mrpo_pipeline.engines.vllm.errors import plain
from mrpo_pipeline.engines.vllm.ipc import receive, send, split
from mrpo_pipeline.engines.vllm.scorer import Scorer
from mrpo_pipeline.errors import RunError, UserError


def serve(connection: Connection) -> None:
    """Build the engine from the first message, then score blocks of requests until the caller closes the socket."""
    settings, _ = receive(connection)
    try:
        scorer = Scorer(settings)
    finally:  # vLLM has read the weights, or has failed
        if settings["merged_folder"] is not None:
            shutil.rmtree(settings["merged_folder"], ignore_errors=True)
    ready = {
        "event": "ready",
        "context_length": scorer.context,
        "max_model_len": scorer.max_model_len,
        "vocab_size": scorer.vocab_size,
        "prompts_once": scorer.reads_cache,
        "notices": scorer.notices,
    }
    send(connection, ready)
    told = len(scorer.notices)
    asked = True  # the parent opens a run by sending its first block unasked
    last = False
    while True:
        while not scorer.in_flight or connection.poll():
            header, numbers = receive(connection)
            asked, last = False, header["last"]
            for index, ids, count in zip(
                header["index"], split(numbers, header["length"]), header["count"], strict=True
            ):
                scorer.add(index, ids, count)
            if last and not scorer.in_flight:
                send(connection, {"event": "done"})
        if not last and not asked and scorer.wants_more():
            send(connection, {"event": "more"})
            asked = True
        finished = scorer.step()
        if finished:
            header = {"event": "results", "index": [i for i, _ in finished], "length": [len(x) for _, x in finished]}
            if len(scorer.notices) > told:
                header["notices"], told = scorer.notices[told:], len(scorer.notices)
            send(connection, header, np.concatenate([logps for _, logps in finished]))
        if last and not scorer.in_flight:
            send(connection, {"event": "done"})
            asked = True
            last = False


def main() -> None:
    connection = Connection(int(sys.argv[1]))
    os.set_inheritable(connection.fileno(), False)
    threading.Thread(target=_end_with_the_caller, args=(connection.fileno(),), daemon=True).start()
    code = 0
    try:
        serve(connection)
    except (EOFError, BrokenPipeError, ConnectionResetError):  # the caller closed its end or died
        pass
    except Exception as error:
        code = 1
        kind = {UserError: "user", UnsupportedError: "unsupported"}.get(type(error), "run")
        message = str(error) if kind != "run" else plain(str(error)) or type(error).__name__
        if kind == "run" and not isinstance(error, RunError):
            traceback.print_exc()
            sys.stderr.flush()
        with suppress(OSError):
            send(connection, {"event": "error", "kind": kind, "message": message})
    sys.stdout.flush()
    sys.stderr.flush()
    _end_engine_processes()
    # Tearing down torch and vLLM takes seconds and frees nothing that the end of the process does not.
    os._exit(code)


def _end_with_the_caller(descriptor: int) -> None:
    """End this process when the caller closes the socket: loading takes minutes, and nothing waits for it any more."""
    hang_up = select.poll()
    hang_up.register(descriptor, 0)
    hang_up.poll()
    _end_engine_processes()
    os._exit(0)


def _end_engine_processes() -> None:
    """End the engine core and workers, which are children of this process if vLLM runs them separately (GPUs)."""
    import psutil

    children = psutil.Process().children(recursive=True)
    for child in children:
        child.terminate()
    _, alive = psutil.wait_procs(children, timeout=10)
    for child in alive:
        child.kill()


if __name__ == "__main__":
    main()
