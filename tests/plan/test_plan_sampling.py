"""Estimates from a sample of prompts against exact counts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from planned_run import made_pairs, run
from tiny_references import pair, write_pairs

from mrpo_pipeline.dataset.prepare import read_splits
from mrpo_pipeline.errors import UserError
from mrpo_pipeline.pairs import read_pairs
from mrpo_pipeline.plan import plan_run
from mrpo_pipeline.plan import sampling as sampling_module
from mrpo_pipeline.plan.extrapolation import COMPLETION, NUMBER, TEXT, Extrapolation, sampled
from mrpo_pipeline.plan.sampling import read_population
from mrpo_pipeline.recipe import Pairs


@pytest.fixture
def small_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling_module, "MAX_PAIRS", 1000)


def test_sampled_tokens_and_bytes_are_within_two_percent_and_the_stated_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling_module, "MAX_PAIRS", 2000)
    recipe = run(tmp_path, made_pairs(3000, longest=30), pairs={"eval_fraction": 0.1})
    found, truth = plan_run(recipe), plan_run(recipe, exact=True)
    assert found.data.sampled_share < 1 == truth.data.sampled_share
    assert 600 < found.data.sampled_pairs < 900
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
    assert found.references[0].cache_bytes.value == pytest.approx(truth.references[0].cache_bytes.value, rel=0.04)
    assert (
        "tokens per epoch" in found.table()
        and "one prompt in 4;" in found.table()
        and "(95% interval)" not in truth.table()
    )
    assert found.as_dict()["references"][0]["tokens_error"] > 0


@pytest.mark.usefixtures("small_sample")
def test_a_sample_is_of_whole_prompts_and_the_longest_pairs_are_known(tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "pairs.jsonl", made_pairs(2000, longest=20))
    found = read_population(Pairs(train=str(pairs)))
    sample, everything = found.sample("train"), read_pairs(str(pairs)).frame
    inside = everything.filter(everything["prompt"].is_in(sample["prompt"].unique().implode()))
    assert inside.height == sample.height < everything.height == found.splits["train"].height
    length = pl.col("prompt").str.len_bytes() + pl.max_horizontal(
        pl.col("chosen").str.len_bytes(), pl.col("rejected").str.len_bytes()
    )
    longest, lengths = (frame.select(length).to_series() for frame in (found.longest("train"), everything))
    expected = lengths.sort(descending=True).head(sampling_module.LONGEST)
    assert longest.sort(descending=True).head(sampling_module.LONGEST).to_list() == expected.to_list()
    prompts = found.longest("train")["prompt"]  # each with all of its pairs
    assert len(prompts) == everything["prompt"].is_in(prompts.unique().implode()).sum()


@pytest.mark.usefixtures("small_sample")
def test_splits_are_those_of_every_command(tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "pairs.jsonl", made_pairs(2000, longest=6))
    settings = Pairs(train=str(pairs), eval_fraction=0.2, weights_fraction=0.1)
    found, truth = read_population(settings), read_splits(settings)
    assert found.step > 1
    for name, table in truth.items():
        assert found.splits[name].equals(table.frame)


@pytest.mark.usefixtures("small_sample")
def test_few_prompts_are_all_counted(tmp_path: Path) -> None:
    rows = [pair(f"prompt {i % 20}", f"one {i}", f"two {i}") for i in range(1500)]
    few = write_pairs(tmp_path / "few.jsonl", rows)
    many = write_pairs(tmp_path / "many.jsonl", made_pairs(1500, longest=6))
    assert read_population(Pairs(train=str(few))).step == 1
    assert read_population(Pairs(train=str(few), eval=str(many))).step == 1
    # Held-out pairs do not limit the sample.
    assert read_population(Pairs(train=str(many), eval=str(few))).step == 4


def test_a_bad_row_is_named_as_every_command_names_it(tmp_path: Path) -> None:
    rows = made_pairs(40, longest=6)
    rows[35] = {"prompt": "x", "chosen": 3, "rejected": "y"}
    path = write_pairs(tmp_path / "pairs.jsonl", rows)
    with pytest.raises(UserError) as found:
        read_population(Pairs(train=str(path)))
    with pytest.raises(UserError) as expected:
        read_pairs(str(path))
    assert str(found.value) == str(expected.value)
    skipped = read_population(Pairs(train=str(path), on_bad_row="skip"))
    assert (skipped.rows, skipped.skipped) == (40, {"wrong type": 1})


def test_the_interval_covers_the_truth_about_95_percent_of_the_time() -> None:
    draw = np.random.default_rng(0)
    prompts = np.repeat(np.arange(3000), draw.integers(1, 6, 3000))
    sizes = draw.lognormal(6, 1, len(prompts)).astype(int) + 1
    # Tokens about proportional to bytes, truncated at 600, and correlated within a prompt.
    values = np.minimum(sizes * (0.25 + draw.normal(0, 0.04, 3000)[prompts]), 600)
    hits, gaps, stated = 0, [], []
    for trial in range(100):
        frame = pl.DataFrame(
            {
                "prompt": [f"{trial} {prompt}" for prompt in prompts],
                "chosen": ["c" * size for size in sizes],
                "rejected": "",
                "value": values,
            }
        )
        sample = sampled(frame, 8)
        found = Extrapolation([frame], 8, sample["prompt"], distinct=False).total(sample["value"].to_numpy(), TEXT)
        hits += abs(found.value - values.sum()) <= found.error
        gaps.append(found.value / values.sum() - 1)
        stated.append(found.relative_error)
    assert 0.9 <= hits / 100 <= 0.99
    assert abs(np.mean(gaps)) < 0.003
    # A plain mean over 375 prompts of such varied lengths has an error of about ±13%.
    assert np.mean(stated) < 0.045


def test_a_completion_of_several_pairs_counts_once_among_completions_and_each_time_among_pairs() -> None:
    names = [f"prompt {i}" for i in range(4000)]
    frame = pl.DataFrame({"prompt": names * 2, "chosen": ["abc"] * 8000, "rejected": ["de"] * 4000 + ["fgh"] * 4000})
    prompts = sampled(frame, 4)["prompt"]
    pairs = Extrapolation([frame], 4, prompts, distinct=False)
    assert pairs.count(np.ones(len(prompts), dtype=bool)).value == pytest.approx(8000)
    own = prompts.unique()
    completions = Extrapolation([frame], 4, pl.concat([own] * 3), distinct=True)
    assert completions.count(np.ones(3 * len(own), dtype=bool)).value == pytest.approx(12000)
    each = np.repeat([3.0, 2.0, 3.0], len(own))
    assert completions.total(each, COMPLETION).value == pytest.approx(4000 * 8)
    assert completions.total(np.ones(3 * len(own)), NUMBER).error == pytest.approx(0)


def test_without_a_sample_the_total_is_an_exact_sum() -> None:
    found = Extrapolation([], 1, pl.Series(["a", "b"]), distinct=True)
    total = found.total(np.array([2.0, 4.0]))
    assert (total.value, total.error, found.count(np.array([True, False])).value) == (6.0, 0.0, 1.0)
