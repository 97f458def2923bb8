"""`mrpo select`: which pairs are worth training on, labelling again or reading, from the cache alone."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from mrpo_pipeline.dataset.pair_targets import pair_targets
from mrpo_pipeline.dataset.reference_logps import CachedPairs
from mrpo_pipeline.errors import UserError
from mrpo_pipeline.exports.near_copies import near_copies
from mrpo_pipeline.exports.targets_file import cached_split
from mrpo_pipeline.files.atomic import whole_file, write_whole
from mrpo_pipeline.pairs.completion import completion_text
from mrpo_pipeline.recipe import Method, Recipe
from mrpo_pipeline.targets.settings import check_target

log = logging.getLogger("mrpo")

ADVICE = ("keep", "label", "read", "drop")
ORDERS = ("certainty", "disagreement", "margin")

_UNCERTAIN = 0.25
"""Share of the pairs that counts as uncertain, the least certain first; an uncertain pair that references dispute is to be labelled
again."""


def select_pairs(pairs: CachedPairs, method: Method) -> pl.DataFrame:
    """Scores and advice for each pair, in the pairs' order (arXiv 2402.08114 for certainty; no samples are drawn).

    Returns:
        ``file``, ``row``, ``pair_in_row``, ``id``, ``pair_id``; ``margin`` (Δ_π̃ = log π̃(chosen) − log π̃(rejected), in the method's
        unit) and ``certainty`` (|Δ_π̃|); ``disagreement`` (share of pairs of references whose margins differ in sign; 0 with one
        reference); ``all_wrong`` (every reference finds the rejected side more probable); ``near_copy_of`` (the ``pair_id`` of an earlier
        pair, or null); ``advice`` and ``reason``.

    Raises:
        UserError: the method has no fixed log π̃ per pair.
    """
    _check(method, pairs.names)
    targets = pair_targets(pairs, method)
    margin = targets.target_chosen - targets.target_rejected
    each = pairs.logps_chosen - pairs.logps_rejected
    copies = near_copies(
        (prompt, completion_text(chosen), completion_text(rejected))
        for prompt, chosen, rejected in pairs.frame.select("prompt_read", "chosen", "rejected").iter_rows()
    )
    ids = pairs.frame["pair_id"]
    scored = pairs.frame.select("file", "row", "pair_in_row", "id", "pair_id").with_columns(
        pl.Series("margin", margin),
        pl.Series("certainty", np.abs(margin)),
        pl.Series("disagreement", _disagreement(each)),
        pl.Series("all_wrong", np.all(each < 0, axis=1, keepdims=True)[:, 0]),
        pl.Series("near_copy_of", [ids[int(one)] if one >= 0 else None for one in copies], dtype=pl.String),
    )
    uncertain = pl.col("certainty") <= pl.col("certainty").quantile(_UNCERTAIN)
    reasons = {
        "drop": (pl.col("near_copy_of").is_not_null(), "a near copy of an earlier pair"),
        "read": (pl.col("all_wrong"), "every reference has the rejected side more probable: the label may be wrong"),
        "label": (uncertain & (pl.col("disagreement") > 0), "the references disagree, and the mixture is undecided"),
    }
    advice, reason = pl.lit("keep"), pl.lit("")
    for name, (applies, why) in reversed(reasons.items()):
        advice = pl.when(applies).then(pl.lit(name)).otherwise(advice)
        reason = pl.when(applies).then(pl.lit(why)).otherwise(reason)
    return scored.with_columns(advice=advice, reason=reason)


def write_selection(
    recipe: Recipe,
    output: Path,
    *,
    split: str = "train",
    advice: Sequence[str] = ADVICE,
    order: str | None = None,
    count: int | None = None,
) -> dict[str, int]:
    """Write the scores of one split as Parquet or JSON lines, by the file's suffix, with the resolved recipe beside it.

    Args:
        advice: pairs with one of these are written. order: the score by which to sort, highest first. count: maximum to write.

    Returns:
        number of pairs of the complete split by advice.

    Raises:
        UserError: for another suffix, an unknown name, or completions that are not scored.
    """
    if output.suffix not in (".parquet", ".jsonl"):
        raise UserError(f"--output is {output}: expected a .parquet or .jsonl file.")
    for option, given, known in (("--advice", advice, ADVICE), ("--by", [order] if order else [], ORDERS)):
        for one in given:
            if one not in known:
                raise UserError(f"{option} is {one!r}: expected one of {', '.join(known)}.")
    frame = select_pairs(cached_split(recipe, split), recipe.method)
    counts = {name: int((frame["advice"] == name).sum()) for name in ADVICE}
    frame = frame.filter(pl.col("advice").is_in(list(advice)))
    if order:
        frame = frame.sort(order, descending=True, maintain_order=True)
    frame = frame.head(count) if count is not None else frame
    with whole_file(output) as temporary:
        if output.suffix == ".parquet":
            frame.write_parquet(temporary)
        else:
            frame.write_ndjson(temporary)
    write_whole(output.with_suffix(".recipe.yaml"), recipe.dump())
    return counts


def _disagreement(margins: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(N,) share of the pairs of references whose margins differ in sign, of margins (N, K)."""
    count = margins.shape[1]
    differ: npt.NDArray[np.int64] = (margins > 0).sum(axis=1) * (margins < 0).sum(axis=1)
    shares: npt.NDArray[np.float64] = differ / max(count * (count - 1) / 2, 1)
    return shares


def _check(method: Method, names: list[str]) -> None:
    check_target(method, names)
    if method.is_step_scoped(names) or (method.name == "multi-dpo" and len(names) > 1):
        raise UserError(
            f"method.name is {method.name!r} with method.weights {method.weights!r}, which has no fixed log π̃ per pair: expected mrpo or "
            "dpo with weights that do not change with every step. Set, for instance, `--method mrpo --weights adaptive`."
        )
