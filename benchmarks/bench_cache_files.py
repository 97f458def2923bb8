"""One reference's cache in many shards: the time to open and sum it, and the peak memory of copying it by the number of rows.

    python benchmarks/bench_cache_files.py [--rows 1000000] [--shards 5000] [--tokens 60]

The cache is synthetic (random numbers, the real encoder). It is opened and summed in a new process each time: without derived
files, with those that the previous process left, and after `mrpo cache compact`. Push to a folder, `--without-ids`, pull, merge and
compact each run in a process, on shards of 4,096 rows, with `--rows` rows and a tenth of them: memory is flat if both peaks are alike.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from measuring import claim, describe_machine, in_own_process, machine, peak_rss_mb, table, timed, write_results

USUAL_SHARD = 4096


def make_cache(root: str, rows: int, rows_per_shard: int, tokens: int) -> dict[str, float]:
    """Write the shards of a reference ``r``; returns their size on disk."""
    import numpy as np
    import pyarrow as pa

    from mrpo_pipeline.cache import SHARD_SCHEMA, ReferenceCache
    from mrpo_pipeline.cache.schema import encode_shard

    draw = np.random.default_rng(0)
    cache = ReferenceCache.open(root, "r")
    manifest = cache.create_or_check({"model": "made-up", "revision": "1"})
    size = 0
    for first in range(0, rows, rows_per_shard):
        count = min(rows_per_shard, rows - first)
        lengths = draw.integers(tokens // 2, tokens * 3 // 2, count)
        starts = np.cumsum(lengths) - lengths
        offsets = pa.array(np.append(starts, lengths.sum()), pa.int32())
        place = np.arange(lengths.sum()) - np.repeat(starts, lengths)
        columns = [
            pa.array([f"{number:032x}" for number in range(first, first + count)]),
            pa.array(draw.integers(20, 200, count), pa.int32()),
            pa.ListArray.from_arrays(offsets, pa.array(draw.integers(1, 32_000, len(place)), pa.int32())),
            pa.ListArray.from_arrays(offsets, pa.array(-draw.standard_exponential(len(place), dtype=np.float32))),
            pa.ListArray.from_arrays(offsets, pa.array(4 * place + 4, pa.int32())),
            pa.array(np.ones(count, bool)),
        ]
        data = encode_shard(pa.Table.from_arrays(columns, schema=SHARD_SCHEMA), manifest.fingerprint)
        cache.storage.put("shards", data)
        size += data.size
    return {"mb": size / 1e6}


def open_and_sum(root: str, rows: int) -> dict[str, float]:
    """What `mrpo score-refs` needs first (what is missing), and what `mrpo train` needs first (the sums)."""
    import polars as pl

    from mrpo_pipeline.cache import ReferenceCache

    ids = pl.DataFrame({"completion_id": [f"{number:032x}" for number in range(rows)]})
    wanted = ids.with_columns(cut=pl.lit(None, pl.Int64))
    cache = ReferenceCache.open(root, "r")
    resting = peak_rss_mb()
    missing, opening = timed(lambda: cache.missing(wanted))
    sums, summing = timed(lambda: cache.sums(wanted))
    assert missing.is_empty()
    assert sums.height - sums["logps"].null_count() == rows
    return {
        "open_s": opening["wall_s"],
        "open_cpu_s": opening["cpu_s"],
        "sums_s": summing["wall_s"],
        "sums_cpu_s": summing["cpu_s"],
        "added_mb": peak_rss_mb() - resting,
    }


def push(source: str, target: str, without_ids: bool) -> dict[str, float]:
    from mrpo_pipeline.exports.publish_cache import push_cache

    return _measured(lambda: push_cache(source, target, without_ids=without_ids))


def pull(source: str, target: str) -> dict[str, float]:
    from mrpo_pipeline.exports.publish_cache import pull_cache

    return _measured(lambda: pull_cache(source, target))


def merge(source: str, target: str) -> dict[str, float]:
    from mrpo_pipeline.exports.publish_cache import merge_caches

    return _measured(lambda: merge_caches(source, target))


def compact(root: str) -> dict[str, float]:
    from mrpo_pipeline.cache import ReferenceCache

    return _measured(lambda: ReferenceCache.open(root, "r").compact())


def _measured(work: Callable[[], Any]) -> dict[str, float]:
    resting = peak_rss_mb()
    _, took = timed(work)
    return {**took, "peak_mb": peak_rss_mb(), "added_mb": peak_rss_mb() - resting}


def travel(folder: str, rows: int, tokens: int) -> dict[str, dict[str, float]]:
    """Each way of copying, each in its own process."""
    own, there, bare, here = (str(Path(folder) / name) for name in ("own", "there", "bare", "here"))
    in_own_process(make_cache, own, rows, USUAL_SHARD, tokens)
    found = {"push": in_own_process(push, own, there, False)}
    found["push --without-ids"] = in_own_process(push, own, bare, True)
    shutil.rmtree(bare)
    found["pull"] = in_own_process(pull, there, here)
    shutil.rmtree(there)
    _half(Path(here))
    found["merge"] = in_own_process(merge, own, here)
    shutil.rmtree(here)
    found["compact"] = in_own_process(compact, own)
    shutil.rmtree(own)
    return found


def _half(root: Path) -> None:
    """Keep every second shard."""
    for path in sorted((root / "r" / "shards").iterdir())[::2]:
        path.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--shards", type=int, default=5000)
    parser.add_argument("--tokens", type=int, default=60, help="of a completion, on average")
    parser.add_argument("--only", choices=("open", "copy"), help="one half of it")
    parser.add_argument("--quick", action="store_true", help="20,000 rows in 100 shards")
    parser.add_argument("--scratch", help="where the caches lie meanwhile; the temporary folder if not given")
    given = parser.parse_args()
    if given.quick:
        given.rows, given.shards = 20_000, 100
    found = machine()
    openings: dict[str, dict[str, float]] = {}
    travels: dict[str, dict[str, dict[str, float]]] = {}
    with tempfile.TemporaryDirectory(dir=given.scratch) as folder:
        if given.only != "copy":
            root = str(Path(folder) / "many")
            size = in_own_process(make_cache, root, given.rows, given.rows // given.shards, given.tokens)["mb"]
            shards = f"{given.shards:,} shards, {size:,.0f} MB"
            for what in ("nothing derived", "after"):
                openings[f"{shards}: {what}"] = in_own_process(open_and_sum, root, given.rows)
            in_own_process(compact, root)
            for what in ("nothing derived", "after"):
                openings[f"compacted: {what}"] = in_own_process(open_and_sum, root, given.rows)
            shutil.rmtree(root)
        if given.only != "open":
            for rows in (given.rows // 10, given.rows):
                travels[f"{rows:,}"] = travel(str(Path(folder) / "copy"), rows, given.tokens)
    report(given, found, openings, travels)


def report(given: Any, found: dict[str, Any], openings: dict[str, Any], travels: dict[str, Any]) -> None:
    parts = [f"{given.rows:,} rows of about {given.tokens} tokens\n{describe_machine(found)}"]
    claims = []
    if openings:
        names = ("open_s", "open_cpu_s", "sums_s", "sums_cpu_s", "added_mb")
        parts.append(
            table(["cache", *names], [[what, *(f"{run[n]:,.2f}" for n in names)] for what, run in openings.items()])
        )
        for what, run in openings.items():
            claims += [
                claim(f"{given.rows:,} rows, {what}: open, seconds", run["open_s"], at_most=1.0, form="{:.2f}"),
                claim(f"{given.rows:,} rows, {what}: sums, seconds", run["sums_s"], at_most=2.0, form="{:.2f}"),
            ]
    if travels:
        few, many = travels.values()
        names = ("wall_s", "peak_mb", "added_mb")
        body = [
            [f"{what}, {rows} rows", *(f"{run[n]:,.1f}" for n in names)]
            for rows, runs in travels.items()
            for what, run in runs.items()
        ]
        parts.append(table(["copy", *names], body))
        claims += [
            claim(
                f"{what}: peak memory of {given.rows:,} rows ÷ of a tenth",
                many[what]["peak_mb"] / few[what]["peak_mb"],
                at_most=1.1,
            )
            for what in many
        ]
    document = {"machine": found, "given": vars(given), "claims": claims, "open": openings, "copy": travels}
    write_results("cache_files", document, "\n\n".join(parts))


if __name__ == "__main__":
    main()
