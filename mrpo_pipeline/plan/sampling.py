"""All pairs of a run as numbers, and the text of those that are looked at closer."""

from __future__ import annotations

import logging
import os
import subprocess
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from mrpo_pipeline.dataset.prepare import hold_out
from mrpo_pipeline.errors import UserError
from mrpo_pipeline.files.python_processes import child_environment, module_command
from mrpo_pipeline.pairs import PairTable
from mrpo_pipeline.pairs.partitioning import in_parts
from mrpo_pipeline.pairs.sources import PairFile, find_files
from mrpo_pipeline.pairs.table import SCHEMA
from mrpo_pipeline.plan.collector import (
    Collected,
    Limits,
    collect,
    longest_pairs,
    prompts_at,
    read_found,
    text_bytes,
    write_task,
)
from mrpo_pipeline.recipe import Pairs

log = logging.getLogger("mrpo")

# Rendering takes about 1.2 ms of one core a pair of 1.6 kB, for every tokenizer. Up to so much is counted; of more, a sample
# of about half that: it is known to half a percent and less.
COUNTED = Limits(5_000, 8_000_000)
SAMPLED = Limits(3_000, 5_000_000)

PROCESSES = 2


@dataclass
class Split:
    """One split of the data.

    Attributes:
        numbers: every pair, see ``Collected.numbers``.
        sample: the pairs of the sampled prompts (all pairs where nothing is sampled), columns of ``PairTable.frame`` and of
            ``numbers``.
        longest: its longest pairs, whether sampled or not, the same columns.
    """

    numbers: pl.DataFrame
    sample: pl.DataFrame
    longest: pl.DataFrame

    def table(self, frame: pl.DataFrame) -> PairTable:
        """Pairs of this split as they are read elsewhere."""
        return PairTable(frame.select(list(SCHEMA)))


@dataclass
class Population:
    """Every split, and the share of the prompts that was looked at closer."""

    splits: dict[str, Split]
    share: float = 1.0
    rows: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    notices: tuple[str, ...] = ()


def read_population(settings: Pairs, *, exact: bool = False) -> Population:
    """Read every pair, and keep the text of a few.

    Args:
        exact: keep the text of all.

    Raises:
        UserError: see ``pairs.read_pairs``, and where the recipe names no pairs.
    """
    if settings.train is None and settings.eval is None:
        raise UserError(
            "The recipe names no pairs: expected `pairs: {train: FILE-OR-GLOB}`. Add it, or give --train-file FILE."
        )
    limits = Limits() if exact else COUNTED
    fractions = {"eval": settings.eval_fraction, "weights": settings.weights_fraction}
    salts = [split for split, fraction in fractions.items() if fraction]
    options = settings.reading()
    read = {
        source.name: _read(
            find_files(source.place, **source.chosen), options, limits, salts if source.name == "train" else []
        )
        for source in settings.sources()
    }
    level = _level(list(read.values()))
    splits = {name: Split(part.numbers, prompts_at(part.sample, level), part.longest) for name, part in read.items()}
    splits = _hold_out(settings, splits) if level == 0 else _hold_out_by_place(fractions, splits)
    skipped: Counter[str] = Counter()
    noted: Counter[str] = Counter()
    readings: Counter[str] = Counter()
    for part in read.values():
        skipped.update(part.skipped)
        noted.update(part.noted)
        readings.update(part.readings)
    rows = sum(part.rows for part in read.values())
    told = PairTable(pl.DataFrame(), noted=dict(noted), readings=dict(readings))
    return Population(splits, 2.0**-level, rows, dict(skipped), (*told.read_as, *told.notices))


def _level(parts: Sequence[Collected]) -> int:
    """Of the sample that is looked at: the coarsest, and coarser still while it is too large."""
    level = max(part.level for part in parts)
    while 0 < level < 63:
        samples = [prompts_at(part.sample, level) for part in parts]
        if not SAMPLED.exceeded_by(sum(one.height for one in samples), sum(text_bytes(one) for one in samples)):
            break
        level += 1
    return level


def _hold_out(settings: Pairs, splits: dict[str, Split]) -> dict[str, Split]:
    """As every command does it, where all text is at hand."""
    tables = hold_out(settings, {name: PairTable(split.sample) for name, split in splits.items()})
    result = {}
    for name, table in tables.items():
        numbers = table.frame.select(pl.exclude(list(SCHEMA)))
        result[name] = Split(numbers, table.frame, longest_pairs([table.frame]))
    return result


def _hold_out_by_place(fractions: dict[str, float], splits: dict[str, Split]) -> dict[str, Split]:
    """The same by each prompt's place; with so many prompts no side is left empty."""
    splits = dict(splits)
    for name, fraction in fractions.items():
        if fraction and "train" in splits:
            held_out = pl.col(f"place_{name}") < fraction
            if name == "weights" and "eval" in splits:
                held_out &= ~pl.col("prompt_key").is_in(splits["eval"].numbers["prompt_key"].implode())
            train = splits["train"]
            frames = (train.numbers, train.sample, train.longest)
            splits[name] = Split(*(frame.filter(held_out) for frame in frames))
            splits["train"] = Split(*(frame.filter(~held_out) for frame in frames))
    return splits


def _read(files: Sequence[PairFile], options: dict[str, Any], limits: Limits, salts: Sequence[str]) -> Collected:
    parts = in_parts(files, min(PROCESSES, os.cpu_count() or 1))
    if len(parts) > 1:
        found = _read_together(parts, options, limits, salts)
        if found is not None:
            return found
        log.debug("Reading in parts failed: reading the files as a whole.")
    return collect(files, options, limits, salts)


def _read_together(
    parts: Sequence[list[PairFile]], options: dict[str, Any], limits: Limits, salts: Sequence[str]
) -> Collected | None:
    """The parts read side by side; None where one could not be read, for the reason names rows of the whole file then."""
    with tempfile.TemporaryDirectory(prefix="mrpo-plan-") as folder:
        places = [Path(folder) / str(number) for number in range(1, len(parts))]
        for place, part in zip(places, parts[1:], strict=True):
            place.mkdir()
            write_task(place, part, options, limits, salts)
        command = module_command("mrpo_pipeline.plan.collector")
        children = [
            subprocess.Popen([*command, str(place)], stderr=subprocess.DEVNULL, env=child_environment())
            for place in places
        ]
        try:
            own = collect(parts[0], options, limits, salts)
            failed = [child.wait() for child in children]
        except UserError:
            return None
        finally:
            for child in children:
                if child.poll() is None:
                    child.kill()
                    child.wait()
        if any(failed):
            return None
        return _merge([own, *(read_found(place) for place in places)], limits)


def _merge(parts: Sequence[Collected], limits: Limits) -> Collected:
    level = max(part.level for part in parts)
    sample = pl.concat([prompts_at(part.sample, level) for part in parts])
    while limits.exceeded_by(sample.height, text_bytes(sample)) and level < 63:
        level += 1
        sample = prompts_at(sample, level)
    merged = Collected(
        pl.concat([part.numbers for part in parts]),
        sample,
        longest_pairs([part.longest for part in parts]),
        level,
        sum(part.rows for part in parts),
    )
    for name in ("skipped", "noted", "readings"):
        counts: Counter[str] = Counter()
        for part in parts:
            counts.update(getattr(part, name))
        setattr(merged, name, dict(counts))
    return merged
