"""Short form of the failing-calls driver: one kind of error at two of three places."""

from __future__ import annotations

from pathlib import Path

from failing_calls import KINDS, FailingCalls


def test_whichever_call_fails_the_end_is_clear_and_a_rerun_makes_the_same_cache(tmp_path: Path) -> None:
    calls = FailingCalls(tmp_path)
    calls.every(lambda case: [KINDS[case // 3 % len(KINDS)]] if case % 3 else [])
    assert not calls.wrong, "\n".join(calls.wrong[:20])
    assert sum(seen.total() for seen in calls.seen.values()) > 40
    assert calls.seen["LocalStorage.put"]["RunError"] and calls.seen["os.fsync"]["UserError"]
