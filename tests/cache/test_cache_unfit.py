"""Unscorable completions are known without the reference's tokenizer."""

from __future__ import annotations

import pytest
from places import Place
from scored_rows import cache_at, cid, row, wanted, write

from mrpo_pipeline.cache import ReferenceCache, Unfit
from mrpo_pipeline.errors import RunError, UserError


def test_what_exceeds_the_context_at_a_cut_exceeds_it_at_a_later_one(place: Place) -> None:
    cache = cache_at(place.root)
    cache.mark_unfit([Unfit(cid(1), 50, 130, 128), Unfit(cid(2), None, 300, 128)])
    cache.mark_unfit([Unfit(cid(1), 80, 160, 128)])
    asked = wanted([(1, 49), (1, 50), (1, 99), (1, None), (2, 10**9), (2, None), (3, None)])
    fresh = ReferenceCache.open(place.root, "base")
    assert fresh.unfit(asked).select("completion_id", "cut").rows() == [
        (cid(1), 50), (cid(1), 99), (cid(1), None), (cid(2), None),
    ]  # fmt: skip
    assert fresh.unfit(asked)["tokens"].to_list() == [130, 130, 130, 300]
    assert fresh.missing(asked).rows() == [(cid(1), 49), (cid(2), 10**9), (cid(3), None)]


def test_a_longer_context_tries_again(place: Place) -> None:
    cache = cache_at(place.root)
    cache.mark_unfit([Unfit(cid(1), None, 130, 128)])
    asked = wanted([(1, None)])
    assert cache.missing(asked, context=128).is_empty()
    assert cache.missing(asked, context=256).height == 1
    assert cache.unfit(asked, context=256).is_empty()


def test_a_scored_row_overrides_the_record(place: Place) -> None:
    cache = cache_at(place.root)
    cache.mark_unfit([Unfit(cid(1), None, 130, 128)])
    write(cache, [row(1, [-1.0, -1.0], [3, 3], complete=True)])
    assert cache.unfit(wanted([(1, None)])).is_empty()
    assert cache.sums(wanted([(1, None)]))["logps"].to_list() == [-2.0]


def test_sums_distinguish_unscorable_from_unscored(place: Place) -> None:
    cache = cache_at(place.root)
    cache.mark_unfit([Unfit(cid(1), None, 130, 128)])
    with pytest.raises(UserError, match="lacks 2 of 2 completions, 1 of which do not fit"):
        cache.sums(wanted([(1, None), (2, None)]))


def test_no_records_make_no_file_and_a_damaged_one_is_named(place: Place) -> None:
    cache = cache_at(place.root)
    cache.mark_unfit([])
    assert not place.files("base/unfit")
    cache.mark_unfit([Unfit(cid(1), None, 130, 128)])
    ((name, data),) = place.files("base/unfit").items()
    place.write(name, data[:-9])
    with pytest.raises(RunError, match=name):
        cache.missing(wanted([(1, None)]))
