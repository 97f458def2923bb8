"""Each fault's mark in the arrays is told for what it is, and right numbers are told nothing."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from made_up import compared

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


def test_right_numbers_have_no_pattern_of_a_fault() -> None:
    assert "rounding" in only(made(lambda i, right: right))


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ([1] * 8, "BOS token stood there twice"),
        ([-1] * 8, "BOS token was missing"),
        ([7] * 8, "every prompt had 7 tokens more"),
        ([-4] * 8, "every prompt had 4 tokens less"),
        ([3, 5, 2, 3, 4, 5, 6, 1], "another number of tokens than here (by +1 to +6)"),
        ([0, 0, 0, 0, 0, 0, 0, 9], "1 of 8 prompts had another number of tokens"),
    ],
)
def test_the_prompts_lengths_tell(more: list[int], expected: str) -> None:
    rows = [compared(right - 1, right, more=extra) for right, extra in zip(draw(), more, strict=True)]
    assert expected in only(rows)


def test_values_up_to_a_block_of_the_prefix_cache_tell() -> None:
    def fault(i: int, right: np.ndarray) -> np.ndarray:
        # Positions up to 48 came from the cache: rows 0 to 47, which predict the tokens at 1 to 48.
        right[: 48 + 1 - (20 + i)] -= 4.0
        return right

    told = only(made(fault))
    assert "prefix cache" in told and "multiple of 16 tokens" in told


def test_memory_never_written_tells_even_where_no_edge_is_seen() -> None:
    garbage = np.array([0.0, 4.6e-41, 8.3e34, 0.0, 11.3])

    def fault(i: int, right: np.ndarray) -> np.ndarray:
        return np.resize(garbage, len(right)) if i % 2 else right

    assert "prefix cache" in only(made(fault))


def test_scattered_values_that_are_no_log_probs_tell() -> None:
    def fault(i: int, right: np.ndarray) -> np.ndarray:
        right[10 + i :: 17] = 11.3
        return right

    assert "no log-probs at all" in only(made(fault))


def test_a_difference_that_fades_tells_of_another_prompt() -> None:
    def fault(i: int, right: np.ndarray) -> np.ndarray:
        return right + np.random.default_rng(i).normal(0, 1, len(right)) * 3 * np.exp(-np.arange(len(right)) / 3) + 0.01

    assert "the model read another prompt" in only(made(fault))


def test_a_difference_that_fades_to_nothing_is_not_taken_for_the_prefix_caches_edge() -> None:
    told = only(made(lambda i, right: right - 3 * np.exp(-np.arange(len(right)) / 3)))
    assert "prefix cache" not in told and "the model read another prompt" in told


def test_single_late_tokens_are_not_taken_for_positions() -> None:
    def fault(i: int, right: np.ndarray) -> np.ndarray:
        right[30::9] -= 0.01
        return right

    assert "rope scaling" not in only(made(fault))


def test_other_numbers_that_are_lower_throughout_are_not_taken_for_a_stretch() -> None:
    told = only(made(lambda i, right: 1.2 * np.random.default_rng(i).permutation(right) - 10))
    assert "stretched" not in told


def test_differences_from_one_position_on_tell() -> None:
    def fault(i: int, right: np.ndarray) -> np.ndarray:
        behind = np.arange(len(right)) + 20 + i >= 50
        return np.where(behind, np.random.default_rng(i).permutation(right), right)

    told = only(made(fault))
    assert "every token up to position 50 agrees" in told and "rope scaling" in told


def test_some_completions_alone_tell_of_one_worker() -> None:
    def fault(i: int, right: np.ndarray) -> np.ndarray:
        return np.random.default_rng(i).permutation(right) if i in (2, 5) else right

    assert "2 of 8 completions are off throughout" in only(made(fault))


def test_the_end_of_turn_token_alone_tells() -> None:
    def fault(i: int, right: np.ndarray) -> np.ndarray:
        right[-1] -= 2
        return right

    assert "only the end-of-turn token is off (in 8 of 8" in only(made(fault))


def test_the_last_token_of_a_cut_row_is_no_end_of_turn() -> None:
    rows = [compared([*right[:-1], right[-1] - 2], right, complete=False) for right in draw()]
    assert "end-of-turn" not in only(rows)


@pytest.mark.parametrize("factor", [0.8, 1.25])
def test_a_stretch_tells_of_a_temperature(factor: float) -> None:
    told = only(made(lambda i, right: right * factor - 0.05))
    assert f"stretched by about {factor:.2f}" in told


def test_other_numbers_everywhere_tell_of_other_weights() -> None:
    told = only(made(lambda i, right: np.random.default_rng(9 + i).permutation(right)))
    assert "other weights" in told


def test_akin_numbers_everywhere_tell_of_a_revision_or_an_adapter() -> None:
    told = only(made(lambda i, right: right + np.random.default_rng(9 + i).normal(0, 0.1, len(right))))
    assert "adapter left out" in told


def test_single_tokens_tell_of_rounding() -> None:
    def fault(i: int, right: np.ndarray) -> np.ndarray:
        right[7 + 5 * i] += 0.01
        return right

    told = only(made(fault))
    assert "single tokens are off (1" in told and ": rounding" in told and "not rounding" not in told


def test_single_tokens_that_are_far_off_are_not_told_to_be_rounding() -> None:
    def fault(i: int, right: np.ndarray) -> np.ndarray:
        right[7 + 5 * i] -= 9.0
        return right

    told = only(made(fault))
    assert "by up to 9 nats" in told and "not rounding" in told


def test_no_tokens_at_all_give_no_reason() -> None:
    assert guess_reasons([], OFF) == []


def ids(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


@pytest.mark.parametrize(
    ("cached", "complete", "expected"),
    [
        (ids(1, 2, 8, 4, 5), True, "token 2, id 8 in the cache and 3 here): another tokenizer or template"),
        (ids(1, 2, 3, 4, 9), True, "by the end-of-turn token alone"),
        (ids(1, 2, 3, 4), True, "cut claim to be whole"),
        (ids(1, 2, 3, 4, 9, 9), True, "by where they end alone"),
        (ids(9, 2, 3, 4, 5), True, "by the first token alone: the seam"),
    ],
)
def test_other_ids_tell_where(cached: np.ndarray, complete: bool, expected: str) -> None:
    own = ids(1, 2, 3, 4, 5)
    shared = next((i for i in range(min(5, len(cached))) if cached[i] != own[i]), min(5, len(cached)))
    right = [-1.0] * shared
    rows = [compared(right, right, cached_ids=cached, ids=own, complete=complete)] * 2
    told = only(rows)
    assert expected in told and "2 of 2 completions" in told
