"""Statistics against hand-worked numbers, matching of ids, and the limits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from synthetic import compared

from mrpo_pipeline.dataset.shared_prompt import shared_tokens
from mrpo_pipeline.verify.comparison import differences, worst_token
from mrpo_pipeline.verify.tolerances import Limits, limits_for


def ids(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [((1, 2, 3), (1, 2, 3), 3), ((1, 2, 3), (1, 9, 3), 1), ((1, 2), (1, 2, 3), 2), ((4,), (5,), 0), ((), (1,), 0)],
)
def test_tokens_are_shared_up_to_the_first_that_differs(a: tuple[int, ...], b: tuple[int, ...], expected: int) -> None:
    assert shared_tokens(ids(*a), ids(*b)) == expected == shared_tokens(ids(*b), ids(*a))


def test_differences_by_hand() -> None:
    one = compared([-1.0, -2.0, -3.0], [-1.5, -2.0, -2.0])  # differences .5, 0, -1: the sum's is -.5
    other = compared([-1.0], [-1.25])  # .25
    found = differences([one, other])
    assert (found.completions, found.tokens) == (2, 4)
    assert found.token_mean == (0.5 + 0 + 1 + 0.25) / 4
    assert found.token_max == 1.0
    assert found.token_p99 == pytest.approx(0.5 + 0.97 * 0.5)  # of 0, .25, .5, 1 at 0.99 * 3 = 2.97
    assert (found.sum_mean, found.sum_max) == ((0.5 + 0.25) / 2, 0.5)
    worst = worst_token([other, one])
    assert worst is not None and worst[0] is one and worst[1] == 2


def test_without_shared_tokens_the_differences_are_zero() -> None:
    none = replace(compared([-1.0], [-1.0], cached_ids=ids(9), ids=ids(1)), cached=np.empty(0), recomputed=np.empty(0))
    assert differences([none]).token_max == 0.0 and worst_token([none]) is None


@pytest.mark.parametrize(
    ("cached", "own", "complete", "agree"),
    [
        (ids(1, 2, 3), ids(1, 2, 3), True, True),
        (ids(1, 2), ids(1, 2, 3), False, True),
        (ids(1, 2), ids(1, 2, 3), True, False),  # marked complete
        (ids(1, 2, 3), ids(1, 2, 3), False, False),  # marked truncated
        (ids(1, 9, 3), ids(1, 2, 3), True, False),
        (ids(1, 2, 3, 4), ids(1, 2, 3), True, False),
    ],
)
def test_ids_agree_where_they_are_the_texts_up_to_the_end_of_the_row(
    cached: np.ndarray, own: np.ndarray, complete: bool, agree: bool
) -> None:
    shared = shared_tokens(cached, own)
    one = compared([-1.0] * shared, [-1.0] * shared, cached_ids=cached, ids=own, complete=complete)
    assert one.ids_agree is agree and one.same_text is agree


def test_a_tokens_text_is_its_bytes_and_the_end_of_turn_has_none() -> None:
    one = compared([-1.0] * 4, [-1.0] * 4, text="é x", byte_ends=ids(1, 2, 4, 4))
    assert [one.token_text(place) for place in range(4)] == ["�", "�", " x", ""]


def test_the_limits_are_coarser_where_the_numbers_are() -> None:
    assert limits_for("float32").token_max == 1e-3
    order = [limits_for(name) for name in ("float32", "float16", "bfloat16")] + [limits_for("bfloat16", "nf4")]
    assert order == sorted(order, key=lambda one: one.token_max) == sorted(order, key=lambda one: one.token_mean)
    assert limits_for("float32", "awq") == limits_for("bfloat16", "awq")
    assert all(one.token_mean <= one.beyond_rounding <= one.token_max for one in order)
    # 11 and 8 significant bits: three bits coarser is eight times.
    assert limits_for("bfloat16").token_max == 8 * limits_for("float16").token_max


def test_a_given_limit_is_for_the_worst_token_and_scales_the_average() -> None:
    assert limits_for("float32", token_max=0.01) == Limits(0.01, 0.01)
    asked = limits_for("bfloat16", token_max=1.0)
    assert asked.token_max == 1.0 and asked.token_mean == pytest.approx(0.05)
