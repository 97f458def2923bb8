"""The samples that `mrpo evaluate` shows."""

from __future__ import annotations

import polars as pl
import pytest

from mrpo_pipeline.evaluation.generations import distinct_prompts


@pytest.mark.parametrize(("count", "rows"), [(0, []), (2, [0, 3]), (9, [0, 3, 4])])
def test_samples_are_of_distinct_prompts_the_first_pair_of_each(count: int, rows: list[int]) -> None:
    frame = pl.DataFrame({"prompt_read": ["a", "a", "a", "b", "c"], "row": range(5)})
    assert distinct_prompts(frame, count)["row"].to_list() == rows
