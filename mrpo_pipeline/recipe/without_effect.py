"""Find settings without effect in combination with the others, so that none is ignored silently."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.losses.functional import LOSSES
from mrpo_pipeline.losses.settings import LossSettings
from mrpo_pipeline.recipe.settings import TRAINING_DEFAULTS, Method, Recipe
from mrpo_pipeline.recipe.training_bounds import UNREAD
from mrpo_pipeline.targets.settings import COLUMN

# Values that turn a setting off, so they are never reported.
_NEUTRAL = {
    "method.trust_region.kind": "off",
    "method.compatibility": "none",
    "method.aggregate_over": "completion",
}
_OPTIONS = "method.weights_options."


def ignored_settings(recipe: Recipe, methods: Collection[Method] = ()) -> dict[str, str]:
    """Settings that differ from their defaults and have no effect, each with the reason.

    Args:
        recipe: the resolved recipe.
        methods: the methods to train, if not the recipe's (``mrpo compare``).
    """
    default, found = _values(Method()), {}
    reasons = method_settings_without_effect(recipe, methods)
    for key, value in _values(recipe.method).items():
        if key in reasons and value != default.get(key):
            found[key] = reasons[key]
    found |= dict(_in_training(recipe)) | dict(_in_policy(recipe)) | dict(_in_pairs(recipe, methods))
    return found | ({} if methods or recipe.method.has_reference else dict(_in_references(recipe)))


def refuse_ignored(recipe: Recipe, given: Collection[str], methods: Collection[Method] = ()) -> None:
    """Refuse method settings that the command line sets and that have no effect.

    Raises:
        UserError: naming the first one and the reason.
    """
    reasons = method_settings_without_effect(recipe, methods)
    values = _values(recipe.method)
    for key in given:
        # With one reference, settings of combining several are harmless.
        harmless = recipe.method.has_reference and len(recipe.references) <= 1
        if key in reasons and (not harmless or key.removeprefix("method.") in LossSettings.model_fields):
            raise UserError(
                f"{key} is set to {values.get(key)} on the command line and has no effect: {reasons[key]}. Expected settings that "
                "change the run. Take it out, or change the other one."
            )


def method_settings_without_effect(recipe: Recipe, methods: Collection[Method] = ()) -> dict[str, str]:
    """Every key under ``method`` that no method reads with the recipe's value, and why."""
    own = _values(recipe.method)
    each = []
    for method in methods or [recipe.method]:
        values = _values(method)
        changed = {key: "every compared method sets its own" for key in own if values.get(key) != own[key]}
        each.append(changed | dict(_in_method(method, len(recipe.references))))
    found = {key: reason for key, reason in each[0].items() if all(key in one for one in each)}
    return {key: reason for key, reason in found.items() if _NEUTRAL.get(key, ...) != own.get(key)}


def _in_method(method: Method, references: int) -> Iterator[tuple[str, str]]:
    alone = None
    if not method.has_reference:
        alone = "method.reference is none"
        yield "method.name", alone
        yield "method.aggregate", alone
    elif method.name == "dpo":
        alone = "method.name is dpo, which trains against the anchor alone"
        yield "method.aggregate", alone
    elif method.name == "mrpo" and method.aggregate.startswith("single:"):
        alone = f"method.aggregate is {method.aggregate}, which trains against that reference alone"
    elif references == 1:
        alone = "the recipe has one reference"
    weights = method.weights if isinstance(method.weights, str) else "a list of numbers"
    if isinstance(method.weights, dict):
        weights = f"by the column {method.weights.get(COLUMN)}"
    if alone:
        options = [_OPTIONS + name for name in type(method.weights_options).model_fields]
        for key in ("method.weights", *options, "method.trust_region.kind", "method.trust_region.epsilon"):
            yield key, alone
        yield "method.compatibility", alone
        yield "method.aggregate_over", alone
    else:
        if method.name == "multi-dpo":
            for key in ("method.aggregate", "method.aggregate_over"):
                yield key, "method.name is multi-dpo, which has one loss for each reference"
        elif method.aggregate == "geometric":
            yield "method.aggregate_over", "method.aggregate is geometric, which is the same over spans"
        if method.trust_region.kind == "off":
            yield "method.trust_region.epsilon", "method.trust_region.kind is off"
        reads = {"window": ("sliding-window",), "prior": ("thompson",), "pairs": ("thompson",), "every": ("thompson",)}
        for name, kinds in reads.items():
            if weights not in kinds:
                yield _OPTIONS + name, f"method.weights is {weights}, and {name} is of {kinds[0]}"
        if method.is_one_hot:
            for key in ("method.aggregate", "method.aggregate_over"):
                yield key, f"method.weights is {weights}, which gives each pair one reference"
        # One reference has all the weight, or all have the same.
        if weights in ("uniform", "thompson") or method.is_one_hot:
            yield _OPTIONS + "temperature", f"method.weights is {weights}, which it does not change"
        if weights == "uniform":
            yield _OPTIONS + "floor", "method.weights is uniform, which it does not change"
    loss = " + ".join(method.losses)
    for key in {key for one in LOSSES.values() for key in one.settings} - method.settings_read() - {"label_smoothing"}:
        yield f"method.{key}", f"method.loss is {loss}, which does not read it"
    if method.f_divergence_type != "alpha_divergence":
        yield "method.f_alpha_divergence_coef", f"method.f_divergence_type is {method.f_divergence_type}"


def _in_training(recipe: Recipe) -> Iterator[tuple[str, str]]:
    training: Mapping[str, Any] = recipe.training
    for key in UNREAD.keys() & training.keys():
        yield f"training.{key}", UNREAD[key]
    for key in ("hub_model_id", "hub_strategy", "hub_private_repo", "hub_always_push", "hub_revision"):
        if training.get(key) and not training.get("push_to_hub"):
            yield f"training.{key}", "training.push_to_hub is false"
    strategies = {"eval": "no", "save": "steps", "logging": "steps"}
    for what, usual in strategies.items():
        strategy = training.get(f"{what}_strategy", usual)
        if f"{what}_steps" in training and strategy != "steps":
            yield f"training.{what}_steps", f"training.{what}_strategy is {strategy}"
    if training.get("eval_strategy", "no") == "no" and training.get("eval_delay"):
        yield "training.eval_delay", "training.eval_strategy is no"
    if training.get("save_strategy") == "no" and training.get("save_total_limit"):
        yield "training.save_total_limit", "training.save_strategy is no"
    if training["num_train_epochs"] != TRAINING_DEFAULTS["num_train_epochs"] and (training.get("max_steps") or -1) > 0:
        yield "training.num_train_epochs", f"training.max_steps is {training['max_steps']}, which decides"
    if training.get("warmup_steps") and training["lr_scheduler_type"] in ("constant", "reduce_lr_on_plateau", "greedy"):
        yield "training.warmup_steps", f"training.lr_scheduler_type is {training['lr_scheduler_type']}"
    chooses = training.get("load_best_model_at_end") or training.get("save_strategy") == "best"
    chooses = chooses or training["lr_scheduler_type"] in ("reduce_lr_on_plateau", "greedy")
    for key in ("metric_for_best_model", "greater_is_better"):
        if training.get(key) is not None and not chooses:
            yield f"training.{key}", "nothing is selected by it (training.load_best_model_at_end is false)"


def _in_policy(recipe: Recipe) -> Iterator[tuple[str, str]]:
    if recipe.policy is None or recipe.policy.adapter is None:
        return
    usual = type(recipe.policy.lora)()
    for name, value in recipe.policy.lora:
        if value != getattr(usual, name):
            yield f"policy.lora.{name}", "policy.adapter is trained further, and has its own"


def _in_references(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Settings of references in a recipe that trains without them."""
    reason = "method.reference is none, so no cache is read"
    if recipe.references:
        yield "references", reason
    if recipe.cache != Recipe.model_fields["cache"].default:
        yield "cache", reason
    if recipe.policy is not None and not recipe.policy.check_anchor:
        yield "policy.check_anchor", reason


def _in_pairs(recipe: Recipe, methods: Collection[Method]) -> Iterator[tuple[str, str]]:
    looks = ("validation-discrimination", "validation-accuracy", "thompson")
    used = any(method.weights in looks and method.has_reference for method in methods or [recipe.method])
    used = used or (bool(methods) and any(recipe.compare.sweep.model_dump().values()))
    if recipe.pairs.weights_fraction and not used:
        weights = f"no weights use that split (method.weights is {recipe.method.weights})"
        yield "pairs.weights_fraction", f"{weights}; its pairs are not trained on"


def _values(method: Method) -> dict[str, Any]:
    """The method's settings by dotted key."""
    flat: dict[str, Any] = {}
    for key, value in method.model_dump(mode="json").items():
        inner = value if isinstance(value, dict) and key not in ("modpo", "loss", "weights") else None
        flat |= {f"method.{key}": value} if inner is None else {f"method.{key}.{k}": v for k, v in inner.items()}
    return flat
