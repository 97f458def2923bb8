"""Pairs as one polars frame, built batch by batch."""

from dataclasses import dataclass, field

import polars as pl

SCHEMA: dict[str, pl.DataType | type[pl.DataType]] = {
    "file": pl.String,
    "row": pl.Int64,
    "pair_in_row": pl.Int32,
    "id": pl.String,
    "pair_id": pl.String,
    "prompt": pl.String,
    "chosen": pl.String,
    "rejected": pl.String,
    "extra": pl.String,
}
_BATCH_PAIRS = 4096
_BATCH_CHARACTERS = 32 << 20

Entry = tuple[int, int, str | None, str, str, str, str, str | None]
"""Values of the columns of `SCHEMA` after `file`."""


@dataclass(frozen=True)
class PairTable:
    """Preference pairs read from files.

    (`file`, `row`, `pair_in_row`) is unique; the same pair may occur several times.
    """

    frame: pl.DataFrame
    """`file`: as named by the user; `row`, `pair_in_row`: 0-based; `id`: the row's own id, or null; `pair_id`: 32 hex
    digits; `prompt`: canonical JSON text; `chosen`, `rejected`: text; `extra`: the other columns as a JSON object, or null."""
    skipped: dict[str, int] = field(default_factory=dict)
    """Skipped rows by reason: bad rows, and rows without a preference (a tie, no label)."""
    rows: int = 0
    """Rows read, skipped ones included."""
    notice_counts: dict[str, int] = field(default_factory=dict)
    """Notices about valid but unusual rows, and the number of rows."""
    reading_counts: dict[str, int] = field(default_factory=dict)
    """Layouts and column mappings that files were read with, and the number of rows."""

    @property
    def read_as(self) -> tuple[str, ...]:
        """Layout and column mapping, one line each."""
        return _counted(self.reading_counts)

    @property
    def notices(self) -> tuple[str, ...]:
        """Notices about valid but unusual rows, one line each."""
        return _counted(self.notice_counts)


def _counted(texts: dict[str, int]) -> tuple[str, ...]:
    return tuple(f"{count} row{'s' if count > 1 else ''}: {text}" for text, count in texts.items() if count)


class TableBuilder:
    """Collect pairs and convert them to columns every few thousand, to keep few Python objects in memory."""

    def __init__(self) -> None:
        self._frames: list[pl.DataFrame] = []
        self.pairs = 0
        self._entries: list[Entry] = []
        self._file = ""
        self._characters = 0

    def add(self, file: str, entry: Entry) -> None:
        if file != self._file or len(self._entries) >= _BATCH_PAIRS or self._characters >= _BATCH_CHARACTERS:
            self._flush()
            self._file = file
        self._entries.append(entry)
        self.pairs += 1
        self._characters += len(entry[4]) + len(entry[5]) + len(entry[6]) + len(entry[7] or "")

    def finish(self) -> pl.DataFrame:
        """All pairs in order."""
        self._flush()
        return pl.concat(self._frames, rechunk=True) if self._frames else pl.DataFrame(schema=SCHEMA)

    def _flush(self) -> None:
        if self._entries:
            inner = {name: kind for name, kind in SCHEMA.items() if name != "file"}
            columns = dict(zip(inner, map(list, zip(*self._entries, strict=True)), strict=True))
            frame = pl.DataFrame(columns, schema=inner, strict=True)
            self._frames.append(frame.select(pl.lit(self._file, dtype=pl.String).alias("file"), pl.all()))
        self._entries = []
        self._characters = 0
