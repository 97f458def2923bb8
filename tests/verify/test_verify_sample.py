"""The sample: every length has its share, the longest is always included, and the same data give the same sample."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrpo_pipeline.verify.sample import draw_across_lengths, draw_completions


@given(st.lists(st.integers(1, 50), max_size=60), st.integers(0, 70), st.integers(0, 5))
def test_one_of_every_part_in_order_of_length_and_the_longest(lengths: list[int], count: int, seed: int) -> None:
    array = np.array(lengths, dtype=np.int64)
    places = draw_across_lengths(array, count, seed)
    assert len(set(places.tolist())) == len(places) == min(count, len(lengths))
    picked = array[places]
    assert (np.diff(picked) >= 0).all()
    assert places.tolist() == draw_across_lengths(array, count, seed).tolist()
    if count and lengths:
        assert picked[-1] == array.max()
        parts = np.array_split(np.sort(array), len(places))
        assert all(part.min() <= length <= part.max() for part, length in zip(parts, picked, strict=True))


@pytest.mark.parametrize("seed", range(8))
def test_the_longest_is_there_whatever_the_seed(seed: int) -> None:
    assert draw_across_lengths(np.arange(1000), 10, seed)[-1] == 999


def test_another_seed_gives_another_draw() -> None:
    lengths = np.arange(1000)
    assert draw_across_lengths(lengths, 10, 0).tolist() != draw_across_lengths(lengths, 10, 1).tolist()


def test_a_cut_completion_is_as_long_as_its_cut_and_the_prompt_counts() -> None:
    served = pl.DataFrame(
        {
            "completion_id": ["a", "b", "c"],
            "prompt": ["p", "p", "p" * 70],
            "completion": ["x" * 90, "x" * 50, "x"],
            "cut": [10, None, None],
        },
        schema_overrides={"cut": pl.Int64},
    )
    assert draw_completions(served, 3)["completion_id"].to_list() == ["a", "b", "c"]
    assert draw_completions(served, 1)["completion_id"].to_list() == ["c"]


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_the_rows_does_not_matter(seed: int) -> None:
    texts = [f"{'x' * (i % 7)}" for i in range(40)]
    served = pl.DataFrame(
        {"completion_id": [f"{i:02}" for i in range(40)], "prompt": "p", "completion": texts, "cut": None},
        schema_overrides={"cut": pl.Int64},
    )
    shuffled = served.sample(fraction=1.0, shuffle=True, seed=seed)
    assert draw_completions(shuffled, 9, seed).equals(draw_completions(served, 9, seed))
