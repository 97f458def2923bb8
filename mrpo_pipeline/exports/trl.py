"""The file of TRL's DPOTrainer: text, the policy's token ids, and log π̃ where TRL keeps its reference's sums.

TRL (1.16) fills the columns ``ref_chosen_logps`` and ``ref_rejected_logps`` itself, from its one reference model, and it
renders text in its own way: it counts what a template writes behind the end of a turn as completion, ends a cut completion
all the same, and lets control strings in the data be control tokens. So the file holds the token ids as well, under TRL's own
names, and `docs/trl.md` shows the two methods of the trainer that leave both as they are.
"""

from __future__ import annotations

from typing import Any

import polars as pl

from mrpo_pipeline.dataset.reference_logps import CachedPairs
from mrpo_pipeline.errors import UserError
from mrpo_pipeline.exports.unscored import UNSCORED, holds_unscored
from mrpo_pipeline.pairs import parse_prompt
from mrpo_pipeline.recipe import Recipe

COLUMNS = ("ref_chosen_logps", "ref_rejected_logps")

# Where a loss of ours is one of TRL's (its names), on sums and divided by tokens.
_LOSSES = {
    ("sigmoid", "sum"): "sigmoid",
    ("sigmoid", "token"): "sigmoid_norm",
    ("hinge", "sum"): "hinge",
    ("ipo", "sum"): "ipo",
    ("ipo", "token"): "ipo",
}


def rows(pairs: CachedPairs, recipe: Recipe) -> tuple[pl.DataFrame, dict[str, int]]:
    """Every pair after its cuts: ``prompt``, ``chosen``, ``rejected`` as TRL has them, and the ids that stand for them.

    Raises:
        UserError: where some prompts are messages and others raw text, which one column can't hold.
    """
    frame = pairs.frame
    prompts = [parse_prompt(text) for text in frame["prompt_read"]]
    raw = [isinstance(prompt, str) for prompt in prompts]
    if any(raw) and not all(raw):
        raise UserError(
            f"{sum(raw):,} of {len(raw):,} prompts are raw text and the others messages: expected one kind, for TRL reads all of "
            "a file as the first row. Write them apart, or set pairs.strings to messages."
        )
    sides: dict[str, list[Any]] = {}
    for side in ("chosen", "rejected"):
        texts = _counted_text(frame, side)
        sides[side] = texts if all(raw) else [[{"role": "assistant", "content": text}] for text in texts]
    unscored = holds_unscored(frame)
    kept = frame.select(
        pl.int_range(pl.len()).alias("index"),
        "pair_id",
        pl.Series("prompt", prompts),
        pl.Series("chosen", sides["chosen"]),
        pl.Series("rejected", sides["rejected"]),
        "prompt_ids",
        "chosen_ids",
        "rejected_ids",
    ).filter(~unscored)
    return kept, {UNSCORED: int(unscored.sum())} if unscored.any() else {}


def settings(recipe: Recipe) -> list[str]:
    """The keys of ``DPOConfig`` that make TRL's loss this recipe's."""
    method = recipe.method
    loss = _LOSSES.get((method.loss, method.normalize))
    loss = f'"{loss}"' if loss else None
    if (method.loss, method.normalize) == ("mpo", "sum"):
        shares = method.mpo
        loss = (
            f'["sigmoid", "bco_pair", "sft"], loss_weights=[{shares.preference:g}, {shares.quality:g}, {shares.sft:g}]'
        )
    lines = [
        "precompute_ref_log_probs=True  # in a trainer that keeps the file's columns: docs/trl.md",
        "max_length=None  # the ids are cut already",
        f"beta={method.beta:g}",
        f"loss_type={loss}" if loss else f"# TRL has no loss_type for method.loss {method.loss} by {method.normalize}",
    ]
    if method.label_smoothing:
        lines.append(
            f"# label_smoothing {method.label_smoothing:g}: TRL 1.16 has none in its sigmoid loss; take it out of the recipe"
        )
    if method.sft_weight:
        lines.append(
            f'# sft_weight {method.sft_weight:g}: loss_type=[…, "sft"], loss_weights=[1, {method.sft_weight:g}], a mean over '
            "the batch's tokens there"
        )
    return lines


def _counted_text(frame: pl.DataFrame, side: str) -> list[str]:
    """(N,) the text of one side up to its cut."""
    return [
        text if cut is None else text.encode()[:cut].decode()
        for text, cut in frame.select(side, f"{side}_cut").iter_rows()
    ]
