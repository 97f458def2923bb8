"""Log-probs by span, against a plain loop over tokens; stored beside the sums, and rebuilt if damaged."""

from __future__ import annotations

import logging
import math
import tempfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from places import Place
from scored_rows import cid, row, wanted, write

from mrpo_pipeline.cache import CompletionRow, ReferenceCache
from mrpo_pipeline.errors import UserError
from mrpo_pipeline.targets.spans import Spans

FINGERPRINT = {"weights": "sha256:w"}


def cache_of(root: str, name: str, rows: list[CompletionRow], per_shard: int = 3) -> ReferenceCache:
    cache = ReferenceCache.open(root, name)
    cache.create_or_check(FINGERPRINT)
    write(cache, rows, per_shard)
    return cache


def sorted_wanted(items):  # type: ignore[no-untyped-def]
    return wanted(items).unique().sort("completion_id", "cut", nulls_last=True)


def slow_spans(rows: list[CompletionRow], cut: int | None) -> list[list[float]]:
    """For each span, each reference's log-prob, exactly rounded: the definition of the docs, token by token."""
    tokens, ends_turn = [], []
    for one in rows:
        own = list(zip(one.byte_ends.tolist(), one.logprobs.tolist(), strict=True))
        if one.complete:
            *own, (_, last) = own
            ends_turn.append(last)
        tokens.append([(end, logp) for end, logp in own if cut is None or end <= cut])
    shared = sorted(set.intersection(*({end for end, _ in own} for own in tokens)))
    spans = []
    for before, end in zip([-1, *shared], [*shared, math.inf], strict=True):
        inside = [[logp for at, logp in own if before < at <= end] for own in tokens]
        if end != math.inf or any(inside):
            spans.append([math.fsum(own) for own in inside])
    if cut is None:
        spans.append(ends_turn)
    return spans or [[0.0] * len(rows)]


def as_lists(spans: Spans) -> list[list[list[float]]]:
    parts = np.split(spans.logps.T, np.cumsum(spans.lengths)[:-1])
    return [part.tolist() for part in parts]


@st.composite
def completions(draw: st.DrawFn):  # type: ignore[no-untyped-def]
    """K references' rows of some completions: byte ends that sometimes coincide, tokens that share one, and cuts."""
    references = draw(st.sampled_from([1, 2, 3, 8]))
    rows: list[list[CompletionRow]] = [[] for _ in range(references)]
    asked = []
    for number in range(draw(st.integers(1, 6))):
        size = draw(st.integers(1, 12))
        cut = draw(st.none() | st.integers(0, size))
        asked.append((number, cut))
        for own in rows:
            inner = sorted(draw(st.lists(st.integers(0, size), max_size=8)))
            ends = [*inner, size, size]  # the text's end, and the end of turn
            logps = [-draw(st.floats(0, 50, width=32)) for _ in ends]
            own.append(row(number, logps, ends, complete=True))
    return rows, asked


@settings(deadline=None, max_examples=50)
@given(completions(), st.integers(1, 4))
def test_spans_are_those_of_a_plain_loop(made, per_shard):  # type: ignore[no-untyped-def]
    rows, asked = made
    frame = sorted_wanted(asked)
    expected = [
        slow_spans([next(one for one in own if one.completion_id == name) for own in rows], cut)
        for name, cut in frame.iter_rows()
    ]
    with tempfile.TemporaryDirectory() as root:
        caches = [cache_of(root, f"r{k}", own, per_shard) for k, own in enumerate(rows)]
        found = caches[0].spans(caches[1:], frame)
        read_again = caches[0].spans(caches[1:], frame)
        sums = [cache.sums(frame)["logps"].to_numpy() for cache in caches]
    assert [len(one) for one in as_lists(found)] == [len(one) for one in expected]
    for one, other in zip(as_lists(found), expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-14, atol=1e-300)
    np.testing.assert_array_equal(found.lengths, read_again.lengths)
    np.testing.assert_array_equal(found.logps, read_again.logps)
    totals = np.add.reduceat(found.logps, np.cumsum(found.lengths) - found.lengths, axis=1)
    np.testing.assert_allclose(totals, sums, rtol=1e-13, atol=1e-300)


def test_spans_by_hand():
    """ "ab c👍": base has a, b, " c" and four bytes of the emoji; other "ab", " ", "c" and the emoji. Shared are 2, 4 and 8."""
    base = row(1, [-1, -2, -3, -0.1, -0.2, -0.3, -0.4, -5], [1, 2, 4, 5, 6, 7, 8, 8], complete=True)
    other = row(1, [-10, -20, -30, -40, -50], [2, 3, 4, 8, 8], complete=True)
    with tempfile.TemporaryDirectory() as root:
        caches = [cache_of(root, "base", [base]), cache_of(root, "other", [other])]
        whole, cut = (as_lists(caches[0].spans(caches[1:], wanted([(1, at)])))[0] for at in (None, 5))
    np.testing.assert_allclose(whole, [[-3, -10], [-3, -50], [-1, -40], [-5, -50]], rtol=1e-6)
    # Cut at 5: base has a byte of the emoji behind the last shared end, the other nothing.
    np.testing.assert_allclose(cut, [[-3, -10], [-3, -50], [-0.1, 0]], rtol=1e-6)


def filled(root: str) -> list[ReferenceCache]:
    random = np.random.default_rng(3)
    ends = np.array([1, 2, 4, 6, 6])
    return [
        cache_of(root, name, [row(n, -random.exponential(2, 5), ends, complete=True) for n in range(7)])
        for name in ("base", "other")
    ]


ASKED = sorted_wanted([(n, cut) for n in range(7) for cut in (None, 3)])


def test_kept_spans_are_read_back_without_a_look_at_the_shards(place: Place) -> None:
    base, other = filled(place.root)
    built = base.spans([other], ASKED)
    assert len(place.names("base/spans")) == 1
    assert not place.names("other/spans")
    for shard in [*place.names("base/shards"), *place.names("other/shards")]:
        place.write(shard, b"not looked at while the derived file is sound")
    base, other = (ReferenceCache.open(place.root, one) for one in ("base", "other"))
    np.testing.assert_array_equal(base.spans([other], ASKED).logps, built.logps)


def test_a_changed_file_of_spans_is_built_again(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    base, other = filled(place.root)
    built = base.spans([other], ASKED)
    ((name, kept),) = place.files("base/spans").items()
    place.write(name, kept[:200] + bytes([kept[200] ^ 1]) + kept[201:])
    np.testing.assert_array_equal(base.spans([other], ASKED).logps, built.logps)
    assert "is rebuilt" in caplog.text
    assert place.files("base/spans") == {name: kept}


def test_spans_follow_the_shards_of_every_reference_and_their_order(place: Place) -> None:
    base, other = filled(place.root)
    base.spans([other], ASKED)
    np.testing.assert_array_equal(other.spans([base], ASKED).logps, base.spans([other], ASKED).logps[::-1])
    assert len(place.names("base/spans")) == len(place.names("other/spans")) == 1
    write(other, [row(9, [-1, -1], [1, 1], complete=True)])
    base.spans([other], ASKED)
    assert len(place.names("base/spans")) == 2  # of other shards
    base.spans([], ASKED)
    base.spans([other], ASKED.head(3))
    assert len(place.names("base/spans")) == 4  # of other references, and of other completions


def test_missing_completions_are_reported_for_their_reference(place: Place) -> None:
    base, other = filled(place.root)
    write(base, [row(8, [-1, -1], [1, 1], complete=True)])
    with pytest.raises(UserError, match=r"Reference other .* lacks 1 of 1 completions"):
        base.spans([other], wanted([(8, None)]))
    assert not place.names("base/spans")


def test_what_is_asked_must_be_distinct_and_sorted(place: Place) -> None:
    base, other = filled(place.root)
    for asked in (ASKED.reverse(), ASKED.head(1).extend(ASKED.head(1))):
        with pytest.raises(ValueError, match="distinct and sorted"):
            base.spans([other], asked)


def test_a_completion_of_which_no_token_counts_has_one_empty_span() -> None:
    with tempfile.TemporaryDirectory() as root:
        long = row(1, [-1, -2], [9, 9], complete=True)
        short = row(2, [-1, -2, -3], [1, 9, 9], complete=True)
        caches = [cache_of(root, name, [long, short]) for name in ("a", "b")]
        frame = sorted_wanted([(1, 4), (2, 4)])
        spans = caches[0].spans(caches[1:], frame)
    by_name = dict(zip(frame["completion_id"], as_lists(spans), strict=True))
    assert by_name == {cid(1): [[0, 0]], cid(2): [[-1, -1]]}


def test_a_cache_that_cannot_be_written_to_serves_spans_all_the_same(tmp_path, caplog):  # type: ignore[no-untyped-def]
    base, other = filled(str(tmp_path))
    (tmp_path / "base" / "spans").write_text("a file in the folder's place")
    with caplog.at_level(logging.INFO, "mrpo"):
        assert base.spans([other], ASKED).logps.shape[0] == 2
    assert "can't be stored" in caplog.text


def test_prune_removes_spans_of_other_shards_and_changed_ones(place: Place) -> None:
    base, other = filled(place.root)
    base.spans([other], ASKED)
    base.spans([], ASKED)
    assert base.prune().sums == 0
    first, _ = place.names("base/spans")
    place.write(first, b"changed")
    assert base.prune().sums == 1
    assert first not in place.names("base/spans")
    write(base, [row(9, [-1, -1], [1, 1], complete=True)])
    assert base.prune().sums == 1
    assert not place.names("base/spans")
