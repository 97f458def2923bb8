"""Publish a cache with a card that describes it, or copy a published one, reference by reference."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from mrpo_pipeline.cache import ReferenceCache, list_references
from mrpo_pipeline.cache.transfer import Transfer, copy_cache, find_caches
from mrpo_pipeline.dataset.prepare import prepare_splits, wanted_completions
from mrpo_pipeline.errors import UserError
from mrpo_pipeline.exports.cache_card import CARD_TAG, cache_card
from mrpo_pipeline.exports.publication import Publication
from mrpo_pipeline.recipe import Recipe
from mrpo_pipeline.terminal import track

log = logging.getLogger("mrpo")


def push_cache(
    source: str, target: str, *, without_ids: bool = False, private: bool = False, recipe: Recipe | None = None
) -> list[Transfer]:
    """Copy the references of a cache to a folder, an object store, or a data set of the hub, with a card beside them.

    Args:
        source: a cache, or ``CACHE/NAME``.
        target: a folder, a URL as ``cache:`` takes it, or ``hf://datasets/ORGANISATION/NAME`` (one commit).
        without_ids: write 0 in place of the token ids, which are the text.
        private: make the data set private, if it is created.
        recipe: for the card: the pairs and the models' names. Only its references are copied.

    Raises:
        UserError: there is no such cache, or the target holds another reference under a name.
    """
    caches = find_caches(source, [one.name for one in recipe.sources()] if recipe else ())
    place = Publication(target, CARD_TAG, key="TARGET", private=private)
    done = [
        _copy(
            cache,
            ReferenceCache(place.storage(cache.name), cache.name),
            f"pushing {cache.name}",
            without_ids=without_ids,
        )
        for cache in caches
    ]
    own = [cache.name for cache in caches]
    others = [ReferenceCache.open(target, name) for name in list_references(target) if name not in own]
    place.finish(
        cache_card(caches, others, place=target, without_ids=without_ids, recipe=recipe),
        f"Add references {', '.join(own)}",
    )
    return done


def pull_cache(source: str, target: str, *, recipe: Recipe | None = None) -> list[Transfer]:
    """Copy a published cache, every file verified, into a cache of this machine.

    Args:
        source: a cache anywhere, ``hf://datasets/ORGANISATION/NAME`` included, or one reference in it.
        target: a folder, or a URL that ``cache:`` takes.
        recipe: copy only its references, and only shards with completions of its pairs.

    Raises:
        UserError: see ``push_cache``; the target's numbers, or the recipe's reference, are not those of the source.
        DamagedError: a file is not what was written. None of its numbers was used.
    """
    caches = find_caches(source, [one.name for one in recipe.sources()] if recipe else ())
    wanted = wanted_completions(list(prepare_splits(recipe).values())) if recipe else None
    if recipe:
        _check_references(caches, recipe)
    return [
        _copy(cache, ReferenceCache.open(target, cache.name), f"pulling {cache.name}", wanted=wanted)
        for cache in caches
    ]


def merge_caches(source: str, target: str) -> list[Transfer]:
    """Copy what the target lacks of each reference; the fingerprints must be equal. Raises as ``push_cache``."""
    caches = find_caches(source)
    if not list_references(target):
        raise UserError(
            f"{target} holds no cached reference: expected the folder or URL of a cache to merge into. Correct it."
        )
    return [_copy(cache, ReferenceCache.open(target, cache.name), f"merging {cache.name}") for cache in caches]


def _copy(source: ReferenceCache, target: ReferenceCache, what: str, **options: Any) -> Transfer:
    with track(what, source.files(), "files") as progress:
        return copy_cache(source, target, advance=progress.advance, **options)


def _check_references(caches: Sequence[ReferenceCache], recipe: Recipe) -> None:
    """Refuse a published cache that the recipe's references did not compute, as far as their files are here."""
    from mrpo_pipeline.dataset.reference_logps import check_cache

    sources = {source.name: source for source in recipe.sources()}
    for cache in caches:
        check_cache(cache, sources[cache.name])
