"""Records of completions that a reference can't score, stored beside the shards.

Stage two has no reference tokenizer, and needs them to drop and count pairs that exceed a reference's context.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import polars as pl
import pyarrow as pa

from mrpo_pipeline.cache.bounded_parquet import BoundedParquet
from mrpo_pipeline.cache.schema import UNFIT_SCHEMA, Unfit, encode_plain
from mrpo_pipeline.cache.shards import DamagedError, read_checked
from mrpo_pipeline.cache.storage import Storage, StoreError
from mrpo_pipeline.errors import RunError

UNFIT = "unfit"

UNFIT_COLUMNS: dict[str, pl.DataType] = {
    "completion_id": pl.String(),
    "cut": pl.Int64(),
    "tokens": pl.Int32(),
    "context": pl.Int32(),
}


def write_unfit(storage: Storage, records: Sequence[Unfit]) -> None:
    """Write the records as one file. Raises RunError where it can't be written."""
    if not records:
        return
    table = pa.Table.from_pylist(
        [
            {"completion_id": one.completion_id, "cut": one.cut, "tokens": one.tokens, "context": one.context}
            for one in records
        ],
        schema=UNFIT_SCHEMA,
    )
    try:
        storage.put(UNFIT, encode_plain(table))
    except StoreError as error:
        raise RunError(
            f"The completions that exceed the reference's context could not be recorded. {error} `mrpo score-refs` resumes from what is "
            "scored."
        ) from error
    except OSError as error:
        raise RunError(
            f"The completions that exceed the reference's context could not be recorded in {storage}/{UNFIT} "
            f"({error.strerror or error}). Free space or give write access, and run `mrpo score-refs` again: it resumes."
        ) from error


def read_unfit(storage: Storage) -> pl.DataFrame:
    """All records: ``completion_id``, ``cut`` (bytes, null for none), ``tokens``, ``context``. Raises DamagedError."""
    names = storage.list(UNFIT)
    if not names:
        # The usual case; an empty pyarrow table would import pandas, which is slow.
        return pl.DataFrame(schema=UNFIT_COLUMNS)
    tables = [read_records(storage, name, read_checked(storage, name)) for name in names]
    return cast(pl.DataFrame, pl.from_arrow(pa.concat_tables(tables)))


def read_records(storage: Storage, name: str, data: pa.Buffer) -> pa.Table:
    """The records in one file's bytes. Raises DamagedError if they are not records."""
    try:
        file = BoundedParquet(pa.BufferReader(data), UNFIT_SCHEMA.names)
        return file.read().select(UNFIT_SCHEMA.names).cast(UNFIT_SCHEMA)
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise DamagedError(storage, name, str(error)) from error


def match_unfit(records: pl.DataFrame, wanted: pl.DataFrame, context: int | None) -> pl.DataFrame:
    """The rows of ``wanted`` that are recorded as unscorable, with ``tokens`` and ``context`` of the record.

    A completion that exceeds the context at one cut exceeds it at any later cut. With ``context``, records of a shorter context are
    ignored.
    """
    if context is not None:
        records = records.filter(pl.col("context") >= context)
    # The smallest failed cut of each completion decides (null, no cut, is the largest).
    records = records.sort("cut", nulls_last=True).unique("completion_id", keep="first", maintain_order=True)
    matched = wanted.join(
        records.rename({"cut": "_cut"}), on="completion_id", how="inner", maintain_order="left"
    ).filter(pl.col("_cut").is_null() & pl.col("cut").is_null() | (pl.col("cut").fill_null(2**62) >= pl.col("_cut")))
    return matched.drop("_cut")
