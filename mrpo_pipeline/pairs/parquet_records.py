"""Rows of Parquet files, one record batch at a time."""

import functools
import itertools
from collections.abc import Iterator
from typing import Any

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.files.bounds import check_expansion
from mrpo_pipeline.files.parquet_pages import SMALL_GROUP_BYTES, check_columns, check_footer, check_pages
from mrpo_pipeline.pairs.arrow_rows import arrow_rows
from mrpo_pipeline.pairs.json_records import Record, local_path
from mrpo_pipeline.pairs.json_values import duplicates
from mrpo_pipeline.pairs.sources import PairFile
from mrpo_pipeline.terminal import one_line

_BATCH_ROWS = 4096
_BATCH_BYTES = 64 << 20
_SMALL_ROWS = _BATCH_BYTES // SMALL_GROUP_BYTES


def parquet_records(file: PairFile) -> Iterator[Record]:
    """Rows of a Parquet file; a URL is downloaded first.

    Raises UserError: the file cannot be opened, is damaged, has duplicate columns, or expands beyond the bounds of
    `files.bounds`.
    """
    import pyarrow as pa

    row = unpacked = 0
    try:
        with local_path(file) as path, open(path, "rb") as stream:
            stored = stream.seek(0, 2)
            for batch in _batches(stream, file):
                for value, size in arrow_rows(batch):
                    unpacked += size
                    check_expansion(file.name, stored, unpacked)
                    yield Record(file.name, row, None, value)
                    row += 1
    except (pa.ArrowException, OSError, ValueError, EOFError) as error:
        raise UserError(
            f"{file.name}: this Parquet file is damaged or cannot be read ({one_line(error)}). Download or write it again."
        ) from error


def _batches(stream: Any, file: PairFile) -> Iterator[Any]:
    import pyarrow.parquet as pq

    check_footer(stream, file.name)
    metadata = pq.read_metadata(stream)
    check_columns(file.name, metadata.num_columns, metadata.schema)
    groups = range(metadata.num_row_groups)
    pages = check_pages(stream, file.name, metadata, groups)
    size = min(_batch_rows(metadata), pages.most_rows)
    leaves = [metadata.schema.column(index) for index in range(len(metadata.schema)) if index not in pages.repeating]
    # Texts stay dictionary-encoded, so a repeated text is in memory once.
    texts = [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY"]
    # pyarrow cannot unify dictionaries inside lists, and each row group has its own.
    nested = any("." in path for path in texts)
    # pre_buffer would hold all row groups in memory.
    opened = functools.partial(pq.ParquetFile, stream, metadata=metadata, pre_buffer=False)
    with opened(read_dictionary=texts) as parquet, opened() as plain:
        if twice := duplicates(parquet.schema_arrow.names):
            raise UserError(f"{file.name}: this Parquet file has the column {twice[0]!r} twice. Rename one of them.")
        for is_small, run in itertools.groupby(groups, pages.small.__contains__):
            if is_small:  # read together, because each batch costs a millisecond
                yield from plain.iter_batches(min(size, _SMALL_ROWS), list(run), use_threads=False)
                continue
            for some in [[group] for group in run] if nested else [list(run)]:
                yield from parquet.iter_batches(size, some, use_threads=False)


def _batch_rows(metadata: Any) -> int:
    """Rows per batch, fewer for long rows, from the sizes in the file's metadata."""
    size = sum(metadata.row_group(index).total_byte_size for index in range(metadata.num_row_groups))
    return int(max(1, min(_BATCH_ROWS, _BATCH_BYTES * metadata.num_rows // max(1, size))))
