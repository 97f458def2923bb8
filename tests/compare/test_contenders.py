"""Who takes part in a comparison."""

from __future__ import annotations

from typing import Any

import pytest

from mrpo_pipeline.compare.methods import contenders, settings_of
from mrpo_pipeline.errors import UserError
from mrpo_pipeline.recipe import parse_recipe


def recipe(names: str = "base abacus atlas", method: dict[str, Any] | None = None, **compare: Any) -> Any:
    references = {name: {"model": f"models/{name}"} for name in names.split()}
    return parse_recipe({"references": references, "method": method or {}, "compare": compare})


def names(found: Any) -> list[str]:
    return [one.name for one in contenders(found)]


def test_without_methods_in_the_recipe_every_single_reference_stands_beside_its_own_method() -> None:
    assert names(recipe()) == ["dpo-base", "dpo-abacus", "dpo-atlas", "multi-dpo", "mrpo"]
    assert [one.baseline for one in contenders(recipe())] == [True, True, True, False, False]
    assert names(recipe("base")) == ["dpo-base"]


def test_single_references_are_added_to_the_methods_that_a_recipe_lists() -> None:
    found = contenders(recipe(methods={"mine": {"weights": "uniform"}}, method={"beta": 0.3, "sft_weight": 0.2}))
    assert [one.name for one in found] == ["dpo-base", "dpo-abacus", "dpo-atlas", "mine"]
    assert [one.single for one in found] == ["base", "abacus", "atlas", None]
    assert {(one.method.beta, one.method.sft_weight) for one in found} == {(0.3, 0.2)}


def test_a_single_reference_that_is_listed_under_any_name_is_not_added_again() -> None:
    listed = {
        "plain": {"name": "dpo"},
        "against-atlas": {"aggregate": "single:atlas", "weights": "uniform"},
        "mrpo": {},
    }
    assert names(recipe(methods=listed)) == ["dpo-abacus", "plain", "against-atlas", "mrpo"]


def test_a_single_reference_with_another_beta_is_no_baseline_of_the_recipe() -> None:
    listed = {"dpo-base": {"name": "dpo", "beta": 0.5}, "mrpo": {}}
    assert names(recipe("base abacus", methods=listed)) == ["dpo-base-alone", "dpo-abacus", "dpo-base", "mrpo"]


def test_leaving_one_out_adds_the_method_without_each_reference_but_the_anchor() -> None:
    found = contenders(recipe(leave_one_out=True))
    assert [(one.name, one.without, one.references) for one in found[-2:]] == [
        ("mrpo-without-abacus", "abacus", ("base", "atlas")),
        ("mrpo-without-atlas", "atlas", ("base", "abacus")),
    ]
    # Of two references, what is left is a single one, which stands there already.
    assert names(recipe("base abacus", leave_one_out=True)) == names(recipe("base abacus"))
    with pytest.raises(UserError, match=r"compare\.leave_one_out"):
        contenders(recipe(leave_one_out=True, method={"weights": [0.5, 0.3, 0.2]}))


def test_a_sweep_makes_the_settings_that_a_method_reads_and_no_other() -> None:
    run = recipe(sweep={"beta": [0.1, 0.2], "epsilon": [0.05, 0.1], "temperature": []})
    found = {one.name: settings_of(run, one) for one in contenders(run)}
    assert [dict(one.settings) for one in found["dpo-base"]] == [{"beta": 0.1}, {"beta": 0.2}]
    assert len(found["mrpo"]) == 4
    last = found["mrpo"][-1]
    assert (last.name, last.method.beta, last.method.trust_region.epsilon) == ("mrpo-beta-0.2-epsilon-0.1", 0.2, 0.1)
    assert [one.name for one in settings_of(recipe(), contenders(recipe())[0])] == ["dpo-base"]


@pytest.mark.parametrize("name", ["..", "a/b", "start", "plots", "sweep", ".hidden"])
def test_a_name_that_cannot_be_a_folder_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"compare\.methods"):
        contenders(recipe(methods={name: {}}))


def test_seeds_that_stand_twice_are_refused() -> None:
    with pytest.raises(UserError, match=r"compare\.seeds"):
        recipe(seeds=[0, 1, 0])
