"""`mrpo score-refs` and `mrpo train` are killed at drawn instants and places: only buffered rows are lost. The short form
of ``kills.py``, which lists the invariants."""

from __future__ import annotations

from pathlib import Path

import pytest
from kill_scoring import kill_scoring
from kill_training import kill_training
from victims import Victims


@pytest.mark.slow
def test_killed_scoring_serves_what_an_undisturbed_run_serves(tmp_path: Path) -> None:
    folder = tmp_path / "scoring"
    scoring = kill_scoring(folder, Victims(folder), one=5, two=2, seed=1, pairs=24)
    assert not scoring.wrong
    assert len(scoring.kills) >= 7
    assert {kill.writers for kill in scoring.kills} == {1, 2}


@pytest.mark.slow
def test_killed_training_ends_as_an_undisturbed_run_does(tmp_path: Path) -> None:
    folder = tmp_path / "training"
    training = kill_training(folder, Victims(folder), count=2, seed=1, methods=("window",))
    assert not training.wrong
    assert training.steps_compared and training.adapters_compared and not training.steps_apart
