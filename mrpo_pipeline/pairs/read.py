"""Reading preference pairs: files into a checked table."""

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
from mrpo_pipeline.pairs.bad_row import BadRowError, NoPreferenceError, found
from mrpo_pipeline.pairs.columns import COLUMNS, Columns, check_columns, nearest
from mrpo_pipeline.pairs.counting import require_balance
from mrpo_pipeline.pairs.csv_records import csv_records
from mrpo_pipeline.pairs.identity import pair_id
from mrpo_pipeline.pairs.json_records import Record, json_records
from mrpo_pipeline.pairs.parquet_records import parquet_records
from mrpo_pipeline.pairs.prompt_parts import refuse_unused
from mrpo_pipeline.pairs.reading import Reading
from mrpo_pipeline.pairs.recognise import reading_of
from mrpo_pipeline.pairs.rows import Pair, Strings, is_ranked, pairs_of_row
from mrpo_pipeline.pairs.serialized import Serialized
from mrpo_pipeline.pairs.sources import PairFile, find_files
from mrpo_pipeline.pairs.table import PairTable, TableBuilder

OnBadRow = Literal["error", "skip"]

_HEAD = 16  # rows that show which columns a file has
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

    `source`: a file (`.jsonl`, `.ndjson`, `.json`, `.csv`, `.tsv`, each also with `.gz` or `.zst`; `.parquet`, `.arrow`), a
    folder or glob of those, a data set (`org/name`, a copy of one, a folder that `datasets` saved), a URL, or a list.
    `split`, `subset`, `held_out`: see `sources.find_files`.
    `columns`: this project's names (`COLUMNS`) to the file's, where they differ; for `prompt` also a list of columns,
    joined by a blank line.
    `strings`: what strings are: "text", raw; "messages", a prompt is one user turn and a completion the assistant's.
    `on_bad_row`: "error" refuses the whole when a row cannot be used, after reading everything; "skip" leaves such
    rows out and counts them in `PairTable.skipped`.
    `layout`: "auto" (by the file's columns), "as-is", or a name of `layouts.BY_NAME`.
    `ignore_columns`: columns that may hold a part of the prompt and are left out of it.
    `serialized`: strings that hold messages as JSON or Python text: "error", "parse", or "text"; see `serialized`.

    A row is `chosen` and `rejected` with or without a `prompt`, or K-wise: `prompt`, `completions` and `ranks` or
    `scores`; with `chosen` or `rejected` present, `completions` is just another column unless it is mapped.
    Raises UserError: a file that is missing, damaged or empty, a mapped column that no row has, a part of the prompt
    that is not used, bad rows, no pair left.
    """
    _check_options(columns, strings, on_bad_row, layout, ignore_columns, serialized)
    builder = TableBuilder()
    bad = _BadRows()
    notices: Counter[str] = Counter()
    readings: Counter[str] = Counter()
    rows = used = 0
    for file in find_files(source, split, subset, held_out=held_out):
        records, head = _with_head(file)
        reading = reading_of(file.name, head, columns or {}, layout, ignore_columns, decode=serialized == "parse")
        turns: Strings = "messages" if reading.is_chat else strings
        filled = file.format in (".parquet", ".arrow")
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
                reading.check_seen(seen)
            try:
                _add_row(builder, record, value, reading, turns, notices, serialized, filled)
                used += 1
            except BadRowError as error:
                bad.add(record, reading.left_out(error))
            except RecursionError:
                bad.add(record, BadRowError("invalid JSON", "nested too deep"))
        if rows == before:
            raise UserError(
                f"{file.name}: this file of preference pairs is empty; expected a row for each pair. Fetch or "
                "write it again, or name another."
            )
        if objects:
            reading.check_seen(seen)
            bad.note_columns(file.name, seen, reading)
            readings[reading.report(strings, seen)] += objects
    frame = builder.finish()
    if bad.total and on_bad_row == "error":
        raise bad.refusal(rows)
    require_balance("reading rows of pairs", rows, used, bad.reasons, what="rows")
    require_balance("reading pairs", builder.pairs, frame.height)
    if not builder.pairs:
        raise NothingLeftError(f"No pair is left of {rows} rows: {bad.counts()}.{bad.hints()}")
    return PairTable(frame, dict(bad.reasons), rows, dict(notices), dict(readings))


def _records(file: PairFile) -> Iterator[Record]:
    readers = {".parquet": parquet_records, ".arrow": arrow_records, ".csv": csv_records, ".tsv": csv_records}
    return readers.get(file.format, json_records)(file)


def _with_head(file: PairFile) -> tuple[Iterator[Record], list[Mapping[str, Any]]]:
    """The records, and the first rows of the file."""
    records = _records(file)
    first = list(islice(records, _HEAD))
    return chain(first, records), [record.value for record in first if isinstance(record.value, dict)]


def _check_options(
    columns: Columns | None,
    strings: str,
    on_bad_row: str,
    layout: str,
    ignore_columns: Sequence[str],
    serialized: str,
) -> None:
    for name, value, allowed in (
        ("strings", strings, get_args(Strings)),
        ("on_bad_row", on_bad_row, get_args(OnBadRow)),
        ("serialized", serialized, get_args(Serialized)),
    ):
        if value not in allowed:
            raise UserError(f"`{name}` is {value!r}; expected {' or '.join(allowed)}. Correct it.")
    check_columns(columns or {}, layout)


def _add_row(
    builder: TableBuilder,
    record: Record,
    value: dict[str, Any],
    reading: Reading,
    strings: Strings,
    notices: Counter[str],
    serialized: Serialized,
    filled: bool,
) -> None:
    fields = reading.fields(value)
    pairs = pairs_of_row(fields, strings, notices, serialized, filled=filled)
    unused = reading.unused_parts(value)
    if unused:
        refuse_unused(record.file, record.row, value, unused, pairs, reading.prompt_columns(value))
    row_id = _row_id(fields.get("id"))
    taken = reading.taken(is_ranked(fields))
    others = {key: other for key, other in value.items() if key not in taken and other is not None}
    extra = _extra(others, notices) if others else None
    _refuse_expansion(pairs)
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
    # pandas turns whole numbers into floats where a row has none; beyond 2^53 a float is not one whole number.
    if isinstance(value, float) and value.is_integer() and abs(value) <= 2**53:
        return str(int(value))
    if isinstance(value, datetime.date | Decimal | uuid.UUID):
        return str(value)
    raise BadRowError("wrong type", f"`id` is {found(value)}; expected a string or a whole number")


def _refuse_expansion(pairs: Sequence[Pair]) -> None:
    if len(pairs) > 1:
        size = sum(len(prompt) + len(chosen) + len(rejected) for prompt, chosen, rejected in pairs)
        if size > MAX_ROW_PAIR_BYTES:
            raise BadRowError(
                "too many pairs",
                f"the row makes {len(pairs):,} pairs of {size:,} characters together; expected {MAX_ROW_PAIR_BYTES:,} at most",
            )


def _extra(others: dict[str, Any], notices: Counter[str]) -> str | None:
    """A row's other columns as JSON. A value that cannot be read is left out and counted: no pair needs it."""
    kept = {}
    for key, value in others.items():
        if isinstance(value, BadRowError):
            notices[f"a column that no pair needs is left out, as its value cannot be kept: {value.reason}"] += 1
            continue
        kept[key] = value
    try:
        return _json(kept) if kept else None
    except RecursionError:
        return _extra({key: _if_flat(value) for key, value in kept.items()}, notices)


def _if_flat(value: Any) -> Any:
    try:
        _json({"": value})
    except RecursionError:
        return BadRowError("unreadable value", "nested too deep")
    return value


def _json(value: dict[str, Any]) -> str:
    """A row's other columns as JSON. Parquet has values that JSON lacks: see `_without_json`; NaN becomes null."""
    try:
        return _ENCODER.encode(value)
    except (ValueError, TypeError):
        return _ENCODER.encode(_plain(value))


def _without_json(value: Any) -> str:
    return base64.b64encode(value).decode("ascii") if isinstance(value, bytes) else str(value)


_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False, default=_without_json)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, str | int | float) else _without_json(value)


@dataclass
class _BadRows:
    """The rows that cannot be used: all counted, few remembered."""

    total: int = 0  # without those that their set leaves without a preference
    reasons: Counter[str] = field(default_factory=Counter)
    listed: list[str] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)

    def add(self, record: Record, error: BadRowError) -> None:
        if isinstance(error, NoPreferenceError):
            self.reasons[error.reason] += 1
            return
        # The first ten whatever they are, then the first of each further reason.
        if len(self.listed) < _LISTED or error.reason not in self.reasons:
            line = "" if record.line is None else f" (line {record.line})"
            self.listed.append(f"  {record.file}: row {record.row}{line}: {error.reason}: {error.detail}")
        self.total += 1
        self.reasons[error.reason] += 1

    def note_columns(self, file: str, seen: Mapping[str, None], reading: Reading) -> None:
        """Remember a file in which no row has what a pair needs: its columns may have other names."""
        lacking = reading.lacking(seen)
        if lacking:
            self.columns.append(
                f" In {file} no row has the column {lacking!r}{nearest(lacking, list(seen))}; `columns` maps a name such as "
                "`chosen` to the file's own, and `mrpo recipes layouts` lists the sets that are known by name."
            )

    def counts(self) -> str:
        return ", ".join(f"{reason} {count}" for reason, count in self.reasons.most_common())

    def hints(self) -> str:
        return "".join(self.columns[:3])

    def refusal(self, rows: int) -> UserError:
        lines = "\n".join(self.listed)
        more = ", and the first of each further reason" if len(self.listed) > _LISTED else ""
        told = "" if self.total <= _LISTED else f" The first {_LISTED}{more}:"
        return UserError(
            f"{self.total} of {rows} rows of preference pairs cannot be used (rows are counted from 0, lines from 1).{told}\n"
            f"{lines}\nBy reason: {self.counts()}.{self.hints()} Mend these rows, or pass --on-bad-row skip to leave them out."
        )
