"""Preference pairs: read from files, checked row by row, identified by their content.

sources                      files that a source names
json_records, csv_records, arrow_records, parquet_records     rows of a file, one at a time
layout_detection, row_fields                                  columns to named fields
messages, transcripts, ranked, row_pairs                      fields to prompt and completions
read, table                  rows to a polars frame
identity, prompt_splits      content ids; splits by prompt

Modules are imported at first use, so a light command does not load polars.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mrpo_pipeline import lazy

if TYPE_CHECKING:
    from mrpo_pipeline.pairs.identity import Prompt, completion_id, dump_prompt, pair_id, parse_prompt
    from mrpo_pipeline.pairs.prompt_splits import split_by_prompt
    from mrpo_pipeline.pairs.read import read_pairs
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
        "split_by_prompt": "prompt_splits",
    },
)
