"""`mrpo train` on many pairs of text: time to the first step, in the first run and in later ones, and memory.

    python benchmarks/bench_large.py [--rows 1000000] [--references 2] [--pairs FILE …] [--steps 5]

The rows of the pairs files are repeated, each with its number in the question, in one Parquet file. The caches are synthetic (random
log-probs under the real fingerprint, by the real writer). Processes run one after another: one writes the rows, one makes the caches,
and each `mrpo train` is a separate one. The first reads, truncates and tokenizes every pair and computes the sums; the others read
both from disk.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from pathlib import Path
from typing import Any

from measuring import (
    claim,
    describe_machine,
    environment,
    in_own_process,
    machine,
    peak_rss_mb,
    table,
    timed,
    write_results,
)
from side_by_side import find_pairs, make_policy, named, read_rows, write_rows

GIB = 1024.0
PART = 50_000


def make_rows(folder: str, files: list[str], count: int) -> None:
    """``rows.parquet``: prompt, chosen and rejected as messages."""
    import polars as pl
    import pyarrow.parquet as pq

    rows = read_rows(*files)
    write_rows(Path(folder) / "seen.jsonl", rows)
    draw = random.Random(0)
    writer = None
    for start in range(0, count, PART):
        part = []
        for number in range(start, min(start + PART, count)):
            row = rows[draw.randrange(len(rows))]
            *before, last = row["prompt"]
            asked = last | {"content": f"Question {number}. {last['content']}"}
            part.append({"prompt": [*before, asked], "chosen": row["chosen"], "rejected": row["rejected"]})
        arrow = pl.DataFrame(part).to_arrow()
        writer = writer or pq.ParquetWriter(Path(folder) / "rows.parquet", arrow.schema)
        writer.write_table(arrow)
    assert writer is not None
    writer.close()


def recipe(folder: str, references: int, steps: int) -> Any:
    from mrpo_pipeline.recipe import parse_recipe

    policy = str(Path(folder) / "policy")
    training = {"max_steps": steps, "save_strategy": "no", "use_cpu": True, "logging_steps": 1}
    return parse_recipe(
        {
            "pairs": {"train": str(Path(folder) / "rows.parquet")},
            "limits": {"max_length": 512},
            "policy": {"model": policy, "check_anchor": False},
            "references": {f"r{number}": {"model": policy} for number in range(references)},
            "cache": str(Path(folder) / "cache"),
            "output_dir": str(Path(folder) / "output"),
            "training": training,
        }
    )


def make_caches(folder: str, references: int) -> dict[str, float]:
    """Every completion of every pair for every reference, with a log-prob and an end per word instead of per token."""
    import numpy as np
    import pyarrow.parquet as pq

    from mrpo_pipeline.cache import ReferenceCache
    from mrpo_pipeline.models.source import resolve
    from mrpo_pipeline.rendering import Renderer

    draw = np.random.default_rng(0)
    for source in recipe(folder, references, 1).sources():
        cache = ReferenceCache.open(Path(folder) / "cache", source.name)
        cache.create_or_check(resolve(source, Renderer.of(source).identity()))
        with cache.writer(rows_per_shard=4096, seconds=1e9) as writer:
            for batch in pq.ParquetFile(Path(folder) / "rows.parquet").iter_batches(PART, use_threads=False):
                for row in batch.to_pylist():
                    for side in ("chosen", "rejected"):
                        writer.add(made_up(row["prompt"], row[side][0]["content"], draw))
    size = sum(path.stat().st_size for path in (Path(folder) / "cache" / "r0" / "shards").iterdir())
    return {"shard_mb": size / 1e6}


def made_up(prompt: list[dict[str, str]], completion: str, draw: Any) -> Any:
    import numpy as np

    from mrpo_pipeline.cache import CompletionRow
    from mrpo_pipeline.pairs.identity import completion_id, dump_prompt

    data = completion.encode()
    ends = [at for at in range(1, len(data)) if data[at] == ord(" ")] + [
        len(data)
    ] * 2  # the last: the end-of-turn token
    count = len(ends)
    words = draw.integers(0, 8000, count, dtype=np.int32)
    logps = -draw.standard_exponential(count, dtype=np.float32)
    name = completion_id(dump_prompt(prompt), completion)
    return CompletionRow(name, 20, words, logps, np.array(ends, np.int32), True)


def train(folder: str, references: int, steps: int) -> dict[str, float]:
    """One `mrpo train` in a new process, from its start to its last step."""
    import time

    import torch
    from transformers import TrainerCallback

    from mrpo_pipeline.policy import train as training
    from mrpo_pipeline.policy.run import train_recipe

    torch.set_num_threads(1)
    began = {"wall": time.monotonic(), "cpu": time.process_time()}
    found: dict[str, float] = {}

    class FirstStep(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            found.setdefault("to_first_step_s", time.monotonic() - began["wall"])
            found.setdefault("to_first_step_cpu_s", time.process_time() - began["cpu"])
            found.setdefault("peak_before_step_mb", peak_rss_mb())

    original = training._trainer
    training._trainer = lambda *args, **options: _watched(original(*args, **options), FirstStep())
    results = train_recipe(recipe(folder, references, steps))
    return {**found, "peak_mb": peak_rss_mb(), "loss": results["train_loss"]}


def _watched(trainer: Any, callback: Any) -> Any:
    trainer.add_callback(callback)
    return trainer


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--references", type=int, default=2)
    parser.add_argument("--pairs", nargs="+", help="JSON lines with prompt, chosen, rejected as messages")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--scratch", help="where rows and caches lie meanwhile; the temporary folder if not given")
    given = parser.parse_args()
    found, files = machine(), find_pairs(given.pairs)
    with tempfile.TemporaryDirectory(dir=given.scratch) as folder, environment(MRPO_HOME=str(Path(folder) / "home")):
        in_own_process(make_rows, folder, [str(file) for file in files], given.rows)
        in_own_process(make_policy, str(Path(folder) / "policy"), str(Path(folder) / "seen.jsonl"), 8192)
        made, making = timed(lambda: in_own_process(make_caches, folder, given.references))
        runs = [in_own_process(train, folder, given.references, given.steps) for _ in range(2)]
        size = (Path(folder) / "rows.parquet").stat().st_size / 1e6
    names = ("to_first_step_s", "to_first_step_cpu_s", "peak_before_step_mb", "peak_mb", "loss")
    body = [
        [what, *(f"{run[name]:,.2f}" for name in names)] for what, run in zip(("first", "after"), runs, strict=True)
    ]
    text = (
        f"{given.rows:,} rows of {named(files)} ({size:,.0f} MB of Parquet), {given.references} references of {made['shard_mb']:,.0f} "
        f"MB each, made up in {making['wall_s']:,.0f} s\n{describe_machine(found)}\n\n" + table(["run", *names], body)
    )
    peak = max(run["peak_mb"] for run in runs) / GIB
    what = f"mrpo train on {given.rows:,} rows, K = {given.references}"
    claims = [
        claim(f"{what}: peak memory, GiB", peak, at_most=24.0, form="{:.1f}"),
        claim(f"{what}: seconds to the first step, first", runs[0]["to_first_step_s"], form="{:.0f}"),
        claim(f"{what}: seconds to the first step, after", runs[1]["to_first_step_s"], form="{:.1f}"),
    ]
    write_results(
        f"large-{given.rows}x{given.references}",
        {"machine": found, "given": vars(given), "claims": claims, "runs": runs},
        text,
    )


if __name__ == "__main__":
    main()
