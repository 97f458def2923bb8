"""Rows of CSV and TSV files. All values are text."""

import csv
from collections.abc import Iterator
from typing import IO

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.files.bounds import MAX_COLUMNS, MAX_ROW_BYTES, MAX_ROW_VALUES, row_too_long
from mrpo_pipeline.pairs.json_records import Record, local_path
from mrpo_pipeline.pairs.json_values import duplicates
from mrpo_pipeline.pairs.row_errors import BadRowError, quoted
from mrpo_pipeline.pairs.sources import PairFile
from mrpo_pipeline.pairs.text_files import BOM, open_text

Fields = list[str] | BadRowError


def csv_records(file: PairFile) -> Iterator[Record]:
    """Rows of a CSV or TSV file with a header, quoted as in RFC 4180; blank lines are skipped.

    Raises UserError: the file cannot be opened or decompressed, or its header is invalid.
    """
    delimiter = "\t" if file.format == ".tsv" else ","
    with local_path(file) as path, open_text(path, file.suffix, file.name) as stream:
        rows = _split(stream, file.name, delimiter)
        _, header = next(rows, (1, []))
        names = _names(file.name, header, delimiter) if header else []
        for row, (line, fields) in enumerate(rows):
            yield Record(file.name, row, line, _value(names, fields))


def _value(names: list[str], fields: Fields) -> dict[str, str] | BadRowError:
    if isinstance(fields, BadRowError):
        return fields
    if len(fields) != len(names):
        detail = f"the row has {len(fields)} fields; the header names {len(names)} columns"
        return BadRowError("wrong number of fields", detail)
    return dict(zip(names, fields, strict=True))


def _names(name: str, header: Fields, delimiter: str) -> list[str]:
    if isinstance(header, BadRowError):
        raise UserError(f"{name}: the header of this file cannot be read ({header}). Write the file again as UTF-8.")
    if twice := duplicates(header):
        raise UserError(f"{name}: the header names the column {quoted(twice[0])} twice. Rename one of them.")
    other = next((mark for mark in ";\t,|" if mark in header[0] and mark != delimiter), None)
    if len(header) == 1 and other:
        raise UserError(
            f"{name}: the header is one column, {quoted(header[0])}; expected columns separated by {delimiter!r}, "
            f"found {other!r}. Change the delimiter (a file with tabs is named .tsv)."
        )
    if len(header) > MAX_COLUMNS:
        raise UserError(f"{name}: the header names {len(header):,} columns; expected {MAX_COLUMNS:,} at most.")
    return header


def _split(stream: IO[bytes], name: str, delimiter: str) -> Iterator[tuple[int, Fields]]:
    """(1-based first line, fields or error) of every row."""
    csv.field_size_limit(max(csv.field_size_limit(), MAX_ROW_BYTES))  # the default is 128 kB
    lines = _LineReader(stream, name, delimiter)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        start = lines.begin_row()
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield (
                start,
                BadRowError("invalid CSV", f"{error}; a field with quotes must be quoted and its quotes doubled"),
            )
            continue
        if lines.broken is not None:
            yield start, lines.broken
        elif fields:
            yield start, fields


class _LineReader:
    """Decoded lines for `csv.reader`, with the size of the current row bounded."""

    def __init__(self, stream: IO[bytes], name: str, delimiter: str) -> None:
        self._stream, self._name, self._mark = stream, name, delimiter.encode()
        self._line = self._size = self._marks = 0
        self.broken: BadRowError | None = None

    def begin_row(self) -> int:
        self._size = self._marks = 0
        self.broken = None
        return self._line + 1

    def __iter__(self) -> "_LineReader":
        return self

    def __next__(self) -> str:
        data = self._stream.readline(MAX_ROW_BYTES + 1)
        if not data:
            raise StopIteration
        self._size += len(data)
        self._marks += 1 + data.count(self._mark)
        # An unclosed quote makes the rest of the file one row.
        if self._size > MAX_ROW_BYTES or self._marks > MAX_ROW_VALUES:
            raise row_too_long(self._name)
        self._line += 1
        if self._line == 1:
            data = data.removeprefix(BOM)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            self.broken = BadRowError(
                "invalid UTF-8", f"byte {error.start} of line {self._line} (0x{data[error.start]:02x}) is not UTF-8"
            )
            return data.decode("utf-8", "replace")
