"""Which methods take part in a comparison."""

from __future__ import annotations

from typing import Any

import pytest

from mrpo_pipeline.compare.methods import Contender, contenders, settings_of
from mrpo_pipeline.errors import UserError
from mrpo_pipeline.recipe import Method, parse_recipe


def recipe(names: str = "base abacus atlas", method: dict[str, Any] | None = None, **compare: Any) -> Any:
    references = {name: {"model": f"models/{name}"} for name in names.split()}
    return parse_recipe({"references": references, "method": method or {}, "compare": compare})


def names(found: Any) -> list[str]:
    return [one.name for one in contenders(found)]


def test_without_methods_in_the_recipe_every_single_reference_is_added_to_its_own_method() -> None:
    assert names(recipe()) == ["dpo-base", "dpo-abacus", "dpo-atlas", "simpo", "multi-dpo", "mrpo"]
    assert [one.baseline for one in contenders(recipe())] == [True, True, True, False, False, False]
    assert [one.reference_free for one in contenders(recipe())] == [False, False, False, True, False, False]
    assert names(recipe("base")) == ["dpo-base", "simpo"]


def test_single_references_are_added_to_the_methods_that_a_recipe_lists() -> None:
    found = contenders(recipe(methods={"mine": {"weights": "uniform"}}, method={"beta": 0.3, "sft_weight": 0.2}))
    assert [one.name for one in found] == ["dpo-base", "dpo-abacus", "dpo-atlas", "simpo", "mine"]
    assert [one.single for one in found] == ["base", "abacus", "atlas", None, None]
    assert {(one.method.beta, one.method.sft_weight) for one in found if not one.reference_free} == {(0.3, 0.2)}


def test_simpo_with_usual_settings_is_among_the_baselines() -> None:
    (free,) = (one for one in contenders(recipe(method={"beta": 0.3, "loss": "hinge"})) if one.reference_free)
    own = free.method
    assert (free.name, free.single, free.baseline, free.references) == ("simpo", None, False, ())
    assert (own.loss, own.beta, own.simpo_gamma, own.normalize) == ("simpo", 2.0, 1.0, "token")
    # A name that another method has, and a method of the recipe that replaces it.
    assert names(recipe("base", methods={"simpo": {"loss": "simpo"}})) == ["dpo-base", "simpo-alone", "simpo"]
    listed = {"free": {"reference": "none", "beta": 3.0, "loss": "simpo", "name": "multi-dpo"}, "mrpo": {}}
    assert names(recipe("base abacus", methods=listed)) == ["dpo-base", "dpo-abacus", "free", "mrpo"]
    alike = [Contender("a", Method(reference="none", weights=w, name="dpo"), ()) for w in ("uniform", "adaptive")]
    assert alike[0].reads() == alike[1].reads() != Contender("b", Method(), ("base",)).reads()


def test_a_sweeps_beta_is_in_the_unit_of_the_recipes_method() -> None:
    sweep, free = {"beta": [0.1, 0.2]}, {"reference": "none", "loss": "sigmoid"}
    run = recipe(sweep=sweep, methods={"bytes": {"normalize": "byte", "beta": 12.0}, "free": free})
    found = {one.name: [point.method.beta for point in settings_of(run, one)] for one in contenders(run)}
    assert (found["bytes"], found["free"], found["dpo-base"]) == ([12.0], [0.1, 0.2], [0.1, 0.2])
    usual = recipe(sweep=sweep)
    (simpo,) = (one for one in contenders(usual) if one.reference_free)
    assert [point.method.beta for point in settings_of(usual, simpo)] == [2.0]


def test_a_single_reference_that_is_listed_under_any_name_is_not_added_again() -> None:
    listed = {
        "plain": {"name": "dpo"},
        "against-atlas": {"aggregate": "single:atlas", "weights": "uniform"},
        "mrpo": {},
    }
    assert names(recipe(methods=listed)) == ["dpo-abacus", "simpo", "plain", "against-atlas", "mrpo"]


def test_dpo_with_another_beta_is_not_the_baseline() -> None:
    listed = {"dpo-base": {"name": "dpo", "beta": 0.5}, "mrpo": {}}
    assert names(recipe("base abacus", methods=listed)) == ["dpo-base-alone", "dpo-abacus", "simpo", "dpo-base", "mrpo"]


def test_leaving_one_out_adds_the_method_without_each_reference_but_the_anchor() -> None:
    found = contenders(recipe(leave_one_out=True))
    assert [(one.name, one.without, one.references) for one in found[-2:]] == [
        ("mrpo-without-abacus", "abacus", ("base", "atlas")),
        ("mrpo-without-atlas", "atlas", ("base", "abacus")),
    ]
    # Leaving one of two references out gives a single reference, which is already included.
    assert names(recipe("base abacus", leave_one_out=True)) == names(recipe("base abacus"))
    with pytest.raises(UserError, match=r"compare\.leave_one_out"):
        contenders(recipe(leave_one_out=True, method={"weights": [0.5, 0.3, 0.2]}))


def test_a_sweep_varies_only_the_settings_that_a_method_reads() -> None:
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


def test_repeated_seeds_are_refused() -> None:
    with pytest.raises(UserError, match=r"compare\.seeds"):
        recipe(seeds=[0, 1, 0])


def test_a_method_over_spans_is_a_separate_one_only_if_spans_change_it() -> None:
    """Methods that train the same are one contender; `dpo-atlas` over spans is the baseline of that name."""
    over = {"aggregate_over": "span"}
    for same in ({"aggregate": "geometric"}, {"name": "multi-dpo"}, {"aggregate": "single:atlas"}, {"name": "dpo"}):
        plain, spans = contenders(recipe(methods={"a": same, "b": same | over}))[-2:]
        assert plain.reads() == spans.reads()
    plain, spans = contenders(recipe(methods={"a": {}, "b": over}))[-2:]
    assert plain.reads() != spans.reads()
    assert names(recipe(methods={"alone": {"aggregate": "single:atlas"} | over})) == [
        "dpo-base",
        "dpo-abacus",
        "simpo",
        "alone",
    ]


@pytest.mark.parametrize("loss", ["hypo-each", "aot"])
def test_multi_dpo_is_not_added_if_its_loss_does_not_support_it(loss: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "mrpo"):
        assert names(recipe("base abacus", {"loss": loss})) == ["dpo-base", "dpo-abacus", "simpo", "mrpo"]
    assert f"multi-dpo is not among the methods: The loss {loss}" in caplog.text
