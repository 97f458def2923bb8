"""A cache is used only by the reference that made it."""

from __future__ import annotations

import json

import pytest
from places import Place
from scored_rows import FINGERPRINT, cache_at, row, write

from mrpo_pipeline.cache import ReferenceCache
from mrpo_pipeline.errors import UserError


@pytest.mark.parametrize("field", sorted(FINGERPRINT))
def test_a_difference_names_field_values_and_remedy(place: Place, field: str) -> None:
    cache = cache_at(place.root)
    write(cache, [row(1, [-1.0], [1], True)])
    before = place.files()
    changed = {**FINGERPRINT, field: "something else"}
    for refuse in (cache.check, cache.create_or_check):
        with pytest.raises(UserError) as caught:
            refuse(changed)
        message = str(caught.value)
        for part in (f"`{field}`", FINGERPRINT[field], "something else", "base", "mrpo cache prune", "mrpo score-refs"):
            assert part in message
        assert "\n" not in message
    assert place.files() == before


def test_unknown_fields_are_not_compared(place: Place) -> None:
    cache = cache_at(place.root)
    cache.check({"weights": None, "template": None, "dtype": "float32"})
    cache.check({"weights": None, "revision": "a" * 40, "template": None})
    with pytest.raises(UserError, match="dtype"):
        cache.check({"weights": None, "dtype": "bfloat16"})


def test_a_field_that_the_cache_does_not_know_differs(place: Place) -> None:
    with pytest.raises(UserError, match=r"`prepended` is \(not recorded\)"):
        cache_at(place.root).check({**FINGERPRINT, "prepended": "<s>"})


def test_a_commit_replaces_weights_only_where_they_are_unknown(place: Place) -> None:
    cache = ReferenceCache.open(place.root, "hub")
    cache.create_or_check({**FINGERPRINT, "revision": "a" * 40})
    cache.check({**FINGERPRINT, "revision": "b" * 40})  # the same content: a commit that changed a model card
    with pytest.raises(UserError, match="revision"):
        cache.check({**FINGERPRINT, "weights": None, "revision": "b" * 40})


def test_a_cache_is_not_started_with_unknown_fields(place: Place) -> None:
    cache = ReferenceCache.open(place.root, "base")
    with pytest.raises(UserError, match="template"):
        cache.create_or_check({**FINGERPRINT, "template": None})
    with pytest.raises(UserError, match="weights"):
        cache.create_or_check({**FINGERPRINT, "weights": None, "revision": None})
    assert place.files() == {}
    cache.create_or_check({**FINGERPRINT, "weights": None, "revision": "a" * 40})


def test_what_is_recorded_beside_the_fingerprint_never_differs(place: Place) -> None:
    first = cache_at(place.root)
    again = first.create_or_check(FINGERPRINT, {"engine": "another", "versions": {"torch": "9"}})
    assert again.recorded["engine"] == "made up"


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"format": 1}',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"format": "1", "reference": "x", "fingerprint": {}, "fingerprint_hash": "", "recorded": {}}',
    ],
)
def test_an_unreadable_manifest_is_refused(place: Place, damage: bytes) -> None:
    cache = cache_at(place.root)
    place.write("base/manifest.json", damage)
    with pytest.raises(UserError, match=r"manifest\.json is not a readable manifest"):
        cache.check(FINGERPRINT)


def test_an_edited_fingerprint_and_a_newer_format_are_refused(place: Place) -> None:
    cache = cache_at(place.root)
    document = json.loads(place.files()["base/manifest.json"])
    document["fingerprint"]["template"] = "t2"
    place.write("base/manifest.json", json.dumps(document).encode())
    with pytest.raises(UserError, match="does not agree with its hash"):
        cache.check({**FINGERPRINT, "template": "t2"})
    place.write("base/manifest.json", json.dumps({**document, "format": 2}).encode())
    with pytest.raises(UserError, match="Upgrade mrpo"):
        cache.check(FINGERPRINT)
