"""Counts that must add up: what went into a stage came out of it, or was dropped for a reason that is counted."""

from __future__ import annotations

from collections.abc import Mapping

from mrpo_pipeline.errors import RunError


def require_balance(
    stage: str, given: int, kept: int, dropped: Mapping[str, int] | None = None, *, what: str = "pairs"
) -> None:
    """Stop where something went in and neither came out nor was counted.

    Args:
        stage: named in the message: ``reading pairs``, say.
        given: what went in. kept: what came out.
        dropped: what did not, by reason.
        what: what is counted.

    Raises:
        RunError: with every count.
    """
    reasons = dict(dropped or {})
    lost = sum(reasons.values())
    if given == kept + lost:
        return
    told = ", ".join(f"{reason}: {count:,}" for reason, count in reasons.items())
    raise RunError(
        f"The counts of {stage} do not add up: {given:,} {what} went in, {kept:,} came out and {lost:,} were dropped"
        f"{f' ({told})' if told else ''}: expected as many out and dropped as in. Nothing is gone on with, for some {what} would "
        "be missing without a word. This is a fault in mrpo: please report it."
    )


def in_words(counts: Mapping[str, int]) -> str:
    """A split's counts (see ``dataset.splits.Split.counts``) as one line: pairs in = pairs out + pairs dropped, by reason."""
    reasons = {
        what.removeprefix("pairs dropped: "): count
        for what, count in counts.items()
        if what.startswith("pairs dropped: ")
    }
    text = f"{counts['pairs in']:,} pairs read = {counts['pairs out']:,} used + {sum(reasons.values()):,} dropped"
    if reasons:
        text += f" ({'; '.join(f'{count:,} {reason}' for reason, count in reasons.items())})"
    others = [f"{count:,} {what}" for what, count in counts.items() if not what.startswith("pairs ") and count]
    cut = counts.get("pairs with a cut prompt", 0)
    return "; ".join([text, *others, *([f"{cut:,} pairs with a cut prompt"] if cut else [])])
