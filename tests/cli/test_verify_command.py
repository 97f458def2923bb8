"""`mrpo cache verify`: its checks, output and exit codes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from mrpo_command import mrpo
from tiny_references import plain_pairs, reference, write_pairs

from mrpo_pipeline.cache import CompletionRow, ReferenceCache


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe, two references, their cache, and another reference whose log-probs are off by a nat."""
    folder = tmp_path_factory.mktemp("scored")
    reference(folder / "one", "llama", "qwen")
    reference(folder / "two", "gpt2", "llama2")
    write_pairs(folder / "pairs.jsonl", plain_pairs(10))
    recipe = {
        "pairs": {"train": "pairs.jsonl"},
        "policy": {"model": "one"},
        "references": {"base": {"model": "one"}, "second": {"model": "two"}, "again": {"model": "one"}},
        "scoring": {"engine": "transformers"},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    done = mrpo("score-refs", "recipe.yaml", "--only", "base", "--only", "second", cwd=folder)
    assert done.returncode == 0, done.stderr
    good = ReferenceCache.open(folder / "cache", "base")
    manifest = good.manifest()
    assert manifest is not None
    wrong = ReferenceCache.open(folder / "cache", "again")
    wrong.create_or_check(manifest.fingerprint, {"engine": "planted"})
    with wrong.writer() as writer:
        for shard in (folder / "cache/base/shards").glob("*.parquet"):
            for row in pq.read_table(shard).to_pylist():
                arrays = {
                    "token_ids": np.array(row["token_ids"], np.int32),
                    "logprobs": np.array(row["logprobs"], np.float32) - np.float32(1),
                    "byte_ends": np.array(row["byte_ends"], np.int32),
                }
                writer.add(CompletionRow(**{**row, **arrays}))
    return folder


def test_with_a_recipe_numbers_are_computed_again_and_the_result_is_kept(scored: Path) -> None:
    done = mrpo("cache", "verify", "recipe.yaml", "--check", "5", "--only", "base", "--reference", "second", cwd=scored)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert done.stdout.count("1 shards read, 20 rows: checksums") == 2
    assert [line.split(":")[0] for line in lines if "5 of 20 completions recomputed" in line] == ["base", "second"]
    assert done.stdout.count("they agree") == 2 and "99th percentile" in done.stdout
    for name in ("base", "second"):
        (kept,) = ReferenceCache.open(scored / "cache", name).checks()
        assert kept["passed"] and kept["differences"]["completions"] == 5


def test_numbers_that_are_wrong_fail_with_the_worst_completion_named(scored: Path) -> None:
    done = mrpo("cache", "verify", "recipe.yaml", "--json", cwd=scored)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    report = {one["reference"]: one for one in json.loads(done.stdout)}
    assert [report[name]["drift"]["passed"] for name in ("base", "second", "again")] == [True, True, False]
    drift = report["again"]["drift"]
    assert (
        drift["differences"]["token_mean"] == pytest.approx(1, abs=1e-3) and drift["differences"]["completions"] == 20
    )
    assert drift["worst"]["completion_id"] in done.stderr and drift["worst"]["text"][:10] in done.stderr
    assert "mrpo cache prune --cache cache --reference again --all" in done.stderr
    # A limit above the difference lets it pass.
    kept = mrpo("cache", "verify", "recipe.yaml", "--only", "again", "--check", "4", "--limit", "1.5", cwd=scored)
    assert kept.returncode == 0, kept.stderr
    assert "limit 1.5" in kept.stdout


def test_without_pairs_it_reports_what_it_did_not_check(scored: Path) -> None:
    for arguments in (["--cache", "cache"], ["--cache", "recipe.yaml"], ["recipe.yaml", "--check", "0"]):
        done = mrpo("cache", "verify", *arguments, "--reference", "again", cwd=scored)
        assert done.returncode == 0, done.stderr
        assert "again: 1 shards read, 20 rows: checksums, lengths, finite numbers" in done.stdout
        assert "log-probs not recomputed" in done.stdout and "base" not in done.stdout


def test_a_reference_that_the_recipe_does_not_name_is_refused(scored: Path) -> None:
    options = ["--train-file", "pairs.jsonl", "--model", "one", "--reference", "base=one", "--check", "2"]
    done = mrpo("cache", "verify", *options, cwd=scored)
    assert done.returncode == 0, done.stderr
    assert "base: 2 of 20 completions recomputed" in done.stdout
    assert "second: log-probs not recomputed (the recipe has no reference second)" in done.stdout


def test_wrong_input_ends_with_2(scored: Path) -> None:
    for arguments, expected in (
        (["--cache", "nowhere"], "no cached reference"),
        (["--cache", "cache", "--reference", "absent"], "holds no reference 'absent'"),
        (["recipe.yaml", "--only", "base", "--set", "references.base.model=two"], "`weights` is"),
        (["--train-file", "pairs.jsonl", "--reference", "base=one"], "names no policy"),
        (["--train-file", "pairs.jsonl", "--model", "one"], "names no reference"),
    ):
        done = mrpo("cache", "verify", *arguments, cwd=scored)
        assert done.returncode == 2 and expected in done.stderr, (arguments, done.stderr)


def test_a_damaged_shard_is_named_and_ends_with_1(scored: Path, tmp_path: Path) -> None:
    (shard,) = (scored / "cache/second/shards").glob("*.parquet")
    folder = tmp_path / "cache/second"
    (folder / "shards").mkdir(parents=True)
    (folder / "manifest.json").write_bytes((scored / "cache/second/manifest.json").read_bytes())
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "shards" / shard.name).write_bytes(data)
    done = mrpo("cache", "verify", "recipe.yaml", "--cache", tmp_path / "cache", cwd=scored)
    assert done.returncode == 1
    assert shard.name in done.stdout and shard.name in done.stderr
    assert "repair the damaged shards first" in done.stdout


def test_repair_sets_damage_aside_and_scores_again_what_was_hit(scored: Path, tmp_path: Path) -> None:
    shutil.copytree(scored, tmp_path / "copy")
    folder = tmp_path / "copy"
    done = mrpo(
        "score-refs",
        "recipe.yaml",
        "--only",
        "base",
        "--set",
        "scoring.rows_per_shard=4",
        "--cache",
        "parts",
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    shards = sorted((folder / "parts/base/shards").iterdir())
    sound = {str(row["completion_id"]): row for path in shards for row in pq.read_table(path).to_pylist()}
    hit = {str(row["completion_id"]) for row in pq.read_table(shards[0]).to_pylist()}
    data = bytearray(shards[0].read_bytes())
    data[len(data) // 2] ^= 4
    shards[0].write_bytes(bytes(data))

    done = mrpo("cache", "verify", "recipe.yaml", "--cache", "parts", "--check", "4", "--repair", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    (report,) = json.loads(done.stdout)
    assert report["repaired"]["rescored"] == len(hit) == 4
    assert not report["damaged"]
    assert [path.name for path in (folder / "parts/base/damaged").iterdir()] == [shards[0].name]
    after = {
        str(row["completion_id"]): row
        for path in (folder / "parts/base/shards").iterdir()
        for row in pq.read_table(path).to_pylist()
    }
    assert after.keys() == sound.keys()
    for name, row in sound.items():
        assert after[name]["token_ids"] == row["token_ids"]
        assert np.allclose(after[name]["logprobs"], row["logprobs"], atol=1e-5)

    again = sorted((folder / "parts/base/shards").iterdir())[0]
    again.write_bytes(again.read_bytes()[:100])
    done = mrpo("cache", "verify", "--cache", "parts", "--repair", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "set aside" in done.stdout and "score-refs" in done.stdout
