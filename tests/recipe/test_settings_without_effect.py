"""A setting without effect is refused on the command line, and reported in a recipe."""

from __future__ import annotations

from typing import Any

import pytest

from mrpo_pipeline.compare import contenders
from mrpo_pipeline.errors import UserError
from mrpo_pipeline.losses.settings import LossSettings
from mrpo_pipeline.recipe import Recipe, parse_recipe
from mrpo_pipeline.recipe.without_effect import ignored_settings, refuse_ignored
from mrpo_pipeline.targets.compute import compute_targets
from mrpo_pipeline.targets.spans import PairSpans, Spans

MODELS = {"base": {"model": "m"}, "other": {"model": "n"}}


def recipe(**parts: Any) -> Recipe:
    return parse_recipe({"policy": {"model": "m"}, "references": MODELS, **parts})


COLUMN = {"column": "domain", "code": "other", "other": "base"}

IGNORED: list[tuple[dict[str, Any], str]] = [
    ({"trust_region": {"kind": "off", "epsilon": 0.2}}, "method.trust_region.epsilon"),
    ({"name": "dpo", "trust_region": {"epsilon": 0.2}}, "method.trust_region.epsilon"),
    ({"name": "dpo", "trust_region": {"kind": "fixed"}}, "method.trust_region.kind"),
    ({"name": "dpo", "weights": "uniform"}, "method.weights"),
    ({"name": "dpo", "aggregate": "geometric"}, "method.aggregate"),
    ({"aggregate": "single:other", "weights": [0.5, 0.5]}, "method.weights"),
    ({"aggregate": "single:other", "weights_options": {"floor": 0.1}}, "method.weights_options.floor"),
    ({"name": "multi-dpo", "aggregate": "arithmetic"}, "method.aggregate"),
    ({"name": "multi-dpo", "aggregate_over": "span"}, "method.aggregate_over"),
    ({"name": "dpo", "aggregate_over": "span"}, "method.aggregate_over"),
    ({"aggregate": "single:other", "aggregate_over": "span"}, "method.aggregate_over"),
    ({"aggregate": "geometric", "aggregate_over": "span"}, "method.aggregate_over"),
    ({"weights": "uniform", "weights_options": {"temperature": 2.0}}, "method.weights_options.temperature"),
    ({"weights": "uniform", "weights_options": {"floor": 0.2}}, "method.weights_options.floor"),
    ({"weights": COLUMN, "weights_options": {"temperature": 2.0}}, "method.weights_options.temperature"),
    ({"weights": COLUMN, "weights_options": {"pairs": 2}}, "method.weights_options.pairs"),
    ({"weights": COLUMN, "aggregate": "arithmetic"}, "method.aggregate"),
    ({"weights": COLUMN, "aggregate_over": "span"}, "method.aggregate_over"),
    ({"name": "dpo", "weights": COLUMN}, "method.weights"),
    ({"weights": [0.7, 0.3], "weights_options": {"window": 9}}, "method.weights_options.window"),
    ({"weights_options": {"window": 9}}, "method.weights_options.window"),
    ({"weights_options": {"prior": 2.0}}, "method.weights_options.prior"),
    ({"weights": "sliding-window", "weights_options": {"every": 2}}, "method.weights_options.every"),
    ({"simpo_gamma": 0.5}, "method.simpo_gamma"),
    ({"loss": {"hinge": 1.0, "sft": 1.0}, "discopop_tau": 0.1}, "method.discopop_tau"),
    ({"f_alpha_divergence_coef": 0.7}, "method.f_alpha_divergence_coef"),
    ({"modpo": {"short": {"weight": 0.5, "chosen": "a", "rejected": "b"}}}, "method.modpo"),
]


@pytest.mark.parametrize(("method", "key"), IGNORED)
def test_it_is_reported_in_a_recipe_and_refused_on_the_command_line(method: dict[str, Any], key: str) -> None:
    found = recipe(method=method)
    assert set(ignored_settings(found)) == {key}
    with pytest.raises(UserError, match=f"^{key} is set to .* has no effect"):
        refuse_ignored(found, {key})


USED: list[tuple[dict[str, Any], str]] = [
    ({"trust_region": {"kind": "fixed", "epsilon": 0.2}}, "method.trust_region.epsilon"),
    ({"weights": [0.7, 0.3], "weights_options": {"temperature": 2.0}}, "method.weights_options.temperature"),
    ({"weights": [0.7, 0.3], "weights_options": {"floor": 0.2}}, "method.weights_options.floor"),
    ({"weights_options": {"temperature": 2.0}}, "method.weights_options.temperature"),
    ({"name": "multi-dpo", "weights": "uniform"}, "method.weights"),
    ({"aggregate_over": "span"}, "method.aggregate_over"),
    ({"aggregate": "arithmetic", "aggregate_over": "span"}, "method.aggregate_over"),
    ({"name": "multi-dpo", "trust_region": {"epsilon": 0.3}}, "method.trust_region.epsilon"),
    ({"weights": COLUMN}, "method.weights"),
    ({"name": "multi-dpo", "weights": COLUMN}, "method.weights"),
    ({"weights": COLUMN, "weights_options": {"floor": 0.1}}, "method.weights_options.floor"),
    ({"loss": "mpo", "bco_shift": "zero"}, "method.bco_shift"),
    ({"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.7}, "method.f_alpha_divergence_coef"),
    ({"name": "dpo", "trust_region": {"kind": "off"}}, "method.trust_region.kind"),
    ({"name": "dpo", "beta": 0.3}, "method.beta"),
]


@pytest.mark.parametrize(("method", "key"), USED)
def test_what_has_an_effect_is_not_refused(method: dict[str, Any], key: str) -> None:
    found = recipe(method=method)
    assert key not in ignored_settings(found)
    refuse_ignored(found, {key})


def test_the_table_agrees_with_the_targets_themselves() -> None:
    """Settings of the targets are reported as without effect exactly if the default gives the same targets."""
    import numpy as np

    chosen, rejected = np.array([[-5.0, -9.0], [-7.0, -3.0]]), np.array([[-6.0, -4.0], [-8.0, -9.0]])
    # Each completion in two spans of one and three quarters.
    halves = [Spans(np.array([2, 2]), np.repeat(side.T / 4, 2, axis=1) * [1, 3, 1, 3]) for side in (chosen, rejected)]

    more: dict[str, Any] = {"chosen_references": [1, 0]}

    def targets(method: Any) -> Any:
        more["spans"] = [PairSpans(*halves)]
        made = compute_targets(chosen, rejected, method, list(MODELS), **more).loss_inputs()
        return np.concatenate([np.ravel(one) for one in (made.reference_chosen, made.reference_rejected, made.weights)])

    for method, key in [*IGNORED, *USED]:
        path = key.split(".")[1:]
        offline = method.get("weights", "adaptive") not in ("sliding-window", "thompson")
        if path[0] in LossSettings.model_fields or not offline:
            continue
        document: dict[str, Any] = {"method": {**method}}
        place = document["method"]
        for part in path[:-1]:
            place[part] = dict(place[part])
            place = place[part]
        del place[path[-1]]
        same = np.array_equal(targets(recipe(method=method).method), targets(recipe(**document).method))
        neutral = key == "method.trust_region.kind" and method["trust_region"]["kind"] == "off"
        assert same == ((method, key) in IGNORED or neutral), (method, key)


def test_of_a_comparison_it_counts_whether_any_method_reads_it() -> None:
    one = {"trust_region": {"kind": "off"}}
    changed = recipe(method={"trust_region": {"epsilon": 0.3}}, compare={"methods": {"a": one, "b": {"name": "dpo"}}})
    methods = [contender.method for contender in contenders(changed)]
    with pytest.raises(UserError, match=r"trust_region\.epsilon"):
        refuse_ignored(changed, {"method.trust_region.epsilon"}, methods)
    usual = recipe(method={"trust_region": {"epsilon": 0.3}})
    methods = [contender.method for contender in contenders(usual)]
    refuse_ignored(usual, {"method.trust_region.epsilon"}, methods)
    assert ignored_settings(usual, methods) == {}


@pytest.mark.parametrize(
    ("parts", "key"),
    [
        ({"training": {"eval_steps": 5}}, "training.eval_steps"),
        ({"training": {"save_steps": 5, "save_strategy": "no"}}, "training.save_steps"),
        ({"training": {"warmup_steps": 5, "lr_scheduler_type": "constant"}}, "training.warmup_steps"),
        ({"training": {"max_steps": 5, "num_train_epochs": 3}}, "training.num_train_epochs"),
        ({"training": {"metric_for_best_model": "loss"}}, "training.metric_for_best_model"),
        ({"policy": {"model": "m", "adapter": "a", "lora": {"r": 16}}}, "policy.lora.r"),
        ({"pairs": {"train": "x", "weights_fraction": 0.1}}, "pairs.weights_fraction"),
    ],
)
def test_of_training_policy_and_pairs_it_is_reported(parts: dict[str, Any], key: str) -> None:
    assert set(ignored_settings(recipe(**parts))) == {key}


def test_a_plain_recipe_has_none() -> None:
    assert ignored_settings(recipe()) == {}
    again = parse_recipe(recipe().model_dump(mode="json"))
    assert ignored_settings(again) == {}


def test_with_one_reference_it_is_reported_that_spans_change_nothing() -> None:
    alone = parse_recipe(
        {"policy": {"model": "m"}, "references": {"base": {"model": "m"}}, "method": {"aggregate_over": "span"}}
    )
    assert ignored_settings(alone) == {"method.aggregate_over": "the recipe has one reference"}
