"""Counts that must balance: everything that enters a stage leaves it or is dropped for a counted reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from mrpo_pipeline.errors import RunError


@dataclass
class Counts:
    """Pairs of a split by outcome.

    Attributes:
        read, used: pairs.
        dropped: pairs by reason; read = used + dropped.
        skipped_rows: rows without a pair, by reason.
        cut_prompts: pairs with a truncated prompt.
        cut_completions: truncated completions.
    """

    read: int
    used: int
    dropped: dict[str, int] = field(default_factory=dict)
    skipped_rows: dict[str, int] = field(default_factory=dict)
    cut_prompts: int = 0
    cut_completions: int = 0

    def drop(self, reason: str, count: int = 1) -> None:
        self.dropped[reason] = self.dropped.get(reason, 0) + count

    def checked(self, stage: str) -> Self:
        """Return self. Raises RunError, which names `stage`, if the counts do not balance."""
        require_balance(stage, self.read, self.used, self.dropped)
        return self

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        """One line."""
        dropped = "; ".join(f"{count:,} {reason}" for reason, count in self.dropped.items())
        parts = [
            f"{self.read:,} pairs read = {self.used:,} used + {sum(self.dropped.values()):,} dropped"
            + (f" ({dropped})" if dropped else "")
        ]
        parts += [f"{count:,} rows skipped: {reason}" for reason, count in self.skipped_rows.items() if count]
        parts += [f"{self.cut_prompts:,} pairs with a cut prompt"] if self.cut_prompts else []
        parts += [f"{self.cut_completions:,} completions cut"] if self.cut_completions else []
        return "; ".join(parts)


def require_balance(
    stage: str, given: int, kept: int, dropped: Mapping[str, int] | None = None, *, what: str = "pairs"
) -> None:
    """Raise RunError, with all counts, unless given = kept + dropped.

    Args:
        stage: name for the message, such as ``reading pairs``.
        given, kept: number that entered and left the stage.
        dropped: number by reason.
        what: unit of the counts.
    """
    reasons = dict(dropped or {})
    lost = sum(reasons.values())
    if given == kept + lost:
        return
    listed = ", ".join(f"{reason}: {count:,}" for reason, count in reasons.items())
    raise RunError(
        f"The counts of {stage} do not add up: {given:,} {what} went in, {kept:,} came out and {lost:,} were dropped"
        f"{f' ({listed})' if listed else ''}. The run stops because {what} would be lost silently. This is a bug in mrpo; please "
        "report it."
    )
