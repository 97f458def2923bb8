"""`mrpo audit` from a recipe, or from loaded splits. Loads no model."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import polars as pl

from mrpo_pipeline.audit.cached_ids_check import Readers, check_tokenization
from mrpo_pipeline.audit.faults import find_faults
from mrpo_pipeline.audit.findings import BROKEN, SUSPECT, Evidence, Finding
from mrpo_pipeline.audit.logprob_stats import logprob_stats
from mrpo_pipeline.audit.reference_copies import similarities
from mrpo_pipeline.audit.reference_metrics import Scored, agreement, reference_metrics
from mrpo_pipeline.audit.result import Audit
from mrpo_pipeline.audit.sampled_tokens import SIDES, read_tokens, sample_pairs, sample_texts
from mrpo_pipeline.audit.warnings import is_far_off, is_worse_than_bytes, warnings_of
from mrpo_pipeline.audit.weight_preview import under_mrpo, weights_by
from mrpo_pipeline.cache import ReferenceCache
from mrpo_pipeline.dataset.reference_logps import CachedPairs, open_caches
from mrpo_pipeline.dataset.shared_prompt import scored_counts
from mrpo_pipeline.dataset.splits import Split, load_splits
from mrpo_pipeline.errors import UserError
from mrpo_pipeline.models.source import ModelSource
from mrpo_pipeline.pairs.completion import text_bytes
from mrpo_pipeline.recipe import Method, Recipe
from mrpo_pipeline.rendering import Renderer
from mrpo_pipeline.targets.settings import TargetSettings
from mrpo_pipeline.verify.tolerances import limits_for

log = logging.getLogger("mrpo")

# Pairs whose tokens are examined: enough for every rule, few enough for ten references in memory.
SAMPLED_PAIRS = 1000


def audit_recipe(recipe: Recipe) -> Audit:
    """Audit the recipe's references on its training pairs, or its held-out pairs where it has no others.

    Raises:
        UserError: for a wrong recipe, pairs or caches, and for completions that are not scored.
        RunError: for a damaged shard.
    """
    caches = open_caches(recipe)
    splits = load_splits(recipe, caches, report=False)  # the audit prints the counts
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
        splits: by name: ``train`` or ``eval``, and ``weights`` (for VDW and VAW) if there is one.
        caches: of the references, in order.
        method: for its trust region and unit; None for the defaults.
        readers: by reference, its renderers where available (see :func:`readers_of`).
        sampled_pairs: pairs whose tokens are examined; sums of all pairs are used.

    Raises:
        UserError: without training or held-out pairs.
        RunError: for a damaged shard, or a log-prob that is not finite.
    """
    name = next((one for one in ("train", "eval") if one in splits), None)
    if name is None:
        raise UserError("No pairs to audit on: expected pairs.train (--train-file) or pairs.eval.")
    pairs, readers = splits[name].pairs, readers or {}
    scored = _scored(pairs, caches)
    held_out = splits["weights"].pairs if "weights" in splits else None
    weightings = weights_by(scored, held_out.logps_chosen - held_out.logps_rejected if held_out is not None else None)
    mrpo = _under_mrpo(scored, pairs, method or Method())
    texts = sample_texts(sample_pairs(pairs.frame, sampled_pairs))
    tokens = [read_tokens(cache, texts) for cache in caches]
    every = []
    for cache, found in zip(caches, tokens, strict=True):
        reader = readers.get(cache.name, Readers())
        stats = logprob_stats(found, texts, _rounding(cache))
        every.append(Evidence(cache.name, stats, check_tokenization(found, texts, reader), **_template(cache, reader)))
    similar = similarities(tokens)
    findings = find_faults(every, similar)
    metrics: dict[str, dict[str, Any]] = {one: reference_metrics(scored, at) for at, one in enumerate(scored.names)}
    for one in every:
        metrics[one.name] |= {
            **mrpo["references"][one.name],
            "weights": {kind: row[one.name] for kind, row in weightings["weights"].items()},
            "assessment": _assessment(one, findings, metrics),
            "stats": asdict(one.stats),
            "tokenization": asdict(one.tokenization),
        }
    two = [{**entry, "same_ids": one.same_ids} for entry, one in zip(agreement(scored), similar.values(), strict=True)]
    return Audit(
        split=name,
        pairs={one: split.counts for one, split in splits.items()},
        prompts=len(np.unique(scored.prompts)),
        references=metrics,
        agreement=two,
        weightings=weightings,
        mrpo={key: mrpo[key] for key in ("settings", "effective_k")},
        sampled_completions=len(texts),
        findings=findings,
        warnings=warnings_of(every, similar, metrics, weightings["weights"]),
    )


def readers_of(source: ModelSource) -> Readers:
    """The reference's renderer where its tokenizer is available, and the model's own where the recipe names another."""
    try:
        renderer = Renderer.of(source)
    except UserError as error:
        log.info("%s: ids and prompts are not checked: %s", source.name, str(error).split(".")[0])
        return Readers()
    if source.tokenizer is None and source.template == "auto":
        return Readers(renderer)
    try:
        return Readers(renderer, Renderer.of(source.model_copy(update={"tokenizer": None, "template": "auto"})))
    except UserError:  # the model has no tokenizer of its own
        return Readers(renderer)


def _template(cache: ReferenceCache, readers: Readers) -> dict[str, bool]:
    plain = cache.fingerprint().get("template", "").startswith("plain:")
    has_own = readers.own is not None and not readers.own.identity()["template"].startswith("plain:")
    thinks_first = readers.renderer is not None and readers.renderer.thinks_first
    return {"plain": plain and not has_own, "plain_by_choice": plain and has_own, "thinks_first": thinks_first}


def _assessment(one: Evidence, findings: Sequence[Finding], metrics: Mapping[str, Mapping[str, Any]]) -> str:
    severities = {finding.severity for finding in findings if finding.reference == one.name}
    if severities:
        return BROKEN if BROKEN in severities else SUSPECT
    return "doubtful" if is_worse_than_bytes(one) or is_far_off(one.name, metrics) else "sound"


def _rounding(cache: ReferenceCache) -> float:
    """Nats by which two correct computations of a token may differ, by the manifest's dtype."""
    fingerprint = cache.fingerprint()
    return limits_for(fingerprint.get("dtype", "float32"), fingerprint.get("quantization", "none")).beyond_rounding


def _scored(pairs: CachedPairs, caches: Sequence[ReferenceCache]) -> Scored:
    frame = pairs.frame
    wanted = pl.concat(
        frame.select(pl.col(f"{side}_id").alias("completion_id"), pl.col(f"{side}_cut").alias("cut")) for side in SIDES
    )
    tokens = np.stack([cache.sums(wanted)["tokens"].to_numpy().astype(np.int64) for cache in caches], axis=1)
    sizes = [frame[f"{side}_cut"].fill_null(text_bytes(frame[side])).to_numpy() for side in SIDES]
    return Scored(
        names=pairs.names,
        prompts=frame["prompt_read"].rank("dense").to_numpy().astype(np.int64),
        chosen=pairs.logps_chosen,
        rejected=pairs.logps_rejected,
        chosen_bytes=sizes[0],
        rejected_bytes=sizes[1],
        chosen_tokens=tokens[: frame.height],
        rejected_tokens=tokens[frame.height :],
    )


def _under_mrpo(scored: Scored, pairs: CachedPairs, method: Method) -> dict[str, Any]:
    region = method.trust_region
    if region.kind == "off":
        region = region.model_copy(update={"kind": "adaptive"})
    units = None
    if method.normalize == "byte":
        units = scored.chosen_bytes.astype(float), scored.rejected_bytes.astype(float)
    elif method.normalize == "token":
        chosen, rejected = (scored_counts(pairs.frame, side).to_numpy().astype(float) for side in SIDES)
        units = chosen, rejected
    return under_mrpo(scored, TargetSettings(trust_region=region, normalize=method.normalize), units)
