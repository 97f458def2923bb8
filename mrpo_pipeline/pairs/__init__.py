"""Preference pairs: read from files, checked row by row, named by their content.

sources          which files a source names
json_records     strict JSON, one row at a time            parquet_records   Parquet, one batch at a time
messages, transcripts, ranked, rows                        what one row says: its prompt and its completions
read, table      rows into a polars frame                  identity, split   ids; splits by prompt

Imported at first use: a light command pays for no polars.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mrpo_pipeline import lazy

if TYPE_CHECKING:
    from mrpo_pipeline.pairs.identity import Prompt, completion_id, dump_prompt, pair_id, parse_prompt
    from mrpo_pipeline.pairs.read import read_pairs
    from mrpo_pipeline.pairs.split import split_by_prompt
    from mrpo_pipeline.pairs.table import PairTable

__all__ = [
    "PairTable",
    "Prompt",
    "completion_id",
    "dump_prompt",
    "pair_id",
    "parse_prompt",
    "read_pairs",
    "split_by_prompt",
]

__getattr__ = lazy(
    __name__,
    {
        "PairTable": "table",
        "Prompt": "identity",
        "completion_id": "identity",
        "dump_prompt": "identity",
        "pair_id": "identity",
        "parse_prompt": "identity",
        "read_pairs": "read",
        "split_by_prompt": "split",
    },
)
