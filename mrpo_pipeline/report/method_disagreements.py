"""The held-out pairs on which the methods disagree."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from mrpo_pipeline.report.formatting import fixed
from mrpo_pipeline.report.results_folder import Folder

SHOWN = 8
_TIE = 1e-6


@dataclass(frozen=True)
class Preference:
    """One method on one pair: the mean over seeds of ℓ(chosen) − ℓ(rejected) in nats, and the share of seeds that prefer chosen."""

    method: str
    margin: float
    right: float

    @property
    def nats(self) -> str:
        """The margin with its sign."""
        text = fixed(self.margin, 1 if abs(self.margin) >= 1 else 2)
        return f"+{text}" if self.margin > 0 and float(text.replace(",", "")) else text


@dataclass(frozen=True)
class Disagreement:
    """One pair with its texts; ``start`` is the preference before training, if known."""

    pair_id: str
    prompt: str
    chosen: str
    rejected: str
    start: Preference | None
    methods: list[Preference]


@dataclass(frozen=True)
class Disagreements:
    """The pairs with the largest disagreement first. Methods prefer different sides on ``split`` of ``pairs`` pairs."""

    shown: list[Disagreement]
    split: int
    pairs: int


def disagreements_of(folder: Folder) -> Disagreements | None:
    """The pairs on which methods disagree most, of different prompts; None without texts, or with sums of fewer than two methods.

    A method's vote on a pair is the share of its seeds that prefer the chosen side. Pairs are ordered by the variance of
    the votes over methods, then by the range of the margins in units of each method's standard deviation, because methods
    move log-probs by different amounts.
    """
    margins = {name: frame for name in folder.names if (frame := _margins(folder, name)) is not None}
    if folder.held_out is None or len(margins) < 2:
        return None
    joined = folder.held_out.unique("pair_id", keep="first", maintain_order=True)
    for place, frame in enumerate(margins.values()):
        joined = joined.join(frame.rename({"margin": f"margin {place}", "right": f"right {place}"}), on="pair_id")
    if not joined.height:
        return None
    margin = joined.select(f"margin {place}" for place in range(len(margins))).to_numpy()  # (P, M)
    right = joined.select(f"right {place}" for place in range(len(margins))).to_numpy()  # (P, M)
    spread = margin.std(axis=0)
    split = (right > 0.5).any(axis=1) & (right < 0.5).any(axis=1)
    # Rounded so that the order is the same on every machine; the pair's id breaks ties.
    ranked = (
        joined.with_columns(
            row=pl.int_range(pl.len()),
            votes=pl.Series(right.var(axis=1)).round(9),
            apart=pl.Series(np.ptp(margin / np.where(spread > 0, spread, 1.0), axis=1)).round(6),
        )
        .filter(pl.Series(np.asarray(split)))
        .sort("votes", "apart", "pair_id", descending=[True, True, False])
        .unique("prompt", keep="first", maintain_order=True)
        .head(SHOWN)
    )
    start = dict(_margin(folder.start).iter_rows()) if folder.start is not None else {}
    shown = []
    for pair in ranked.with_columns(pl.col("prompt", "chosen", "rejected").fill_null("")).iter_rows(named=True):
        own = zip(margins, margin[pair["row"]], right[pair["row"]], strict=True)
        before = start.get(pair["pair_id"])
        shown.append(
            Disagreement(
                **{key: pair[key] for key in ("pair_id", "prompt", "chosen", "rejected")},
                start=None if before is None else Preference("before training", before, float(before > 0)),
                methods=[Preference(name, float(nats), float(share)) for name, nats, share in own],
            )
        )
    return Disagreements(shown, int(split.sum()), joined.height)


def _margins(folder: Folder, name: str) -> pl.DataFrame | None:
    """For each pair, the mean margin over seeds, and the share of seeds with a positive margin (a tie is one half)."""
    frames = [_margin(run.pairs) for run in folder.runs.get(name, []) if run.pairs is not None]
    if not frames:
        return None
    right = pl.when(pl.col("margin").abs() <= _TIE).then(0.5).otherwise((pl.col("margin") > 0).cast(pl.Float64))
    seeds = pl.concat(frames).with_columns(right=right)
    return seeds.group_by("pair_id", maintain_order=True).agg(pl.col("margin").mean(), pl.col("right").mean())


def _margin(pairs: pl.DataFrame) -> pl.DataFrame:
    margin = (pl.col("logps_chosen") - pl.col("logps_rejected")).alias("margin")
    finite = pairs.select("pair_id", margin).filter(pl.col("margin").is_finite())
    return finite.unique("pair_id", keep="first", maintain_order=True)
