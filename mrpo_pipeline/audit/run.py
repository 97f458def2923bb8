"""`mrpo audit` from a recipe, or on splits that are loaded already. No model is loaded."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import polars as pl

from mrpo_pipeline.audit.faults import find_faults
from mrpo_pipeline.audit.findings import BROKEN, SUSPECT, Evidence, Finding
from mrpo_pipeline.audit.logprob_stats import patterns_of
from mrpo_pipeline.audit.pairwise import likenesses
from mrpo_pipeline.audit.reference_metrics import Scored, agreement, reference_figures
from mrpo_pipeline.audit.result import Audit
from mrpo_pipeline.audit.sample import Ints, Texts, Tokens, read_tokens, sample_pairs, sample_texts
from mrpo_pipeline.audit.tokenization import Readers, origin_of
from mrpo_pipeline.audit.warnings import is_far_off, is_worse_than_bytes, remarks_on
from mrpo_pipeline.audit.weight_preview import under_mrpo, weights_by
from mrpo_pipeline.cache import ReferenceCache
from mrpo_pipeline.dataset.prepare import renderer_of
from mrpo_pipeline.dataset.reference_logps import CachedPairs, open_caches
from mrpo_pipeline.dataset.shared_prompt import scored_counts
from mrpo_pipeline.dataset.splits import Split, load_splits
from mrpo_pipeline.errors import UserError
from mrpo_pipeline.models.source import ModelSource
from mrpo_pipeline.pairs.completion import text_bytes
from mrpo_pipeline.recipe import Method, Recipe
from mrpo_pipeline.targets.settings import TargetSettings
from mrpo_pipeline.verify.tolerances import limits_for

log = logging.getLogger("mrpo")

# Pairs whose single tokens are looked at: enough for every rule, few enough for ten references in memory.
SAMPLED_PAIRS = 1000


def audit_recipe(recipe: Recipe) -> Audit:
    """Audit the recipe's references on its training pairs (its held-out ones where it has no others).

    Raises:
        UserError: for a recipe, pairs or caches that are wrong, and completions that are not scored.
        RunError: for a shard that is damaged.
    """
    caches = open_caches(recipe)
    splits = load_splits(recipe, caches, say=False)  # the audit itself tells of the pairs
    readers = {source.name: readers_of(source) for source in recipe.sources()}
    return audit_pairs(splits, caches, method=recipe.method, readers=readers)


def audit_pairs(
    splits: Mapping[str, Split],
    caches: Sequence[ReferenceCache],
    *,
    method: Method | None = None,
    readers: Mapping[str, Readers] | None = None,
    sampled_pairs: int = SAMPLED_PAIRS,
) -> Audit:
    """Audit splits that are joined with their caches.

    Args:
        splits: by name: ``train`` or ``eval``, and ``weights`` where there is one (for VDW and VAW).
        caches: the references', in order.
        method: whose trust region and unit are used; the defaults where not given.
        readers: by reference, how it reads text, where that is at hand (see :func:`readers_of`).
        sampled_pairs: pairs whose single tokens are looked at; the rest counts in sums alone.

    Raises:
        UserError: where there are neither training nor held-out pairs.
        RunError: for a shard that is damaged, or a log-prob that is not finite.
    """
    name = next((one for one in ("train", "eval") if one in splits), None)
    if name is None:
        raise UserError("There are no pairs to audit on: expected pairs.train (--train-file) or pairs.eval. Add one.")
    pairs, method = splits[name].pairs, method or Method()
    scored = _scored(pairs, caches)
    held_out = splits["weights"].pairs if "weights" in splits else None
    weightings = weights_by(scored, held_out.logps_chosen - held_out.logps_rejected if held_out is not None else None)
    mrpo = _under_mrpo(scored, pairs, method)
    figures: dict[str, dict[str, Any]] = {
        one: {
            **reference_figures(scored, at),
            **mrpo["references"][one],
            "weights": {kind: row[one] for kind, row in weightings["weights"].items()},
        }
        for at, one in enumerate(scored.names)
    }

    texts = sample_texts(sample_pairs(pairs.frame, sampled_pairs))
    tokens = [read_tokens(cache, texts) for cache in caches]
    every = [
        _evidence(cache, one, texts, (readers or {}).get(cache.name, Readers()))
        for cache, one in zip(caches, tokens, strict=True)
    ]
    likeness = likenesses(tokens)
    findings = find_faults(every, likeness)
    for one in every:
        figures[one.name] |= {
            "looks": _looks(one, findings, figures),
            "patterns": asdict(one.patterns),
            "origin": asdict(one.origin),
        }
    two = agreement(scored)
    for entry, alike in zip(two, likeness.values(), strict=True):
        entry["same_ids"] = alike.same_ids
    return Audit(
        split=name,
        pairs={one: split.counts() for one, split in splits.items()},
        prompts=len(np.unique(scored.prompts)),
        references=figures,
        agreement=two,
        weightings=weightings,
        mrpo={key: mrpo[key] for key in ("settings", "effective_k")},
        sampled=len(texts),
        findings=findings,
        remarks=remarks_on(every, likeness, figures, weightings["weights"]),
    )


def readers_of(source: ModelSource) -> Readers:
    """How a reference reads text, as far as its tokenizer is at hand; and its own way, where the recipe gives it another."""
    try:
        renderer = renderer_of(source)
    except UserError as error:
        log.info(
            "%s: its tokenizer is not at hand, so ids and prompts are not checked (%s)",
            source.name,
            str(error).split(".")[0],
        )
        return Readers()
    if source.tokenizer is None and source.template == "auto":
        return Readers(renderer)
    try:
        return Readers(renderer, renderer_of(source.model_copy(update={"tokenizer": None, "template": "auto"})))
    except UserError:  # a model without a tokenizer of its own has been given one
        return Readers(renderer)


def _evidence(cache: ReferenceCache, tokens: Tokens, texts: Texts, readers: Readers) -> Evidence:
    plain = cache.fingerprint().get("template", "").startswith("plain:")
    has_own = readers.own is not None and not readers.own.identity()["template"].startswith("plain:")
    return Evidence(
        cache.name,
        patterns_of(tokens, texts, _rounding(cache)),
        origin_of(tokens, texts, readers),
        plain=plain and not has_own,
        plain_by_choice=plain and has_own,
        thinks_first=readers.renderer is not None and readers.renderer.thinks_first,
    )


def _looks(one: Evidence, findings: Sequence[Finding], figures: Mapping[str, Mapping[str, Any]]) -> str:
    severities = {finding.severity for finding in findings if finding.reference == one.name}
    if severities:
        return BROKEN if BROKEN in severities else SUSPECT
    return "doubtful" if is_worse_than_bytes(one) or is_far_off(one.name, figures) else "sound"


def _rounding(cache: ReferenceCache) -> float:
    """Nats within which two right computations of a token lie apart, by the manifest's dtype."""
    fingerprint = cache.fingerprint()
    return limits_for(fingerprint.get("dtype", "float32"), fingerprint.get("quantization", "none")).clearly_off


def _scored(pairs: CachedPairs, caches: Sequence[ReferenceCache]) -> Scored:
    frame = pairs.frame
    sizes = {
        side: frame[f"{side}_cut"].fill_null(text_bytes(frame[side])).to_numpy() for side in ("chosen", "rejected")
    }
    tokens = {side: np.empty((frame.height, len(caches)), dtype=np.int64) for side in ("chosen", "rejected")}
    wanted = pl.concat(
        frame.select(pl.col(f"{side}_id").alias("completion_id"), pl.col(f"{side}_cut").alias("cut"))
        for side in ("chosen", "rejected")
    )
    for at, cache in enumerate(caches):
        counts = cache.sums(wanted)["tokens"].to_numpy()
        tokens["chosen"][:, at], tokens["rejected"][:, at] = counts[: frame.height], counts[frame.height :]
    return Scored(
        names=pairs.names,
        prompts=_numbered(frame["prompt_read"]),
        chosen=pairs.logps_chosen,
        rejected=pairs.logps_rejected,
        chosen_bytes=sizes["chosen"],
        rejected_bytes=sizes["rejected"],
        chosen_tokens=tokens["chosen"],
        rejected_tokens=tokens["rejected"],
    )


def _numbered(column: pl.Series) -> Ints:
    numbers: Ints = column.rank("dense").to_numpy().astype(np.int64)
    return numbers


def _under_mrpo(scored: Scored, pairs: CachedPairs, method: Method) -> dict[str, Any]:
    region = method.trust_region
    if region.kind == "off":
        region = region.model_copy(update={"kind": "adaptive"})
    mrpo = TargetSettings(trust_region=region, normalize=method.normalize)
    units = None
    if method.normalize == "byte":
        units = scored.chosen_bytes.astype(float), scored.rejected_bytes.astype(float)
    elif method.normalize == "token":
        lengths = [scored_counts(pairs.frame, side).to_numpy().astype(float) for side in ("chosen", "rejected")]
        units = lengths[0], lengths[1]
    return under_mrpo(scored, mrpo, units)
