"""Read Parquet files of a cache with limits on their expansion, because they may be untrusted.

Arrow's threads are off in this package: a process that ends right after a read is sometimes aborted while they start (pyarrow 26:
"terminate called without an active exception").
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

# The only text column in files of a cache.
_TEXT = "completion_id"


class BoundedParquet:
    """An open Parquet file of a cache, read in parts.

    Args:
        source: readable and seekable. columns: to read.
        verified: verify the checksums of the pages.

    Raises:
        ValueError: for a file that expands too much.
        pa.ArrowException, OSError: for a file that is not Parquet.
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
        # Dictionary values are checked before they are repeated for each row.
        self._file = pq.ParquetFile(
            source,
            metadata=metadata,
            page_checksum_verification=verified,
            read_dictionary=[_TEXT] if _TEXT in columns else [],
            pre_buffer=False,
        )
        self.metadata: dict[bytes, bytes] = metadata.metadata or {}

    def tables(self) -> Iterator[pa.Table]:
        """The rows in order, at most 10,000 at a time.

        Raises:
            ValueError, pa.ArrowException, OSError: for a damaged file, or a completion id that does not have 32 characters.
        """
        for group in range(self._file.num_row_groups):
            rows = 0
            for batch in self._file.iter_batches(self._rows, [group], self._columns, use_threads=False):
                rows += batch.num_rows
                yield _with_plain_ids(pa.Table.from_batches([batch]))
            expected = self._file.metadata.row_group(group).num_rows
            if rows != expected:  # Arrow silently skips pages of unknown type
                raise ValueError(f"a row group holds {rows:,} of {expected:,} rows")

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
            # Compared here: a Python number as an argument makes pyarrow import pandas, half a second.
            if set(pc.unique(pc.binary_length(chunk.dictionary).drop_null()).to_pylist()) - {32}:
                raise ValueError("a completion id is not 32 lower-case hex digits")
        column = column.cast(pa.string())
    return table.set_column(table.column_names.index(_TEXT), _TEXT, column)
