"""Completions that a reference cannot read whole: recorded beside the shards.

Stage two has no reference's tokenizer, and must still drop and count the pairs that do not fit a reference's context.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import polars as pl
import pyarrow as pa

from mrpo_pipeline.cache.parquet import BoundedParquet
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
    """Write the records as one file.

    Raises:
        RunError: when it cannot be written.
    """
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
            f"The completions that do not fit the reference's context could not be recorded. {error} What was scored stays: "
            "`mrpo score-refs` goes on from it."
        ) from error
    except OSError as error:
        raise RunError(
            f"The completions that do not fit the reference's context could not be recorded in {storage}/{UNFIT} "
            f"({error.strerror or error}). What was scored stays. Make room or give write access there, then run "
            "`mrpo score-refs` again."
        ) from error


def read_unfit(storage: Storage) -> pl.DataFrame:
    """All records: ``completion_id``, ``cut`` (bytes, null for the whole), ``tokens``, ``context``.

    Raises:
        DamagedError: for a file that is not what was written.
    """
    names = storage.list(UNFIT)
    if not names:
        # As in most runs. An empty table of pyarrow's would bring in pandas, which takes longer than all the rest.
        return pl.DataFrame(schema=UNFIT_COLUMNS)
    tables = []
    for name in names:
        data = read_checked(storage, name)
        try:
            file = BoundedParquet(pa.BufferReader(data), UNFIT_SCHEMA.names)
            tables.append(file.read().select(UNFIT_SCHEMA.names).cast(UNFIT_SCHEMA))
        except (pa.ArrowException, OSError, ValueError, KeyError) as error:
            raise DamagedError(storage, name, str(error)) from error
    return cast(pl.DataFrame, pl.from_arrow(pa.concat_tables(tables)))


def match_unfit(records: pl.DataFrame, wanted: pl.DataFrame, context: int | None) -> pl.DataFrame:
    """The rows of ``wanted`` that a record says do not fit: its columns, and ``tokens`` and ``context`` of the record.

    What does not fit up to a cut does not fit up to a later one either. Where ``context`` is given, records made with a
    shorter one say nothing.
    """
    if context is not None:
        records = records.filter(pl.col("context") >= context)
    # One record says the most of each completion: the smallest cut that failed (null, the whole, is the largest).
    records = records.sort("cut", nulls_last=True).unique("completion_id", keep="first", maintain_order=True)
    matched = wanted.join(
        records.rename({"cut": "_cut"}), on="completion_id", how="inner", maintain_order="left"
    ).filter(pl.col("_cut").is_null() & pl.col("cut").is_null() | (pl.col("cut").fill_null(2**62) >= pl.col("_cut")))
    return matched.drop("_cut")
