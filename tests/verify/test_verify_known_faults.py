"""A fault is confirmed only where it reproduces the cached log-probs. The model is synthetic."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from synthetic import compared

from mrpo_pipeline.rendering import Rendered
from mrpo_pipeline.verify.known_faults import confirmed_reasons
from mrpo_pipeline.verify.tolerances import Limits, limits_for

PROMPT = np.array([7, 8, 9], np.int32)
RIGHT = -np.arange(1, 21) / 4
TWICE, MISSING = RIGHT - 0.5, RIGHT + 0.1


class SyntheticModel:
    """Other numbers where the prompt's first token is doubled or missing, or the adapter is disabled."""

    context_length: int | None = None
    without_adapter: Any = None
    bare = False

    def logps(self, prompt: np.ndarray, completion: np.ndarray, scored: Any = None) -> np.ndarray:
        numbers = {(7, 8, 9): RIGHT, (7, 7, 8, 9): TWICE, (8, 9): MISSING}[tuple(prompt.tolist())]
        return numbers[: len(completion)] * (2 if self.bare else 1)

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        self.bare = True
        yield
        self.bare = False


def confirmed(cached: np.ndarray, model: Any = None, limits: Limits | None = None, count: int = 5) -> list[str]:
    rows = [compared(cached, RIGHT)] * count
    rendered = [Rendered(PROMPT, row.ids, row.byte_ends) for row in rows]
    return confirmed_reasons(model or SyntheticModel(), rows, rendered, limits or limits_for("float32"))


def test_the_fault_that_gives_the_cached_numbers_is_confirmed_alone() -> None:
    (reason,) = confirmed(TWICE + 1e-6)
    assert "was doubled (so computed, the 3 worst completions" in reason
    (reason,) = confirmed(MISSING, count=2)
    assert "was missing (so computed, the 2 worst completions" in reason


def test_a_missing_adapter_is_tried_only_if_there_is_one() -> None:
    assert confirmed(2 * RIGHT) == []
    model = SyntheticModel()
    model.without_adapter = model.disable_adapter
    (reason,) = confirmed(2 * RIGHT, model)
    assert "the adapter was not loaded" in reason and not model.bare


def test_a_fault_that_comes_near_the_limits_is_not_confirmed() -> None:
    assert confirmed(TWICE + 0.01) == []


def test_a_fault_that_explains_little_is_not_confirmed() -> None:
    # Halfway between: 0.25 from right, 0.25 from BOS twice, and one token beyond the limit by the text as it is.
    halfway = RIGHT - 0.25
    halfway[4] -= 0.02
    assert confirmed(halfway, limits=Limits(0.26, 0.26)) == []


def test_right_numbers_are_not_tried() -> None:
    class Refuses(SyntheticModel):
        def logps(self, prompt: np.ndarray, completion: np.ndarray, scored: Any = None) -> np.ndarray:
            raise AssertionError

    assert (
        confirmed(RIGHT + 1e-6, Refuses()) == [] and confirmed_reasons(Refuses(), [], [], limits_for("float32")) == []
    )  # type: ignore[arg-type]


@pytest.mark.parametrize(("context", "found"), [(24, 1), (23, 0)])
def test_a_prompt_that_becomes_too_long_for_the_context_is_not_tried(context: int, found: int) -> None:
    model = SyntheticModel()
    model.context_length = context
    assert len(confirmed(TWICE, model)) == found
