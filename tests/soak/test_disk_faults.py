"""Short form of the disk-fault driver: a full disk in both stages, a read-only one, and a clock that jumps."""

from __future__ import annotations

from pathlib import Path

import pytest
from disk_faults import DiskFaults
from small_disk import can_mount


def test_full_and_read_only_disks_and_jumping_clocks_end_clearly_and_lose_nothing(tmp_path: Path) -> None:
    refused = can_mount(tmp_path)
    if refused:
        pytest.skip(f"no file system can be mounted here: {refused}")
    faults = DiskFaults(tmp_path, count=1, pairs=24)
    faults.run(["full_scoring", "full_training", "clocks"])
    assert not faults.wrong, "\n".join(faults.wrong)
    assert faults.seen["disk full, stage one"].total() == faults.seen["disk full, stage two"].total() == 2
    assert faults.seen["then with room, stage two"] == {"exit 0": 2}
