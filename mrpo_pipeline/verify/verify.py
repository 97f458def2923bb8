"""Verify a cache: checksums of all shards, and a sample of log-probs where the recipe has pairs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from mrpo_pipeline.cache import ReferenceCache, list_references
from mrpo_pipeline.engines.base import NoServerError
from mrpo_pipeline.errors import UserError
from mrpo_pipeline.recipe import Recipe
from mrpo_pipeline.verify.check import measure_drift
from mrpo_pipeline.verify.result import Drift


@dataclass
class Verified:
    """The verification of one reference.

    Attributes:
        shards, rows, tokens: counts of what was read.
        damaged: file → problem. unread: files that could not be read → the system's error.
        drift: the recomputed log-probs; None where there are none, for the reason ``not_recomputed``.
    """

    reference: str
    shards: int = 0
    rows: int = 0
    tokens: int = 0
    damaged: dict[str, str] = field(default_factory=dict)
    unread: dict[str, str] = field(default_factory=dict)
    drift: Drift | None = None
    not_recomputed: str = ""

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "drift": None if self.drift is None else self.drift.as_dict()}

    def failures(self) -> list[str]:
        """The problems, as sentences."""
        found = []
        if self.damaged:
            found.append(
                f"{len(self.damaged):,} files of reference {self.reference} are damaged ({', '.join(self.damaged)}). "
                "`mrpo cache verify RECIPE --repair` moves them aside and scores their completions again."
            )
        if self.unread:
            found.append(
                f"{len(self.unread):,} files of reference {self.reference} could not be read ({', '.join(self.unread)}). Give read "
                "access, or check the disk or mount, and verify again."
            )
        failure = self.drift.failure() if self.drift else None
        return [*found, failure] if failure else found


def verify_cache(
    recipe: Recipe, *, only: Sequence[str] = (), check: int = 64, limit: float | None = None
) -> Iterator[Verified]:
    """Verify the recipe's cache, one reference after another.

    Reads every shard: checksum, lengths, finite numbers. Where the recipe has pairs (with a policy, whose tokenizer decides the
    cuts, and references), recomputes ``check`` completions of each.

    Args:
        only: names of references; all in the cache where empty.
        check: completions per reference; 0 for none.
        limit: nats per token, in place of the dtype's limit.

    Raises:
        UserError: for a missing cache, an unknown name, or a cache of another reference.
    """
    names = _names(recipe, only)
    named = set(recipe.references)
    wanted = None
    if check and (recipe.pairs.train is not None or recipe.pairs.eval is not None):
        from mrpo_pipeline.dataset.prepare import prepare_splits, wanted_completions

        recipe.sources()
        wanted = wanted_completions(list(prepare_splits(recipe).values()))
    for name in names:
        found = _read_shards(ReferenceCache.open(recipe.cache, name))
        if wanted is None:
            found.not_recomputed = "the recipe has no pairs" if check else "--check 0"
        elif name not in named:
            found.not_recomputed = f"the recipe has no reference {name}"
        elif found.damaged or found.unread:
            found.not_recomputed = "repair the damaged shards first"
        else:
            try:
                found.drift = measure_drift(recipe, name, wanted, check, limit=limit)
            except NoServerError as error:  # the shards are verified
                found.not_recomputed = str(error).rstrip(".")
        yield found


def _names(recipe: Recipe, only: Sequence[str]) -> list[str]:
    held = list_references(recipe.cache)
    if not held:
        raise UserError(
            f"{recipe.cache} holds no cached reference. Correct --cache, or score first (`mrpo score-refs`)."
        )
    for name in only:
        if name not in held:
            raise UserError(
                f"{recipe.cache} holds no reference {name!r}: expected one of {', '.join(held)}. Correct --reference."
            )
    return list(only) or held


def _read_shards(cache: ReferenceCache) -> Verified:
    found = Verified(cache.name)
    for report in cache.verify():
        found.shards += 1
        found.rows += report.rows
        found.tokens += report.tokens
        if report.problem:
            (found.unread if report.unread else found.damaged)[report.name] = report.problem
    return found
