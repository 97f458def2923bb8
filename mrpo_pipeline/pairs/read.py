"""Read preference pairs from files into a checked table."""

import base64
import datetime
import json
import math
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import chain, islice
from typing import Any, Literal, get_args

from mrpo_pipeline.errors import NothingLeftError, UserError
from mrpo_pipeline.files.bounds import MAX_ROW_PAIR_BYTES
from mrpo_pipeline.pairs.arrow_records import arrow_records
from mrpo_pipeline.pairs.columns import COLUMNS, Columns, check_columns, nearest
from mrpo_pipeline.pairs.counts import require_balance
from mrpo_pipeline.pairs.csv_records import csv_records
from mrpo_pipeline.pairs.identity import pair_id
from mrpo_pipeline.pairs.json_records import Record, json_records
from mrpo_pipeline.pairs.layout_detection import reader_for
from mrpo_pipeline.pairs.parquet_records import parquet_records
from mrpo_pipeline.pairs.row_errors import BadRowError, NoPreferenceError, describe
from mrpo_pipeline.pairs.row_fields import RowReader
from mrpo_pipeline.pairs.row_pairs import Pair, Strings, is_ranked, pairs_of_row
from mrpo_pipeline.pairs.serialized import Serialized
from mrpo_pipeline.pairs.sources import PairFile, find_files
from mrpo_pipeline.pairs.table import PairTable, TableBuilder
from mrpo_pipeline.pairs.unused_prompt_columns import refuse_unused

OnBadRow = Literal["error", "skip"]

_HEAD = 16  # rows that the layout is detected from
_LISTED = 10  # bad rows listed in full

__all__ = ["COLUMNS", "OnBadRow", "read_pairs"]


def read_pairs(
    source: str | Sequence[str],
    *,
    columns: Columns | None = None,
    strings: Strings = "text",
    on_bad_row: OnBadRow = "error",
    layout: str = "auto",
    ignore_columns: Sequence[str] = (),
    serialized: Serialized = "error",
    split: str | None = None,
    subset: str | None = None,
    held_out: bool = False,
) -> PairTable:
    """Read preference pairs.

    A row has `chosen` and `rejected` with or without a `prompt`, or is K-wise: `prompt`, `completions` and `ranks` or
    `scores`. If `chosen` or `rejected` is present, `completions` is an extra column unless it is mapped.

    Args:
        source: a file (`.jsonl`, `.ndjson`, `.json`, `.csv`, `.tsv`, each also with `.gz` or `.zst`; `.parquet`, `.arrow`), a
            folder or glob of those, a data set (`org/name`, a copy of one, a `save_to_disk` folder), a URL, or a list.
        columns: this project's column names (`COLUMNS`) to the file's; for `prompt` also a list of columns, joined by a
            blank line.
        strings: "text": strings are raw text; "messages": a prompt is a user turn and a completion an assistant turn.
        on_bad_row: "error": read everything, then fail if a row cannot be used; "skip": count such rows in
            `PairTable.skipped`.
        layout: "auto" (detected from the columns), "as-is", or a name of `layouts.BY_NAME`.
        ignore_columns: columns that may hold a part of the prompt and are dropped on purpose.
        serialized: handling of strings that hold messages as JSON or Python text: "error", "parse" or "text"; see `serialized`.
        split, subset, held_out: see `sources.find_files`.

    Raises:
        UserError: a file is missing, damaged or empty, a mapped column is missing, a part of the prompt is unused, or a
            row cannot be used.
        NothingLeftError: no pair is left.
    """
    for name, option, allowed in (
        ("strings", strings, get_args(Strings)),
        ("on_bad_row", on_bad_row, get_args(OnBadRow)),
        ("serialized", serialized, get_args(Serialized)),
    ):
        if option not in allowed:
            raise UserError(f"`{name}` is {option!r}; expected {' or '.join(allowed)}. Correct it.")
    check_columns(columns or {}, layout)
    builder = TableBuilder()
    bad = _BadRows()
    notices: Counter[str] = Counter()
    reading_counts: Counter[str] = Counter()
    rows = used = 0
    for file in find_files(source, split, subset, held_out=held_out):
        records, head = _with_head(file)
        reader = reader_for(file.name, head, columns or {}, layout, ignore_columns, decode=serialized == "parse")
        turns: Strings = "messages" if reader.is_chat else strings
        drop_nulls = file.format in (".parquet", ".arrow")
        seen: dict[str, None] = {}
        before, objects = rows, 0
        for record in records:
            rows += 1
            value = record.value
            if isinstance(value, BadRowError):
                bad.add(record, value)
                continue
            if not seen.keys() >= value.keys():
                seen.update(dict.fromkeys(value))
            objects += 1
            if objects == 1 and file.suffix == ".parquet":
                reader.check_seen(seen)
            try:
                _add_row(builder, record, value, reader, turns, notices, serialized, drop_nulls)
                used += 1
            except BadRowError as error:
                bad.add(record, reader.classify(error))
            except RecursionError:
                bad.add(record, BadRowError("invalid JSON", "nested too deep"))
        if rows == before:
            raise UserError(
                f"{file.name}: this file is empty; expected one row per pair. Download or write it again, or use another file."
            )
        if objects:
            reader.check_seen(seen)
            bad.note_columns(file.name, seen, reader)
            reading_counts[reader.report(strings, seen)] += objects
    frame = builder.finish()
    if bad.total and on_bad_row == "error":
        raise bad.error_for(rows)
    require_balance("reader rows of pairs", rows, used, bad.reasons, what="rows")
    require_balance("reader pairs", builder.pairs, frame.height)
    if not builder.pairs:
        raise NothingLeftError(f"No pair is left from {rows} rows: {bad.counts()}.{bad.hints()}")
    return PairTable(frame, dict(bad.reasons), rows, dict(notices), dict(reading_counts))


_READERS = {".parquet": parquet_records, ".arrow": arrow_records, ".csv": csv_records, ".tsv": csv_records}


def _with_head(file: PairFile) -> tuple[Iterator[Record], list[Mapping[str, Any]]]:
    """All records, and the values of the first ones."""
    records = _READERS.get(file.format, json_records)(file)
    first = list(islice(records, _HEAD))
    return chain(first, records), [record.value for record in first if isinstance(record.value, dict)]


def _add_row(
    builder: TableBuilder,
    record: Record,
    value: dict[str, Any],
    reader: RowReader,
    strings: Strings,
    notices: Counter[str],
    serialized: Serialized,
    drop_nulls: bool,
) -> None:
    fields = reader.fields(value)
    pairs = pairs_of_row(fields, strings, notices, serialized, drop_nulls=drop_nulls)
    unused = reader.unused_parts(value)
    if unused:
        refuse_unused(record.file, record.row, value, unused, pairs, reader.prompt_columns(value))
    row_id = _row_id(fields.get("id"))
    taken = reader.taken(is_ranked(fields))
    others = {key: other for key, other in value.items() if key not in taken and other is not None}
    extra = _other_columns(others, notices) if others else None
    _check_total_size(pairs)
    for number, (prompt, chosen, rejected) in enumerate(pairs):
        name = pair_id(prompt, chosen, rejected)
        builder.add(record.file, (record.row, number, row_id, name, prompt, chosen, rejected, extra))


def _row_id(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, float) and math.isnan(value):
        return None
    # pandas turns an integer column with missing values into floats; they are exact up to 2^53.
    if isinstance(value, float) and value.is_integer() and abs(value) <= 2**53:
        return str(int(value))
    if isinstance(value, datetime.date | Decimal | uuid.UUID):
        return str(value)
    raise BadRowError("wrong type", f"`id` is {describe(value)}; expected a string or an integer")


def _check_total_size(pairs: Sequence[Pair]) -> None:
    if len(pairs) > 1:
        size = sum(len(prompt) + len(chosen) + len(rejected) for prompt, chosen, rejected in pairs)
        if size > MAX_ROW_PAIR_BYTES:
            raise BadRowError(
                "too many pairs",
                f"the row makes {len(pairs):,} pairs of {size:,} characters together; expected {MAX_ROW_PAIR_BYTES:,} at most",
            )


def _other_columns(others: dict[str, Any], notices: Counter[str]) -> str | None:
    """Extra columns of a row as JSON. Unreadable values are dropped and counted."""
    kept = {}
    for key, value in others.items():
        if isinstance(value, BadRowError):
            notices[f"an extra column is dropped, because its value cannot be kept: {value.reason}"] += 1
            continue
        kept[key] = value
    try:
        return _json(kept) if kept else None
    except RecursionError:
        return _other_columns({key: _if_flat(value) for key, value in kept.items()}, notices)


def _if_flat(value: Any) -> Any:
    try:
        _json({"": value})
    except RecursionError:
        return BadRowError("unreadable value", "nested too deep")
    return value


def _json(value: dict[str, Any]) -> str:
    """JSON text of extra columns. Parquet types without a JSON form become strings, NaN becomes null."""
    try:
        return _ENCODER.encode(value)
    except (ValueError, TypeError):
        return _ENCODER.encode(_jsonable(value))


def _json_default(value: Any) -> str:
    return base64.b64encode(value).decode("ascii") if isinstance(value, bytes) else str(value)


_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False, default=_json_default)


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _jsonable(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, str | int | float) else _json_default(value)


@dataclass
class _BadRows:
    """Rows that cannot be used: counted by reason, the first ones listed."""

    total: int = 0  # rows without a preference are not included
    reasons: Counter[str] = field(default_factory=Counter)
    listed: list[str] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)

    def add(self, record: Record, error: BadRowError) -> None:
        if isinstance(error, NoPreferenceError):
            self.reasons[error.reason] += 1
            return
        # The first ten, then the first row of each further reason.
        if len(self.listed) < _LISTED or error.reason not in self.reasons:
            line = "" if record.line is None else f" (line {record.line})"
            self.listed.append(f"  {record.file}: row {record.row}{line}: {error.reason}: {error.detail}")
        self.total += 1
        self.reasons[error.reason] += 1

    def note_columns(self, file: str, seen: Mapping[str, None], reader: RowReader) -> None:
        """Remember a file without a required column: it may have another name."""
        lacking = reader.lacking(seen)
        if lacking:
            self.columns.append(
                f" In {file} no row has the column {lacking!r}{nearest(lacking, list(seen))}. Map it in `pairs.columns`, or use a "
                "layout (`mrpo recipes layouts`)."
            )

    def counts(self) -> str:
        return ", ".join(f"{reason} {count}" for reason, count in self.reasons.most_common())

    def hints(self) -> str:
        return "".join(self.columns[:3])

    def error_for(self, rows: int) -> UserError:
        lines = "\n".join(self.listed)
        more = " and the first of each further reason" if len(self.listed) > _LISTED else ""
        listed = "" if self.total <= _LISTED else f" The first {_LISTED}{more}:"
        return UserError(
            f"{self.total} of {rows} rows cannot be used (rows are counted from 0, lines from 1).{listed}\n"
            f"{lines}\nBy reason: {self.counts()}.{self.hints()} Correct these rows, or pass --on-bad-row skip to leave them out."
        )
