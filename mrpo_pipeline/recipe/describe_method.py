"""Describe a method in one line."""

from __future__ import annotations

from mrpo_pipeline.recipe import Method, Recipe
from mrpo_pipeline.targets.settings import COLUMN


def describe(method: Method) -> str:
    """One line on the objective, with every option that differs from its default."""
    if not method.has_reference:
        against = "Without a reference"
    elif method.name == "dpo":
        against = "DPO against the anchor alone"
    elif method.aggregate.startswith("single:"):
        against = f"DPO against the reference {method.aggregate.removeprefix('single:')} alone"
    else:
        spans = method.aggregate_over == "span" and method.aggregate != "geometric"
        aggregate = f"MRPO with the {method.aggregate} aggregate{' over spans' if spans else ''}"
        against = "Multi-DPO" if method.name == "multi-dpo" else aggregate
        region = method.trust_region
        against += f", {_weights(method)}, trust region {region.kind}"
        against += "" if region.kind == "off" else f" (ε {region.epsilon:g})"
        against += ", by the authors' code" if method.compatibility == "official-code" else ""
    unit = "" if method.normalize == "sum" else f" on nats per {method.normalize}"
    return f"{against}; {_loss(method)}, β {method.beta:g}{unit}."


def _weights(method: Method) -> str:
    options = method.weights_options
    details = []
    if method.weights == "sliding-window":
        text = "sliding-window weights"
        details.append(f"the last {options.window:,} other pairs")
    elif method.weights == "thompson":
        text = "weights by Thompson sampling"
        when = "each step" if options.every == 1 else f"every {options.every:,} steps"
        details.append(f"evaluated on {options.pairs:,} held-out pairs after {when}")
        if options.prior != 1:
            details.append(f"prior {options.prior:g}")
    elif isinstance(method.weights, dict):
        chosen = [f"{value}: {name}" for value, name in method.weights.items() if value != COLUMN]
        text = f"the reference of each pair by its {method.weights.get(COLUMN)} ({', '.join(chosen)})"
    else:
        text = f"{method.weights} weights"
    if options.temperature != 1:
        details.append(f"temperature {options.temperature:g}")
    if options.floor:
        details.append(f"floor {options.floor:g}")
    return f"{text} ({', '.join(details)})" if details else text


def _loss(method: Method) -> str:
    losses = method.losses
    text = " + ".join(name if weight == 1 else f"{weight:g} {name}" for name, weight in losses.items()) + " loss"
    usual = type(method).model_fields
    options = [
        f"{key.replace('_', ' ')} {_plain(getattr(method, key))}"
        for key in sorted(method.settings_read() - {"modpo"})
        if getattr(method, key) != usual[key].default
    ]
    if "modpo" in losses:
        parts = [f"{method.first_weight:g} preference"]
        parts += [f"{objective.weight:g} {name}" for name, objective in method.modpo.items()]
        text += f" ({', '.join(parts)})"
    return text + (f" with {', '.join(options)}" if options else "")


def _plain(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:g}"


def with_seed(recipe: Recipe, seed: int) -> Recipe:
    """The recipe with another seed."""
    return recipe.model_copy(update={"training": {**recipe.training, "seed": seed}})
