"""The pairs of a run as one polars frame, built batch by batch."""

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
"""The columns of `SCHEMA` behind `file`."""


@dataclass(frozen=True)
class PairTable:
    """Preference pairs read from files.

    A pair's place is (`file`, `row`, `pair_in_row`), and no two share it; the same pair may stand in several places.
    """

    frame: pl.DataFrame
    """`file`: as named by the user; `row`: 0-based in it; `pair_in_row`: 0-based; `id`: the row's own, or null;
    `pair_id`: 32 hex digits; `prompt`: canonical JSON text; `chosen`, `rejected`: text; `extra`: the row's other
    columns as a JSON object, or null."""
    skipped: dict[str, int] = field(default_factory=dict)
    """Rows that were left out, by reason: bad ones where they were to be skipped, and those that their set leaves without
    a preference (a tie, no label)."""
    rows: int = 0
    """Rows read, the skipped ones included."""
    noted: dict[str, int] = field(default_factory=dict)
    """What is legal and yet worth telling the user, and how many rows it holds for."""

    readings: dict[str, int] = field(default_factory=dict)
    """How files were read (layout, and which columns became what), and how many rows."""

    @property
    def read_as(self) -> tuple[str, ...]:
        """How files were read, one sentence each."""
        return _counted(self.readings)

    @property
    def notices(self) -> tuple[str, ...]:
        """What is legal and yet worth telling the user, one sentence each."""
        return _counted(self.noted)

    @property
    def duplicates(self) -> int:
        """Pairs whose content stands in an earlier place too. They are kept: a repeated pair weighs more."""
        return self.frame.height - self.frame["pair_id"].n_unique()


def _counted(texts: dict[str, int]) -> tuple[str, ...]:
    return tuple(f"{count} row{'s' if count > 1 else ''}: {text}" for text, count in texts.items() if count)


class TableBuilder:
    """Collects pairs, and turns every few thousand into columns, so few are Python objects at any time."""

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
        """Every pair added, in order."""
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
