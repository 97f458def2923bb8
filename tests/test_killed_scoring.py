"""`kill -9` in the middle of stage one loses the shard in flight and nothing else."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_scoring import cached_rows, recipe
from tiny_references import hard_pairs, plain_pairs, reference, write_pairs

KILLS = 10


def score(document: dict[str, Any]) -> None:
    """What the killed process runs."""
    import torch

    from mrpo_pipeline.recipe import parse_recipe
    from mrpo_pipeline.scoring import score_references

    torch.set_num_threads(1)
    score_references(parse_recipe(document))


@pytest.mark.slow
def test_ten_kills_and_a_rerun_serve_what_an_undisturbed_run_serves(tmp_path: Path) -> None:
    model = reference(tmp_path / "model", "llama", "qwen")
    pairs = write_pairs(tmp_path / "pairs.jsonl", [*hard_pairs(), *plain_pairs(400)])

    def document(cache: str) -> dict[str, Any]:
        settings = {"engine": "transformers", "rows_per_shard": 16, "max_batch_tokens": 512, "threads": 1}
        run = recipe(tmp_path, {"base": model}, pairs, cache=str(tmp_path / cache), scoring=settings)
        return run.model_dump(mode="json")

    # A fork server has the imports done, so that a child is killed while it works and not while it loads.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "transformers", "mrpo_pipeline.scoring"])
    undisturbed = context.Process(target=score, args=(document("undisturbed"),))
    began = time.monotonic()
    undisturbed.start()
    undisturbed.join()
    assert undisturbed.exitcode == 0
    whole = time.monotonic() - began

    draw = random.Random(0)
    shards = tmp_path / "killed" / "base" / "shards"
    seen = []
    for _ in range(KILLS):
        child = context.Process(target=score, args=(document("killed"),))
        child.start()
        # At a random instant of the work: once it writes shards, or before.
        deadline = time.monotonic() + draw.uniform(0.05, 1.0) * whole
        had = len(list(shards.glob("*.parquet"))) if shards.is_dir() else 0
        more = draw.randint(0, 12)
        while child.is_alive() and time.monotonic() < deadline:
            if shards.is_dir() and len(list(shards.glob("*.parquet"))) - had > more:
                break
            time.sleep(0.005)
        if child.is_alive():
            os.kill(child.pid or 0, signal.SIGKILL)
        child.join()
        seen.append(child.exitcode)
    assert seen.count(-signal.SIGKILL) >= KILLS // 2, f"too few children were killed alive: {seen}"

    final = context.Process(target=score, args=(document("killed"),))
    final.start()
    final.join()
    assert final.exitcode == 0
    expected, found = cached_rows(tmp_path / "undisturbed", "base"), cached_rows(tmp_path / "killed", "base")
    assert found.keys() == expected.keys()
    for identifier, row in expected.items():
        assert found[identifier]["token_ids"] == row["token_ids"]
        assert found[identifier]["byte_ends"] == row["byte_ends"]
        np.testing.assert_allclose(found[identifier]["logprobs"], row["logprobs"], atol=1e-5, rtol=0)
