"""Results of computing cached numbers again, kept beside the manifest: one JSON file a check."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from mrpo_pipeline.cache.shards import DamagedError, read_checked
from mrpo_pipeline.cache.storage import Storage

CHECKS = "checks"


def write_check(storage: Storage, result: Mapping[str, Any]) -> None:
    """Keep one result.

    Args:
        result: plain data; ``time`` (ISO 8601, UTC) orders results.

    Raises:
        OSError, RunError: when it cannot be written.
    """
    storage.put(CHECKS, (json.dumps(result, ensure_ascii=False, indent=1) + "\n").encode(), suffix=".json")


def read_checks(storage: Storage) -> list[dict[str, Any]]:
    """The results kept, the newest first; files that are not what was written are passed over: nothing is built on them."""
    found = []
    for name in storage.list(CHECKS, ".json"):
        try:
            document = json.loads(read_checked(storage, name).to_pybytes())
        except (DamagedError, ValueError):
            continue
        if isinstance(document, dict):
            found.append(document)
    return sorted(found, key=lambda one: str(one.get("time", "")), reverse=True)
