"""Concurrent runs of `mrpo score-refs` on one cache share the work: before each unit, a run checks what is left.

The first run starts with the longest completions, the second with the shortest; when they meet, only their current units are scored
twice. Further runs take units at random.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator

import polars as pl

from mrpo_pipeline.cache import Others, ReferenceCache

log = logging.getLogger("mrpo")

# Completions between two checks of the cache. vLLM idles at the end of each unit, which costs more in small ones.
ALONE = {"transformers": 1024}
ALONE_ELSE = 8192
TOGETHER = 512


def units(
    name: str, cache: ReferenceCache, missing: pl.DataFrame, others: Others, engine: str
) -> Iterator[tuple[pl.DataFrame, int]]:
    """The completions of ``missing`` that this run scores, unit by unit.

    Args:
        name: the reference's, for messages.
        missing: the columns of ``wanted_completions``, longest first.
        others: lists the other active runs.
        engine: its name.

    Yields:
        rows to score, and the number of further rows that others have scored meanwhile.
    """
    found = others()
    logged = begun = False
    while missing.height:
        if found and not logged:
            logged = True
            log.info(
                "%s is being scored into this cache by %s as well: the runs share the work. When they meet, the completions that both "
                "are scoring are scored twice; the cache serves one of the two rows.",
                name, ", ".join(other.name for other in found),
            )  # fmt: skip
        size = min(TOGETHER if found else ALONE.get(engine, ALONE_ELSE), missing.height)
        places = {0: 0, 1: missing.height - size}
        # Counted for every unit: of two runs that started together, one may see the other late.
        before_us = sum(other.came_first for other in found)
        start = places.get(before_us, random.randint(0, missing.height - size))
        unit = missing.slice(start, size)
        missing = pl.concat([missing.head(start), missing.slice(start + size)])
        # Without other runs, what was missing a moment ago is still missing.
        left = cache.unserved(unit) if begun or found else unit
        begun = True
        yield left, unit.height - left.height
        found = others()
