"""Publish pairs and log π̃ as a data set for another trainer: Parquet files by split, and a card on how to train on them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl
import pyarrow as pa

from mrpo_pipeline.cache.storage import Storage, sha256_hex
from mrpo_pipeline.exports import trl
from mrpo_pipeline.exports.export import check_exportable, rows_with_targets, write_json
from mrpo_pipeline.exports.publication import Publication
from mrpo_pipeline.exports.targets_card import TARGETS_TAG, targets_card
from mrpo_pipeline.exports.targets_file import cached_splits
from mrpo_pipeline.recipe import Recipe
from mrpo_pipeline.terminal import track

SPLITS = ("train", "eval")

# Rows of a file: an upload that was killed resumes with the files that are missing.
FILE_ROWS = 50_000
_OWN = re.compile(r"\d{5}-[0-9a-f]{64}\.parquet")


@dataclass
class PublishedSplit:
    """One split of a data set: pairs, those read and left out, and its files by name."""

    pairs: int
    counts: str
    left_out: dict[str, int]
    files: list[str] = field(default_factory=list)


@dataclass
class PublishedTargets:
    """Published splits, and settings for the trainer. ``written``, ``present``: numbers of files copied, and of those already there."""

    place: str
    splits: dict[str, PublishedSplit]
    settings: list[str]
    written: int = 0
    present: int = 0

    def text(self) -> str:
        lines = [f"{split.pairs:,} pairs of {name} published at {self.place}" for name, split in self.splits.items()]
        lines += [
            f"{count:,} pairs of {name} left out: {reason}"
            for name, split in self.splits.items()
            for reason, count in split.left_out.items()
        ]
        lines.append(f"{self.written:,} files copied; {self.present:,} were there")
        return "\n".join([*lines, "Settings for the same loss:", *(f"  {line}" for line in self.settings)])


def is_place(output: str) -> bool:
    """Whether an output is published with a card: a URL, an existing folder, or a name that ends with a slash or has no suffix."""
    return "://" in output or output.endswith("/") or Path(output).is_dir() or not Path(output).suffix


def publish_targets(
    recipe: Recipe,
    trainer: str,
    target: str,
    *,
    splits: Sequence[str] = (),
    private: bool = False,
    rows_per_file: int = FILE_ROWS,
) -> PublishedTargets:
    """Publish splits for another trainer, in place of those that were published there before; log π̃ as in ``export_targets``.

    A file's name holds the SHA-256 of its bytes, and the card names the files: after a kill at any time the data set is the old or
    the new one, and publishing again writes the files that are missing.

    Args:
        trainer: a name of ``TRAINERS``.
        target: a folder, a URL as ``cache:`` takes it, or ``hf://datasets/ORGANISATION/NAME`` (one commit).
        splits: none for ``train`` and, where the recipe has one, ``eval``.
        private: make the data set private, if it is created.

    Raises:
        UserError: see ``export_targets`` and ``Publication``.
    """
    check_exportable(recipe, trainer)
    place = Publication(target, TARGETS_TAG, key="--output", private=private)
    found = PublishedTargets(target, {}, trl.settings(recipe))
    loaded = cached_splits(recipe, splits)
    rows = {name: rows_with_targets(split.pairs, recipe, trainer) for name, split in loaded.items()}
    storage = place.storage()
    storage.make_root()
    before = {name for split in SPLITS for name in storage.list(split) if _OWN.fullmatch(name.partition("/")[2])}
    for name, split in loaded.items():
        frame, left_out = rows[name]
        made = found.splits[name] = PublishedSplit(frame.height, str(split.counts), left_out)
        with track(f"publishing {name}", -(-frame.height // rows_per_file), "files") as progress:
            for file, data in _files(name, frame, rows_per_file):
                found.written += _put(storage, name, file, data, before)
                made.files.append(file)
                progress.advance(1)
    files = [file for split in found.splits.values() for file in split.files]
    found.present = len(files) - found.written
    stale = sorted(before - set(files))
    if place.on_hub:
        _delete(storage, stale)  # takes effect with the commit
    place.finish(
        targets_card(recipe, found), f"Publish {sum(s.pairs for s in found.splits.values()):,} pairs with log π̃"
    )
    if not place.on_hub:
        _delete(storage, stale)
    return found


def _files(split: str, frame: pl.DataFrame, rows: int) -> Iterator[tuple[str, pa.Buffer]]:
    """Name and bytes of each file of a split."""
    for number, part in enumerate(frame.iter_slices(rows)):
        sink = pa.BufferOutputStream()
        write_json(part, sink, trl.json_columns(frame))
        data = sink.getvalue()
        yield f"{split}/{number:05}-{sha256_hex(data)}.parquet", data


def _put(storage: Storage, split: str, name: str, data: pa.Buffer, there: set[str]) -> bool:
    """Write a file; returns whether it was missing."""
    if name in there:
        return False
    storage.put(split, data, prefix=name.partition("/")[2][:6])
    return True


def _delete(storage: Storage, names: Sequence[str]) -> None:
    for name in names:
        storage.delete(name)
