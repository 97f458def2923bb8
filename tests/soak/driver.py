"""Shared parts of the drivers: their options, summary and exit code."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def parser_of(about: str | None, *, seed: str = "of what is drawn") -> argparse.ArgumentParser:
    """A parser with ``--seed`` and ``--out``, a whole path.

    Args:
        about: the driver's docstring.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help=seed)
    parser.add_argument(
        "--out", type=lambda text: Path(text).resolve(), default="runs/soak", help="folder for work and summary"
    )
    return parser


def write_summary(out: Path, name: str, summary: Mapping[str, Any], *, held: bool) -> int:
    """Write the summary to ``OUT/NAME.json``; the exit code."""
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    return 0 if held else 1


def spent(began: float) -> dict[str, float]:
    """Seconds since ``began`` (of the monotonic clock), and of CPU that this process has taken."""
    return {"seconds": round(time.monotonic() - began, 1), "cpu_seconds": round(time.process_time(), 1)}


def seen_lines(seen: Mapping[str, Mapping[str, int]], width: int) -> list[str]:
    """A line for each kind of outcome with its count; names are padded to ``width``."""
    return [
        f"  {kind:{width}} " + ", ".join(f"{count} × {how}" for how, count in sorted(found.items()))
        for kind, found in seen.items()
    ]


def wrong_lines(wrong: Sequence[str]) -> list[str]:
    """The first violations, and their number."""
    return [*(f"  WRONG: {what}" for what in wrong[:20]), f"  {len(wrong)} wrong"]
