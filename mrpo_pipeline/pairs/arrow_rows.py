"""Rows of an Arrow record batch, whose size in memory is known before they are decoded.

A dictionary, view or run-end array can repeat a long text millions of times at a few bytes each; decoding copies it every time.
"""

from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from mrpo_pipeline.files.bounds import MAX_ROW_BYTES, MAX_ROW_VALUES
from mrpo_pipeline.pairs.json_values import JsonObject, parse_json
from mrpo_pipeline.pairs.row_errors import BadRowError
from mrpo_pipeline.terminal import one_line

_SLICE_BYTES = 16 << 20  # decoded at a time
_VALUE_BYTES = 8  # per value, in addition to its text

Sizes = npt.NDArray[np.int64]
Row = dict[str, Any] | BadRowError


class _TooManyValuesError(Exception):
    """The rows hold more values than are counted at once."""


def arrow_rows(batch: Any) -> Iterator[tuple[Row, int]]:
    """(row as a dict, approximate bytes of its values) for each row of a valid record batch.

    A value without a Python equivalent is a BadRowError in the dict; a row that is too long is a BadRowError in place of the dict.
    """
    try:
        sizes = np.zeros(batch.num_rows, np.int64)
        for column in batch.columns:
            sizes += _sizes(column, batch.num_rows)
    except _TooManyValuesError:
        if batch.num_rows == 1:
            yield BadRowError("too many values", f"the row holds over {MAX_ROW_VALUES:,} values"), 0
            return
        half = batch.num_rows // 2
        yield from arrow_rows(batch.slice(0, half))
        yield from arrow_rows(batch.slice(half))
        return
    begin = 0
    while begin < batch.num_rows:
        if sizes[begin] > MAX_ROW_BYTES:
            detail = f"the row holds {sizes[begin]:,} bytes; expected {MAX_ROW_BYTES:,} at most"
            yield BadRowError("too long", detail), int(sizes[begin])
            begin += 1
            continue
        ends = np.cumsum(sizes[begin:])
        end = begin + max(1, int(np.searchsorted(ends, _SLICE_BYTES, side="right")))
        yield from zip(_decoded(batch.slice(begin, end - begin)), map(int, sizes[begin:end]), strict=True)
        begin = end


def _decoded(batch: Any) -> Iterator[dict[str, Any]]:
    columns = [_values(name, column) for name, column in zip(batch.schema.names, batch.columns, strict=True)]
    if not columns:
        yield from ({} for _ in range(batch.num_rows))
    for values in zip(*columns, strict=True):
        yield dict(zip(batch.schema.names, values, strict=True))


def _values(name: str, column: Any) -> list[Any]:
    # Values without a Python equivalent raise many kinds of errors: the year 10,000, nanoseconds, invalid UTF-8.
    try:
        column = _dates_to_text(column)
        values = list(column.to_pylist())
        return [_decode_json(value, column.type) for value in values] if _contains_json(column.type) else values
    except Exception:
        return [_value(name, column, index) for index in range(len(column))]


def _value(name: str, column: Any, index: int) -> Any:
    try:
        value = column[index].as_py()
        return _decode_json(value, column.type) if _contains_json(column.type) else value
    except BadRowError as error:
        return error
    except UnicodeDecodeError as error:
        return BadRowError("invalid UTF-8", f"`{name}` holds invalid UTF-8: {one_line(error)}")
    except Exception as error:
        return BadRowError("unreadable value", f"`{name}` cannot be read: {one_line(error)}")


def _contains_json(kind: Any) -> bool:
    """Whether a type is or contains Arrow's JSON type (`Json` in `datasets`)."""
    import pyarrow as pa

    if pa.types.is_map(kind):
        return _contains_json(kind.item_type)
    if pa.types.is_struct(kind):
        return any(_contains_json(one.type) for one in kind)
    is_list = _is(kind, "list", "large_list", "fixed_size_list", "list_view", "large_list_view")
    return isinstance(kind, pa.JsonType) or (is_list and _contains_json(kind.value_type))


def _is(kind: Any, *names: str) -> bool:
    """Whether a type is one of those that `pyarrow.types` names."""
    import pyarrow as pa

    return any(getattr(pa.types, f"is_{name}")(kind) for name in names)


def _decode_json(value: Any, kind: Any) -> Any:
    """Parse the JSON texts of a value. Raises BadRowError: one is not valid JSON."""
    import pyarrow as pa

    if value is None or not _contains_json(kind):
        return value
    if isinstance(kind, pa.JsonType):
        return parse_json(value, "a value of type JSON", "invalid JSON", JsonObject)
    if pa.types.is_struct(kind):
        return {name: _decode_json(one, kind.field(name).type) for name, one in value.items()}
    if pa.types.is_map(kind):
        return [(key, _decode_json(one, kind.item_type)) for key, one in value]
    return [_decode_json(one, kind.value_type) for one in value]


def _dates_to_text(column: Any) -> Any:
    """Dates and times as text, because Python's types lack nanoseconds; such columns are only passed through."""
    return column.cast("string") if _is(column.type, "timestamp", "date", "time") else column


def _sizes(column: Any, rows: int) -> Sizes:
    """Approximate bytes of each decoded value of a column."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if len(column) > max(MAX_ROW_VALUES, rows):  # repeated nulls and runs take no bytes in the file
        raise _TooManyValuesError
    kind = column.type
    if isinstance(kind, pa.BaseExtensionType):
        return _sizes(column.storage, rows)
    sizes = np.full(len(column), _VALUE_BYTES, np.int64)
    if _is(kind, "string_view", "binary_view"):
        views = np.frombuffer(column.buffers()[1], np.int32)[column.offset * 4 : (column.offset + len(column)) * 4]
        return sizes + cast(Sizes, np.where(np.asarray(column.is_valid()), views[::4], 0))
    if _is(kind, "dictionary"):
        own = _sizes(column.dictionary, max(rows, len(column.dictionary)))
        return sizes + own[column.indices.fill_null(0).to_numpy(zero_copy_only=False)] if len(own) else sizes
    if _is(kind, "run_end_encoded"):
        places = np.arange(column.offset, column.offset + len(column))
        runs = np.searchsorted(column.run_ends.to_numpy(), places, side="right")
        return _sizes(column.values, max(rows, len(column.values)))[runs]
    if _is(kind, "union"):
        raise _TooManyValuesError
    if _is(kind, "struct"):
        for index in range(kind.num_fields):
            sizes += _sizes(column.field(index), rows)
    elif _is(kind, "fixed_size_list"):
        values = column.values.slice(column.offset * kind.list_size, len(column) * kind.list_size)
        sizes += _sizes(values, rows).reshape(len(column), kind.list_size).sum(axis=1)
    elif _is(kind, "list_view", "large_list_view"):
        begins = column.offsets.to_numpy().astype(np.int64)
        sizes += _range_sums(column.values, begins, begins + column.sizes.to_numpy(), rows)
    elif _is(kind, "list", "large_list", "map"):
        edges = column.offsets.to_numpy().astype(np.int64)
        sizes += _range_sums(column.values, edges[:-1], edges[1:], rows)
    elif _is(kind, "fixed_size_binary"):
        sizes += int(kind.byte_width)
    elif _is(kind, "string", "large_string", "binary", "large_binary"):
        sizes += pc.binary_length(column).fill_null(0).to_numpy(zero_copy_only=False)
    return sizes


def _range_sums(values: Any, begins: Sizes, ends: Sizes, rows: int) -> Sizes:
    """Sum of the sizes from each begin to each end."""
    used = ends > begins
    if not used.any():
        return np.zeros(len(begins), np.int64)
    first, last = int(begins[used].min()), int(ends[used].max())
    sums = np.concatenate([[0], np.cumsum(_sizes(values.slice(first, last - first), rows))])
    result: Sizes = np.where(used, sums[np.clip(ends - first, 0, None)] - sums[np.clip(begins - first, 0, None)], 0)
    return result
