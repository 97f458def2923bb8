"""Settings without a valid target are refused, with the key and the choices."""

import numpy as np
import pytest
from tiny_methods import nested, settings_of

from mrpo_pipeline.errors import RunError, UserError
from mrpo_pipeline.recipe import parse_recipe
from mrpo_pipeline.targets.compute import compute_targets
from mrpo_pipeline.targets.settings import TargetSettings, WeightsOptions, check_target

NAMES = ["base", "other"]
REFUSED = {
    "an unknown name": ({"name": "kto"}, "`method.name` in the recipe is 'kto': expected 'mrpo', 'multi-dpo' or 'dpo'"),
    "an unknown aggregate": ({"aggregate": "median"}, "harmonic, geometric, arithmetic, or single:"),
    "a single reference that is not there": ({"aggregate": "single:gemma"}, "one of base, other"),
    "a single reference under dpo that is not the anchor": (
        {"name": "dpo", "aggregate": "single:other"},
        "name to mrpo",
    ),
    "a single reference under multi-dpo": ({"name": "multi-dpo", "aggregate": "single:base"}, "name to mrpo"),
    "an unknown weighting": (
        {"weights": "entropy"},
        "expected one of uniform, adaptive, validation-discrimination, validation-accuracy, sliding-window, thompson, "
        "or a list of 2 numbers",
    ),
    "a window of no pair": (
        {"weights": "sliding-window", "window": 0},
        "`method.weights_options.window` in the recipe is 0: expected 1 or more",
    ),
    "a prior of zero": (
        {"weights": "thompson", "prior": 0.0},
        "`method.weights_options.prior` in the recipe is 0.0: expected more than 0",
    ),
    "judging on no pair": ({"weights": "thompson", "pairs": 0}, "`method.weights_options.pairs` in the recipe is 0"),
    "judging every zero steps": (
        {"weights": "thompson", "every": 0},
        "`method.weights_options.every` in the recipe is 0",
    ),
    "the official code with weights of held-out pairs": (
        {"weights": "validation-accuracy", "compatibility": "official-code"},
        "adaptive or to numbers",
    ),
    "the official code with step-scoped weights": (
        {"weights": "thompson", "compatibility": "official-code"},
        "adaptive or to numbers",
    ),
    "too few weights": ({"weights": [1.0]}, "for each of the 2 references (base, other)"),
    "weights that are no numbers": (
        {"weights": ["1", "2"]},
        "`method.weights.0` in the recipe is '1': expected a number",
    ),
    "weights that are truth values": (
        {"weights": [True, False]},
        "`method.weights.0` in the recipe is True: expected a number",
    ),
    "a negative weight": ({"weights": [1.5, -0.5]}, "finite numbers of 0 or more"),
    "weights all zero": ({"weights": [0, 0]}, "not all 0"),
    "a weight that is no number": ({"weights": [float("nan"), 1.0]}, "expected a finite number"),
    "an infinite weight": ({"weights": [float("inf"), 1.0]}, "expected a finite number"),
    "an unknown trust region": ({"trust_region": "clip"}, "expected 'adaptive', 'fixed' or 'off'"),
    "a negative width": ({"epsilon": -0.1}, "`method.trust_region.epsilon` in the recipe is -0.1"),
    "a width that is no number": ({"epsilon": float("nan")}, "method.trust_region.epsilon"),
    "a temperature of zero": ({"temperature": 0.0}, "method.weights_options.temperature"),
    "an infinite temperature": ({"temperature": float("inf")}, "method.weights_options.temperature"),
    "a negative floor": ({"floor": -0.1}, "method.weights_options.floor"),
    "a floor above the uniform weight": ({"floor": 0.6}, "at most 1/2"),
    "an unknown unit": ({"normalize": "word"}, "expected 'sum', 'token' or 'byte'"),
    "an unknown compatibility": ({"compatibility": "paper"}, "expected 'none' or 'official-code'"),
    "the official code with another aggregate": (
        {"compatibility": "official-code", "aggregate": "geometric"},
        "'harmonic' alone",
    ),
    "the official code with another unit": ({"compatibility": "official-code", "normalize": "token"}, "'sum' alone"),
    "the official code with a temperature": ({"compatibility": "official-code", "temperature": 2.0}, "1.0 alone"),
    "the official code with a floor": ({"compatibility": "official-code", "floor": 0.1}, "0.0 alone"),
    "the official code with three references": (
        {"compatibility": "official-code", "reference_names": ["base", "other", "third"]},
        "takes exactly 2",
    ),
    "the official code with one reference": ({"compatibility": "official-code", "reference_names": ["a"]}, "exactly 2"),
    "weights of which some are no numbers": (
        {"weights": [1.0, "2"]},
        "`method.weights.1` in the recipe is '2': expected a number",
    ),
    "a name in place of the list of names": ({"reference_names": "base"}, "a list of at least one name"),
    "no reference": ({"reference_names": []}, "at least one name"),
    "a name given twice": ({"reference_names": ["base", "base"]}, "a name twice"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    changes, message = REFUSED[case]
    flat = {**changes}
    names = flat.pop("reference_names", ["base", "other"])
    with pytest.raises(UserError) as refusal:
        check_target(parse_recipe({"method": nested(**flat)}).method, names)
    assert message in str(refusal.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "dpo", "reference_names": ["base"], "weights": [0.5, 0.5]},
        {"name": "dpo", "aggregate": "single:base"},
        {"name": "dpo", "compatibility": "official-code", "reference_names": ["a", "b", "c"], "normalize": "token"},
        {"aggregate": "single:other", "compatibility": "official-code", "floor": 0.9},
        {"name": "multi-dpo", "aggregate": "geometric", "compatibility": "official-code"},
        {"floor": 0.5},
        {"weights": [np.float64(0.0), 1]},
        {"epsilon": 0.0},
    ],
)
def test_settings_that_do_not_touch_the_method_are_let_be(changes):
    check_target(*settings_of(**{"reference_names": ["base", "other"], **changes}))


@pytest.mark.parametrize("weights", ["sliding-window", "thompson", "validation-discrimination", "validation-accuracy"])
@pytest.mark.parametrize(
    "changes", [{"name": "dpo"}, {"aggregate": "single:other"}, {"reference_names": ["base"]}], ids=str
)
def test_with_a_single_reference_no_weighting_needs_input(weights, changes):
    method, names = settings_of(**{"reference_names": ["base", "other"], "weights": weights, **changes})
    assert not method.is_step_scoped(names)
    assert not method.needs_held_out(names)
    logps = np.full((3, len(names)), -2.0)
    assert compute_targets(logps, logps, method, names).loss_inputs().reference_chosen.shape == (3, 1)


def test_which_weightings_are_of_a_step_and_which_look_at_held_out_pairs():
    kinds = {
        name: TargetSettings(weights=name)
        for name in (
            "uniform",
            "adaptive",
            "validation-discrimination",
            "validation-accuracy",
            "sliding-window",
            "thompson",
        )
    }
    assert [name for name, kind in kinds.items() if kind.is_step_scoped(NAMES)] == ["sliding-window", "thompson"]
    assert [name for name, kind in kinds.items() if kind.needs_held_out(NAMES)] == [
        "validation-discrimination",
        "validation-accuracy",
        "thompson",
    ]


def test_arrays_that_do_not_fit_the_references_are_refused():
    settings = settings_of(reference_names=["base", "other"])
    for chosen, rejected in (((4, 3), (4, 3)), ((4, 2), (3, 2)), ((4,), (4,))):
        with pytest.raises(ValueError, match=r"expected \(N, 2\) twice"):
            compute_targets(np.zeros(chosen), np.zeros(rejected), *settings)


@pytest.mark.parametrize("bad", [np.nan, -np.inf, np.inf])
def test_log_probs_that_are_not_finite_name_their_reference_side_and_pair(bad):
    chosen, rejected = np.full((3, 2), -1.0), np.full((3, 2), -2.0)
    rejected[1:, 1] = bad
    with pytest.raises(RunError, match=r"Reference other: 2 of 3 rejected completions .* in pair 1"):
        compute_targets(chosen, rejected, *settings_of(reference_names=["base", "other"]))


def test_units_are_required_only_where_they_are_used():
    logps = np.full((2, 2), -1.0)
    settings = settings_of(reference_names=["base", "other"], normalize="byte")
    for units in (None, [1], [1, 0], [1, np.nan], [[1], [1]]):
        with pytest.raises(ValueError, match="units"):
            compute_targets(logps, logps, *settings, units_chosen=[1, 1], units_rejected=units)
    plain = settings_of(reference_names=["base", "other"])
    assert compute_targets(logps, logps, *plain, units_chosen=[9, 9]).loss_inputs().chosen_units is None


def test_defaults_are_those_of_the_documentation():
    assert TargetSettings().model_dump() == {
        "name": "mrpo",
        "reference": "cached",
        "aggregate": "harmonic",
        "aggregate_over": "completion",
        "weights": "adaptive",
        "weights_options": {"floor": 0.0, "temperature": 1.0, "window": 64, "prior": 1.0, "pairs": 64, "every": 1},
        "trust_region": {"kind": "adaptive", "epsilon": 0.1},
        "compatibility": "none",
        "normalize": "sum",
    }


def test_dpo_is_the_first_reference_of_several():
    settings = settings_of(reference_names=["base", "other", "third"], name="dpo")
    assert settings[0].single(settings[1]) == 0
    chosen, rejected = np.array([[-1.0, -2.0, -3.0]]), np.array([[-4.0, -5.0, -6.0]])
    inputs = compute_targets(chosen, rejected, *settings).loss_inputs()
    assert (inputs.reference_chosen.tolist(), inputs.reference_rejected.tolist()) == ([[-1.0]], [[-4.0]])


@pytest.mark.parametrize(
    ("changes", "windowed"),
    [
        ({"weights": "sliding-window"}, True),
        ({"weights": "thompson"}, False),
        ({"weights": "adaptive"}, False),
        ({"weights": "sliding-window", "name": "dpo"}, False),
        ({"weights": "sliding-window", "reference_names": ["base"]}, False),
    ],
)
def test_adaptive_weights_are_kept_for_a_window_alone(changes, windowed):
    method, names = settings_of(**{"reference_names": ["base", "other"], **changes})
    assert method.is_windowed(names) == windowed
    logps = -np.arange(1.0, 1 + 2 * len(names)).reshape(2, -1)
    assert (compute_targets(logps, 2 * logps, method, names).adaptive is not None) == windowed


BY_COLUMN = {"column": "domain", "code": "b", "math": "c", "other": "a"}
ABC = ["a", "b", "c"]


@pytest.mark.parametrize("aggregate", ["harmonic", "geometric", "arithmetic"])
def test_weights_by_a_column_are_1_on_each_pairs_reference(aggregate):
    logps = np.random.default_rng(1).normal(-60, 15, (2, 4, 3))
    method = settings_of(ABC, weights=BY_COLUMN, aggregate=aggregate, trust_region="fixed", epsilon=0.01)
    found = compute_targets(*logps, *method, chosen_references=[1, 0, 2, 1])
    assert found.weights.tolist() == [[0, 1, 0], [1, 0, 0], [0, 0, 1], [0, 1, 0]]
    for side in ("chosen", "rejected"):
        clipped = getattr(found, f"clipped_{side}")
        assert getattr(found, f"target_{side}").tolist() == clipped[range(4), [1, 0, 2, 1]].tolist()


def test_a_floor_applies_to_weights_by_a_column_and_spans_are_then_mixed():
    floored, names = settings_of(ABC, weights=BY_COLUMN, floor=0.1, aggregate_over="span")
    one_hot = floored.model_copy(update={"weights_options": WeightsOptions()})
    assert floored.mixes_spans(names) and not floored.is_one_hot
    assert one_hot.is_one_hot and not one_hot.mixes_spans(names)
    logps = np.full((2, 1, 3), -4.0)
    method = floored.model_copy(update={"aggregate_over": "completion"})
    found = compute_targets(*logps, method, names, chosen_references=[2])
    np.testing.assert_allclose(found.weights, [[0.1, 0.1, 0.8]], rtol=1e-15)


@pytest.mark.parametrize("given", [None, [0], [[0, 1]]])
def test_weights_by_a_column_need_each_pairs_reference(given):
    logps = np.full((2, 2, 3), -4.0)
    with pytest.raises(ValueError, match=r"chosen references of shape .*: expected \(2,\)"):
        compute_targets(*logps, *settings_of(ABC, weights=BY_COLUMN), chosen_references=given)


def test_no_pair_needs_no_reference():
    none = np.empty((0, 3))
    assert compute_targets(none, none, *settings_of(ABC, weights=BY_COLUMN), chosen_references=[]).weights.shape == (
        0,
        3,
    )


def test_by_column_gives_the_reference_of_each_value():
    method, _ = settings_of(ABC, weights=BY_COLUMN)
    assert method.by_column(ABC) == ("domain", {"code": "b", "math": "c"}, "a")
    no_other, _ = settings_of(ABC, weights={"column": "domain", "code": "b"})
    assert no_other.by_column(ABC) == ("domain", {"code": "b"}, None)
    # Called before the check, as in a comparison.
    assert settings_of(ABC, weights={"code": "b"})[0].by_column(ABC) == ("", {"code": "b"}, None)
    assert method.by_column(["a"]) is None
    for keys in ({"name": "dpo"}, {"aggregate": "single:b"}, {"weights": "uniform"}):
        assert settings_of(ABC, **{"weights": BY_COLUMN} | keys)[0].by_column(ABC) is None


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        ({"column": "domain"}, "expected `column`, a column of the pairs, and the reference of each"),
        ({"code": "b", "other": "a"}, "expected `column`"),
        ({"column": "", "code": "b"}, "expected `column`"),
        ({"column": "domain", "code": "bb"}, "method.weights.code is 'bb', but there is no reference"),
        ({"column": "domain", "code": "b", "other": "d"}, "method.weights.other is 'd', but there is no reference"),
    ],
)
def test_weights_by_a_column_that_do_not_fit_are_refused(weights, says):
    with pytest.raises(UserError, match=says):
        check_target(*settings_of(ABC, weights=weights))


def test_the_authors_code_has_no_weights_by_a_column():
    with pytest.raises(UserError, match="has adaptive weights, and given ones"):
        check_target(*settings_of(["a", "b"], weights={"column": "x", "other": "a"}, compatibility="official-code"))
