"""A method in words, and a recipe with another seed."""

from __future__ import annotations

from mrpo_pipeline.recipe import Method, Recipe


def describe(method: Method) -> str:
    """One line that says what was trained against, with every option that is not the default."""
    if method.name == "dpo":
        against = "DPO against the anchor alone"
    elif method.aggregate.startswith("single:"):
        against = f"DPO against the reference {method.aggregate.removeprefix('single:')} alone"
    else:
        against = "Multi-DPO" if method.name == "multi-dpo" else f"MRPO with the {method.aggregate} aggregate"
        region = method.trust_region
        against += f", {_weights(method)}, trust region {region.kind}"
        against += "" if region.kind == "off" else f" (ε {region.epsilon:g})"
        against += ", by the authors' code" if method.compatibility == "official-code" else ""
    unit = "" if method.normalize == "sum" else f" on nats per {method.normalize}"
    return f"{against}; {_loss(method)}, β {method.beta:g}{unit}."


def _weights(method: Method) -> str:
    options = method.weights_options
    told = []
    if method.weights == "sliding-window":
        text = "sliding-window weights"
        told.append(f"the last {options.window:,} other pairs")
    elif method.weights == "thompson":
        text = "weights by Thompson sampling"
        when = "each step" if options.every == 1 else f"every {options.every:,} steps"
        told.append(f"judged on {options.pairs:,} held-out pairs after {when}")
        if options.prior != 1:
            told.append(f"prior {options.prior:g}")
    else:
        text = f"{method.weights} weights"
    if options.temperature != 1:
        told.append(f"temperature {options.temperature:g}")
    if options.floor:
        told.append(f"floor {options.floor:g}")
    return f"{text} ({', '.join(told)})" if told else text


def _loss(method: Method) -> str:
    if method.loss == "mpo":
        terms = method.mpo
        return f"mpo loss ({terms.preference:g} preference, {terms.quality:g} quality, {terms.sft:g} SFT)"
    text = f"{method.loss} loss"
    if method.loss == "modpo":
        parts = [f"{method.first_weight:g} preference"]
        parts += [f"{objective.weight:g} {name}" for name, objective in method.modpo.items()]
        text += f" ({', '.join(parts)})"
    text += f" with label smoothing {method.label_smoothing:g}" if method.label_smoothing else ""
    return text + (f" + {method.sft_weight:g} SFT" if method.sft_weight else "")


def with_seed(recipe: Recipe, seed: int) -> Recipe:
    """The recipe with another seed."""
    return recipe.model_copy(update={"training": {**recipe.training, "seed": seed}})
