"""A whole cache verified: every shard read again, and, where pairs are named, some of its numbers computed again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from mrpo_pipeline.cache import ReferenceCache, list_references
from mrpo_pipeline.errors import UserError
from mrpo_pipeline.recipe import Recipe
from mrpo_pipeline.verify.check import measure_drift
from mrpo_pipeline.verify.result import Drift


@dataclass
class Verified:
    """What verifying one reference found.

    ``shards``, ``rows`` and ``tokens`` count what was read; ``damaged`` maps the files that are not what was written to
    what is wrong with them, ``unread`` those that the system did not let be read; ``not_computed`` says why no number was
    computed again where ``drift`` is None.
    """

    reference: str
    shards: int = 0
    rows: int = 0
    tokens: int = 0
    damaged: dict[str, str] = field(default_factory=dict)
    unread: dict[str, str] = field(default_factory=dict)
    drift: Drift | None = None
    not_computed: str = ""

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "drift": None if self.drift is None else self.drift.as_dict()}

    def failures(self) -> list[str]:
        """What is wrong, in sentences; none where all is well."""
        told = []
        if self.damaged:
            told.append(
                f"{len(self.damaged):,} files of reference {self.reference} are damaged ({', '.join(self.damaged)}): "
                "`mrpo cache verify RECIPE --repair` sets them aside and scores again what they held."
            )
        if self.unread:
            told.append(
                f"{len(self.unread):,} files of reference {self.reference} could not be read ({', '.join(self.unread)}), so "
                "nothing tells whether they are sound: give read access to them, or look at the disk or mount, and verify again."
            )
        failure = self.drift.failure() if self.drift else None
        return [*told, failure] if failure else told


def verify_cache(
    recipe: Recipe, *, only: Sequence[str] = (), check: int = 64, limit: float | None = None
) -> Iterator[Verified]:
    """Verify the recipe's cache, reference after reference.

    Every shard is read again: its checksum, lengths, finite numbers. Where the recipe names pairs (then also the policy,
    whose tokenizer decides the cuts, and the references), ``check`` completions of each are computed again as well.

    Args:
        only: names of references; all that the cache holds where empty.
        check: completions of each reference; 0 for none.
        limit: nats a token, in place of the dtype's own.

    Raises:
        UserError: for a cache that is not there, a name that it does not hold, or one of another reference.
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
            found.not_computed = "no pairs were named, as a recipe does" if check else "--check 0"
        elif name not in named:
            found.not_computed = f"the recipe names no reference {name}"
        elif found.damaged or found.unread:
            found.not_computed = "damaged shards come first"
        else:
            found.drift = measure_drift(recipe, name, wanted, check, limit=limit)
        yield found


def _names(recipe: Recipe, only: Sequence[str]) -> list[str]:
    held = list_references(recipe.cache)
    if not held:
        raise UserError(
            f"{recipe.cache} holds no cached reference: expected the folder that `cache:` names. Correct --cache, or score "
            "first (`mrpo score-refs`)."
        )
    for name in only:
        if name not in held:
            raise UserError(
                f"{recipe.cache} holds no reference {name!r}: there are {', '.join(held)}. Correct --reference."
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
