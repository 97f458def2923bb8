"""Methods as the tests of targets write them: flat keys, and the references' names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mrpo_pipeline.recipe import Method
from mrpo_pipeline.targets.settings import WeightsOptions


def nested(**flat: Any) -> dict[str, Any]:
    """The recipe's ``method``; ``trust_region`` is its kind; ``epsilon`` and the options of the weights are flat keys."""
    region = {
        key: flat.pop(flat_key)
        for key, flat_key in (("kind", "trust_region"), ("epsilon", "epsilon"))
        if flat_key in flat
    }
    options = {key: flat.pop(key) for key in WeightsOptions.model_fields if key in flat}
    return {**flat, "trust_region": region, "weights_options": options}


def settings_of(reference_names: Sequence[str], **flat: Any) -> tuple[Method, Sequence[str]]:
    """The two arguments of ``compute_targets`` after the log-probs."""
    return Method.model_validate(nested(**flat)), reference_names
