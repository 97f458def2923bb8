"""Each planted pattern gets its diagnosis."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from synthetic import compared

from mrpo_pipeline.verify.comparison import Compared
from mrpo_pipeline.verify.diagnosis import guess_reasons

OFF = 1e-3


def draw(count: int = 8, length: int = 60, seed: int = 0) -> list[np.ndarray]:
    """Plausible log-probs of some completions of uneven lengths."""
    rng = np.random.default_rng(seed)
    return [-rng.gamma(1.0, 2.0, length + 3 * i) - 1e-2 for i in range(count)]


def made(change: Callable[[int, np.ndarray], np.ndarray], prompt: int = 20) -> list[Compared]:
    noise = np.random.default_rng(1)
    return [
        compared(change(i, right.copy()) + noise.normal(0, 1e-6, len(right)), right, prompt=prompt + i)
        for i, right in enumerate(draw())
    ]


def only(rows: list[Compared]) -> str:
    (reason,) = guess_reasons(rows, OFF)
    return reason


def test_correct_numbers_have_no_pattern_but_rounding() -> None:
    assert "rounding" in only(made(lambda i, right: right))


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ([1] * 8, "probably a doubled BOS token"),
        ([-1] * 8, "probably a missing BOS token"),
        ([7] * 8, "every prompt had 7 tokens more"),
        ([-4] * 8, "every prompt had 4 tokens fewer"),
        ([3, 5, 2, 3, 4, 5, 6, 1], "another number of tokens (+1 to +6)"),
        ([0, 0, 0, 0, 0, 0, 0, 9], "1 of 8 prompts had another number of tokens"),
    ],
)
def test_prompt_lengths_name_the_fault(more: list[int], expected: str) -> None:
    rows = [compared(right - 1, right, more=extra) for right, extra in zip(draw(), more, strict=True)]
    assert expected in only(rows)


def test_values_up_to_a_prefix_cache_block() -> None:
    def fault(i: int, right: np.ndarray) -> np.ndarray:
        # Positions up to 48 came from the cache: rows 0 to 47, which predict the tokens at 1 to 48.
        right[: 48 + 1 - (20 + i)] -= 4.0
        return right

    reason = only(made(fault))
    assert "prefix cache" in reason and "multiple of 16 tokens" in reason


def test_uninitialized_memory_without_an_edge() -> None:
    garbage = np.array([0.0, 4.6e-41, 8.3e34, 0.0, 11.3])

    def fault(i: int, right: np.ndarray) -> np.ndarray:
        return np.resize(garbage, len(right)) if i % 2 else right

    assert "prefix cache" in only(made(fault))


def test_scattered_impossible_values() -> None:
    def fault(i: int, right: np.ndarray) -> np.ndarray:
        right[10 + i :: 17] = 11.3
        return right

    assert "not log-probs" in only(made(fault))


def test_a_fading_difference_is_another_prompt() -> None:
    def fault(i: int, right: np.ndarray) -> np.ndarray:
        return right + np.random.default_rng(i).normal(0, 1, len(right)) * 3 * np.exp(-np.arange(len(right)) / 3) + 0.01

    assert "the model read another prompt" in only(made(fault))


def test_a_fading_difference_is_not_a_prefix_cache_edge() -> None:
    reason = only(made(lambda i, right: right - 3 * np.exp(-np.arange(len(right)) / 3)))
    assert "prefix cache" not in reason and "the model read another prompt" in reason


def test_single_late_tokens_are_not_positions() -> None:
    def fault(i: int, right: np.ndarray) -> np.ndarray:
        right[30::9] -= 0.01
        return right

    assert "rope scaling" not in only(made(fault))


def test_unrelated_lower_numbers_are_not_a_scale() -> None:
    reason = only(made(lambda i, right: 1.2 * np.random.default_rng(i).permutation(right) - 10))
    assert "scaled" not in reason


def test_differences_from_one_position_on() -> None:
    def fault(i: int, right: np.ndarray) -> np.ndarray:
        behind = np.arange(len(right)) + 20 + i >= 50
        return np.where(behind, np.random.default_rng(i).permutation(right), right)

    reason = only(made(fault))
    assert "every token up to position 50 agrees" in reason and "rope scaling" in reason


def test_some_completions_are_one_worker() -> None:
    def fault(i: int, right: np.ndarray) -> np.ndarray:
        return np.random.default_rng(i).permutation(right) if i in (2, 5) else right

    assert "2 of 8 completions are off throughout" in only(made(fault))


def test_only_the_end_of_turn_token() -> None:
    def fault(i: int, right: np.ndarray) -> np.ndarray:
        right[-1] -= 2
        return right

    assert "only the end-of-turn token is off (in 8 of 8" in only(made(fault))


def test_the_last_token_of_a_truncated_row_is_not_an_end_of_turn() -> None:
    rows = [compared([*right[:-1], right[-1] - 2], right, complete=False) for right in draw()]
    assert "end-of-turn" not in only(rows)


@pytest.mark.parametrize("factor", [0.8, 1.25])
def test_a_scale_is_a_temperature(factor: float) -> None:
    reason = only(made(lambda i, right: right * factor - 0.05))
    assert f"scaled by about {factor:.2f}" in reason


def test_unrelated_numbers_everywhere_are_other_weights() -> None:
    reason = only(made(lambda i, right: np.random.default_rng(9 + i).permutation(right)))
    assert "other weights" in reason


def test_similar_numbers_everywhere_are_a_revision_or_an_adapter() -> None:
    reason = only(made(lambda i, right: right + np.random.default_rng(9 + i).normal(0, 0.1, len(right))))
    assert "an adapter missing or added" in reason


def test_single_slightly_wrong_tokens_are_rounding() -> None:
    def fault(i: int, right: np.ndarray) -> np.ndarray:
        right[7 + 5 * i] += 0.01
        return right

    reason = only(made(fault))
    assert "single tokens are off (1" in reason and ": rounding" in reason and "not rounding" not in reason


def test_single_far_wrong_tokens_are_not_rounding() -> None:
    def fault(i: int, right: np.ndarray) -> np.ndarray:
        right[7 + 5 * i] -= 9.0
        return right

    reason = only(made(fault))
    assert "by up to 9 nats" in reason and "not rounding" in reason


def test_no_tokens_give_no_reason() -> None:
    assert guess_reasons([], OFF) == []


def ids(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


@pytest.mark.parametrize(
    ("cached", "complete", "expected"),
    [
        (ids(1, 2, 8, 4, 5), True, "token 2, id 8 in the cache, 3 in the text): another tokenizer, template"),
        (ids(1, 2, 3, 4, 9), True, "in the end-of-turn token only"),
        (ids(1, 2, 3, 4), True, "truncated rows marked as complete"),
        (ids(1, 2, 3, 4, 9, 9), True, "in length only"),
        (ids(9, 2, 3, 4, 5), True, "in the first token only: the boundary"),
    ],
)
def test_different_ids_name_the_place(cached: np.ndarray, complete: bool, expected: str) -> None:
    own = ids(1, 2, 3, 4, 5)
    shared = next((i for i in range(min(5, len(cached))) if cached[i] != own[i]), min(5, len(cached)))
    right = [-1.0] * shared
    rows = [compared(right, right, cached_ids=cached, ids=own, complete=complete)] * 2
    reason = only(rows)
    assert expected in reason and "2 of 2 completions" in reason
