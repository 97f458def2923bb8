"""What is kept of pairs while they are read: numbers of every pair, the text of a sample of prompts and of the longest.

    python -m mrpo_pipeline.plan.collector FOLDER

reads one part of the files in a process of its own: FOLDER/task.json says which, and the rest of FOLDER is what it found.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import polars as pl

from mrpo_pipeline.pairs.read import read_files
from mrpo_pipeline.pairs.sources import PairFile
from mrpo_pipeline.pairs.split import prompt_place
from mrpo_pipeline.pairs.table import SCHEMA

LONGEST = 64  # pairs whose text is kept whatever the sample, for the memory that the longest batch takes

TEXTS = ("prompt", "chosen", "rejected")
SIZES = tuple(f"{name}_bytes" for name in TEXTS)
_SIDE = pl.col("prompt_bytes") + pl.max_horizontal("chosen_bytes", "rejected_bytes")


@dataclass(frozen=True)
class Limits:
    """How much text may be kept before the sample is halved; None for all of it."""

    pairs: int | None = None
    text_bytes: int | None = None

    def exceeded_by(self, pairs: int, text_bytes: int) -> bool:
        """Whether so much is too much."""
        too_many = self.pairs is not None and pairs > self.pairs
        return too_many or (self.text_bytes is not None and text_bytes > self.text_bytes)


@dataclass
class Collected:
    """What was read.

    Attributes:
        numbers: every pair: ``prompt_key``, ``chosen_key``, ``rejected_key`` (64-bit hashes of the prompt, and of prompt
            and completion), ``prompt_bytes``, ``chosen_bytes``, ``rejected_bytes``, and ``place_SALT`` for each salt asked for.
        sample: pairs of the sampled prompts, columns of ``pairs.table.SCHEMA`` and of ``numbers``.
        longest: the longest pairs, the same columns.
        level: a prompt was kept with probability 2 to the power of -level.
    """

    numbers: pl.DataFrame
    sample: pl.DataFrame
    longest: pl.DataFrame
    level: int = 0
    rows: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    noted: dict[str, int] = field(default_factory=dict)
    readings: dict[str, int] = field(default_factory=dict)


def prompts_at(frame: pl.DataFrame, level: int) -> pl.DataFrame:
    """The pairs whose prompt is in a sample of that level: those with `level` zeros in front of their hash."""
    return frame if level == 0 else frame.filter(pl.col("prompt_key") < pl.lit(1 << (64 - level), dtype=pl.UInt64))


class Collector:
    """Takes frames of pairs as they are read, and keeps little enough of them."""

    def __init__(self, limits: Limits, salts: Sequence[str] = ()) -> None:
        self._limits = limits
        self._salts = salts
        self._numbers: list[pl.DataFrame] = []
        self._kept: list[pl.DataFrame] = []
        self._pairs = self._bytes = self._level = 0
        self._longest: pl.DataFrame | None = None

    def take(self, frame: pl.DataFrame) -> None:
        """One frame of pairs, columns of ``pairs.table.SCHEMA``."""
        frame = self._with_numbers(frame)
        self._numbers.append(frame.select(pl.exclude(list(SCHEMA))))
        self._keep(prompts_at(frame, self._level))
        while self._is_full() and self._level < 63:
            self._level += 1
            kept, self._kept, self._pairs, self._bytes = self._kept, [], 0, 0
            for one in kept:
                self._keep(prompts_at(one, self._level))
        self._remember_longest(frame)

    def finish(self) -> Collected:
        columns = pl.DataFrame(schema=SCHEMA)
        empty = self._with_numbers(columns)
        return Collected(
            pl.concat([empty.select(pl.exclude(list(SCHEMA))), *self._numbers]),
            pl.concat([empty, *self._kept]),
            empty if self._longest is None else self._longest,
            self._level,
        )

    def _remember_longest(self, frame: pl.DataFrame) -> None:
        if self._longest is None:
            self._longest = _apart(longest_pairs([frame]))
        else:
            shortest = self._longest.select(_SIDE.min()).item()
            longer = frame.filter(shortest < _SIDE) if self._longest.height == LONGEST else frame
            if longer.height:
                self._longest = longest_pairs([self._longest, _apart(longer)])

    def _keep(self, frame: pl.DataFrame) -> None:
        if frame.height:
            frame = _apart(frame)
            self._kept.append(frame)
            self._pairs += frame.height
            self._bytes += text_bytes(frame)

    def _is_full(self) -> bool:
        return self._limits.exceeded_by(self._pairs, self._bytes)

    def _with_numbers(self, frame: pl.DataFrame) -> pl.DataFrame:
        key = pl.col("prompt").hash(1)
        return frame.with_columns(
            key.alias("prompt_key"),
            *((pl.col(side).hash(2) ^ pl.col("prompt").hash(3)).alias(f"{side}_key") for side in TEXTS[1:]),
            *(pl.col(name).str.len_bytes().cast(pl.Int64).alias(size) for name, size in zip(TEXTS, SIZES, strict=True)),
            *(_places(frame["prompt"], salt) for salt in self._salts),
        )


def longest_pairs(frames: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """The longest pairs of some frames, by the bytes of their longer side with the prompt."""
    return pl.concat(list(frames)).sort(_SIDE, descending=True, maintain_order=True).head(LONGEST)


def text_bytes(frame: pl.DataFrame) -> int:
    """Bytes of the texts of some pairs."""
    return int(frame.select(pl.sum_horizontal(SIZES).sum()).item())


def _apart(frame: pl.DataFrame) -> pl.DataFrame:
    """A copy that does not hold on to the text of the frame it was taken from, as views of strings do."""
    return cast(pl.DataFrame, pl.from_arrow(frame.to_arrow(compat_level=pl.CompatLevel.oldest())))


def _places(prompts: pl.Series, salt: str) -> pl.Series:
    places = {prompt: prompt_place(prompt, salt) for prompt in prompts.unique()}
    return pl.Series(f"place_{salt}", [places[prompt] for prompt in prompts], dtype=pl.Float64)


def collect(files: Sequence[PairFile], settings: Mapping[str, Any], limits: Limits, salts: Sequence[str]) -> Collected:
    """Read files in this process.

    Args:
        settings: options of ``pairs.read_pairs``.

    Raises:
        UserError: see ``pairs.read_pairs``.
    """
    collector = Collector(limits, salts)
    table = read_files(files, **settings, sink=collector.take)
    found = collector.finish()
    found.rows, found.skipped, found.noted, found.readings = table.rows, table.skipped, table.noted, table.readings
    return found


_FRAMES = ("numbers", "sample", "longest")


def write_task(
    folder: Path, files: Sequence[PairFile], settings: Mapping[str, Any], limits: Limits, salts: Sequence[str]
) -> None:
    """What a process of its own is to read."""
    task = {
        "files": [asdict(file) for file in files],
        "settings": dict(settings),
        "limits": asdict(limits),
        "salts": list(salts),
    }
    (folder / "task.json").write_text(json.dumps(task), encoding="utf-8")


def read_found(folder: Path) -> Collected:
    """What that process found."""
    numbers, sample, longest = (pl.read_ipc(folder / f"{name}.arrow") for name in _FRAMES)
    return Collected(numbers, sample, longest, **json.loads((folder / "found.json").read_text(encoding="utf-8")))


def main() -> None:
    folder = Path(sys.argv[1])
    task = json.loads((folder / "task.json").read_text(encoding="utf-8"))
    files = [PairFile(**{**one, "part": one["part"] and tuple(one["part"])}) for one in task["files"]]
    found = collect(files, task["settings"], Limits(**task["limits"]), task["salts"])
    for name in _FRAMES:
        getattr(found, name).write_ipc(folder / f"{name}.arrow")
    about = {name: getattr(found, name) for name in ("level", "rows", "skipped", "noted", "readings")}
    (folder / "found.json").write_text(json.dumps(about), encoding="utf-8")


if __name__ == "__main__":
    main()
