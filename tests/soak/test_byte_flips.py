"""Short form of the byte-flip driver: every kind of damage is detected, named and repaired."""

from __future__ import annotations

from pathlib import Path

from byte_flips import Flips, summary, table
from real_cache import RealCache


def test_flipped_bytes_are_found_before_a_number_is_used_and_only_what_was_hit_is_scored_again(tmp_path: Path) -> None:
    flips = Flips(RealCache(tmp_path, references=2, pairs=14, rows_per_shard=40), count=5, repairs=1)
    flips.run()
    told = summary(flips, 0.0)
    assert not told["wrong"], table(told)
    assert told["shards"] == 4
    assert told["seen"]["shard, at random"]["named by verify"] == 20
    assert told["seen"]["repair"]["only what was hit was scored again"] == 1
