"""Targets of ``method.reference: none``: log π̃ is 0, and nothing is mixed or diagnosed."""

import numpy as np
import pytest
from tiny_methods import settings_of

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.targets.compute import compute_targets
from mrpo_pipeline.targets.settings import TargetSettings, check_target

CHOSEN, REJECTED = np.array([[-10.0, -11.0], [-12.0, -14.0]]), np.array([[-20.0, -22.0], [-24.0, -26.0]])
NAMES = ["base", "other"]


def settings(**changes):
    return settings_of(NAMES, reference="none", loss="simpo", **changes)


def test_the_target_is_0_and_log_probs_stay_as_they_are():
    found = compute_targets(CHOSEN, REJECTED, *settings())
    assert found.target_chosen.tolist() == found.target_rejected.tolist() == [0.0, 0.0]
    assert found.weights.tolist() == [[0.0, 0.0], [0.0, 0.0]]
    assert (found.clipped_chosen.tolist(), found.clipped_rejected.tolist()) == (CHOSEN.tolist(), REJECTED.tolist())
    assert (found.diagnostics, found.notices, found.per_reference) == ({}, (), False)
    assert found.chosen_units is None and found.rejected_units is None


def test_units_are_each_sides_own():
    found = compute_targets(
        CHOSEN,
        REJECTED,
        *settings(normalize="byte"),
        units_chosen=np.array([2.0, 4.0]),
        units_rejected=np.array([5.0, 8.0]),
    )
    assert (found.chosen_units.tolist(), found.rejected_units.tolist()) == ([2.0, 4.0], [5.0, 8.0])
    assert found.clipped_chosen.tolist() == [[-5.0, -5.5], [-3.0, -3.5]]
    assert found.clipped_rejected.tolist() == [[-4.0, -4.4], [-3.0, -3.25]]


def test_a_method_that_does_not_fit_the_references_is_refused():
    with pytest.raises(UserError, match="hold a name twice"):
        compute_targets(CHOSEN, REJECTED, settings_of(NAMES)[0], ["base", "base"])


@pytest.mark.parametrize("names", [[], NAMES, ["base", "base"]])
def test_names_of_references_are_ignored(names):
    check_target(TargetSettings(reference="none", weights=[1.0]), names)


def test_nothing_of_references_is_in_use():
    def none(**given):
        return TargetSettings(reference="none", **given)

    assert TargetSettings(name="dpo").single(NAMES) == 0 and none(name="dpo").single(NAMES) is None
    by_column = {"weights": {"column": "domain", "code": "other", "other": "base"}}
    assert TargetSettings(**by_column).by_column(NAMES) and none(**by_column).by_column(NAMES) is None
    spans = {"aggregate_over": "span"}
    assert TargetSettings(**spans).mixes_spans(NAMES) and not none(**spans).mixes_spans(NAMES)
    assert TargetSettings(weights="sliding-window").is_step_scoped(NAMES)
    assert not none(weights="sliding-window").is_step_scoped(NAMES)
    assert TargetSettings(weights="thompson").needs_held_out(NAMES) and not none(weights="thompson").needs_held_out(
        NAMES
    )
    official = {"compatibility": "official-code"}
    assert TargetSettings(**official).official(NAMES) and not none(**official).official(NAMES)
