"""`mrpo targets --for TRAINER`: one split's pairs in another trainer's file format, log π̃ in its reference columns."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from mrpo_pipeline.dataset.pair_targets import pair_targets
from mrpo_pipeline.dataset.reference_logps import CachedPairs
from mrpo_pipeline.errors import UserError
from mrpo_pipeline.exports import trl
from mrpo_pipeline.exports.targets_file import cached_split
from mrpo_pipeline.files.atomic import whole_file, write_whole
from mrpo_pipeline.pairs.counts import require_balance
from mrpo_pipeline.recipe import Recipe
from mrpo_pipeline.targets.settings import check_target

log = logging.getLogger("mrpo")

TRAINERS = ("trl",)


@dataclass
class Export:
    """Pairs written, pairs left out by reason, and settings for the trainer."""

    file: Path
    pairs: int
    left_out: dict[str, int] = field(default_factory=dict)
    settings: list[str] = field(default_factory=list)

    def text(self) -> str:
        lines = [f"{self.pairs:,} pairs written to {self.file}"]
        lines += [f"{count:,} pairs left out: {reason}" for reason, count in self.left_out.items()]
        return "\n".join([*lines, "Settings for the same loss:", *(f"  {line}" for line in self.settings)])


def export_targets(recipe: Recipe, trainer: str, output: Path | None = None, *, split: str = "train") -> Export:
    """Write one split for another trainer, with the resolved recipe beside it.

    Log π̃ is the sum over the completion in nats, whatever ``method.normalize`` is, because trainers compare it with their own sums.
    With ``normalize: token`` the trainer divides by its tokens; the settings show how.

    Args:
        trainer: a name of ``TRAINERS``.
        output: the Parquet file; ``targets.parquet`` where None.

    Raises:
        UserError: for an unknown trainer, a file name of another format, a method without one log π̃ per pair, or no pair that
            the trainer reads as the policy does.
    """
    check_exportable(recipe, trainer)
    output = output or Path("targets.parquet")
    if output.suffix != ".parquet":
        raise UserError(
            f"--output is {output}, but {trainer} reads Parquet: expected a .parquet file, such as {output.with_suffix('.parquet')}, "
            "or for a data set with a card a URL or a folder (a name that ends with /)."
        )
    frame, left_out = rows_with_targets(cached_split(recipe, split), recipe, trainer)
    write_frame(frame, output, trl.json_columns(frame))
    write_whole(output.with_suffix(".recipe.yaml"), recipe.dump())
    return Export(output, frame.height, left_out, trl.settings(recipe))


def rows_with_targets(pairs: CachedPairs, recipe: Recipe, trainer: str) -> tuple[pl.DataFrame, dict[str, int]]:
    """The trainer's rows with log π̃ in its reference columns, and the pairs left out by reason.

    Raises:
        UserError: no pair is left.
    """
    targets = pair_targets(pairs, recipe.method)
    for notice in targets.notices:
        log.warning("%s", notice)
    inputs = targets.loss_inputs()
    frame, left_out = trl.rows(pairs, recipe)
    require_balance(f"writing for {trainer}", pairs.frame.height, frame.height, left_out)
    if not frame.height:
        reasons = "; ".join(f"{count:,}: {reason}" for reason, count in left_out.items())
        raise UserError(
            f"None of {pairs.frame.height:,} pairs can be written for {trainer} ({reasons}). Train with `mrpo train`."
        )
    kept = frame["index"].to_numpy()
    columns = (
        pl.Series(trl.COLUMNS[0], inputs.reference_chosen[kept, 0]),
        pl.Series(trl.COLUMNS[1], inputs.reference_rejected[kept, 0]),
    )
    return frame.drop("index").with_columns(*columns), left_out


def check_exportable(recipe: Recipe, trainer: str) -> None:
    """Raise UserError for an unknown trainer, and a method without one fixed log π̃ per side and pair, or in a unit that others lack."""
    if trainer not in TRAINERS:
        raise UserError(f"--for is {trainer!r}: expected one of {', '.join(TRAINERS)}.")
    method, references = recipe.method, [source.name for source in recipe.sources()]
    check_target(method, references)
    if method.name == "multi-dpo" and len(references) > 1:
        raise UserError(
            "method.name is 'multi-dpo', a weighted sum of one loss per reference that has no single log π̃: expected mrpo or dpo. Change "
            "it, or train with `mrpo train`."
        )
    if method.is_step_scoped(references):
        raise UserError(
            f"method.weights is {method.weights!r}, weights that change with every training step, so there is no fixed log π̃: expected "
            "uniform, adaptive, validation-discrimination, validation-accuracy, or numbers. Change it, or train with `mrpo train`."
        )
    if method.normalize == "byte":
        raise UserError(
            "method.normalize is 'byte', which no other trainer supports: expected sum or token. Change it, or train with `mrpo train`."
        )


def write_frame(frame: pl.DataFrame, output: Path, json_columns: Sequence[str] = ()) -> None:
    """Write a table as Parquet, atomically.

    Args:
        json_columns: columns of JSON texts, or lists of them, to store with Parquet's JSON type.
    """
    with whole_file(output) as temporary:
        if json_columns:
            write_json(frame, temporary, json_columns)
        else:
            frame.write_parquet(temporary)


def write_json(frame: pl.DataFrame, sink: Any, names: Sequence[str]) -> None:
    """Write a table as Parquet, with the named columns of JSON texts, or lists of them, of Parquet's JSON type."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = frame.to_arrow()
    for name in names:
        kind = pa.list_(pa.json_()) if isinstance(frame.schema[name], pl.List) else pa.json_()
        table = table.set_column(table.schema.get_field_index(name), name, table[name].cast(kind))
    pq.write_table(table, sink)
