"""Stage two from caches to targets: time of the first and of later runs, and memory, by the number of pairs; also over spans.

    python benchmarks/bench_cache.py --pairs 100000 --references 4

The caches are synthetic (random numbers, the real writer); pairs come from a memory-mapped file and are tokenized. Processes run
one after another: one writes the caches, one checks every shard's checksum, computes the sums and stores them, and further ones
read the stored sums, as every run after the first does. Spans are measured once the sums are stored.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

from measuring import claim, describe_machine, in_own_process, machine, peak_rss_mb, table, timed, write_results

from mrpo_pipeline.pairs.counts import Counts

FILE_ROWS = 50_000


def make_caches(folder: str, pairs: int, references: int, tokens: int) -> dict[str, float]:
    """Write the caches and the tokenized pairs; returns the size of one reference's shards on disk."""
    import numpy as np
    import polars as pl

    from mrpo_pipeline.cache import CompletionRow, ReferenceCache

    random = np.random.default_rng(0)
    ids = np.array([f"{number:032x}" for number in range(2 * pairs)])
    lengths = random.integers(tokens // 2, tokens * 3 // 2, 2 * pairs)
    prompts = random.integers(tokens // 2, tokens * 3 // 2, pairs)
    for reference in range(references):
        cache = ReferenceCache.open(Path(folder) / "cache", f"r{reference}")
        cache.create_or_check({"model": f"made-up-{reference}"})
        with cache.writer(rows_per_shard=4096, seconds=1e9) as writer:
            for name, length in zip(ids.tolist(), lengths.tolist(), strict=True):
                words = random.integers(0, 32_000, length, dtype=np.int32)
                logps = -random.standard_exponential(length, dtype=np.float32)
                ends = np.arange(4, 4 * length + 4, 4, dtype=np.int32)
                ends[:-2:2] -= reference % 4  # every second token ends at the same place as in the other references
                writer.add(CompletionRow(name, 100, words, logps, ends, True))
    text = "some words " * (tokens // 3)

    def lists(counts: Any) -> pl.Series:
        flat = pl.Series(random.integers(0, 32_000, int(counts.sum()), dtype=np.int32))
        owner = pl.Series(np.repeat(np.arange(len(counts)), counts))
        return pl.DataFrame({"owner": owner, "flat": flat}).group_by("owner", maintain_order=True).agg("flat")["flat"]

    for number, start in enumerate(range(0, pairs, FILE_ROWS)):
        part = slice(start, min(start + FILE_ROWS, pairs))
        both = slice(2 * part.start, 2 * part.stop)
        count = part.stop - part.start
        pl.DataFrame(
            {
                "pair_id": ids[part],
                **{name: [text] * count for name in ("prompt", "chosen", "rejected")},
                "chosen_id": ids[both][0::2],
                "rejected_id": ids[both][1::2],
                "chosen_cut": pl.Series([None] * count, dtype=pl.Int64),
                "rejected_cut": pl.Series([None] * count, dtype=pl.Int64),
                "prompt_ids": lists(prompts[part]),
                **{
                    name: pl.Series([None] * count, dtype=pl.List(pl.Boolean))
                    for name in ("chosen_scored", "rejected_scored")
                },
                "chosen_ids": lists(lengths[both][0::2]),
                "rejected_ids": lists(lengths[both][1::2]),
            }
        ).write_ipc(Path(folder) / f"pairs-{number:04}.arrow", compression="uncompressed")
    size = sum(path.stat().st_size for path in (Path(folder) / "cache" / "r0" / "shards").iterdir())
    return {"shard_mb": size / 1e6}


def load(folder: str, references: int) -> dict[str, float]:
    """Join the pairs with their sums and make the targets, as `mrpo train` does."""
    import polars as pl
    import pyarrow as pa
    import pyarrow.ipc

    from mrpo_pipeline.cache import ReferenceCache
    from mrpo_pipeline.dataset.pair_targets import training_examples
    from mrpo_pipeline.dataset.reference_logps import join_references
    from mrpo_pipeline.dataset.truncate import Prepared
    from mrpo_pipeline.recipe import Method

    resting = peak_rss_mb()
    files = sorted(Path(folder).glob("pairs-*.arrow"))
    frame = pl.concat([pl.DataFrame(pl.from_arrow(pa.ipc.open_file(pa.memory_map(str(f))).read_all())) for f in files])
    caches = [ReferenceCache.open(Path(folder) / "cache", f"r{number}") for number in range(references)]
    joined, joining = timed(lambda: join_references(caches, Prepared(frame, Counts(frame.height, frame.height))))
    (examples, _), making = timed(lambda: training_examples(joined, Method()))
    (over_spans, _), mixing = timed(lambda: training_examples(joined, Method(aggregate_over="span")))
    assert len(examples) == len(over_spans) == frame.height
    return {
        "join_s": joining["wall_s"],
        "join_cpu_s": joining["cpu_s"],
        "targets_s": making["wall_s"],
        "targets_cpu_s": making["cpu_s"],
        "load_s": joining["wall_s"] + making["wall_s"],
        "spans_s": mixing["wall_s"],
        "spans_cpu_s": mixing["cpu_s"],
        "peak_mb": peak_rss_mb(),
        "resting_mb": resting,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=100_000)
    parser.add_argument("--references", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=150, help="of a completion, and of a prompt, on average")
    parser.add_argument("--repeats", type=int, default=3, help="runs that find the sums kept")
    parser.add_argument(
        "--scratch", help="where the made-up caches lie meanwhile; the system's temporary folder if not given"
    )
    given = parser.parse_args()
    found = machine()
    with tempfile.TemporaryDirectory(dir=given.scratch) as folder:
        made, writing = timed(lambda: in_own_process(make_caches, folder, given.pairs, given.references, given.tokens))
        first = in_own_process(load, folder, given.references)
        after = [in_own_process(load, folder, given.references) for _ in range(given.repeats)]
    again = {name: statistics.median(run[name] for run in after) for name in first}
    names = (
        "load_s",
        "join_s",
        "join_cpu_s",
        "targets_s",
        "targets_cpu_s",
        "spans_s",
        "spans_cpu_s",
        "peak_mb",
        "resting_mb",
    )
    body = [[what, *(f"{run[name]:,.2f}" for name in names)] for what, run in (("first", first), ("after", again))]
    text = (
        f"{given.pairs:,} pairs, {given.references} references, about {given.tokens} tokens a completion; "
        f"{made['shard_mb']:,.0f} MB of shards a reference, written in {writing['wall_s']:,.0f} s in all; “after” is the median "
        f"of {given.repeats} runs\n{describe_machine(found)}\n\n" + table(["run", *names], body)
    )
    # The goals are for this size only.
    goals = (60.0, 2.0, 30.0) if (given.pairs, given.references) == (100_000, 4) else (None, None, None)
    what = f"targets of {given.pairs:,} pairs, K = {given.references}"
    claims = [
        claim(f"{what}: first building, seconds", first["load_s"], at_most=goals[0], form="{:.1f}"),
        claim(f"{what}: loading after, seconds", again["load_s"], at_most=goals[1], form="{:.2f}"),
        claim(f"{what} over spans: first building, seconds", first["spans_s"], at_most=goals[2], form="{:.1f}"),
        claim(f"{what} over spans: after, seconds", again["spans_s"], form="{:.1f}"),
    ]
    document = {"machine": found, "given": vars(given), "claims": claims, "writing": writing | made, "first": first}
    write_results(f"cache-{given.pairs}x{given.references}", document | {"after": after}, text)


if __name__ == "__main__":
    main()
