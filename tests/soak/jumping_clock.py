"""A clock that jumps by hours and days, back and forth, and files with its times."""

from __future__ import annotations

import itertools
import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from mrpo_pipeline.policy import checkpoints

DAY = 86_400.0
JUMPS = (0.0, -3 * DAY, 3 * DAY, -3600.0, -400 * DAY)


@contextmanager
def jumping_clock(draw: random.Random, every: int = 2) -> Iterator[list[float]]:
    """``time.time`` jumps after this many calls; renamed files get the clock's time; each checkpoint's marker is
    an hour older than the previous one. Yields the jumps made."""
    real, real_ns, replace, mark = time.time, time.time_ns, os.replace, checkpoints.mark_complete
    calls, marks = itertools.count(1), itertools.count(1)
    made: list[float] = []
    offset = 0.0

    def jumped() -> float:
        nonlocal offset
        if next(calls) % every == 0:
            offset = draw.choice(JUMPS)
            made.append(offset)
        return offset

    def replaced(source: Any, target: Any, **more: Any) -> None:
        replace(source, target, **more)
        when = real() + jumped()
        os.utime(target, (when, when))

    def marked(checkpoint: Path, *given: Any) -> None:
        mark(checkpoint, *given)
        when = real() - 3600.0 * next(marks)
        os.utime(checkpoint / checkpoints.MARKER, (when, when))

    with (
        patch.object(time, "time", lambda: real() + jumped()),
        patch.object(time, "time_ns", lambda: real_ns() + int(jumped() * 1e9)),
        patch.object(os, "replace", replaced),
        patch.object(checkpoints, "mark_complete", marked),
    ):
        yield made
