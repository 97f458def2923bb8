"""What is reported about a failed run."""

from __future__ import annotations

from typing import Any

import pytest

from mrpo_pipeline.compare import worker_pool
from mrpo_pipeline.compare.job import Job
from mrpo_pipeline.compare.parallelism import Places
from mrpo_pipeline.errors import RunError


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ValueError("bad\nvalue"), "ValueError: bad value."),
        (RunError("It is not finite. Look at the pairs."), "It is not finite. Look at the pairs."),
    ],
    ids=["a library's", "ours"],
)
def test_a_reason_is_a_full_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception, told: str
) -> None:
    def failing(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(worker_pool, "run_job", failing)
    one = Job("mrpo", 0, "folder", "held-out", {}, {}, "key")
    outcome = worker_pool.run_all([one], Places(1), lambda *_: "")
    assert outcome.failed == {one: told}
    assert f"mrpo, seed 0: failed. {told}\n" in capsys.readouterr().err
