"""Runs that score into one cache in an object store see each other until they end or die, whatever their clocks say."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from loopback_s3 import LoopbackS3
from tiny_references import plain_pairs, reference, write_pairs

from mrpo_pipeline.cache import active_writers
from mrpo_pipeline.cache.active_writers import register_run
from mrpo_pipeline.cache.object_storage import ObjectStorage

WRITER = """
import json, sys, time
from mrpo_pipeline.cache import active_writers
active_writers.REFRESH_SECONDS = float(sys.argv[2])
from mrpo_pipeline.cache.object_storage import ObjectStorage
with active_writers.register_run(ObjectStorage(sys.argv[1])) as others:
    for _ in sys.stdin:
        print(json.dumps([[one.name, one.came_first] for one in others()]), flush=True)
"""


class Writer:
    """A registered process that reports on demand which others it sees."""

    def __init__(self, url: str, refresh: float = 0.3) -> None:
        command = [sys.executable, "-c", WRITER, url, str(refresh)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def sees(self) -> list[list[object]]:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        found: list[list[object]] = json.loads(self.process.stdout.readline())
        return found

    def end(self) -> None:
        self.process.communicate()


@pytest.fixture
def url(s3: LoopbackS3, bucket: str) -> str:
    return f"{bucket}/cache/base"


def until(what: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_two_processes_see_each_other_and_which_came_first(url: str, s3: LoopbackS3) -> None:
    first = Writer(url)
    assert first.sees() == []
    second = Writer(url)
    assert second.sees() == [[f"process {first.process.pid}", True]]
    assert first.sees() == [[f"process {second.process.pid}", False]]
    first.end()
    assert second.sees() == []
    second.end()
    assert not s3.keys(url)


def test_a_killed_one_counts_no_more_after_a_while_and_a_busy_one_does(
    url: str, s3: LoopbackS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(active_writers, "DEAD_SECONDS", 10.0)
    busy, killed = Writer(url), Writer(url)
    busy.sees()
    killed.sees()
    time.sleep(1.1)  # the store's times are in seconds; within one second, names decide who came first
    with register_run(ObjectStorage(url)) as others:
        assert {one.name for one in others()} == {f"process {one.process.pid}" for one in (busy, killed)}
        killed.process.send_signal(signal.SIGKILL)
        killed.process.wait()
        until(lambda: [one.name for one in others()] == [f"process {busy.process.pid}"])
        assert len(s3.keys(url)) == 2
        time.sleep(12)  # longer than until it counts as dead: only its rewrites keep it registered
        assert [one.came_first for one in others()] == [True]
    busy.end()


def test_a_store_that_takes_no_files_is_scored_alone(s3: LoopbackS3) -> None:
    with register_run(ObjectStorage(f"{s3.bucket('read-only-runs')}/cache/base")) as others:
        assert others() == []


@pytest.mark.slow
def test_two_scorers_on_a_store_share_the_work(s3: LoopbackS3, bucket: str, tmp_path: Path) -> None:
    reference(tmp_path / "base", "llama", "qwen")
    write_pairs(tmp_path / "pairs.jsonl", plain_pairs(1200))
    options = [
        "score-refs", "--train-file", "pairs.jsonl", "--model", "base", "--reference", "base=base", "--cache", f"{bucket}/cache",
        "--set", "scoring.engine=transformers",
    ]  # fmt: skip
    # Units as small as those of runs that see each other, or the first run could hold most completions before it sees the other.
    units = "from mrpo_pipeline.scoring import concurrent_runs as runs; runs.ALONE['transformers'] = runs.TOGETHER"
    command = [sys.executable, "-c", f"{units}; from mrpo_cli.main import main; main()", *options]
    runs = [subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    errors = [run.communicate()[1] for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    assert any("is being scored into this cache by process" in text for text in errors)
    scored = [int(count.replace(",", "")) for text in errors for count in re.findall(r"([\d,]+) scored,", text)]
    assert len(scored) == 2 and sum(scored) < 1.6 * 2400
