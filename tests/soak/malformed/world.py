"""The good files from which every malformed one is made: a tiny model, some pairs, a scored cache."""

from __future__ import annotations

import json
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[2]


def build_model(folder: str) -> None:
    """Write ``model`` (a llama with a tokenizer that has control tokens) and ``pairs.jsonl``; in a child of the server."""
    sys.path.insert(0, str(TESTS))
    from tiny_references import plain_pairs, reference

    world = Path(folder)
    reference(world / "model", "llama", "qwen")
    rows = plain_pairs(12)
    (world / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
