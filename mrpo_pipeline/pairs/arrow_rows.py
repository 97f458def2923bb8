"""Rows out of an Arrow record batch, with what each one takes in memory known before it is decoded.

A dictionary, a view or a run can repeat one long text in millions of places for a few bytes each; Python has a copy for each.
"""

from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from mrpo_pipeline.files.bounds import MAX_ROW_BYTES, MAX_ROW_VALUES
from mrpo_pipeline.pairs.bad_row import BadRowError
from mrpo_pipeline.pairs.json_values import Exact, parsed
from mrpo_pipeline.terminal import one_line

_SLICE_BYTES = 16 << 20  # decoded at a time
_VALUE_BYTES = 8  # counted for each value beside its text

Sizes = npt.NDArray[np.int64]
Row = dict[str, Any] | BadRowError


class _TooManyValuesError(Exception):
    """Some rows hold more values together than are counted at once."""


def arrow_rows(batch: Any) -> Iterator[tuple[Row, int]]:
    """Each row of a valid record batch as a dict, and about how many bytes its values take.

    A value that has no Python form is a BadRowError in its row's place; a row that is too long is one as a whole.
    """
    try:
        sizes = np.zeros(batch.num_rows, np.int64)
        for column in batch.columns:
            sizes += _sizes(column, batch.num_rows)
    except _TooManyValuesError:
        if batch.num_rows == 1:
            yield BadRowError("too many values", f"the row holds over {MAX_ROW_VALUES:,} values, which no pair has"), 0
            return
        half = batch.num_rows // 2
        yield from arrow_rows(batch.slice(0, half))
        yield from arrow_rows(batch.slice(half))
        return
    begin = 0
    while begin < batch.num_rows:
        if sizes[begin] > MAX_ROW_BYTES:
            detail = f"the row holds {sizes[begin]:,} bytes; expected {MAX_ROW_BYTES:,} at most, which no pair exceeds"
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
    # Arrow has values that Python lacks, of any error: a year 10,000, a nanosecond, a text that is not UTF-8.
    try:
        column = _dates_as_text(column)
        values = list(column.to_pylist())
        return [_without_json(value, column.type) for value in values] if _holds_json(column.type) else values
    except Exception:
        return [_value(name, column, index) for index in range(len(column))]


def _value(name: str, column: Any, index: int) -> Any:
    try:
        value = column[index].as_py()
        return _without_json(value, column.type) if _holds_json(column.type) else value
    except BadRowError as error:
        return error
    except UnicodeDecodeError as error:
        return BadRowError("invalid UTF-8", f"`{name}` holds bytes that are no UTF-8: {one_line(error)}")
    except Exception as error:
        return BadRowError("unreadable value", f"`{name}` cannot be read: {one_line(error)}")


def _holds_json(kind: Any) -> bool:
    """Whether a type is Arrow's JSON (`datasets` has it as `Json`), or has it within."""
    import pyarrow as pa

    if pa.types.is_map(kind):
        return _holds_json(kind.item_type)
    if pa.types.is_struct(kind):
        return any(_holds_json(one.type) for one in kind)
    return isinstance(kind, pa.JsonType) or (_is_list(kind) and _holds_json(kind.value_type))


def _is_list(kind: Any) -> bool:
    import pyarrow as pa

    return any(
        test(kind)
        for test in (
            *(pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list),
            *(pa.types.is_list_view, pa.types.is_large_list_view),
        )
    )


def _without_json(value: Any, kind: Any) -> Any:
    """A value with its texts of JSON read. Raises BadRowError: one is not JSON."""
    import pyarrow as pa

    if value is None or not _holds_json(kind):
        return value
    if isinstance(kind, pa.JsonType):
        return parsed(value, "a value of type JSON", "invalid JSON", Exact)
    if pa.types.is_struct(kind):
        return {name: _without_json(one, kind.field(name).type) for name, one in value.items()}
    if pa.types.is_map(kind):
        return [(key, _without_json(one, kind.item_type)) for key, one in value]
    return [_without_json(one, kind.value_type) for one in value]


def _dates_as_text(column: Any) -> Any:
    """Dates and times as text: Python's own types have no nanoseconds, and these columns are only carried along."""
    import pyarrow as pa

    kind = column.type
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind) or pa.types.is_time(kind):
        return column.cast(pa.string())
    return column


def _sizes(column: Any, rows: int) -> Sizes:
    """About how many bytes each value of a column takes once it is decoded."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if len(column) > max(MAX_ROW_VALUES, rows):  # what a list of nulls or a run repeats has no bytes in a file
        raise _TooManyValuesError
    kind = column.type
    if isinstance(kind, pa.BaseExtensionType):
        return _sizes(column.storage, rows)
    sizes = np.full(len(column), _VALUE_BYTES, np.int64)
    if pa.types.is_string_view(kind) or pa.types.is_binary_view(kind):
        views = np.frombuffer(column.buffers()[1], np.int32)[column.offset * 4 : (column.offset + len(column)) * 4]
        return sizes + cast(Sizes, np.where(np.asarray(column.is_valid()), views[::4], 0))
    if pa.types.is_dictionary(kind):
        own = _sizes(column.dictionary, max(rows, len(column.dictionary)))
        indices = column.indices.fill_null(0).to_numpy(zero_copy_only=False) if len(own) else None
        if indices is not None:
            sizes += own[indices]
        return sizes
    if pa.types.is_run_end_encoded(kind):
        places = np.arange(column.offset, column.offset + len(column))
        runs = np.searchsorted(column.run_ends.to_numpy(), places, side="right")
        return _sizes(column.values, max(rows, len(column.values)))[runs]
    if pa.types.is_struct(kind):
        for index in range(kind.num_fields):
            sizes += _sizes(column.field(index), rows)
        return sizes
    if pa.types.is_fixed_size_list(kind):
        values = column.values.slice(column.offset * kind.list_size, len(column) * kind.list_size)
        sizes += _sizes(values, rows).reshape(len(column), kind.list_size).sum(axis=1)
        return sizes
    if pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind):
        begins = column.offsets.to_numpy().astype(np.int64)
        sizes += _between(column.values, begins, begins + column.sizes.to_numpy(), rows)
        return sizes
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_map(kind):
        edges = column.offsets.to_numpy().astype(np.int64)
        sizes += _between(column.values, edges[:-1], edges[1:], rows)
        return sizes
    if pa.types.is_fixed_size_binary(kind):
        sizes += int(kind.byte_width)
        return sizes
    if pa.types.is_union(kind):
        raise _TooManyValuesError
    if any(
        test(kind)
        for test in (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    ):
        sizes += pc.binary_length(column).fill_null(0).to_numpy(zero_copy_only=False)
    return sizes


def _between(values: Any, begins: Sizes, ends: Sizes, rows: int) -> Sizes:
    """Of the values from each begin to each end."""
    used = ends > begins
    if not used.any():
        return np.zeros(len(begins), np.int64)
    first, last = int(begins[used].min()), int(ends[used].max())
    sums = np.concatenate([[0], np.cumsum(_sizes(values.slice(first, last - first), rows))])
    result: Sizes = np.where(used, sums[np.clip(ends - first, 0, None)] - sums[np.clip(begins - first, 0, None)], 0)
    return result
