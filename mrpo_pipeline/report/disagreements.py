"""The held-out pairs on which the methods part: what a figure of some points of difference is made of."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from mrpo_pipeline.report.results_folder import Folder

SHOWN = 8
_TIE = 1e-6


@dataclass(frozen=True)
class Stand:
    """How one method stands on one pair: the mean over seeds of ℓ(chosen) − ℓ(rejected), nats, and the share of seeds right."""

    method: str
    margin: float
    right: float


@dataclass(frozen=True)
class Disagreement:
    """One pair with its texts; ``start`` is the margin before training, None where it is not known."""

    pair_id: str
    prompt: str
    chosen: str
    rejected: str
    start: float | None
    stands: list[Stand]


@dataclass(frozen=True)
class Disagreements:
    """The pairs, the worst first, and how often methods part: ``parted`` of ``pairs`` have methods on both sides."""

    shown: list[Disagreement]
    parted: int
    pairs: int


def disagreements_of(folder: Folder, most: int = SHOWN) -> Disagreements | None:
    """The pairs on which the methods part most; None where fewer than two methods left their sums, or texts are missing.

    A method's vote on a pair is the share of its seeds that prefer the chosen side. Pairs are ordered by the variance of
    the votes over methods, then by how far the margins lie apart, each margin measured in its method's own standard
    deviation (methods with a larger β move log-probs further, and that is no disagreement).
    """
    held_out = folder.held_out
    margins = {name: frame for name in folder.names if (frame := _margins(folder, name)) is not None}
    if held_out is None or len(margins) < 2:
        return None
    joined = held_out.unique("pair_id", keep="first", maintain_order=True)
    for place, frame in enumerate(margins.values()):
        joined = joined.join(frame.rename({"margin": f"margin {place}", "right": f"right {place}"}), on="pair_id")
    if not joined.height:
        return None
    size = len(margins)
    margin = joined.select(f"margin {place}" for place in range(size)).to_numpy()  # (P, M)
    right = joined.select(f"right {place}" for place in range(size)).to_numpy()  # (P, M)
    spread = margin.std(axis=0)
    apart = np.ptp(margin / np.where(spread > 0, spread, 1.0), axis=1)
    votes = right.var(axis=1)
    parted = (right > 0.5).any(axis=1) & (right < 0.5).any(axis=1)
    # Rounded: what is equal but for the last bit is equal, on every machine; the pair's id decides then.
    order = sorted(
        np.flatnonzero(parted).tolist(),
        key=lambda row: (-round(float(votes[row]), 9), -round(float(apart[row]), 6), joined["pair_id"][row]),
    )
    starts = _start(folder)
    return Disagreements(
        shown=[_disagreement(joined.row(row, named=True), margin[row], right[row], list(margins), starts) for row in order[:most]],
        parted=int(parted.sum()),
        pairs=joined.height,
    )  # fmt: skip


def _disagreement(
    row: dict[str, object],
    margin: npt.NDArray[np.float64],
    right: npt.NDArray[np.float64],
    methods: list[str],
    starts: dict[str, float],
) -> Disagreement:
    stands = [Stand(name, float(own), float(share)) for name, own, share in zip(methods, margin, right, strict=True)]
    texts = {side: str(row[side] if row[side] is not None else "") for side in ("prompt", "chosen", "rejected")}
    return Disagreement(str(row["pair_id"]), **texts, start=starts.get(str(row["pair_id"])), stands=stands)


def _margins(folder: Folder, name: str) -> pl.DataFrame | None:
    """By pair: the mean over seeds of the margin, and the share of seeds whose margin is right (a tie one half)."""
    frames = [_margin(run.pairs) for run in folder.runs.get(name, []) if run.pairs is not None]
    if not frames:
        return None
    right = pl.when(pl.col("margin").abs() <= _TIE).then(0.5).otherwise((pl.col("margin") > 0).cast(pl.Float64))
    return (
        pl.concat(frames)
        .with_columns(right=right)
        .group_by("pair_id", maintain_order=True)
        .agg(pl.col("margin").mean(), pl.col("right").mean())
    )


def _margin(pairs: pl.DataFrame) -> pl.DataFrame:
    margin = (pl.col("logps_chosen") - pl.col("logps_rejected")).cast(pl.Float64).alias("margin")
    return (
        pairs.select("pair_id", margin)
        .filter(pl.col("margin").is_finite())
        .unique("pair_id", keep="first", maintain_order=True)
    )


def _start(folder: Folder) -> dict[str, float]:
    if folder.start is None:
        return {}
    return dict(_margin(folder.start).iter_rows())
