"""Missing completions and sums against the same rules in plain Python."""

from __future__ import annotations

import tempfile
import uuid

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from places import Place
from scored_rows import cache_at, cid, counted_sum, row, serving_row, wanted, write

from mrpo_pipeline.cache import ReferenceCache
from mrpo_pipeline.errors import UserError

NUMBERS = st.integers(0, 5)


@st.composite
def scored(draw: st.DrawFn):  # type: ignore[no-untyped-def]
    """A completion or a prefix of it: rows of one number are prefixes of each other, like real ones."""
    number = draw(NUMBERS)
    # The number determines the tokens, so that rows of one completion differ only in length.
    rng = np.random.default_rng(number)
    total = int(rng.integers(2, 9))
    ends = np.cumsum(rng.integers(0, 4, total))
    ends[-1] = ends[-2]  # the end-of-turn token ends where the text does
    logps = -rng.exponential(3.0, total)
    count = draw(st.integers(1, total))
    return row(number, logps[:count], ends[:count], count == total)


WANTED = st.lists(st.tuples(NUMBERS, st.none() | st.integers(0, 25)), max_size=12)


ROWS = st.lists(scored(), max_size=14)
PER_SHARD = st.integers(1, 5)


@settings(max_examples=80, deadline=None)
@given(rows=ROWS, asked=WANTED, per_shard=PER_SHARD)
def test_missing_and_sums_agree_with_plain_python(rows, asked, per_shard):  # type: ignore[no-untyped-def]
    with tempfile.TemporaryDirectory() as folder:
        agree_with_plain_python(folder, rows, asked, per_shard)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=ROWS, asked=WANTED, per_shard=PER_SHARD)
def test_missing_and_sums_agree_with_plain_python_on_s3(bucket, rows, asked, per_shard):  # type: ignore[no-untyped-def]
    agree_with_plain_python(f"{bucket}/{uuid.uuid4()}", rows, asked, per_shard)


def agree_with_plain_python(root, rows, asked, per_shard):  # type: ignore[no-untyped-def]
    cache = cache_at(root)
    write(cache, rows, per_shard)
    frame = wanted(asked)
    serving = [serving_row(rows, number, cut) for number, cut in asked]

    missing = cache.missing(frame)
    assert missing.rows() == [(cid(n), cut) for (n, cut), one in zip(asked, serving, strict=True) if one is None]

    expected = [
        (None, None) if one is None else counted_sum(one, cut) for (_, cut), one in zip(asked, serving, strict=True)
    ]
    for _ in ("added up", "read back"):
        sums = cache.sums(frame, on_missing="null")
        assert sums.select("completion_id", "cut").equals(frame)
        assert sums["tokens"].to_list() == [tokens for _, tokens in expected]
        for got, (value, _) in zip(sums["logps"].to_list(), expected, strict=True):
            assert (got is None) == (value is None)
            assert got is None or got == pytest.approx(value, abs=1e-9)
    # A new reader, as in another process.
    assert ReferenceCache.open(root, "base").missing(frame).equals(missing)


def test_a_cut_leaves_out_the_end_of_turn_token_even_at_the_last_byte(place: Place) -> None:
    cache = cache_at(place.root)
    write(cache, [row(1, [-1.0, -2.0, -4.0], [3, 6, 6], complete=True)])
    sums = cache.sums(wanted([(1, None), (1, 6), (1, 5), (1, 2), (1, 900)]))
    assert sums["logps"].to_list() == [-7.0, -3.0, -1.0, 0.0, -3.0]
    assert sums["tokens"].to_list() == [3, 2, 1, 0, 2]


def test_the_last_token_of_an_unfinished_row_counts(place: Place) -> None:
    cache = cache_at(place.root)
    write(cache, [row(1, [-1.0, -2.0], [3, 6], complete=False)])
    assert cache.sums(wanted([(1, 6)]))["logps"].to_list() == [-3.0]
    assert cache.missing(wanted([(1, 6), (1, 7), (1, None)])).rows() == [(cid(1), 7), (cid(1), None)]


def test_sums_of_thousands_of_nats_keep_their_precision(place: Place) -> None:
    cache = cache_at(place.root)
    logps = np.full(5000, -1.000001, np.float32)
    rows = [row(number, logps, np.arange(5000), complete=True) for number in range(3)]
    write(cache, rows)
    for number, got in enumerate(cache.sums(wanted([(0, None), (1, None), (2, None)]))["logps"]):
        assert got == pytest.approx(counted_sum(rows[number], None)[0], abs=1e-9)


def test_row_groups_after_the_first_are_read_at_the_right_places(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mrpo_pipeline.cache.schema.ROW_GROUP_ROWS", 3)
    cache = cache_at(place.root)
    rows = [
        row(number, -np.arange(1, 2 + number % 4), np.arange(1, 2 + number % 4), complete=True) for number in range(20)
    ]
    assert len(write(cache, rows)) == 1
    asked = [(number, None) for number in (19, 0, 7, 3, 8, 7)]
    sums = cache.sums(wanted(asked))
    assert sums["logps"].to_list() == [counted_sum(rows[number], None)[0] for number, _ in asked]
    assert cache.rows(wanted(asked))["completion_id"].sort().to_list() == sorted({cid(number) for number, _ in asked})


def test_other_columns_are_kept_in_missing(place: Place) -> None:
    frame = wanted([(1, None), (2, 4)]).with_columns(prompt=pl.Series(["a", "b"]))
    cache = ReferenceCache.open(place.root, "base")
    assert cache.missing(frame).equals(frame)


def test_sums_of_unscored_completions_name_the_reference_the_count_and_the_command(place: Place) -> None:
    cache = cache_at(place.root)
    write(cache, [row(1, [-1.0], [1], complete=False)])
    with pytest.raises(UserError, match=r"base.*lacks 2 of 3.*mrpo score-refs"):
        cache.sums(wanted([(1, 1), (1, None), (2, None)]))


def test_rows_round_trip(place: Place) -> None:
    cache = cache_at(place.root)
    short = row(1, [-1.5], [2], complete=False)
    full = row(1, [-1.5, -0.25], [2, 2], complete=True)
    write(cache, [short, full], rows_per_shard=1)
    (found,) = cache.rows(wanted([(1, None), (1, 2), (9, None)])).to_dicts()
    assert found == {
        "completion_id": cid(1),
        "prompt_tokens": 7,
        "token_ids": [0, 1],
        "logprobs": [-1.5, -0.25],
        "byte_ends": [2, 2],
        "complete": True,
    }


def test_of_rows_that_end_at_one_byte_the_one_with_more_tokens_is_used(place: Place) -> None:
    for name, order in (("a", 1), ("b", -1)):
        cache = cache_at(place.root, name)
        rows = [row(1, [-1.0], [3], complete=False), row(1, [-1.0, -2.0], [3, 3], complete=False)]
        write(cache, rows[::order], rows_per_shard=1)
        assert cache.sums(wanted([(1, 3)]))["logps"].to_list() == [-3.0]
