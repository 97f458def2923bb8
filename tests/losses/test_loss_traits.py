"""What is recorded of a loss beside its formula is what its formula does."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from mrpo_pipeline.losses.functional import LOSSES, PairLogps
from mrpo_pipeline.losses.settings import LossSettings

OPTIONAL = ("tokens", "margins", "floored_margins")
OF_DIFFERENCE = {"sigmoid", "hinge", "ipo", "sigmoid-norm", "robust", "exo", "discopop", "sft"}
"""With f-divergences: sums of scores of both sides; SFT has no reference, so that it fits any."""


class Recorded:
    """Loss settings that record which keys are read."""

    def __init__(self) -> None:
        self.read: set[str] = set()
        self._settings = LossSettings(label_smoothing=0.1, anchored_delta=0.2, simpo_gamma=0.3)

    def __getattr__(self, name: str) -> Any:
        self.read.add("modpo" if name == "first_weight" else name)
        return getattr(self._settings, name)


def pairs() -> PairLogps:
    draw = torch.Generator().manual_seed(0)

    def column(scale: float = 10) -> Tensor:
        return scale * torch.rand(5, 1, generator=draw, dtype=torch.float64)

    policy, reference = (-column(), -column()), (-column(), -column())
    tokens = (column() + 1, column() + 1)
    return PairLogps(*policy, *reference, Recorded(), None, tokens, column(), column(), 0.4)  # type: ignore[arg-type]


@pytest.fixture(params=LOSSES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_it_needs_the_fields_that_are_named(name: str) -> None:
    for field in OPTIONAL:
        without = replace(pairs(), **{field: None})
        if field in LOSSES[name].needs:
            with pytest.raises((AssertionError, TypeError)):
                LOSSES[name].function(without)
        else:
            assert LOSSES[name].function(without).equal(LOSSES[name].function(pairs()))


def test_it_reads_the_settings_that_are_named(name: str) -> None:
    given = pairs()
    LOSSES[name].function(given)
    read = given.settings.read - {"beta", "f_divergence_type", "f_alpha_divergence_coef"}  # type: ignore[attr-defined]
    # `bco_shift` determines `reward_mean`.
    changed = not LOSSES[name].function(replace(given, reward_mean=0.5)).equal(LOSSES[name].function(given))
    assert read | ({"bco_shift"} if changed else set()) == set(LOSSES[name].settings)


def test_it_reads_references_if_it_says_so(name: str) -> None:
    given = pairs()
    assert given.floored_margins is not None
    other = replace(
        given,
        reference_chosen=given.reference_chosen - 1,
        reference_rejected=given.reference_rejected - 3,
        floored_margins=given.floored_margins + 2,
    )
    same = LOSSES[name].function(given).allclose(LOSSES[name].function(other))
    assert LOSSES[name].reads_references is not same


def test_a_pairs_loss_depends_on_other_pairs_only_if_it_sorts_the_batch(name: str) -> None:
    given = pairs()
    whole = LOSSES[name].function(given)
    columns = ("chosen", "rejected", "reference_chosen", "reference_rejected", "margins", "floored_margins")
    tokens = given.tokens
    assert tokens is not None
    alone = []
    for i in range(5):
        one = {column: getattr(given, column)[i : i + 1] for column in columns}
        alone.append(LOSSES[name].function(replace(given, **one, tokens=(tokens[0][i : i + 1], tokens[1][i : i + 1]))))
    assert LOSSES[name].sorts_batch is not whole.allclose(torch.cat(alone))


def test_it_is_of_the_difference_of_both_sides_if_it_says_so(name: str) -> None:
    assert LOSSES[name].of_difference is (name in OF_DIFFERENCE)
    if LOSSES[name].of_difference and LOSSES[name].reads_references:
        given = pairs()
        equal = replace(given, tokens=(torch.full((5, 1), 2.0), torch.full((5, 1), 2.0)))
        higher = replace(equal, chosen=given.chosen + 1, rejected=given.rejected + 1)
        assert LOSSES[name].function(higher).allclose(LOSSES[name].function(equal))
