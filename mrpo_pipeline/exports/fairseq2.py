"""The file of fairseq2's preference recipe (0.4.4 to 0.4.6): JSON lines of text, log π̃ as the reference's scores.

Its reader encodes ``src`` and each target apart: the tokenizer's first token before ``src``, its last one behind a target, and
every control string as the control token. What comes out so must be the tokens that log π̃ is a sum over. So the text written
is that of the policy's own ids, template and all, and a pair that would not give them back is left out and counted.

The column names and this reading of them are those of fairseq2's source (``datasets/preference.py`` and the DPO recipe at
0.4.6); fairseq2 itself is not a part of this project's tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import polars as pl

from mrpo_pipeline.dataset.prepare import policy_tokenizer
from mrpo_pipeline.dataset.reference_logps import CachedPairs
from mrpo_pipeline.exports.unscored import UNSCORED, holds_unscored
from mrpo_pipeline.recipe import Recipe

COLUMNS = ("reference_score_chosen", "reference_score_rejected")

CUT = "a side is cut, and fairseq2 ends every target with an end-of-turn token"
OTHER_IDS = "fairseq2 would read other tokens than the policy (control strings in the text, or tokens over the seam)"


def rows(pairs: CachedPairs, recipe: Recipe) -> tuple[pl.DataFrame, dict[str, int]]:
    """``id``, ``src`` (the prompt as the template writes it, without BOS), ``tgt_chosen``, ``tgt_rejected`` (without EOS)."""
    tokenizer = policy_tokenizer(recipe)
    frame = pairs.frame
    cut = frame.select(pl.col("chosen_cut").is_not_null() | pl.col("rejected_cut").is_not_null()).to_series()
    begins = tokenizer.bos_token_id
    prompts = [ids[1:] if ids[:1] == [begins] else ids for ids in frame["prompt_ids"].to_list()]
    parts = {
        "src": prompts,
        "tgt_chosen": [ids[:-1] for ids in frame["chosen_ids"].to_list()],
        "tgt_rejected": [ids[:-1] for ids in frame["rejected_ids"].to_list()],
    }
    texts = {name: _texts(tokenizer, ids) for name, ids in parts.items()}
    same = [_same(tokenizer, texts[name], parts[name]) for name in parts]
    reads_alike = pl.Series([all(each) for each in zip(*same, strict=True)], dtype=pl.Boolean)
    unscored = holds_unscored(frame)
    kept = frame.select(
        pl.int_range(pl.len()).alias("index"),
        pl.col("pair_id").alias("id"),
        *(pl.Series(name, values, dtype=pl.String) for name, values in texts.items()),
    ).filter(~cut & ~unscored & reads_alike)
    left_out = {
        CUT: int(cut.sum()),
        UNSCORED: int((~cut & unscored).sum()),
        OTHER_IDS: int((~cut & ~unscored & ~reads_alike).sum()),
    }
    return kept, {reason: count for reason, count in left_out.items() if count}


def settings(recipe: Recipe) -> list[str]:
    """The keys of fairseq2's preference recipe that make its DPO loss this recipe's."""
    method = recipe.method
    longest = recipe.limits.max_length
    lines = [
        "criterion: {name: dpo, config: {reference_model: null, "
        f"beta: {method.beta:g}, nll_scale: {method.sft_weight:g}, "
        f"length_normalization: {str(method.normalize == 'token').lower()}}}}}",
        "dataset: {mask_source_tokens: true, source_encode_mode: prompt"
        + (f", max_seq_len: {longest}}}" if longest else "}"),
        "a tokenizer that ends a response as the policy's template does (Llama 3: use_eot: true in its card)",
    ]
    if method.loss != "sigmoid" or method.label_smoothing:
        lines.append("its DPO loss is the sigmoid one, without label smoothing; the recipe's is another")
    return lines


def _texts(tokenizer: Any, rows: Sequence[Sequence[int]]) -> list[str]:
    return [
        tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False) if len(ids) else ""
        for ids in rows
    ]


def _same(tokenizer: Any, texts: Sequence[str], rows: Sequence[Sequence[int]]) -> list[bool]:
    """Whether each text alone becomes those ids."""
    if not len(texts):
        return []
    encoded = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    return [list(ids) == list(found) for ids, found in zip(rows, encoded, strict=True)]
