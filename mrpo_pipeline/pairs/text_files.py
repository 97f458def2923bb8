"""Text files as byte streams, decompressed with a bound on their expansion."""

import gzip
import io
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.files.bounds import check_expansion
from mrpo_pipeline.terminal import one_line

BUFFER = 1 << 20
BOM = b"\xef\xbb\xbf"


@contextmanager
def open_text(path: str, suffix: str, name: str) -> Iterator[IO[bytes]]:
    """Open a file, decompressed by its suffix (`.gz`, `.zst`). Only seeking to the start is supported.

    Raises UserError, also while reading: the file cannot be read, is damaged, or expands beyond the bounds of `files.bounds`.
    """
    try:
        with _open(path, suffix, name) as stream:
            yield stream
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(
            f"{name}: this gzip file is damaged or truncated ({one_line(error)}). Download or compress it again."
        ) from error
    except OSError as error:
        if suffix.endswith(".zst") and error.errno is None:
            raise UserError(
                f"{name}: this zstd file is damaged or truncated ({one_line(error)}). Download or compress it again."
            ) from error
        raise UserError(
            f"{name}: this file cannot be read ({one_line(error)}). Check the disk and the file's permissions."
        ) from error


def _open(path: str, suffix: str, name: str) -> IO[bytes]:
    if suffix.endswith(".gz"):
        return io.BufferedReader(_Decompressed(lambda: gzip.open(path, "rb"), name, os.path.getsize(path)), BUFFER)
    if suffix.endswith(".zst"):
        import pyarrow as pa

        unpack = lambda: pa.CompressedInputStream(pa.OSFile(path), "zstd")  # noqa: E731
        return io.BufferedReader(_Decompressed(unpack, name, os.path.getsize(path)), BUFFER)
    return open(path, "rb", buffering=BUFFER)


class _Decompressed(io.RawIOBase):
    """A decompressed stream that raises ExpansionError when it grows too large for the stored size."""

    def __init__(self, reopen: Callable[[], Any], name: str, stored: int) -> None:
        self._reopen, self._name, self._stored = reopen, name, stored
        self._stream, self._at = reopen(), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        if offset or whence:
            raise io.UnsupportedOperation("only seeking to the start is supported")
        self._stream.close()
        self._stream, self._at = self._reopen(), 0
        return 0

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer)) or b""
        buffer[: len(data)] = data
        self._at += len(data)
        check_expansion(self._name, self._stored, self._at)
        return len(data)

    def close(self) -> None:
        self._stream.close()
        super().close()
