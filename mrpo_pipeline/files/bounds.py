"""How much memory a file from elsewhere may ask for: one table of bounds, and the refusals.

Small files can unpack to gigabytes, by a packed stream, a compressed page, one dictionary entry repeated, or a row that makes
many pairs. Each reader checks the bound before the memory is taken.
"""

from mrpo_pipeline.errors import UserError

MAX_ROW_BYTES = 64 << 20
"""Of one row: its line or element of a list in a text file, its values as they are decoded from Arrow or Parquet."""

MAX_ROW_VALUES = 1_000_000
"""Values in one row of JSON or CSV: an empty list takes 2 bytes in the file and 64 in memory."""

MAX_EXPANSION = 100
FREE_EXPANSION = 256 << 20
"""What is unpacked may have FREE_EXPANSION bytes; beyond these, MAX_EXPANSION times the bytes that are stored. Packed text has
3 to 30 times."""

MAX_ROW_COMPLETIONS = 512
"""Completions of one K-wise row: K of them make K (K - 1) / 2 pairs."""

MAX_ROW_PAIR_BYTES = 256 << 20
"""Characters of all pairs that one K-wise row makes: each holds the prompt again."""

MAX_COLUMNS = 10_000
MAX_FOOTER_BYTES = 32 << 20
"""Of a Parquet file's description of itself: it takes about ten times as much in memory."""

MAX_NESTING = 32
"""Lists and objects inside each other in the type of a Parquet column: the library decodes them by recursion."""

MAX_METADATA_BYTES = 16 << 20
"""Of a JSON file that describes a data set's folder."""


MAX_CARD_BYTES = 1 << 20
"""Of the YAML in a data set's README.md, whose parser takes a second for a megabyte."""


class ExpansionError(UserError):
    """A file, or a part of it, unpacks to far more than data do; ``reason`` is a clause that can follow "it is damaged:"."""

    def __init__(self, name: str, reason: str) -> None:
        self.reason = reason
        super().__init__(
            f"{name}: {reason}, which files of pairs do not do; it is not read, as it would fill the memory. Check where it comes from; "
            "if it is what you mean, write it as plain .jsonl."
        )


def check_expansion(name: str, stored: int, unpacked: int, what: str = "this file") -> None:
    """Refuse what unpacks to far more than data do. Raises ExpansionError."""
    if unpacked > FREE_EXPANSION and unpacked > MAX_EXPANSION * stored:
        raise ExpansionError(
            name, f"{what} has {stored:,} bytes and unpacks to {unpacked:,} or more, over {MAX_EXPANSION} times as many"
        )


def row_too_long(name: str) -> UserError:
    """The refusal of a file with a row of more than MAX_ROW_BYTES."""
    return UserError(
        f"{name}: a row of this file has more than {MAX_ROW_BYTES >> 20} MiB or a million values or lines, which no pair has; "
        "expected one JSON object per line, (`.json`) a list of them, or CSV whose quotes are closed. Check what the file holds, and "
        "write it again."
    )
