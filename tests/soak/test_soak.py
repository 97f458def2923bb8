"""Short form of the soak: two rounds of everything, and controls that a leak, a lost step or a changed target is detected."""

from __future__ import annotations

import os
import tempfile

import numpy as np
import pytest
import soak
from flatness import trend

from mrpo_pipeline.cache import ReferenceCache


@pytest.fixture
def own_folders(tmp_path, monkeypatch):
    """The soak redirects the process's folders for temporary and cached files; restore them."""
    for name in ("TMPDIR", "MRPO_HOME", "TOKENIZERS_PARALLELISM"):
        monkeypatch.setenv(name, os.environ.get(name, str(tmp_path) if name != "TOKENIZERS_PARALLELISM" else "false"))
    monkeypatch.setattr(tempfile, "tempdir", tempfile.tempdir)
    return tmp_path


def test_two_rounds_hold_what_the_pipeline_promises(own_folders):
    summary = soak.run(own_folders / "soak", minutes=0, rounds=2, seed=3, window=16, verbose=False)
    assert summary["failure"] == ""
    first, second = summary["each"]
    assert first["scored"] == 2 * 2 * 16
    assert second["rows"] == first["rows"] + 2 * 2 * soak.ADDED
    assert second["temporary_files"] == second["leftovers"] == 0
    for name in ("base", "other"):
        assert all(
            report.problem is None for report in ReferenceCache.open(own_folders / "soak" / "cache", name).verify()
        )


@pytest.mark.parametrize(("leak", "grown"), [("memory", "rss_mib"), ("files", "open_files"), ("", None)])
def test_a_planted_leak_is_found_in_what_is_counted(tmp_path, monkeypatch, leak, grown):
    """Memory and descriptors of this process, leaked round by round."""
    monkeypatch.setattr(soak, "_kept", [])
    monkeypatch.setattr(soak, "_give_back", lambda: None)  # with everything that pytest has loaded it would take long
    rounds = []
    for number in range(24):
        soak.plant(leak)
        rounds.append(soak.Round(number))
        soak.measure(rounds[-1], tmp_path, tmp_path)
    for kept in soak._kept:
        if leak == "files":
            kept.close()
    verdicts = {one.name: one.verdict for one in soak.judge(rounds)}
    assert [name for name, verdict in verdicts.items() if verdict == "grows"] == ([grown] if grown else [])


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        (np.full(40, 11.0), "flat"),
        (600 + np.random.default_rng(0).normal(0, 2, 60), "flat"),
        (np.r_[np.linspace(100, 600, 10), np.full(30, 600.0)], "flat"),  # the first rounds load libraries: warm-up
        (600 + 1.0 * np.arange(40) + np.random.default_rng(1).normal(0, 3, 40), "grows"),
        (600 + 0.25 * np.arange(40) + np.random.default_rng(2).normal(0, 2, 40), "undecided"),
        (np.arange(8.0), "too short"),
    ],
)
def test_a_trend_is_judged_by_its_interval(values, verdict):
    assert trend("rss", list(values), 0.25).verdict == verdict
