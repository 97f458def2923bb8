from __future__ import annotations

import os
from pathlib import Path

import pytest
from trained_references import World

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Two references trained on known answers, in a few seconds."""
    folder: Path = tmp_path_factory.mktemp("audit")
    return World.make(folder)
