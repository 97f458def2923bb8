"""Rows out of Parquet files, one record batch at a time."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.one_line import one_line
from mrpo_pipeline.pairs.bad_row import BadRowError
from mrpo_pipeline.pairs.json_records import Record
from mrpo_pipeline.pairs.sources import PairFile, unreachable

_BATCH_ROWS = 4096
_BATCH_BYTES = 64 << 20
_PATH = "__mrpo_file__"


def parquet_records(file: PairFile) -> Iterator[Record]:
    """The rows of a Parquet file, local (pyarrow) or by URL (polars, which also expands a glob in it).

    Raises UserError: the file cannot be opened, is damaged, or names one column twice.
    """
    return _remote(file) if file.remote else _local(file)


def _local(file: PairFile) -> Iterator[Record]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    row = 0
    try:
        # Without pre_buffer: it would hold every row group of the file at once.
        with pq.ParquetFile(file.name, pre_buffer=False) as parquet:
            _refuse_twins(file.name, parquet.schema_arrow.names)
            groups = None if file.part is None else list(range(*file.part))
            size = _batch_rows(parquet.metadata)
            for batch in parquet.iter_batches(batch_size=size, row_groups=groups, use_threads=False):
                for value in _rows(batch):
                    yield Record(file.name, row, None, value)
                    row += 1
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"{file.name}: this Parquet file is damaged or cannot be read ({one_line(error)}). Fetch or write it again."
        ) from error


def _remote(file: PairFile) -> Iterator[Record]:
    import polars as pl

    rows: dict[str, int] = {}
    try:
        batches = pl.scan_parquet(file.name, include_file_paths=_PATH).collect_batches(chunk_size=_BATCH_ROWS)
        for frame in batches:
            values = (value for batch in frame.drop(_PATH).to_arrow().to_batches() for value in _rows(batch))
            for name, value in zip(frame[_PATH].to_list(), values, strict=True):
                row = rows.get(name, 0)
                rows[name] = row + 1
                yield Record(name, row, None, value)
    except (pl.exceptions.PolarsError, OSError, ImportError) as error:
        raise unreachable(file.name, error) from error


def _refuse_twins(name: str, columns: list[str]) -> None:
    twins = [column for column, count in Counter(columns).items() if count > 1]
    if twins:
        raise UserError(f"{name}: the column {twins[0]!r} stands twice in this Parquet file. Rename one of them.")


def _batch_rows(metadata: Any) -> int:
    """Rows per batch: fewer where rows are long, by the file's own account of its size."""
    size = sum(metadata.row_group(index).total_byte_size for index in range(metadata.num_row_groups))
    return int(max(1, min(_BATCH_ROWS, _BATCH_BYTES * metadata.num_rows // max(1, size))))


def _rows(batch: Any) -> Iterator[dict[str, Any] | BadRowError]:
    """The rows of a record batch as dicts. A row with a value that has no Python form is a bad row, alone."""
    import pyarrow as pa

    columns = [_plain(column) for column in batch.columns]
    names = batch.schema.names
    try:
        lists = [column.to_pylist() for column in columns]
    except (ValueError, pa.ArrowException):
        yield from (_row(names, columns, index) for index in range(batch.num_rows))
        return
    for values in zip(*lists, strict=True):
        yield dict(zip(names, values, strict=True))


def _row(names: list[str], columns: list[Any], index: int) -> dict[str, Any] | BadRowError:
    import pyarrow as pa

    value = {}
    for name, column in zip(names, columns, strict=True):
        try:
            value[name] = column[index].as_py()
        except UnicodeDecodeError as error:
            return BadRowError("invalid UTF-8", f"`{name}` holds bytes that are no UTF-8: {one_line(error)}")
        except (ValueError, pa.ArrowException) as error:
            return BadRowError("unreadable value", f"`{name}` cannot be read: {one_line(error)}")
    return value


def _plain(column: Any) -> Any:
    """Dates and times as text: Python's own types have no nanoseconds, and these columns are only carried along."""
    import pyarrow as pa

    kind = column.type
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind) or pa.types.is_time(kind):
        return column.cast(pa.string())
    return column
