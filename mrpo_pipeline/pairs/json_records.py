"""Rows of JSON files, decoded strictly and one at a time.

polars' NDJSON reader infers types from the first rows; this one does not. Rows with invalid UTF-8, invalid JSON or more than
MAX_ROW_VALUES values are errors.

A column with unpaired surrogates (`\\ud800`) or a duplicate key has a BadRowError as its value, which is an error only if that
column is needed. NaN, Infinity and numbers beyond a double become nan and inf, which needed columns reject.
"""

import json
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, NamedTuple, cast

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.files.bounds import MAX_ROW_BYTES, MAX_ROW_VALUES, row_too_long
from mrpo_pipeline.pairs.json_values import duplicates, parse_integer
from mrpo_pipeline.pairs.row_errors import BadRowError, describe, quoted
from mrpo_pipeline.pairs.sources import PairFile, filesystem, unreachable
from mrpo_pipeline.pairs.text_files import BOM, open_text

_CHUNK = 1 << 20  # bytes of a list read at a time
_SPACE = b" \t\r\n"


class Record(NamedTuple):
    """One row of a file: its object, or the error."""

    file: str
    row: int  # 0-based; blank lines are not counted
    line: int | None  # 1-based; None for formats without lines
    value: dict[str, Any] | BadRowError


def json_records(file: PairFile) -> Iterator[Record]:
    """Rows of a JSON file: one object per line, or (`.json`) a list of objects.

    Raises UserError: the file cannot be opened or decompressed, or its list is truncated.
    """
    with local_path(file) as path, open_text(path, file.suffix, file.name) as stream:
        may_be_list = file.format == ".json"
        is_list = may_be_list and _begins_list(stream)
        elements = split_list(stream, file.name) if is_list else split_lines(stream, file.name)
        for row, (line, data) in enumerate(elements):
            if may_be_list and not is_list and row == 0 and data.strip(_SPACE) == b"{":
                raise UserError(
                    f"{file.name}: this file holds one JSON object over several lines. Expected a list of objects or one object "
                    "per line, with one object per pair. Write it on one line, or put it in a list."
                )
            try:
                value: dict[str, Any] | BadRowError = decode_object(data)
            except BadRowError as error:
                value = error
            yield Record(file.name, row, line, value)


@contextmanager
def local_path(file: PairFile) -> Iterator[str]:
    """Local path of a file; a URL is downloaded first. Raises UserError."""
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
    """(1-based line number, bytes) of every non-blank line. Lines end with a line feed only.

    Raises UserError: a line is longer than MAX_ROW_BYTES.
    """
    number = 0
    while line := stream.readline(MAX_ROW_BYTES + 1):
        if len(line) > MAX_ROW_BYTES:
            raise row_too_long(name)
        number += 1
        data = line.removeprefix(BOM) if number == 1 else line
        if data.strip(_SPACE):
            yield number, data


# Rest of a string, up to its closing quote or the end of the chunk.
_STRING_REST = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)
_STRUCTURE = re.compile(rb'["\[\]{},]')


def split_list(stream: IO[bytes], name: str) -> Iterator[tuple[int, bytes]]:
    """(1-based first line, bytes) of every element of the JSON list in the stream.

    Only the structure of the list is parsed, so memory holds one element and one chunk; elements are checked when they
    are decoded. Raises UserError: the list is not closed, or text follows it.
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
                    if token != b"]" or chunk[at:].strip(_SPACE) or _has_more(stream):
                        raise UserError(
                            f"{name}: text comes after the end of the JSON list (near line {line}). Expected a single list of "
                            "objects, or one object per line. Remove the text."
                        )
                    return
        pieces.append(chunk[begin:])
        if sum(map(len, pieces)) > MAX_ROW_BYTES:
            raise row_too_long(name)
    raise UserError(
        f"{name}: the JSON list of this file is never closed: expected `]` at its end. The file is probably truncated; download it again."
    )


def _has_more(stream: IO[bytes]) -> bool:
    return any(chunk.strip(_SPACE) for chunk in iter(lambda: stream.read(_CHUNK), b""))


def decode_object(data: bytes) -> dict[str, Any]:
    """Decode a JSON object strictly. Raises BadRowError: see the docstring of this module."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRowError(
            "invalid UTF-8", f"byte {error.start} of the row (0x{data[error.start]:02x}) is invalid: {error.reason}"
        ) from None
    _refuse_many_values(data)
    try:
        value = _decode(text)
    except json.JSONDecodeError as error:
        raise BadRowError("invalid JSON", f"{error.msg} at character {error.pos} of {quoted(text.strip())}") from None
    except RecursionError:
        raise BadRowError("invalid JSON", "nested too deep") from None
    if not isinstance(value, dict):
        raise BadRowError("not an object", f"the row is {describe(value)}; expected an object")
    return _without_lone_surrogates(value) if "\\ud" in text or "\\uD" in text else value


def _refuse_many_values(data: bytes) -> None:
    if len(data) <= MAX_ROW_VALUES:
        return
    if sum(map(data.count, (b",", b"[", b"{"))) > MAX_ROW_VALUES:  # some of them in texts
        values = 0
        for token in _STRUCTURE_OR_STRING.finditer(data):
            values += token.group()[:1] != b'"'
            if values > MAX_ROW_VALUES:
                raise BadRowError("too many values", f"the row holds over {MAX_ROW_VALUES:,} values")


_STRUCTURE_OR_STRING = re.compile(rb'[,\[{]|"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)


class _DuplicateKeys(dict[str, Any]):
    """An object with duplicate keys; the last value is used, as in Python's decoder."""

    keys_twice: list[str]


class _DuplicateKeysError(Exception):
    """The fast decoder found duplicate keys."""


def _decode(text: str) -> Any:
    try:
        return _DECODER.decode(text)
    except _DuplicateKeysError:
        pass
    value = _DUPLICATES_DECODER.decode(text)
    if not isinstance(value, dict):
        return value
    own = value.keys_twice if isinstance(value, _DuplicateKeys) else []
    twice = {key: key if key in own else _key_twice(inner) for key, inner in value.items()}
    return {
        key: value[key]
        if one is None
        else BadRowError("duplicate key", f"the key {quoted(one)} occurs twice in one object")
        for key, one in twice.items()
    }


def _key_twice(value: Any) -> str | None:
    """A duplicate key of an object inside a value, or None."""
    inside = [value]
    while inside:
        one = inside.pop()
        if isinstance(one, _DuplicateKeys):
            return min(one.keys_twice)
        if isinstance(one, dict | list):
            inside.extend(one.values() if isinstance(one, dict) else one)
    return None


def _object(items: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(items)
    if len(value) != len(items):
        raise _DuplicateKeysError
    return value


def _object_with_duplicates(items: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(items)
    if len(value) == len(items):
        return value
    with_duplicates = _DuplicateKeys(value)
    with_duplicates.keys_twice = duplicates(key for key, _ in items)
    return with_duplicates


def _without_lone_surrogates(value: dict[str, Any]) -> dict[str, Any]:
    return {
        # No column of ours has such a key; it is stored in a form that can be written.
        key.encode("utf-8", "replace").decode("utf-8"): _lone_surrogate({key: inner}) or inner
        for key, inner in value.items()
    }


def _lone_surrogate(value: Any) -> BadRowError | None:
    try:
        json.dumps(value, ensure_ascii=False, default=str).encode("utf-8")
    except UnicodeEncodeError as error:
        code = ord(error.object[error.start])
        return BadRowError("lone surrogate", f"\\u{code:04x} is an unpaired surrogate")
    except RecursionError:
        return BadRowError("invalid JSON", "nested too deep")
    return None


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_int=parse_integer)
_DUPLICATES_DECODER = json.JSONDecoder(object_pairs_hook=_object_with_duplicates, parse_int=parse_integer)
