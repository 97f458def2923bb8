"""What needs a GPU or vLLM is left out where there is none, with the reason printed; a busy machine fails no property."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("shared-machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared-machine")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    from mrpo_pipeline.engines import engine_available

    missing = {"vllm": engine_available("vllm")}
    if any(item.get_closest_marker("gpu") for item in items):
        import torch

        missing["gpu"] = None if torch.cuda.is_available() else "this machine has no CUDA device"
    for item in items:
        for marker, reason in missing.items():
            if reason is not None and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))
