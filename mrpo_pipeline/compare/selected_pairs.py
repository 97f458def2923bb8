"""The training pairs of a selection (``compare.selection``), and the number of training steps."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from mrpo_pipeline.dataset.completion_numbering import Distinct
from mrpo_pipeline.dataset.examples import PreferenceExamples
from mrpo_pipeline.dataset.splits import Split
from mrpo_pipeline.errors import UserError


def selected(train: Split, file: str) -> Split:
    """The training pairs whose ``pair_id`` is in the file (Parquet or JSON lines); the others are counted as dropped, "not selected".

    Raises:
        UserError: if the file can't be read, or lists none or all of the pairs.
    """
    pairs = train.pairs
    keep = pairs.frame["pair_id"].is_in(_ids(file).implode())
    count, every = int(keep.sum()), pairs.frame.height
    if count in (0, every):
        raise UserError(
            f"compare.selection (--selection): {file} lists {'none' if count == 0 else 'all'} of the {every:,} training pairs, so there "
            "is nothing to compare. Expected the pair_ids of a part of them, as `mrpo select RECIPE --advice keep --output FILE` "
            "writes them. Name such a file."
        )
    kept = keep.to_numpy()
    part = replace(
        pairs,
        frame=pairs.frame.filter(keep),
        logps_chosen=np.ascontiguousarray(pairs.logps_chosen[kept]),
        logps_rejected=np.ascontiguousarray(pairs.logps_rejected[kept]),
        dropped={**pairs.dropped, "not selected": every - count},
    )
    return Split(train.prepared, part)


def _ids(file: str) -> pl.Series:
    path = Path(file)
    try:
        if path.suffix == ".parquet":
            return pl.read_parquet(path, columns=["pair_id"])["pair_id"].cast(pl.String)
        if path.suffix == ".jsonl":
            return pl.read_ndjson(path, schema={"pair_id": pl.String})["pair_id"]
        problem = "it is neither .parquet nor .jsonl"
    except (OSError, pl.exceptions.PolarsError) as error:
        problem = str(error).splitlines()[0]
    raise UserError(
        f"compare.selection (--selection): {file} can't be read ({problem}): expected a file with a column pair_id, as `mrpo select` "
        "writes it. Name such a file."
    )


def total_steps(train: PreferenceExamples, arguments: Any, *, by_prompt: bool) -> int:
    """Number of optimizer steps of a run on these pairs in one process.

    Args:
        arguments: ``transformers.TrainingArguments``. by_prompt: whether pairs are grouped by prompt.
    """
    from mrpo_pipeline.policy.sampler import StepSampler

    if arguments.max_steps > 0:
        return int(arguments.max_steps)
    sampler = StepSampler(
        train.lengths,
        size=arguments.per_device_train_batch_size,
        accumulation=arguments.gradient_accumulation_steps,
        drop_last=arguments.dataloader_drop_last,
        distinct=Distinct.of(train) if by_prompt else None,
    )
    return math.ceil(len(sampler) * float(arguments.num_train_epochs))
