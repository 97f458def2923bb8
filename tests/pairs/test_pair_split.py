"""Splits by the hash of the prompt: independent of order, and no prompt on both sides."""

import polars as pl
import pytest

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.pairs import split_by_prompt


def frame(prompts: int, each: int = 3) -> pl.DataFrame:
    return pl.DataFrame({"prompt": [f'"p{index % prompts}"' for index in range(prompts * each)]}).with_row_index("at")


def test_no_prompt_is_on_both_sides_and_no_row_is_lost() -> None:
    whole = frame(2000)
    rest, held_out = split_by_prompt(whole, 0.1)
    assert not set(rest["prompt"]) & set(held_out["prompt"])
    assert sorted([*rest["at"], *held_out["at"]]) == whole["at"].to_list()
    assert rest["at"].is_sorted()
    assert held_out["at"].is_sorted()
    # 2,000 draws of 0.1: four standard deviations
    assert 146 < held_out["prompt"].n_unique() < 254


def test_the_split_does_not_depend_on_order_or_on_the_other_prompts() -> None:
    whole = frame(500)
    held_out = set(split_by_prompt(whole, 0.2)[1]["prompt"])
    assert set(split_by_prompt(whole.reverse(), 0.2)[1]["prompt"]) == held_out
    half = whole.filter(pl.col("prompt") < '"p3"')
    assert set(split_by_prompt(half, 0.2)[1]["prompt"]) == held_out & set(half["prompt"])
    assert held_out < set(split_by_prompt(whole, 0.4)[1]["prompt"])


def test_salts_split_independently() -> None:
    whole = frame(4000, 1)
    rest, _ = split_by_prompt(whole, 0.5, salt="eval")
    _, weights = split_by_prompt(rest, 0.5, salt="love")  # as long as "eval"
    assert abs(weights.height / rest.height - 0.5) < 0.05
    assert split_by_prompt(whole, 0.5, salt="eval")[0].equals(rest)


@pytest.mark.parametrize("fraction", [0.001, 0.5, 0.999])
@pytest.mark.parametrize("prompts", [2, 3, 5])
def test_both_sides_of_a_small_split_are_non_empty(prompts: int, fraction: float) -> None:
    for start in range(20):
        few = pl.DataFrame({"prompt": [f'"{start}-{index}"' for index in range(prompts)]})
        rest, held_out = split_by_prompt(few, fraction)
        assert rest.height > 0
        assert held_out.height > 0
        assert rest.height + held_out.height == prompts


def test_fraction_zero_holds_out_nothing() -> None:
    rest, held_out = split_by_prompt(frame(3), 0)
    assert rest.equals(frame(3))
    assert held_out.is_empty()
    assert held_out.schema == rest.schema


def test_impossible_splits_are_errors() -> None:
    with pytest.raises(UserError, match=r"two or more distinct prompts.*found 1"):
        split_by_prompt(frame(1), 0.5)
    for fraction in (-0.1, 1, 1.5, float("nan")):
        with pytest.raises(UserError, match="expected 0 or more and less than 1"):
            split_by_prompt(frame(3), fraction)
