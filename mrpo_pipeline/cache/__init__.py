"""The cache of reference log-probs, in a folder or an object store. Knows no model and no tokenizer.

Names are imported on first use, so that light commands do not import polars.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mrpo_pipeline import lazy

if TYPE_CHECKING:
    from mrpo_pipeline.cache.active_writers import Others
    from mrpo_pipeline.cache.locations import check_location, list_references, refuse_files
    from mrpo_pipeline.cache.manifest import Manifest
    from mrpo_pipeline.cache.reference_cache import ReferenceCache
    from mrpo_pipeline.cache.reference_names import check_reference_name
    from mrpo_pipeline.cache.schema import SHARD_SCHEMA, CompletionRow, RefusedRowError, Unfit
    from mrpo_pipeline.cache.shards import DamagedError
    from mrpo_pipeline.cache.statistics import CacheStats
    from mrpo_pipeline.cache.storage import StoreError
    from mrpo_pipeline.cache.verify_and_prune import Pruned, ShardReport
    from mrpo_pipeline.cache.writer import ShardWriter

__all__ = [
    "SHARD_SCHEMA",
    "CacheStats",
    "CompletionRow",
    "DamagedError",
    "Manifest",
    "Others",
    "Pruned",
    "ReferenceCache",
    "RefusedRowError",
    "ShardReport",
    "ShardWriter",
    "StoreError",
    "Unfit",
    "check_location",
    "check_reference_name",
    "list_references",
    "refuse_files",
]

__getattr__ = lazy(
    __name__,
    {
        "CacheStats": "statistics",
        "CompletionRow": "schema",
        "DamagedError": "shards",
        "Manifest": "manifest",
        "Others": "active_writers",
        "Pruned": "verify_and_prune",
        "ReferenceCache": "reference_cache",
        "RefusedRowError": "schema",
        "SHARD_SCHEMA": "schema",
        "ShardReport": "verify_and_prune",
        "ShardWriter": "writer",
        "StoreError": "storage",
        "Unfit": "schema",
        "check_location": "locations",
        "check_reference_name": "reference_names",
        "list_references": "locations",
        "refuse_files": "locations",
    },
)
