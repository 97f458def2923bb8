"""Shared by the tests of several workers: a run that lasts long enough to be killed, and what its cache must serve."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import yaml
from tiny_recipes import recipe
from tiny_references import hard_pairs, plain_pairs, reference, write_pairs

# Few tokens per step and several shards per unit: a killed worker leaves a unit partly written.
SLOW = {"engine": "transformers", "threads": 1, "max_batch_tokens": 128, "unit": 48, "rows_per_shard": 20}


def make_run(folder: Path, *, pairs: int = 500, **scoring: Any) -> Path:
    """A recipe file with a new reference and hard and easy pairs; its cache is ``folder/cache``."""
    model = reference(folder / "model", "llama", "qwen")
    rows = write_pairs(folder / "pairs.jsonl", [*hard_pairs(), *plain_pairs(pairs)])
    made = recipe(folder, {"base": model}, rows, scoring={**SLOW, **scoring})
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(made.model_dump(mode="json", exclude_none=True)), encoding="utf-8")
    return path


def start(path: Path, *options: str, environment: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    """Start `mrpo score-refs --json` in a new process."""
    command = [
        sys.executable,
        "-c",
        "from mrpo_cli.main import main; main()",
        "score-refs",
        str(path),
        "--json",
        *options,
    ]
    return subprocess.Popen(
        command, env=dict(environment or os.environ), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def shards(folder: Path) -> int:
    where = folder / "cache" / "base" / "shards"
    return len(list(where.glob("*.parquet"))) if where.is_dir() else 0


def wait_until(run: subprocess.Popen[str], true: Callable[[], bool], seconds: float = 180) -> None:
    """Wait while the run continues; fails if the run ends first."""
    deadline = time.monotonic() + seconds
    while not true():
        assert run.poll() is None, f"the run ended before it was killed into: {run.communicate()}"
        assert time.monotonic() < deadline, "the run did not get so far"
        time.sleep(0.01)


def workers_below(pid: int, title: str = "ray::Worker") -> list[psutil.Process]:
    """Ray's scoring workers among the descendants of a process; with `ray::Worker.score`, those that execute a unit."""
    found = []
    for process in psutil.Process(pid).children(recursive=True):
        try:
            if (process.cmdline() or [""])[0].startswith(title):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def assert_serves_the_same(found: Mapping[str, dict[str, Any]], expected: Mapping[str, dict[str, Any]]) -> None:
    """Ids and ends exact, log-probs within 1e-5."""
    assert found.keys() == expected.keys()
    for identifier, row in expected.items():
        for exact in ("token_ids", "byte_ends", "prompt_tokens", "complete"):
            assert found[identifier][exact] == row[exact]
        np.testing.assert_allclose(found[identifier]["logprobs"], row["logprobs"], atol=1e-5, rtol=0)
