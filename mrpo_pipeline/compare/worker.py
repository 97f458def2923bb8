"""A process that makes runs of a comparison: ``python -m mrpo_pipeline.compare.worker``, started by ``processes``.

It reads a job a line from its standard input and answers with lines of JSON on its standard output: ``share`` (of the job
that is done), then ``done`` with the result or ``failed`` with the reason. What libraries print goes to the job's ``log.txt``.
It ends when its input does, at once, so that nothing is left behind by a caller that was killed.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

_SECONDS_BETWEEN = 0.5


def main() -> int:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    jobs: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_listen, args=(jobs,), daemon=True).start()

    def answer(**message: Any) -> None:
        answers.write(json.dumps(message, default=float) + "\n")
        answers.flush()

    from mrpo_pipeline.compare.job import LOG, Job, run_job
    from mrpo_pipeline.errors import UserError
    from mrpo_pipeline.terminal import show_messages

    show_messages()
    while True:
        job = Job.from_json(jobs.get())
        Path(job.folder).mkdir(parents=True, exist_ok=True)
        with (Path(job.folder) / LOG).open("a", encoding="utf-8") as log:
            for descriptor in (1, 2):
                os.dup2(log.fileno(), descriptor)
        try:
            answer(event="done", result=run_job(job, _seldom(answer)))
        except Exception as error:
            traceback.print_exc()
            answer(event="failed", wrong_input=isinstance(error, UserError), reason=_reason(error))
            # What it still holds, of memory above all, goes with it: the next job gets a fresh process.
            return 1


def _seldom(answer: Any) -> Any:
    told = 0.0

    def tell(share: float) -> None:
        nonlocal told
        now = time.monotonic()
        if now - told >= _SECONDS_BETWEEN:
            told = now
            answer(event="share", share=share)

    return tell


def _reason(error: Exception) -> str:
    from mrpo_pipeline.errors import RunError, UserError

    text = " ".join(str(error).split())
    return text if isinstance(error, UserError | RunError) else f"{type(error).__name__}: {text}"


def _listen(jobs: queue.Queue[str]) -> None:
    for line in sys.stdin:
        jobs.put(line)
    os._exit(0)


if __name__ == "__main__":
    raise SystemExit(main())
