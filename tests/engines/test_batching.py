"""Packing: every request once, never over the budget of padded tokens, similar lengths together."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mrpo_pipeline.engines import ScoringRequest
from mrpo_pipeline.engines.batching import pack


def of_lengths(lengths: list[int]) -> list[ScoringRequest]:
    return [ScoringRequest(np.ones(1, np.int32), np.ones(length - 1, np.int32)) for length in lengths]


@given(st.lists(st.integers(2, 90), max_size=60), st.integers(1, 400))
def test_each_request_once_longest_first_and_within_the_budget(lengths: list[int], budget: int) -> None:
    batches = list(pack(of_lengths(lengths), budget))
    order = [index for batch in batches for index in batch]
    assert sorted(order) == list(range(len(lengths)))
    assert [lengths[index] for index in order] == sorted(lengths, reverse=True)
    for batch in batches:
        padded = len(batch) * max(lengths[index] for index in batch)
        assert padded <= budget or len(batch) == 1


def test_a_batch_is_filled_to_the_brim_with_padding_counted() -> None:
    assert list(pack(of_lengths([10, 10, 9, 4, 4, 4]), 20)) == [[0, 1], [2, 3], [4, 5]]


def test_a_request_longer_than_the_budget_stands_alone() -> None:
    assert list(pack(of_lengths([50, 5, 5]), 20)) == [[0], [1, 2]]
