"""Rows of Arrow files: streams, as `datasets` saves them, and the file format (Feather)."""

import struct
from collections.abc import Iterator
from typing import Any

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.files.bounds import check_expansion
from mrpo_pipeline.pairs.arrow_rows import arrow_rows
from mrpo_pipeline.pairs.json_records import Record
from mrpo_pipeline.pairs.sources import PairFile
from mrpo_pipeline.terminal import one_line

_BATCH_ROWS = 1000
_FILE_MAGIC = b"ARROW1\0\0"
_DICTIONARY_BATCH, _RECORD_BATCH = 2, 3


def arrow_records(file: PairFile) -> Iterator[Record]:
    """Rows of a local Arrow file, which is memory-mapped.

    Raises UserError: the file cannot be opened, is damaged, or expands beyond the bounds of `files.bounds`.
    """
    import pyarrow as pa

    row = unpacked = 0
    try:
        with pa.memory_map(file.name) as mapped:
            stored = mapped.size()
            _check_compressed(file.name, mapped)
            for batch in _batches(mapped):
                batch.validate(full=True)  # an offset beyond the file would crash the process
                for begin in range(0, batch.num_rows, _BATCH_ROWS):
                    for value, size in arrow_rows(batch.slice(begin, _BATCH_ROWS)):
                        unpacked += size
                        check_expansion(file.name, stored, unpacked)
                        yield Record(file.name, row, None, value)
                        row += 1
    except (pa.ArrowException, OSError, ValueError, struct.error, IndexError) as error:
        raise UserError(
            f"{file.name}: this Arrow file is damaged or cannot be read ({one_line(error)}). Download or write it again."
        ) from error


def _is_file(mapped: Any) -> bool:
    mapped.seek(0)
    return bool(mapped.read(8) == _FILE_MAGIC)


def _batches(mapped: Any) -> Iterator[Any]:
    import pyarrow as pa

    if _is_file(mapped):
        reader = pa.ipc.open_file(mapped)
        yield from (reader.get_batch(index) for index in range(reader.num_record_batches))
    else:
        mapped.seek(0)
        yield from pa.ipc.open_stream(mapped)


def _check_compressed(name: str, mapped: Any) -> None:
    """Raise UserError if compressed buffers claim a size beyond the bounds; the decoder allocates that much memory."""
    import pyarrow as pa

    mapped.seek(8 if _is_file(mapped) else 0)
    reader = pa.ipc.MessageReader.open_stream(mapped)
    while True:
        try:
            message = reader.read_next_message()
        except StopIteration:
            return
        if message.type in ("record batch", "dictionary") and message.body is not None:
            body = memoryview(message.body)
            check_expansion(
                name, len(body), _unpacked(memoryview(message.metadata), body), "a batch of this Arrow file"
            )


def _unpacked(message: memoryview, body: memoryview) -> int:
    """Decompressed size that the buffers of a message (a flatbuffer) claim; 0 without compression."""

    def number(kind: str, at: int) -> int:
        return int(struct.unpack_from(f"<{kind}", message, at)[0])

    def field(table: int, index: int) -> int:
        layout = table - number("i", table)
        inside = 4 + 2 * index < number("H", layout)
        offset = number("H", layout + 4 + 2 * index) if inside else 0
        return table + offset if offset else 0

    def follow(at: int) -> int:
        return at + number("I", at)

    root = follow(0)
    header = follow(field(root, 2))
    if message[field(root, 1)] == _DICTIONARY_BATCH:
        header = follow(field(header, 1))
    if not field(header, 3):  # no compression
        return 0
    vector = follow(field(header, 2))
    total = 0
    for index in range(number("I", vector)):
        begin, length = number("q", vector + 4 + 16 * index), number("q", vector + 12 + 16 * index)
        if length >= 8:
            total += max(0, struct.unpack_from("<q", body, begin)[0])
    return total
