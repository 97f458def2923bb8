"""Weak or unusual references that are not shown to be broken."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mrpo_pipeline.audit import thresholds
from mrpo_pipeline.audit.findings import Evidence
from mrpo_pipeline.audit.reference_copies import Similarity


def warnings_of(
    every: Sequence[Evidence],
    similar: Mapping[tuple[int, int], Similarity],
    metrics: Mapping[str, Mapping[str, Any]],
    weights: Mapping[str, Mapping[str, float]],
) -> list[dict[str, str]]:
    """Sentences with their ``reference``, in the references' order.

    Args:
        similar: of each two references, by index.
        metrics: NAME → metrics over all pairs.
        weights: weighting → NAME → mean α.
    """
    found = []
    for at, one in enumerate(every):
        others = _compared(at, every, similar, metrics, weights) if len(every) > 1 else ()
        found += [{"reference": one.name, "sentence": sentence} for sentence in (*_alone(one), *others)]
    return found


def is_worse_than_bytes(one: Evidence) -> bool:
    """Whether the byte frequencies of the text predict it better."""
    return one.stats.nats_per_byte > one.stats.byte_entropy


def is_far_off(name: str, metrics: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether its nats per byte are several times the median of the other references."""
    rates = {other: _rate(one) for other, one in metrics.items() if other != name}
    return bool(rates) and _rate(metrics[name]) > thresholds.FAR * float(np.median(list(rates.values()))) > 0


def _rate(metrics: Mapping[str, Any]) -> float:
    return float(sum(metrics["nats_per_byte"].values()) / 2)


def _alone(one: Evidence) -> Iterator[str]:
    stats = one.stats
    if not one.enough:
        yield (
            f"{stats.completions:,} completions of {stats.prompts:,} prompt{'s' * (stats.prompts != 1)} with {stats.tokens:,} tokens "
            "are too few to check the log-probs: only ids and counts were checked."
        )
    if is_worse_than_bytes(one):
        cause = (
            "Its ids are right, so it does not know this text, or was loaded wrongly"
            if one.tokenization.confirms_ids
            else "It does not know this text, or read another tokenizer's ids (its tokenizer is not available)"
        )
        yield (
            f"It needs {stats.nats_per_byte:.2f} nats per byte, more than the byte frequencies of these texts "
            f"({stats.byte_entropy:.2f}). {cause}: check it (`mrpo cache verify RECIPE --check 64 --only {one.name}`) or remove it."
        )
    if one.enough and one.ends_late:
        cause = (
            "it was read with the plain template, as a base model, which never learnt to end a turn"
            if one.plain
            else "a base model that never learnt to end a turn, incomplete completions, or another model's chat template"
        )
        yield (
            f"The end-of-turn token costs {stats.last:.1f} nats, other tokens {stats.rest:.1f}: {cause}. Both sides' sums include it."
        )
    if one.plain_by_choice:
        yield "The recipe uses the plain template although the model has its own."
    if one.enough and one.is_surprised and not one.shows_another_template:
        cause = (
            "it was read with the plain template"
            if one.plain
            else "it expects to think before it answers"
            if one.thinks_first
            else "these answers have an unusual form, or it was read with another model's template"
        )
        yield (
            f"The first token of a completion costs {stats.first:.1f} nats, {stats.first_over_text:.1f} more than by the text's token "
            f"frequencies: {cause}."
        )
    if thresholds.COARSE_BITS < stats.significant_bits <= thresholds.HALF_BITS:
        yield f"Its log-probs were stored in 16 bits ({stats.significant_bits:.0f} significant): sums of long completions are less exact."


def _compared(
    at: int,
    every: Sequence[Evidence],
    similar: Mapping[tuple[int, int], Similarity],
    metrics: Mapping[str, Mapping[str, Any]],
    weights: Mapping[str, Mapping[str, float]],
) -> Iterator[str]:
    name = every[at].name
    others = [one.name for one in every if one.name != name]
    if is_far_off(name, metrics):
        usual = float(np.median([_rate(metrics[other]) for other in others]))
        yield (
            f"It needs {_rate(metrics[name]):.2f} nats per byte, the others {usual:.2f}: a weak model for this text, or broken in a way "
            f"that the log-probs do not show. Adaptive weights would give it {weights['adaptive'][name]:.0%}, and the harmonic mean "
            "follows it alone where it is lowest. Remove it, or check it "
            f"(`mrpo cache verify RECIPE --check 64 --only {name}`)."
        )
    size = metrics[name]["delta"]["median_abs"]
    usual = float(np.median([metrics[other]["delta"]["median_abs"] for other in others]))
    accuracy = metrics[name]["accuracy"]
    if accuracy["low"] <= 0.5 <= accuracy["high"] and usual > 0 and size > thresholds.FAR * usual:
        yield (
            f"It ranks pairs no better than chance ({accuracy['share']:.0%}, 95% interval {accuracy['low']:.0%} to "
            f"{accuracy['high']:.0%}) with {size / usual:.0f} times the others' |Δ|: weightings by |Δ| (adaptive, "
            "validation-discrimination) give it most."
        )
    for (a, b), two in similar.items():
        if at == b and two.is_one_model:
            yield (
                f"It is nearly the same model as {every[a].name} ({two.mean_difference:.2g} nats per token apart, as by another dtype or "
                "8-bit weights): the two count double."
            )
