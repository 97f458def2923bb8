"""Runs of a comparison side by side, each in a process of its own."""

from __future__ import annotations

import json
import logging
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from mrpo_pipeline.compare.job import LOG, Job, run_job
from mrpo_pipeline.compare.parallelism import Places
from mrpo_pipeline.errors import RunError, UserError
from mrpo_pipeline.files.python_processes import child_environment, module_command
from mrpo_pipeline.terminal import track

log = logging.getLogger("mrpo")

_GRACE_SECONDS = 5.0


@dataclass
class Outcome:
    """What became of every job that was asked for: results by job, and reasons where there is none."""

    results: dict[Job, dict[str, Any]] = field(default_factory=dict)
    failed: dict[Job, str] = field(default_factory=dict)


def run_all(jobs: Sequence[Job], places: Places, say: Callable[[Job, dict[str, Any]], str]) -> Outcome:
    """Make every run; one that fails or is killed is told, and the others go on.

    Args:
        say: a line on a run that is done.

    Raises:
        UserError: of a run whose input is wrong: it would be wrong for the others as well, which are ended.
    """
    outcome = Outcome()
    if places.count == 1:
        _one_after_another(jobs, outcome, say)
    else:
        with _Crew(places) as crew, track("comparing", len(jobs), "runs") as progress:
            crew.work(jobs, outcome, say, progress.advance)
    return outcome


def _one_after_another(jobs: Sequence[Job], outcome: Outcome, say: Callable[[Job, dict[str, Any]], str]) -> None:
    for number, job in enumerate(jobs, 1):
        log.info("%s (%d of %d)", job.title, number, len(jobs))
        try:
            outcome.results[job] = run_job(job, lambda share: None)
        except UserError:
            raise
        except RunError as error:
            _told(outcome, job, str(error))
        except Exception as error:
            log.debug("the run failed", exc_info=True)
            _told(outcome, job, f"{type(error).__name__}: {' '.join(str(error).split())}")
        else:
            log.info("%s", say(job, outcome.results[job]))


def _told(outcome: Outcome, job: Job, reason: str) -> None:
    outcome.failed[job] = _sentence(reason)
    print(f"{job.title}: failed. {outcome.failed[job]}", file=sys.stderr, flush=True)


def _sentence(text: str) -> str:
    """What a library said may end without a full stop, and others are to follow."""
    return text if text.endswith((".", "!", "?")) else f"{text}."


@dataclass(eq=False)
class _Worker:
    """A process, the place it takes, and what it works on."""

    process: subprocess.Popen[str]
    place: int
    first_words: IO[bytes]
    job: Job | None = None
    share: float = 0.0

    def give(self, job: Job) -> None:
        self.job, self.share = job, 0.0
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # it is gone already, which its end tells
            self.process.stdin.write(job.as_json() + "\n")
            self.process.stdin.flush()

    def end_of(self) -> str:
        """Why it is gone, as far as can be told."""
        code = self.process.wait()
        if code < 0:
            name = signal.Signals(-code).name
            usual = " (out of memory is the usual cause: fewer --processes take less)" if name == "SIGKILL" else ""
            return f"Its process was killed by {name}{usual}."
        self.first_words.seek(0)
        words = self.first_words.read().decode(errors="replace").strip().splitlines()
        return f"Its process ended with code {code}{': ' + words[-1] if words else ''}."


class _Crew:
    """Processes, each at one of the places; all of them end with the ``with`` block."""

    def __init__(self, places: Places) -> None:
        self.places = places
        self.workers: list[_Worker] = []
        self.said: queue.Queue[tuple[_Worker, dict[str, Any] | None]] = queue.Queue()

    def __enter__(self) -> _Crew:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers:
            _signal(worker.process, signal.SIGTERM)
        for worker in self.workers:
            try:
                worker.process.wait(_GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                _signal(worker.process, signal.SIGKILL)
                worker.process.wait()
            worker.first_words.close()

    def work(
        self,
        jobs: Sequence[Job],
        outcome: Outcome,
        say: Callable[[Job, dict[str, Any]], str],
        advance: Callable[[float], None],
    ) -> None:
        left = deque(jobs)
        for place in range(min(self.places.count, len(left))):
            self._start(place).give(left.popleft())
        while any(worker.job for worker in self.workers):
            worker, message = self.said.get()
            job = worker.job
            if job is None:
                continue
            event = message["event"] if message else "gone"
            if event == "share" and message:
                # Measuring comes after training: a run is never done before it says so.
                share = min(0.95, float(message["share"]))
                advance(max(0.0, share - worker.share))
                worker.share = max(worker.share, share)
                continue
            advance(1 - worker.share)
            worker.job = None
            if event == "done" and message:
                outcome.results[job] = message["result"]
                print(say(job, message["result"]), file=sys.stderr, flush=True)
            else:
                reason = str(message["reason"]) if message else worker.end_of()
                if message and message["wrong_input"]:
                    raise UserError(reason)
                _told(outcome, job, f"{_sentence(reason)} What it printed is in {Path(job.folder) / LOG}.")
                self.workers.remove(worker)
                self._close(worker)
            if left:
                (worker if worker in self.workers else self._start(worker.place)).give(left.popleft())

    def _start(self, place: int) -> _Worker:
        words = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the worker)
        process = subprocess.Popen(
            module_command("mrpo_pipeline.compare.worker"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=words,
            text=True,
            encoding="utf-8",
            env={**child_environment(), **self.places.environment(place)},
            # Ctrl-C reaches this process alone, which then ends the others.
            start_new_session=True,
        )
        worker = _Worker(process, place, words)
        self.workers.append(worker)
        threading.Thread(target=self._listen, args=(worker,), daemon=True).start()
        return worker

    def _listen(self, worker: _Worker) -> None:
        assert worker.process.stdout is not None
        for line in worker.process.stdout:
            self.said.put((worker, json.loads(line)))
        self.said.put((worker, None))

    @staticmethod
    def _close(worker: _Worker) -> None:
        _signal(worker.process, signal.SIGKILL)
        worker.process.wait()
        worker.first_words.close()


def _signal(process: subprocess.Popen[str], which: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, which)
