"""Rows out of JSON files, decoded strictly and one at a time.

polars' own NDJSON reader guesses types from the first rows; here nothing is guessed. Refused, row by row: bytes that
are not UTF-8, what is not JSON, more than MAX_ROW_VALUES values.

A column may hold what has no exact value: lone surrogates (`\\ud800`, which no UTF-8 file can hold), a key that occurs twice in
one object. Its value is then a BadRowError, which refuses the row where that column is needed. NaN, Infinity and numbers beyond
a double (`json.dumps` writes the first two) are Python's own nan and inf, which no column that is needed may hold.
"""

import json
import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, NamedTuple, cast

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.files.bounds import MAX_ROW_BYTES, MAX_ROW_VALUES, row_too_long
from mrpo_pipeline.pairs.bad_row import BadRowError, found, quoted
from mrpo_pipeline.pairs.json_values import whole_number
from mrpo_pipeline.pairs.sources import PairFile, filesystem, unreachable
from mrpo_pipeline.pairs.text_files import BOM, open_text

_CHUNK = 1 << 20  # bytes read at a time from a list
_SPACE = b" \t\r\n"


class Record(NamedTuple):
    """One row as it stands in a file: its object, or why it has none."""

    file: str
    row: int  # 0-based among the rows of the file; blank lines are no rows
    line: int | None  # 1-based line of the file; None where a format has no lines
    value: dict[str, Any] | BadRowError


def json_records(file: PairFile) -> Iterator[Record]:
    """The rows of a JSON file: one object per line, or (`.json`) a list of objects.

    Raises UserError: the file cannot be opened or unpacked, or its list is cut short.
    """
    with local_path(file) as path, open_text(path, file.suffix, file.name) as stream:
        may_be_list = file.format == ".json"
        is_list = may_be_list and _begins_list(stream)
        elements = split_list(stream, file.name) if is_list else split_lines(stream, file.name)
        for row, (line, data) in enumerate(elements):
            if may_be_list and not is_list and row == 0 and data.strip(_SPACE) == b"{":
                raise UserError(
                    f"{file.name}: this file holds one JSON object over several lines. Expected a list of objects, "
                    "one for each pair, or one object per line. Write it so."
                )
            yield Record(file.name, row, line, _decoded(data))


@contextmanager
def local_path(file: PairFile) -> Iterator[str]:
    """Where a file lies on this machine; one behind a URL is fetched first. Raises UserError."""
    if not file.remote:
        yield file.name
        return
    with tempfile.TemporaryDirectory() as folder:
        target = os.path.join(folder, "pairs")
        try:
            system, path = filesystem(file.name)
            system.get_file(path, target)
        except Exception as error:  # every filesystem raises its own kinds
            raise unreachable(file.name, error) from error
        yield target


def _begins_list(stream: IO[bytes]) -> bool:
    head = stream.read(len(BOM))
    head = b"" if head == BOM else head
    while not head.strip(_SPACE):
        more = stream.read(4096)
        if not more:
            break
        head = more
    stream.seek(0)
    return head.lstrip(_SPACE)[:1] == b"["


def split_lines(stream: IO[bytes], name: str = "the file") -> Iterator[tuple[int, bytes]]:
    """(1-based line number, bytes) of every line that is not blank. Only a line feed ends a line.

    Raises UserError: a line of more than MAX_ROW_BYTES.
    """
    number = 0
    while line := stream.readline(MAX_ROW_BYTES + 1):
        if len(line) > MAX_ROW_BYTES:
            raise row_too_long(name)
        number += 1
        data = line.removeprefix(BOM) if number == 1 else line
        if data.strip(_SPACE):
            yield number, data


# Inside a string, everything up to its closing quote, or up to where the chunk ends.
_STRING_REST = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)
_STRUCTURE = re.compile(rb'["\[\]{},]')


def split_list(stream: IO[bytes], name: str) -> Iterator[tuple[int, bytes]]:
    """(1-based line of its start, bytes) of every element of the one JSON list in the stream.

    Only the list's structure is followed here, so memory holds one element and one chunk; each element is checked when
    it is decoded. Raises UserError: the list is never closed, or something stands behind it.
    """
    depth = 0
    in_string = escaped = False
    line = 1
    pieces: list[bytes] = []
    count = 0

    def take(last: bytes) -> tuple[int, bytes]:
        nonlocal line, pieces
        data = b"".join([*pieces, last])
        pieces = []
        start = line + data[: len(data) - len(data.lstrip(_SPACE))].count(b"\n")
        line += data.count(b"\n")
        return start, data

    while chunk := stream.read(_CHUNK):
        at = begin = 0
        while at < len(chunk):
            if escaped:
                escaped = False
                at += 1
            if in_string:
                at = cast(re.Match[bytes], _STRING_REST.match(chunk, at)).end()
                if at < len(chunk):
                    in_string = chunk[at : at + 1] != b'"'
                    escaped = in_string  # a backslash, the chunk's last byte
                    at += 1
                continue
            match = _STRUCTURE.search(chunk, at)
            if match is None:
                break
            at = match.end()
            token = match.group()
            if token == b'"':
                in_string = True
            elif token in (b"[", b"{"):
                depth += 1
                if depth == 1:
                    take(chunk[begin:at])
                    begin = at
            elif token == b",":
                if depth == 1:
                    yield take(chunk[begin : match.start()])
                    count += 1
                    begin = match.start() + 1
            else:
                depth -= 1
                if depth == 0:
                    last = take(chunk[begin : match.start()])
                    if count or last[1].strip(_SPACE):
                        yield last
                    if token != b"]" or chunk[at:].strip(_SPACE) or _anything(stream):
                        raise UserError(
                            f"{name}: something stands after the end of the JSON list (near line {line}). Expected one "
                            "list of objects and nothing else, or one object per line. Take out what stands there."
                        )
                    return
        pieces.append(chunk[begin:])
        if sum(map(len, pieces)) > MAX_ROW_BYTES:
            raise row_too_long(name)
    raise UserError(
        f"{name}: the JSON list that this file begins with is never closed, though a `]` is expected at its end; the file looks cut short. "
        "Fetch it again."
    )


def _anything(stream: IO[bytes]) -> bool:
    return any(chunk.strip(_SPACE) for chunk in iter(lambda: stream.read(_CHUNK), b""))


def _decoded(data: bytes) -> dict[str, Any] | BadRowError:
    try:
        return decode_object(data)
    except BadRowError as error:
        return error


def decode_object(data: bytes) -> dict[str, Any]:
    """The JSON object in some bytes, strictly. Raises BadRowError: see this module's docstring."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRowError(
            "invalid UTF-8", f"byte {error.start} of the row (0x{data[error.start]:02x}) is no UTF-8: {error.reason}"
        ) from None
    _refuse_many_values(data)
    try:
        value = _decode(text)
    except json.JSONDecodeError as error:
        raise BadRowError("invalid JSON", f"{error.msg} at character {error.pos} of {quoted(text.strip())}") from None
    except RecursionError:
        raise BadRowError("invalid JSON", "nested too deep") from None
    if not isinstance(value, dict):
        raise BadRowError("not an object", f"the row is {found(value)}; expected an object with named values")
    return _without_lone_surrogates(value) if "\\ud" in text or "\\uD" in text else value


def _refuse_many_values(data: bytes) -> None:
    if len(data) <= MAX_ROW_VALUES:
        return
    if sum(map(data.count, (b",", b"[", b"{"))) > MAX_ROW_VALUES:  # some of them in texts
        values = 0
        for token in _STRUCTURE_OR_STRING.finditer(data):
            values += token.group()[:1] != b'"'
            if values > MAX_ROW_VALUES:
                raise BadRowError("too many values", f"the row holds over {MAX_ROW_VALUES:,} values, which no pair has")


_STRUCTURE_OR_STRING = re.compile(rb'[,\[{]|"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)


class _Twins(dict[str, Any]):
    """An object in which a key occurs twice; the last value counts, as in Python's own decoder."""

    twice: set[str]


class _TwinsError(Exception):
    """The quick decoder found an object of that kind."""


def _decode(text: str) -> Any:
    try:
        return _DECODER.decode(text)
    except _TwinsError:
        pass
    value = _TWINS_DECODER.decode(text)
    if not isinstance(value, dict):
        return value
    own = value.twice if isinstance(value, _Twins) else set()
    twice = {key: key if key in own else _key_twice(inner) for key, inner in value.items()}
    return {
        key: value[key]
        if one is None
        else BadRowError("duplicate key", f"the key {quoted(one)} stands twice in one object")
        for key, one in twice.items()
    }


def _key_twice(value: Any) -> str | None:
    """A key that occurs twice in one of the objects inside a value."""
    inside = [value]
    while inside:
        one = inside.pop()
        if isinstance(one, _Twins):
            return min(one.twice)
        if isinstance(one, dict | list):
            inside.extend(one.values() if isinstance(one, dict) else one)
    return None


def _object(items: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(items)
    if len(value) != len(items):
        raise _TwinsError
    return value


def _object_with_twins(items: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(items)
    if len(value) == len(items):
        return value
    twins = _Twins(value)
    twins.twice = {key for key, count in Counter(key for key, _ in items).items() if count > 1}
    return twins


def _without_lone_surrogates(value: dict[str, Any]) -> dict[str, Any]:
    return {
        # A key of that kind is no name of ours; it is kept in a form that can be written.
        key.encode("utf-8", "replace").decode("utf-8"): _lone_surrogate({key: inner}) or inner
        for key, inner in value.items()
    }


def _lone_surrogate(value: Any) -> BadRowError | None:
    try:
        json.dumps(value, ensure_ascii=False, default=str).encode("utf-8")
    except UnicodeEncodeError as error:
        code = ord(error.object[error.start])
        return BadRowError("lone surrogate", f"\\u{code:04x} stands without its other half: no valid text")
    except RecursionError:
        return BadRowError("invalid JSON", "nested too deep")
    return None


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_int=whole_number)
_TWINS_DECODER = json.JSONDecoder(object_pairs_hook=_object_with_twins, parse_int=whole_number)
