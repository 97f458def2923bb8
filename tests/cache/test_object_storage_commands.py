"""A cache in an object store through the real commands: scored, interrupted, resumed, trained from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from loopback_s3 import LoopbackS3
from mrpo_command import mrpo
from tiny_references import hard_pairs, plain_pairs, reference, write_pairs

from mrpo_pipeline.cache import ReferenceCache


def rows_of(root: str, name: str) -> dict[str, dict[str, list[float]]]:
    """Completion → its row in the shards."""
    cache = ReferenceCache.open(root, name)
    every = cache._coverage.rows().select("completion_id").unique().sort("completion_id")
    wanted = every.with_columns(cut=0)
    return {row["completion_id"]: row for row in cache.rows(wanted).to_dicts()}


@pytest.mark.slow
def test_score_interrupt_resume_and_train(s3: LoopbackS3, bucket: str, tmp_path: Path) -> None:
    url = f"{bucket}/runs/cache"
    reference(tmp_path / "base", "llama", "qwen")
    reference(tmp_path / "other", "gpt_neox", "gpt2", seed=1)
    write_pairs(tmp_path / "pairs.jsonl", [*hard_pairs(), *plain_pairs(150)])
    recipe = [
        "--train-file", "pairs.jsonl", "--model", "base", "--reference", "base=base", "--reference", "other=other",
        "--set", "scoring.engine=transformers", "--set", "scoring.rows_per_shard=16",
    ]  # fmt: skip

    local = mrpo("score-refs", *recipe, "--cache", "local", cwd=tmp_path)
    assert local.returncode == 0, local.stderr

    s3.line.cut_after = 80_000
    broken = mrpo("score-refs", *recipe, "--cache", url, cwd=tmp_path)
    assert broken.returncode == 1, broken.stderr
    told = broken.stderr.strip().splitlines()[-1]
    assert broken.stderr.count("could not be written") == 1
    assert "could not be written" in told and "cannot be reached" in told and "Earlier shards are complete" in told
    assert "Traceback" not in broken.stderr and "botocore" not in broken.stderr and "not-a-secret" not in broken.stderr
    s3.line.restore()
    whole = rows_of(str(tmp_path / "local"), "base")
    partly = rows_of(url, "base")
    assert 0 < len(partly) < len(whole)
    assert all(report.problem is None for report in ReferenceCache.open(url, "base").verify())

    resumed = mrpo("score-refs", *recipe, "--cache", url, cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert f"{len(whole) - len(partly):,} scored, {len(partly):,} cached already" in resumed.stderr
    for name in ("base", "other"):
        expected, found = rows_of(str(tmp_path / "local"), name), rows_of(url, name)
        assert found.keys() == expected.keys()
        for identifier, row in expected.items():
            assert {**found[identifier], "logprobs": None} == {**row, "logprobs": None}
            np.testing.assert_allclose(found[identifier]["logprobs"], row["logprobs"], atol=1e-5)

    again = mrpo("score-refs", *recipe, "--cache", url, cwd=tmp_path)
    assert again.returncode == 0 and again.stderr.count(" 0 scored, 320 cached already") == 2
    assert "Unclosed" not in again.stderr and "ignored" not in again.stderr  # connections are closed at the end

    trained = mrpo("train", *recipe, "--cache", url, "--max-steps", "3", "--output-dir", "out", cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    assert (tmp_path / "out" / "adapter_model.safetensors").exists()
    assert any("base/sums/" in name for name in s3.keys(url))

    listed = mrpo("cache", "stats", "--cache", url, cwd=tmp_path)
    assert listed.returncode == 0, listed.stderr
    assert f"{len(whole):,}" in listed.stdout
    emptied = mrpo("cache", "prune", "--cache", url, "--reference", "other", "--all", cwd=tmp_path)
    assert emptied.returncode == 0, emptied.stderr
    assert {name.partition("/")[0] for name in s3.keys(url)} == {"base"}


def test_a_store_that_cannot_be_used_ends_the_command_before_any_model_loads(s3: LoopbackS3, tmp_path: Path) -> None:
    absent = mrpo("cache", "stats", "--cache", "s3://no-such-bucket-anywhere/cache", cwd=tmp_path)
    assert absent.returncode == 2
    assert "there is no such bucket" in absent.stderr and "Traceback" not in absent.stderr
    assert absent.stderr.strip().count("\n") == 0
