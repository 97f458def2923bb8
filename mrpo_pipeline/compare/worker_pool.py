"""Execute runs of a comparison in parallel processes.

A process reads one job per line from standard input, and writes one line when it is finished: empty on success, else the reason of
the failure. Output of libraries goes to the job's ``log.txt``. A process executes several runs one after another, since
importing torch takes seconds, and ends after the first failure.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mrpo_pipeline.compare.job import LOG, Job, finished, run_job
from mrpo_pipeline.compare.parallelism import Places
from mrpo_pipeline.errors import RunError, UserError
from mrpo_pipeline.files.python_launch import child_environment, code_command
from mrpo_pipeline.terminal import show_messages, track

log = logging.getLogger("mrpo")

_GRACE_SECONDS = 5.0
_COMMAND = "from mrpo_pipeline.compare.worker_pool import main; raise SystemExit(main())"


@dataclass
class Outcome:
    """The results by job, and the reasons of failed jobs."""

    results: dict[Job, dict[str, Any]] = field(default_factory=dict)
    failed: dict[Job, str] = field(default_factory=dict)


def run_all(jobs: Sequence[Job], places: Places, line: Callable[[Job, dict[str, Any]], str]) -> Outcome:
    """Execute all runs; a failed or killed one is reported, and the others continue.

    Args:
        line: makes the log line of a finished run.

    Raises:
        UserError: if a run's input is invalid; the other runs, which have the same input, are stopped.
    """
    outcome = Outcome()
    if places.count == 1:
        for number, job in enumerate(jobs, 1):
            log.info("%s (%d of %d)", job.title, number, len(jobs))
            if _record(outcome, job, lambda job=job: run_job(job)):  # type: ignore[misc]
                log.info("%s", line(job, outcome.results[job]))
        return outcome
    free: queue.SimpleQueue[_Process] = queue.SimpleQueue()

    def make(job: Job) -> dict[str, Any]:
        process = free.get()
        try:
            return process.make(job)
        finally:
            free.put(process)

    with ExitStack() as stack, track("comparing", len(jobs), "runs") as progress:
        pool = stack.enter_context(ThreadPoolExecutor(places.count))
        for place in range(places.count):
            free.put(stack.enter_context(_Process(places.environment(place))))
        stack.callback(pool.shutdown, wait=False, cancel_futures=True)
        made = {pool.submit(make, job): job for job in jobs}
        for future in as_completed(made):
            job = made[future]
            if _record(outcome, job, future.result):
                print(line(job, outcome.results[job]), file=sys.stderr, flush=True)
            progress.advance(1)
    return outcome


def _record(outcome: Outcome, job: Job, result: Callable[[], dict[str, Any]]) -> bool:
    """Store a run's result or failure in the outcome; returns whether it succeeded."""
    try:
        outcome.results[job] = result()
    except UserError:
        raise
    except Exception as error:
        log.debug("the run failed", exc_info=True)
        outcome.failed[job] = _reason(error)
        print(f"{job.title}: failed. {outcome.failed[job]}", file=sys.stderr, flush=True)
    return job in outcome.results


def _reason(error: Exception) -> str:
    """The error as a sentence."""
    text = str(error) if isinstance(error, RunError) else f"{type(error).__name__}: {' '.join(str(error).split())}"
    return text if text.endswith((".", "!", "?")) else f"{text}."


class _Process:
    """A worker process, started at its first run and stopped at the end of the ``with`` block."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._environment = environment
        self._process: subprocess.Popen[str] | None = None
        self._closed = threading.Lock()

    def __enter__(self) -> _Process:
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.acquire()  # never released: no thread starts another process
        self._end(signal.SIGTERM)

    def make(self, job: Job) -> dict[str, Any]:
        """The result of the run. Raises UserError for invalid input, RunError if it failed or its process died."""
        log_file = Path(job.folder) / LOG
        process = self._started(log_file)
        assert process.stdin is not None
        assert process.stdout is not None
        with suppress(BrokenPipeError):  # the process died, and its answer will be empty
            process.stdin.write(job.as_json() + "\n")
            process.stdin.flush()
        answer = process.stdout.readline()
        if answer == "\n":
            result = finished(job)
            if result is None:
                raise RunError(
                    f"Another program changed its results in {job.folder}. Run the same command again to repeat it."
                )
            return result
        failure = json.loads(answer) if answer else {"wrong_input": False, "reason": _death(process.wait())}
        self._end(signal.SIGKILL)
        if failure["wrong_input"]:
            raise UserError(failure["reason"])
        raise RunError(f"{failure['reason']} Its output is in {log_file}.")

    def _started(self, log_file: Path) -> subprocess.Popen[str]:
        if not self._closed.acquire(blocking=False):
            raise RunError("The comparison is ending.")
        try:
            if self._process is None:
                log_file.parent.mkdir(parents=True, exist_ok=True)
                with log_file.open("ab") as printed:
                    self._process = subprocess.Popen(
                        code_command(_COMMAND),
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        stderr=printed,
                        text=True,
                        encoding="utf-8",
                        env={**child_environment(), **self._environment},
                        # Ctrl-C reaches only this process, which then stops the workers.
                        start_new_session=True,
                    )
            return self._process
        finally:
            self._closed.release()

    def _end(self, which: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        for sent in (which, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, sent)
            with suppress(subprocess.TimeoutExpired):
                process.wait(_GRACE_SECONDS)
                return


def _death(code: int) -> str:
    """Why a process ended, by its exit code."""
    if code >= 0:
        return f"Its process ended with code {code}."
    name = signal.Signals(-code).name
    cause = " (usually out of memory: fewer --processes need less)" if name == "SIGKILL" else ""
    return f"Its process was killed by {name}{cause}."


def main() -> int:
    """Execute the jobs from standard input. Exits when it is closed, so that no worker outlives a killed caller."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    jobs: queue.SimpleQueue[str] = queue.SimpleQueue()

    def listen() -> None:
        for text in sys.stdin:
            jobs.put(text)
        os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
    show_messages()
    while True:
        job = Job.from_json(jobs.get())
        Path(job.folder).mkdir(parents=True, exist_ok=True)
        with (Path(job.folder) / LOG).open("a", encoding="utf-8") as printed:
            for descriptor in (1, 2):
                os.dup2(printed.fileno(), descriptor)
        failure = ""
        try:
            run_job(job)
        except Exception as error:
            traceback.print_exc()
            reason = str(error) if isinstance(error, UserError) else _reason(error)
            failure = json.dumps({"wrong_input": isinstance(error, UserError), "reason": reason})
        print(failure, file=answers, flush=True)
        if failure:  # end the process, which frees the run's memory
            return 1


if __name__ == "__main__":
    raise SystemExit(main())
