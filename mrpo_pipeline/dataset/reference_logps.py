"""Join prepared pairs with the cached sums of every reference. No model is loaded."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import polars as pl

from mrpo_pipeline.cache import ReferenceCache
from mrpo_pipeline.dataset.drop_reasons import TOO_LONG_FOR, UNWRITTEN_BY
from mrpo_pipeline.dataset.nothing_left import few_pairs_notice, nothing_left, short_context
from mrpo_pipeline.dataset.prepare import report_reading
from mrpo_pipeline.dataset.reference_span_logps import completion_cuts, distinct_of
from mrpo_pipeline.dataset.truncate import Prepared
from mrpo_pipeline.errors import UserError
from mrpo_pipeline.models.source import ModelSource, as_recorded, has_tokenizer, resolve
from mrpo_pipeline.pairs.counts import require_balance
from mrpo_pipeline.recipe import Limits, Recipe
from mrpo_pipeline.rendering.identity_cache import ModelReading

log = logging.getLogger("mrpo")

Floats = npt.NDArray[np.float64]
SIDES = ("chosen", "rejected")


@dataclass
class CachedPairs:
    """N pairs that all K references have scored, with their sums.

    Attributes:
        frame: the columns of ``Prepared.frame``.
        names: of the references, the anchor first; empty if no cache is read (K = 0).
        logps_chosen, logps_rejected: (N, K), nats.
        dropped: number of pairs left out, by the references that can't read them and the reason.
        held_out: the pairs of the recipe's third split, for some weights; None without one.
        caches: those of ``names``, for log-probs by span.
    """

    frame: pl.DataFrame
    names: list[str]
    logps_chosen: Floats
    logps_rejected: Floats
    dropped: dict[str, int]
    held_out: CachedPairs | None = None
    caches: Sequence[ReferenceCache] = ()


def open_caches(recipe: Recipe) -> list[ReferenceCache]:
    """The recipe's caches, each checked against its reference in the recipe as far as the reference's files are available."""
    caches = []
    for source in recipe.sources():
        cache = ReferenceCache.open(recipe.cache, source.name)
        check_cache(cache, source)
        caches.append(cache)
    return caches


def caches_of_method(recipe: Recipe) -> list[ReferenceCache]:
    """The caches that the recipe's method reads: all, or none with ``reference: none``."""
    return open_caches(recipe) if recipe.method.has_reference else []


def check_cache(cache: ReferenceCache, source: ModelSource) -> None:
    """Raise UserError for a cache that the reference did not compute, as far as the reference's files are available."""
    cache.check(resolve(as_recorded(source, cache.fingerprint()), _identity(source)))


def _identity(source: ModelSource) -> dict[str, str] | None:
    """The identity of the reference's tokenizer and template; None if its tokenizer is not on this machine.

    Raises:
        UserError: for a tokenizer or template that is available and can't be used.
    """
    try:
        reading = ModelReading(source)
        report_reading(source.name, reading)
        return reading.identity()
    except UserError as error:
        if has_tokenizer(source):
            raise
        log.info(
            "%s: its tokenizer is not available, so the manifest of its cache is trusted (%s)",
            source.name,
            str(error).split(".")[0],
        )
        return None


def join_references(
    caches: list[ReferenceCache], prepared: Prepared, limits: Limits | None = None, *, what: str = ""
) -> CachedPairs:
    """Look up every pair's sums. Pairs that do not fit a reference's context are dropped for all references and counted.

    Args:
        limits: of the recipe; if given, log the length that would keep dropped pairs. what: the split's name.

    Raises:
        UserError: for completions that are not scored yet, with the command that scores them.
        RunError: if no pair is left.
    """
    frame = prepared.frame
    hints = _context_hints(caches, frame, limits) if limits is not None and frame.height else []
    keep, dropped = _readable(caches, frame)
    given = frame.height
    # If every pair stays, keep the table: it may be memory-mapped.
    frame = frame if keep.all() else frame.filter(pl.Series(keep))
    require_balance("joining pairs with the references", given, frame.height, dropped)
    if not frame.height:
        counts = replace(prepared.counts, dropped={**prepared.counts.dropped, **dropped})
        raise nothing_left(what or "prepared", [counts], ". ".join(hints) if given else "")
    for reason, count in dropped.items():
        log.warning("%s of %s pairs are left out for all references: %s.", f"{count:,}", f"{given:,}", reason)
    for hint in hints:
        log.warning("%s.", hint)
    sums = {side: np.empty((frame.height, len(caches))) for side in SIDES}
    # Distinct completions and their indices are the same for every cache.
    distinct, places = distinct_of(frame)
    for column, cache in enumerate(caches):
        both = cache.sums(distinct)["logps"].to_numpy()[places]
        sums["chosen"][:, column], sums["rejected"][:, column] = both[: frame.height], both[frame.height :]
    names = [cache.name for cache in caches]
    return CachedPairs(frame, names, sums["chosen"], sums["rejected"], dropped, caches=caches)


def _readable(caches: list[ReferenceCache], frame: pl.DataFrame) -> tuple[npt.NDArray[np.bool_], dict[str, int]]:
    """(N,) whether every reference can read each pair; and the number of the others by reason. A pair that several references
    can't read is counted once, under all of them."""
    hits: dict[str, npt.NDArray[np.bool_]] = {}
    for cache in caches:
        unfit = pl.concat(
            [cache.unfit(completion_cuts(frame, side)).select("completion_id", "tokens") for side in SIDES]
        )
        for part, why in (
            (unfit.filter(pl.col("tokens") > 0), f"{TOO_LONG_FOR} {cache.name}"),
            (unfit.filter(pl.col("tokens") == 0), f"{UNWRITTEN_BY} {cache.name}"),
        ):
            if part.height:
                ids = part["completion_id"].implode()
                hit = (frame["chosen_id"].is_in(ids) | frame["rejected_id"].is_in(ids)).to_numpy()
                if hit.any():
                    hits[why] = hit
    if not hits:
        return np.ones(frame.height, dtype=bool), {}
    table = np.stack(list(hits.values()), axis=1)  # (N, reasons)
    kinds, counts = np.unique(table[table.any(axis=1)], axis=0, return_counts=True)
    names = np.array(list(hits))
    dropped = {" and ".join(names[kind]): int(count) for kind, count in zip(kinds, counts, strict=True)}
    keep: npt.NDArray[np.bool_] = np.logical_not(table.any(axis=1))
    return keep, dropped


def _context_hints(caches: list[ReferenceCache], frame: pl.DataFrame, limits: Limits) -> list[str]:
    """A notice for each reference whose context leaves pairs out, with their number and the length that keeps them."""
    found = []
    for cache in caches:
        unfit = pl.concat([cache.unfit(completion_cuts(frame, side)) for side in SIDES]).filter(pl.col("tokens") > 0)
        if unfit.height:
            found.append(short_context(cache.name, int(unfit["context"].to_list()[0]), limits, [frame], unfit))
    return [text for text in found if text is not None]


def join_splits(
    caches: list[ReferenceCache], prepared: Mapping[str, Prepared], limits: Limits | None = None
) -> dict[str, CachedPairs]:
    """Every split's pairs with their sums, and with the third split ``weights`` as ``held_out``."""
    joined = {name: join_references(caches, part, limits, what=name) for name, part in prepared.items()}
    for name, pairs in joined.items():
        few = few_pairs_notice(name, replace(prepared[name].counts, used=pairs.frame.height))
        if few is not None:
            log.warning("%s", few)
    held_out = joined.get("weights")
    return {name: replace(pairs, held_out=held_out) for name, pairs in joined.items()}
