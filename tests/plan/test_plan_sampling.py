"""What is estimated from a sample of prompts, against everything counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from planned_run import made_pairs, run
from tiny_references import write_pairs

from mrpo_pipeline.dataset.prepare import read_splits
from mrpo_pipeline.errors import UserError
from mrpo_pipeline.pairs import partitioning, read_pairs
from mrpo_pipeline.plan import plan_run
from mrpo_pipeline.plan import sampling as sampling_module
from mrpo_pipeline.plan.collector import Limits
from mrpo_pipeline.plan.estimate import Expansion
from mrpo_pipeline.plan.sampling import read_population
from mrpo_pipeline.recipe import Pairs


@pytest.fixture
def small_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling_module, "COUNTED", Limits(2000, 8_000_000))
    monkeypatch.setattr(sampling_module, "SAMPLED", Limits(1500, 5_000_000))


@pytest.mark.usefixtures("small_sample")
def test_tokens_and_bytes_of_a_sample_are_within_two_percent_and_within_what_is_stated(tmp_path: Path) -> None:
    recipe = run(tmp_path, made_pairs(6000, longest=30), pairs={"eval_fraction": 0.1})
    found, truth = plan_run(recipe), plan_run(recipe, exact=True)
    assert found.data.sampled_share < 1 == truth.data.sampled_share
    assert 600 < found.data.sampled_pairs <= 1500
    counted = ("rows", "pairs", "prompts")
    assert [getattr(found.data, name) for name in counted] == [getattr(truth.data, name) for name in counted]
    assert {name: split.pairs for name, split in found.data.splits.items()} == {
        name: split.pairs for name, split in truth.data.splits.items()
    }
    assert found.data.completions.value == pytest.approx(truth.data.completions.value, rel=0.005)
    pairs = [
        *((getattr(found.references[0], n), getattr(truth.references[0], n)) for n in ("tokens", "completion_tokens")),
        (found.training.tokens_per_epoch, truth.training.tokens_per_epoch),
    ]
    for estimate, exact in pairs:
        assert exact.error == 0 < estimate.error < 0.02 * estimate.value
        assert abs(estimate.value - exact.value) < min(0.02 * exact.value, 1.6 * estimate.error)
    assert found.references[0].cache_bytes.value == pytest.approx(truth.references[0].cache_bytes.value, rel=0.02)
    assert (
        "tokens an epoch" in found.table()
        and "every 8th prompt" in found.table()
        and "prompt (95%" not in truth.table()
    )
    assert found.as_dict()["references"][0]["tokens_error"] > 0


@pytest.mark.usefixtures("small_sample")
def test_a_sample_is_of_whole_prompts_and_the_longest_pairs_are_known(tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "pairs.jsonl", made_pairs(5000, longest=20))
    found = read_population(Pairs(train=str(pairs)))
    split, everything = found.splits["train"], read_pairs(str(pairs)).frame
    inside = everything.filter(everything["prompt"].is_in(split.sample["prompt"].unique().implode()))
    assert inside.height == split.sample.height < everything.height == split.numbers.height
    longest = (
        everything["prompt"].str.len_bytes()
        + np.maximum(everything["chosen"].str.len_bytes(), everything["rejected"].str.len_bytes())
    ).sort(descending=True)
    sizes = split.longest["prompt_bytes"] + np.maximum(split.longest["chosen_bytes"], split.longest["rejected_bytes"])
    assert sizes.to_list() == longest.head(64).to_list()


@pytest.mark.usefixtures("small_sample")
def test_splits_of_a_sample_are_those_of_every_command(tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "pairs.jsonl", made_pairs(4000, longest=6))
    settings = Pairs(train=str(pairs), eval_fraction=0.2, weights_fraction=0.1)
    found, truth = read_population(settings), read_splits(settings)
    assert found.share < 1
    assert {name: split.numbers.height for name, split in found.splits.items()} == {
        name: table.frame.height for name, table in truth.items()
    }
    for name, split in found.splits.items():
        assert set(split.sample["pair_id"]) <= set(truth[name].frame["pair_id"])


def as_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    import polars as pl

    pl.DataFrame(rows).write_parquet(path, row_group_size=400)
    return path


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_read_in_parts_side_by_side_it_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    rows = made_pairs(3000, longest=12)
    write = as_parquet if kind == "parquet" else write_pairs
    settings = Pairs(train=str(write(tmp_path / f"pairs.{kind}", rows)), eval_fraction=0.1)
    whole = read_population(settings, exact=True)
    monkeypatch.setattr(partitioning, "_SMALLEST", 1000)
    parts = read_population(settings, exact=True)
    assert (parts.rows, parts.skipped) == (whole.rows, whole.skipped)
    for name, split in whole.splits.items():
        columns = ["pair_id", "prompt_key", "chosen_key", "rejected_key", "chosen_bytes"]
        assert (
            parts.splits[name].sample.select(columns).sort(columns).equals(split.sample.select(columns).sort(columns))
        )
        assert parts.splits[name].longest["prompt_bytes"].to_list() == split.longest["prompt_bytes"].to_list()


def test_a_bad_row_in_a_later_part_is_named_by_its_row_in_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = made_pairs(400, longest=6)
    rows[350] = {"prompt": "x", "chosen": 3, "rejected": "y"}
    path = write_pairs(tmp_path / "pairs.jsonl", rows)
    monkeypatch.setattr(partitioning, "_SMALLEST", 1000)
    with pytest.raises(UserError) as told:
        read_population(Pairs(train=str(path)))
    with pytest.raises(UserError) as expected:
        read_pairs(str(path))
    assert str(told.value) == str(expected.value)
    assert "row 350 (line 351)" in str(told.value)
    skipped = read_population(Pairs(train=str(path), on_bad_row="skip"))
    assert (skipped.rows, skipped.skipped) == (400, {"wrong type": 1})


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    draw = np.random.default_rng(0)
    prompts = np.repeat(np.arange(6000, dtype=np.uint64), draw.integers(1, 6, 6000))
    sizes = draw.lognormal(6, 1, len(prompts))
    # Tokens about in proportion to bytes, cut at some length, and alike within a prompt.
    values = np.minimum(sizes * (0.25 + draw.normal(0, 0.04, 6000)[prompts.astype(int)]), 600)
    share, hits, gaps, stated = 1 / 16, 0, [], []
    for _ in range(300):
        inside = (draw.random(6000) < share)[prompts.astype(int)]
        expansion = Expansion({"text": sizes[inside]}, prompts[inside], {"text": sizes}, share)
        found = expansion.total(values[inside])
        hits += abs(found.value - values.sum()) <= found.error
        gaps.append(found.value / values.sum() - 1)
        stated.append(found.relative_error)
    assert 0.9 <= hits / 300 <= 0.99
    assert abs(np.mean(gaps)) < 0.002
    # Without the bytes, 375 prompts of so uneven lengths would tell it to about ±13%.
    assert np.mean(stated) < 0.03


def test_everything_looked_at_is_a_sum_without_error() -> None:
    sizes = np.array([3.0, 5.0])
    expansion = Expansion({"text": sizes}, np.array([1, 2], np.uint64), {"text": sizes}, 1.0)
    assert expansion.total(np.array([2.0, 4.0])) == expansion.total(np.array([2.0, 4.0]), None)
    assert json.dumps(
        [expansion.total(np.array([2.0, 4.0])).value, expansion.count(np.array([True, False])).value]
    ) == ("[6.0, 1.0]")
