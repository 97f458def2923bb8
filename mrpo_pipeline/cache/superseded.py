"""Find rows that another row of the same completion supersedes, with 8 bytes of memory for each row of the shards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from mrpo_pipeline.cache.coverage import best_rows, opened_shard, shard_coverage
from mrpo_pipeline.cache.manifest import Manifest
from mrpo_pipeline.cache.shards import one_array
from mrpo_pipeline.cache.storage import Storage

Keys = npt.NDArray[np.uint64]
Places = npt.NDArray[np.int64]

# Repeated keys whose rows are compared at once: about 100 bytes per row.
AT_ONCE = 200_000


def row_keys(completion_ids: pa.Array) -> Keys:
    """(N,) numbers: equal for equal completion ids, and rarely for others. Valid in this process only."""
    return pl.Series(values=completion_ids, dtype=pl.String).hash().to_numpy()


def shard_keys(storage: Storage, name: str, manifest: Manifest | None) -> Keys:
    """The keys of a shard's rows; none for one that another process removed. Raises as ``coverage.shard_coverage``."""
    try:
        with opened_shard(storage, name, ["completion_id"], manifest) as file:
            parts = [row_keys(one_array(table, "completion_id")) for table in file.tables()]
    except FileNotFoundError:
        parts = []
    return np.concatenate([np.empty(0, np.uint64), *parts])


def superseded_rows(storage: Storage, keys: Mapping[str, Keys], manifest: Manifest | None) -> dict[str, Places]:
    """The rows of these shards that another row of these shards supersedes (see ``coverage.best_rows``).

    Shards with repeated keys are read again, once for every ``AT_ONCE`` repeated keys.

    Args:
        keys: shard → keys of its rows.

    Returns:
        shard → (R,) indices of its superseded rows, ascending; only shards that have any.

    Raises:
        OSError, DamagedError: as ``coverage.shard_coverage``.
    """
    every = np.concatenate([np.empty(0, np.uint64), *keys.values()])
    every.sort()
    repeated = np.unique(every[1:][every[1:] == every[:-1]])
    del every
    lost: dict[str, list[Places]] = {}
    for first in range(0, len(repeated), AT_ONCE):
        for name, rows in _losers(storage, keys, repeated[first : first + AT_ONCE], manifest):
            lost.setdefault(name, []).append(rows)
    return {name: np.sort(np.concatenate(parts)) for name, parts in lost.items()}


def _losers(
    storage: Storage, keys: Mapping[str, Keys], repeated: Keys, manifest: Manifest | None
) -> Iterator[tuple[str, Places]]:
    """(shard, its superseded rows) among the rows with repeated keys."""
    rivals = [
        shard_coverage(storage, name, manifest).filter(pl.Series(of_several))
        for name, own in keys.items()
        if (of_several := np.isin(own, repeated)).any()
    ]
    rows = pl.concat(rivals)
    lost = rows.join(best_rows(rows), on=["shard", "row"], how="anti")
    for (name,), part in lost.group_by("shard"):
        yield str(name), part["row"].to_numpy()
