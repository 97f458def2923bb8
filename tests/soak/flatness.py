"""Whether a measured series grows: a slope over the rounds with an interval, and a tolerance; and the peak memory of a call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

# The first share of the rounds, in which libraries load once and the allocator reaches its size.
WARM_UP = 0.25
FEWEST = 8


@dataclass(frozen=True)
class Trend:
    """The growth of one quantity: Theil and Sen's slope per round (the median over all pairs of rounds) with its 95%
    interval. ``verdict``: ``flat`` if the whole interval is below the tolerance, ``grows`` if it is above, ``undecided``
    if it contains the tolerance, ``too short`` for too few rounds."""

    name: str
    rounds: int
    first: float
    last: float
    slope: float
    low: float
    high: float
    tolerance: float
    verdict: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def line(self) -> str:
        return (
            f"{self.name:24s} {self.first:12,.2f} {self.last:12,.2f} {self.slope:12.4f} "
            f"[{self.low:.4f}, {self.high:.4f}]  at most {self.tolerance:g}  {self.verdict}"
        )


def trend(name: str, values: Sequence[float], tolerance: float) -> Trend:
    """Judge a series with one number per round, without its warm-up.

    Args:
        tolerance: growth per round that is accepted, in the unit of the values.
    """
    settled = np.asarray(values[int(len(values) * WARM_UP) :], dtype=np.float64)
    if len(settled) < FEWEST:
        ends = (float(settled[0]), float(settled[-1])) if len(settled) else (0.0, 0.0)
        return Trend(name, len(settled), *ends, 0.0, 0.0, 0.0, tolerance, "too short")
    slope, _, low, high = (float(value) for value in stats.theilslopes(settled, np.arange(len(settled)), 0.95))
    verdict = "flat" if high <= tolerance else "grows" if low > tolerance else "undecided"
    return Trend(name, len(settled), float(settled[0]), float(settled[-1]), slope, low, high, tolerance, verdict)


def peak_growth(work: Callable[[], object]) -> int:
    """Bytes of resident memory that a call takes at its peak beyond those before it. Linux only; raises OSError elsewhere."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again at what is resident now
    before = _status("VmRSS")
    work()
    return _status("VmHWM") - before


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))
