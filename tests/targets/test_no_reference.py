"""Targets of ``method.reference: none``: log π̃ is 0, and nothing is mixed or diagnosed."""

import numpy as np
import pytest
from tiny_methods import settings_of

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.targets.compute import compute_targets

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
