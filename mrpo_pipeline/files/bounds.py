"""Limits on the memory that an input file may take.

A small file can expand to gigabytes through compression, a repeated dictionary entry, or a row that makes many pairs. Readers check
the limit before they allocate.
"""

from mrpo_pipeline.errors import UserError

MAX_ROW_BYTES = 64 << 20
"""Bytes of one row: its line or list element in a text file, its decoded values in Arrow or Parquet."""

MAX_ROW_VALUES = 1_000_000
"""Values in one row of JSON or CSV: an empty list takes 2 bytes in the file and 64 in memory."""

MAX_EXPANSION = 100
FREE_EXPANSION = 256 << 20
"""Unpacked data may have FREE_EXPANSION bytes; beyond that, MAX_EXPANSION times the stored bytes. Compressed text
has a ratio of 3 to 30."""

MAX_ROW_COMPLETIONS = 512
"""Completions of one K-wise row: K of them make K (K - 1) / 2 pairs."""

MAX_ROW_PAIR_BYTES = 256 << 20
"""Characters of all pairs of one K-wise row; each repeats the prompt."""

MAX_COLUMNS = 10_000
MAX_FOOTER_BYTES = 32 << 20
"""Bytes of a Parquet file's footer, which takes about ten times as much in memory."""

MAX_NESTING = 32
"""Nesting of a Parquet column's type, which the library decodes by recursion."""

MAX_METADATA_BYTES = 16 << 20
"""Bytes of a JSON file that describes a dataset folder."""

MAX_CARD_BYTES = 1 << 20
"""Bytes of the YAML in a dataset's README.md, which takes a second per megabyte to parse."""


class ExpansionError(UserError):
    """A file, or a part of it, expands too much; ``reason`` is a clause that can follow "it is damaged:"."""

    def __init__(self, name: str, reason: str) -> None:
        self.reason = reason
        super().__init__(
            f"{name}: {reason}. It is not read, because it could fill the memory. If the file is what you expect, convert it to "
            "uncompressed .jsonl."
        )


def check_expansion(name: str, stored: int, unpacked: int, what: str = "this file") -> None:
    """Raise ExpansionError for data that expand too much."""
    if unpacked > FREE_EXPANSION and unpacked > MAX_EXPANSION * stored:
        raise ExpansionError(
            name, f"{what} has {stored:,} bytes and expands to {unpacked:,} or more, over {MAX_EXPANSION} times as many"
        )


def row_too_long(name: str) -> UserError:
    """The error for a file with a row of more than MAX_ROW_BYTES."""
    return UserError(
        f"{name}: a row has more than {MAX_ROW_BYTES >> 20} MiB or a million values or lines: expected one JSON object per line, a list "
        "of them (`.json`), or CSV with closed quotes."
    )
