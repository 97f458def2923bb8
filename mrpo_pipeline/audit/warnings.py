"""What is worth knowing of a reference although nothing in it is shown to be broken."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mrpo_pipeline.audit import thresholds
from mrpo_pipeline.audit.findings import Evidence
from mrpo_pipeline.audit.pairwise import Likeness


def remarks_on(
    every: Sequence[Evidence],
    likeness: Mapping[tuple[int, int], Likeness],
    figures: Mapping[str, Mapping[str, Any]],
    weights: Mapping[str, Mapping[str, float]],
) -> list[dict[str, str]]:
    """Sentences, each with its ``reference``, in the references' order.

    Args:
        every: what is known of each reference.
        likeness: of each two, by position.
        figures: NAME → its figures over all pairs.
        weights: weighting → NAME → mean α.
    """
    found = []
    for at, one in enumerate(every):
        for sentence in (*_alone(one), *_among(at, every, likeness, figures, weights)):
            found.append({"reference": one.name, "sentence": sentence})
    return found


def is_worse_than_bytes(one: Evidence) -> bool:
    """Whether a table of byte frequencies would predict the text better."""
    return one.patterns.nats_per_byte > one.patterns.byte_entropy


def is_far_off(name: str, figures: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether it spends many times the nats per byte of the others."""
    rates = _rates(figures)
    others = [rate for other, rate in rates.items() if other != name]
    return bool(others) and rates[name] > thresholds.FAR * float(np.median(others)) > 0


def _rates(figures: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    return {name: sum(one["nats_per_byte"].values()) / 2 for name, one in figures.items()}


def _alone(one: Evidence) -> Iterator[str]:
    patterns = one.patterns
    if not one.enough:
        yield (
            f"{patterns.completions:,} completions of {patterns.prompts:,} prompt{'s' * (patterns.prompts != 1)} with "
            f"{patterns.tokens:,} tokens are too few to tell faults by the numbers: only what ids and counts say was looked at."
        )
    if is_worse_than_bytes(one):
        ids = (
            "Its ids are right, so this text is foreign to it, or it was not loaded as it should be"
            if one.origin.confirms_ids
            else "This text is foreign to it, or it was fed another tokenizer's ids (its tokenizer is not at hand to tell)"
        )
        yield (
            f"It spends {patterns.nats_per_byte:.2f} nats a byte, more than a mere table of these texts' bytes would "
            f"({patterns.byte_entropy:.2f}). {ids}: make sure "
            f" (`mrpo cache verify RECIPE --check 64 --only {one.name}`), or leave it out."
        )
    if one.enough and one.ends_late:
        why = (
            "it was read by the plain template, as a model without one is, and never learnt to end a turn"
            if one.plain
            else "a base model that never learnt to end a turn, completions that break off, or another model's chat template"
        )
        yield (
            f"The end-of-turn token costs it {patterns.last:.1f} nats, its other tokens {patterns.rest:.1f}: {why}. These nats are in "
            "the sums of both sides."
        )
    if one.plain_by_choice:
        yield "The recipe has it read by the plain template, although it has one of its own: it is not asked as it was taught to be."
    if one.enough and one.is_surprised and not one.shows_another_template:
        if one.plain:
            why = "was read by the plain template"
        elif one.thinks_first:
            why = "expects to think before it answers"
        else:
            why = "would not begin these answers so, as with texts of an unusual form, or was read by another model's template"
        yield (
            f"The first token of a completion costs it {patterns.first:.1f} nats, {patterns.first_over_text:.1f} more than a table of "
            f"the text's tokens would: it {why}."
        )
    if thresholds.COARSE_BITS < patterns.bits <= thresholds.HALF_BITS:
        yield f"Its log-probs were stored in 16 bits ({patterns.bits:.0f} significant ones): sums of long completions lose a little."


def _among(
    at: int,
    every: Sequence[Evidence],
    likeness: Mapping[tuple[int, int], Likeness],
    figures: Mapping[str, Mapping[str, Any]],
    weights: Mapping[str, Mapping[str, float]],
) -> Iterator[str]:
    one = every[at]
    others = [other.name for other in every if other is not one]
    if not others:
        return
    mine = figures[one.name]
    rates = _rates(figures)
    usual = float(np.median([rates[name] for name in others]))
    if is_far_off(one.name, figures):
        yield (
            f"It spends {rates[one.name]:.2f} nats a byte where the others spend {usual:.2f}: it knows little of this text, or is "
            f"broken in a way that the numbers do not show. Under adaptive weights it would get "
            f"{weights['adaptive'][one.name]:.0%}, under the harmonic mean it decides alone where it is the lowest. Leave it out, or "
            f"make sure of it (`mrpo cache verify RECIPE --check 64 --only {one.name}`)."
        )
    sizes = {name: figures[name]["delta"]["median_size"] for name in (one.name, *others)}
    usual = float(np.median([sizes[name] for name in others]))
    right = mine["ranked_rightly"]
    if right["low"] <= 0.5 <= right["high"] and usual > 0 and sizes[one.name] > thresholds.FAR * usual:
        yield (
            f"It ranks pairs no better than chance ({right['share']:.0%}, {right['low']:.0%} to {right['high']:.0%}) with |Δ| "
            f"{sizes[one.name] / usual:.0f} times the others': weights that go by |Δ| (adaptive, validation-discrimination) hand it "
            "most for that."
        )
    for (a, b), alike in likeness.items():
        if at == b and _nearly_one(alike):
            yield (
                f"It is all but the same model as {every[a].name} ({alike.apart:.2g} nats a token apart, as by another dtype or 8-bit "
                "weights): the two count double."
            )


def _nearly_one(alike: Likeness) -> bool:
    """Whether two references are one model, computed twice in other ways."""
    one_model = alike.same_ids > thresholds.NEARLY_ALL and alike.apart_to_spread < thresholds.SAME_MODEL
    return one_model and alike.same_numbers <= thresholds.NEARLY_ALL and alike.apart > thresholds.COPY_APART
