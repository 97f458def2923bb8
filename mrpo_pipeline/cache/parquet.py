"""Parquet files of a cache, from elsewhere perhaps: what they unpack to is bounded before memory is taken.

Read without Arrow's own threads, throughout this room: a process that ends within moments of such a read is aborted now and
then, while they are still starting (pyarrow 26: "terminate called without an active exception").
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mrpo_pipeline.cache.schema import ROW_GROUP_ROWS
from mrpo_pipeline.errors import UserError
from mrpo_pipeline.files.parquet_pages import check_columns, check_footer, check_pages

# The one column of texts that any file of a cache has.
_TEXT = "completion_id"


class BoundedParquet:
    """A Parquet file of a cache, opened; its rows are read a part at a time.

    Args:
        source: the file's bytes, readable and seekable. columns: those that are read.
        verified: the checksums of its pages are.

    Raises:
        ValueError: it unpacks to far more than numbers do.
        pa.ArrowException, OSError: it is no Parquet file.
    """

    def __init__(self, source: Any, columns: Sequence[str], *, verified: bool = False) -> None:
        try:
            check_footer(source, "the file")
            metadata = pq.read_metadata(source)
            check_columns("the file", metadata.num_columns, metadata.schema)
            pages = check_pages(source, "the file", metadata, range(metadata.num_row_groups), columns)
        except UserError as error:
            raise ValueError(getattr(error, "reason", str(error))) from error
        except EOFError as error:
            raise ValueError(str(error)) from error
        self._columns = list(columns)
        self._rows = min(pages.most_rows, ROW_GROUP_ROWS)
        # A text that is stored once and named by many rows is looked at before it is written out for each.
        self._file = pq.ParquetFile(
            source, metadata=metadata, page_checksum_verification=verified, read_dictionary=[_TEXT], pre_buffer=False
        )
        self.metadata: dict[bytes, bytes] = metadata.metadata or {}

    def tables(self) -> Iterator[pa.Table]:
        """The rows in order, 10,000 at a time at most, with completion ids that are 32 characters long.

        Raises:
            ValueError, pa.ArrowException, OSError: the file is damaged, or an id is none.
        """
        for group in range(self._file.num_row_groups):
            for batch in self._file.iter_batches(self._rows, [group], self._columns, use_threads=False):
                table = pa.Table.from_batches([batch])
                yield _with_plain_ids(table)

    def read(self) -> pa.Table:
        """All rows. Raises as ``tables``."""
        found = list(self.tables())
        return pa.concat_tables(found) if found else _with_plain_ids(self._file.schema_arrow.empty_table())


def _with_plain_ids(table: pa.Table) -> pa.Table:
    if _TEXT not in table.column_names:
        return table
    column = table.column(_TEXT)
    if pa.types.is_dictionary(column.type):
        for chunk in column.chunks:
            if not pc.all(pc.equal(pc.binary_length(chunk.dictionary), 32), min_count=0).as_py():
                raise ValueError("a completion id is not 32 lower-case hex digits")
        column = column.cast(pa.string())
    return table.set_column(table.column_names.index(_TEXT), _TEXT, column)
