"""Results of ``mrpo cache verify``, stored beside the manifest: one JSON file per check."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from mrpo_pipeline.cache.shards import DamagedError, read_checked
from mrpo_pipeline.cache.storage import Storage

CHECKS = "checks"


def write_check(storage: Storage, result: Mapping[str, Any]) -> None:
    """Store one result: plain data with ``time`` (ISO 8601, UTC). Raises OSError, RunError."""
    storage.put(CHECKS, encode_check(result), suffix=".json")


def encode_check(result: Mapping[str, Any]) -> bytes:
    return (json.dumps(result, ensure_ascii=False, indent=1) + "\n").encode()


def read_checks(storage: Storage) -> list[dict[str, Any]]:
    """The stored results, newest first; damaged files are skipped."""
    found = []
    for name in storage.list(CHECKS, ".json"):
        try:
            document = json.loads(read_checked(storage, name).to_pybytes())
        except (DamagedError, ValueError):
            continue
        if isinstance(document, dict):
            found.append(document)
    return sorted(found, key=lambda one: str(one.get("time", "")), reverse=True)
