"""`mrpo targets --for TRAINER`: one split's pairs in another trainer's file format, log π̃ in its reference columns."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from mrpo_pipeline.dataset.reference_logps import pair_targets
from mrpo_pipeline.errors import UserError
from mrpo_pipeline.exports import trl
from mrpo_pipeline.exports.parquet import cached_split
from mrpo_pipeline.files.atomic import whole_file, write_whole
from mrpo_pipeline.pairs.counting import require_balance
from mrpo_pipeline.recipe import Method, Recipe
from mrpo_pipeline.targets.settings import check_target

log = logging.getLogger("mrpo")

TRAINERS = ("trl",)


@dataclass
class Export:
    """What was written, what was left out, and what has to be set in the trainer."""

    file: Path
    pairs: int
    left_out: dict[str, int] = field(default_factory=dict)
    settings: list[str] = field(default_factory=list)

    def text(self) -> str:
        lines = [f"{self.pairs:,} pairs written to {self.file}"]
        lines += [f"{count:,} pairs left out: {reason}" for reason, count in self.left_out.items()]
        return "\n".join([*lines, "For the same loss set there:", *(f"  {line}" for line in self.settings)])


def export_targets(recipe: Recipe, trainer: str, output: Path | None = None, *, split: str = "train") -> Export:
    """Write one split for another trainer; the resolved recipe goes beside it.

    Log π̃ is written as the sum over the completion, in nats, whatever ``method.normalize`` is: that is what a trainer
    compares with its own sums. With ``normalize: token`` the trainer must divide by its tokens itself, and says how.

    Args:
        trainer: a name of ``TRAINERS``.
        output: the Parquet file; ``targets.parquet`` where None.

    Raises:
        UserError: for a trainer that is not offered, a file name of another format, a method that has no log π̃ of its own
            for each pair, or no pair that the trainer could read as the policy does.
    """
    if trainer not in TRAINERS:
        raise UserError(f"--for is {trainer!r}: expected one of {', '.join(TRAINERS)}. Correct the option.")
    output = output or Path("targets.parquet")
    if output.suffix != ".parquet":
        raise UserError(
            f"--output is {output}: {trainer} reads .parquet files. Expected a name that ends so, such as "
            f"{output.with_suffix('.parquet')}. Correct the option."
        )
    check_exportable(recipe.method, [source.name for source in recipe.sources()])
    pairs = cached_split(recipe, split)
    targets = pair_targets(pairs, recipe.method)
    for notice in targets.notices:
        log.warning("%s", notice)
    inputs = targets.loss_inputs()
    frame, left_out = trl.rows(pairs, recipe)
    require_balance(f"writing for {trainer}", pairs.frame.height, frame.height, left_out)
    if not frame.height:
        reasons = "; ".join(f"{count:,}: {reason}" for reason, count in left_out.items())
        raise UserError(
            f"None of {pairs.frame.height:,} pairs can be written for {trainer} ({reasons}). Expected one at least. Use "
            "`mrpo train`."
        )
    kept = frame["index"].to_numpy()
    frame = frame.drop("index").with_columns(
        pl.Series(trl.COLUMNS[0], inputs.reference_chosen[kept, 0]),
        pl.Series(trl.COLUMNS[1], inputs.reference_rejected[kept, 0]),
    )
    write_frame(frame, output, trl.json_columns(frame))
    write_whole(output.with_suffix(".recipe.yaml"), recipe.dump())
    return Export(output, frame.height, left_out, trl.settings(recipe))


def check_exportable(method: Method, references: list[str]) -> None:
    """Refuse a method whose references are not one number a side and pair, in a unit that other trainers have.

    Raises:
        UserError: naming the setting.
    """
    check_target(method, references)
    if method.name == "multi-dpo" and len(references) > 1:
        raise UserError(
            "The setting method.name is 'multi-dpo': it is a weighted sum of one loss for each reference and has no single "
            "log π̃ that another trainer could take for its reference. Expected mrpo or dpo. Set method.name, or train it "
            "with `mrpo train`."
        )
    if method.is_step_scoped(references):
        raise UserError(
            f"The setting method.weights is {method.weights!r}: such weights change with every training step, so there is no "
            "fixed log π̃ to write. Expected weights of the run or of the pair (uniform, adaptive, validation-discrimination, "
            "validation-accuracy, or numbers). Set method.weights, or train it with `mrpo train`."
        )
    if method.normalize == "byte":
        raise UserError(
            "The setting method.normalize is 'byte': no other trainer divides log-ratios by bytes, so the same loss can't be "
            "had there. Expected sum or token. Set method.normalize, or train it with `mrpo train`."
        )


def write_frame(frame: pl.DataFrame, output: Path, json_columns: Sequence[str] = ()) -> None:
    """Write a table as Parquet, completely or not at all.

    Args:
        json_columns: columns of JSON texts, or of lists of them, that Parquet is to know as JSON.
    """
    with whole_file(output) as temporary:
        if json_columns:
            _write_json(frame, temporary, json_columns)
        else:
            frame.write_parquet(temporary)


def _write_json(frame: pl.DataFrame, path: Path, names: Sequence[str]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = frame.to_arrow()
    for name in names:
        kind = pa.list_(pa.json_()) if isinstance(frame.schema[name], pl.List) else pa.json_()
        table = table.set_column(table.schema.get_field_index(name), name, table[name].cast(kind))
    pq.write_table(table, path)
