"""Unpacked sizes of a Parquet file by its page headers, which the decoder allocates by, and not the footer."""

from collections.abc import Collection
from typing import IO, Any, NamedTuple

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.files.bounds import MAX_COLUMNS, MAX_FOOTER_BYTES, MAX_NESTING, MAX_ROW_BYTES, check_expansion

_ROW_BYTES = 64  # minimum of a row of three short values
_VALUE_BYTES = 8
_NO_DICTIONARY = (6, 7)  # DELTA_LENGTH_BYTE_ARRAY and DELTA_BYTE_ARRAY, in which a value may repeat the previous one
_HEADER_BYTES = 1 << 20
SMALL_GROUP_BYTES = 64 << 10
_END_BYTES = 1 << 16  # what the decoder reads first: one request to an object store


def check_footer(stream: IO[bytes], name: str) -> None:
    """Raise UserError for a footer that is too large, before it is decoded; other faults are left to the decoder."""
    size = stream.seek(0, 2)
    stream.seek(max(size - _END_BYTES, 0))
    end = stream.read(_END_BYTES)
    footer = int.from_bytes(end[-8:-4], "little")
    if end[-4:] == b"PAR1" and MAX_FOOTER_BYTES < footer < size:
        raise UserError(
            f"{name}: the footer of this Parquet file has {footer:,} bytes, expected {MAX_FOOTER_BYTES:,} at most. Write it with fewer "
            "columns or row groups."
        )


def check_columns(name: str, count: int, schema: Any) -> None:
    """Raise UserError for too many columns, or too deeply nested ones."""
    leaves = (schema.column(index) for index in range(len(schema)))
    deepest = max((max(leaf.max_definition_level, leaf.path.count(".") // 2) for leaf in leaves), default=0)
    if count > MAX_COLUMNS or deepest > MAX_NESTING:
        found = f"{count:,} columns" if count > MAX_COLUMNS else f"a column nested {deepest} levels deep"
        raise UserError(
            f"{name}: this Parquet file has {found}, expected {MAX_COLUMNS:,} columns and {MAX_NESTING} levels at most. Write it with "
            "only the columns of the pairs."
        )


class Pages(NamedTuple):
    """Limits for decoding some row groups."""

    most_rows: int
    """Rows to decode at a time."""
    repeating: set[int]
    """Columns whose values repeat a prefix of the previous one: the decoder can't keep these as a dictionary."""
    small: set[int]
    """Row groups that decode to SMALL_GROUP_BYTES per column at most, even if each value is as long as the longest page."""


def check_pages(
    stream: IO[bytes], name: str, metadata: Any, groups: range, columns: Collection[str] | None = None
) -> Pages:
    """Check the expansion of pages.

    Args:
        columns: top-level names of those that are read; None for all.

    Raises:
        UserError: for pages that expand too much.
        ValueError, EOFError: for a damaged page header.
    """
    size = stream.seek(0, 2)
    rows = sum(metadata.row_group(group).num_rows for group in groups)
    check_expansion(name, size, rows * _ROW_BYTES)
    longest, repeating, small = 1, set(), set()
    for group in groups:
        chunks = metadata.row_group(group)
        decoded = 0
        for index in range(chunks.num_columns):
            column = chunks.column(index)
            if columns is not None and column.path_in_schema.split(".")[0] not in columns:
                continue
            begin = column.data_page_offset
            if column.has_dictionary_page and column.dictionary_page_offset:
                begin = min(begin, column.dictionary_page_offset)
            page, values, repeats = _check_chunk(stream, name, begin, column.total_compressed_size, column.num_values)
            decoded = max(decoded, page * values)
            if repeats:
                longest = max(longest, page)
                repeating.add(index)
        if decoded <= SMALL_GROUP_BYTES:
            small.add(group)
    return Pages(max(1, MAX_ROW_BYTES // longest), repeating, small)


def _check_chunk(stream: IO[bytes], name: str, begin: int, size: int, expected: int) -> tuple[int, int, bool]:
    """Check a column of a row group; its longest page, its number of values, and whether these repeat each other."""
    at, values, longest, repeats = begin, 0, 1, False
    while at < begin + size and values < expected:
        header, length = _page_header(stream, at)
        packed, unpacked = header.get(3, 0), header.get(2, 0)
        if packed < 0 or unpacked < 0:
            raise ValueError("a page of negative size")
        check_expansion(name, packed, unpacked, "a page of this Parquet file")
        data = header.get(5) or header.get(8) or {}
        count = data.get(1, 0)
        values += max(0, count)
        longest = max(longest, unpacked)
        repeats = repeats or data.get(4 if 8 in header else 2) in _NO_DICTIONARY
        at += length + packed
    check_expansion(name, size, values * _VALUE_BYTES, "a column of this Parquet file")
    return longest, values, repeats


def _page_header(stream: IO[bytes], at: int) -> tuple[dict[int, Any], int]:
    for size in (256, _HEADER_BYTES):  # it contains the minimum and maximum of the page
        stream.seek(at)
        reader = _CompactReader(stream.read(size))
        try:
            return reader.struct(0), reader.at
        except IndexError:
            continue
    raise EOFError("a page header is truncated")


class _CompactReader:
    """Integers and structures of Thrift's compact protocol by field number; other types are skipped."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.at = 0

    def struct(self, depth: int) -> dict[int, Any]:
        if depth > 8:
            raise ValueError("a page header is nested too deeply")
        fields: dict[int, Any] = {}
        number = 0
        while head := self._byte():
            kind = head & 15
            number = number + (head >> 4) if head >> 4 else self._zigzag()
            value = self._value(kind, depth)
            if value is not None:
                fields[number] = value
        return fields

    def _value(self, kind: int, depth: int, *, in_list: bool = False) -> Any:
        if kind in (1, 2):  # a boolean: in a structure the kind is the value
            return self._byte() if in_list else None
        if kind == 3:
            return self._byte()
        if kind in (4, 5, 6):
            return self._zigzag()
        if kind == 7:
            self.at += 8
        elif kind == 8:
            size = self._varint()
            self.at += size
        elif kind in (9, 10):
            head = self._byte()
            count = self._varint() if head >> 4 == 15 else head >> 4
            for _ in range(min(count, _HEADER_BYTES)):
                self._value(head & 15, depth + 1, in_list=True)
        elif kind == 12:
            return self.struct(depth + 1)
        else:
            raise ValueError(f"a page header has the unknown type {kind}")
        return None

    def _byte(self) -> int:
        value = self._data[self.at]
        self.at += 1
        return value

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value
            if shift > 63:
                raise ValueError("a number in a page header is too long")

    def _zigzag(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)
