"""Several runs of `mrpo score-refs` at once on one cache share the work: each looks, unit by unit, what is left of it.

The first goes from the front, where the longest stand; the second from the end; so they meet, and what both have in hand
just then is all that is scored twice. Any more of them go in an order of their own.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator

import polars as pl

from mrpo_pipeline.cache import Others, ReferenceCache

log = logging.getLogger("mrpo")

# Completions between two looks at the cache. vLLM runs empty at the end of each unit, which is felt in small ones.
ALONE = {"transformers": 1024}
ALONE_ELSE = 8192
TOGETHER = 512


def units(
    name: str, cache: ReferenceCache, missing: pl.DataFrame, others: Others, engine: str
) -> Iterator[tuple[pl.DataFrame, int]]:
    """What this run is to score of ``missing``, unit by unit.

    Args:
        name: the reference's, for messages.
        missing: the columns of ``wanted_completions``, the longest first.
        others: who else is at work.
        engine: its name.

    Yields:
        rows to score, and the number of rows beside them that others have scored meanwhile.
    """
    found = others()
    told = False
    before_us = sum(other.came_first for other in found)
    begun = False
    while missing.height:
        if found and not told:
            told = True
            log.info(
                "%s is being scored into this cache by %s as well: the work is shared, and what both have in hand when they meet "
                "is scored twice and served once.",
                name, ", ".join(other.name for other in found),
            )  # fmt: skip
        size = min(TOGETHER if found else ALONE.get(engine, ALONE_ELSE), missing.height)
        places = {0: 0, 1: missing.height - size}
        start = places.get(before_us, random.randint(0, missing.height - size))
        unit = missing.slice(start, size)
        missing = pl.concat([missing.head(start), missing.slice(start + size)])
        # What was missing a moment ago is missing still, where nobody else is there.
        left = cache.unserved(unit) if begun or found else unit
        begun = True
        yield left, unit.height - left.height
        found = others()
