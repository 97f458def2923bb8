"""Check results are stored beside the manifest and are not part of the cached log-probs."""

from __future__ import annotations

from pathlib import Path

from scored_rows import cache_at, row, wanted, write


def test_results_are_newest_first(tmp_path: Path) -> None:
    cache = cache_at(tmp_path)
    assert cache.checks() == []
    for hour in (2, 1, 3):
        cache.record_check({"time": f"2026-01-01T0{hour}:00:00+00:00", "passed": hour != 1, "text": "é…"})
    assert [one["time"][12] for one in cache.checks()] == ["3", "2", "1"]
    assert cache.checks()[2] == {"time": "2026-01-01T01:00:00+00:00", "passed": False, "text": "é…"}


def test_a_damaged_result_is_skipped(tmp_path: Path) -> None:
    cache = cache_at(tmp_path)
    cache.record_check({"time": "1", "passed": False})
    cache.record_check({"time": "2", "passed": True})
    for path in (tmp_path / "base/checks").iterdir():
        path.write_text(path.read_text().replace("false", "true"))
    (tmp_path / "base/checks/notes.json").write_text("{}")
    assert [one["time"] for one in cache.checks()] == ["2"]


def test_results_do_not_change_what_the_cache_serves(tmp_path: Path) -> None:
    cache = cache_at(tmp_path)
    write(cache, [row(1, [-1.0, -2.0], [3, 3], True)])
    before = cache.sums(wanted([(1, None)]))
    cache.record_check({"time": "1"})
    assert cache.sums(wanted([(1, None)])).equals(before)
    assert [report.problem for report in cache.verify()] == [None]
    cache.prune()
    assert len(cache.checks()) == 1
    cache.remove()
    assert not (tmp_path / "base").exists()
