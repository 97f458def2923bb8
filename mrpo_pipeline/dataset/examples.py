"""Training examples: the policy's token ids of preference pairs, with columns of cached log-probs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from mrpo_pipeline.dataset.ragged_ids import IdRows, Ids, Mask, MaskRows
from mrpo_pipeline.errors import RunError

Floats = npt.NDArray[np.float64]
Lengths = npt.NDArray[np.int64]

Batch = dict[str, Any]


@dataclass(eq=False)
class PreferenceExamples(Dataset[Batch]):
    """N preference pairs with R columns of reference log-probs; without models and text.

    A batch is read by a list of indices (``__getitems__``, torch's protocol for batches). A negative index ``~i`` is pair i
    with weight 0, for a process that has no pair left in the last step.

    Raises:
        ValueError: for columns of different lengths, or an empty prompt or completion.
        RunError: for a value that is not finite; names the pair.
    """

    pair_ids: Sequence[str]
    prompt_ids: Sequence[Ids]
    """The policy's tokens after the cut; empty if the two sides begin with different tokens, which are context then."""
    chosen_ids: Sequence[Ids]
    """The tokens after the prompt up to the cut, with the end-of-turn token if the completion is not cut."""
    rejected_ids: Sequence[Ids]
    reference_chosen: Floats
    """(N, R), nats, sums that the loss compares the policy with. R is 1, or K for Multi-DPO and step-scoped weights."""
    reference_rejected: Floats
    weights: Floats
    """(N, R), rows summing to 1."""
    anchor_chosen: Floats | None = None
    """(N,), nats: the anchor's sums, for ``accuracy/anchor`` and the check of the policy's start; None if no cache is read."""
    anchor_rejected: Floats | None = None
    chosen_bytes: Floats | None = None
    """(N,), with the anchor's sums: bytes of the completion up to the cut, for drift per byte; not part of a batch."""
    rejected_bytes: Floats | None = None
    chosen_units: Floats | None = None
    """(N,), divisors of log-ratios with ``normalize: token`` or ``byte``; None for sums."""
    rejected_units: Floats | None = None
    margins: Floats | None = None
    """(N,), for the loss ``modpo``: Σ_{j≥2} w_j·(r_j(y_w) − r_j(y_l)) of the other objectives."""
    floored_margins: Floats | None = None
    """(N,), for the loss ``hypo-each``: the aggregate of max{0, Δ_k}, in the unit of ``normalize``."""
    step_references: Sequence[str] | None = None
    """For step-scoped weights, the names of the K references: each step's targets are computed from the K columns after the trust
    region, and ``weights`` are the pair's adaptive ones (``sliding-window``) or uniform. None for fixed targets."""
    chosen_scored: Sequence[Mask] | None = None
    """Mask of the scored tokens of ``chosen_ids``; the others are context. An empty row scores all. None scores all of every pair."""
    rejected_scored: Sequence[Mask] | None = None
    judges: PreferenceExamples | None = None
    """For ``thompson``: the held-out pairs by which the policy is evaluated after a step."""

    def __post_init__(self) -> None:
        pairs = len(self.pair_ids)
        columns = {
            "reference_chosen": self.reference_chosen,
            "reference_rejected": self.reference_rejected,
            "weights": self.weights,
        }
        shape = (pairs, self.reference_chosen.shape[-1])
        for name, column in columns.items():
            if column.shape != shape:
                raise ValueError(f"{name} is {column.shape}: expected {shape}, a row for each of {pairs} pairs")
        for kind in (("chosen_units", "rejected_units"), ("anchor_chosen", "anchor_rejected")):
            if len({getattr(self, name) is None for name in kind}) > 1:
                raise ValueError(f"{' and '.join(kind)}: expected both or neither")
        for name in (*_OPTIONAL, *_BYTES):
            column = getattr(self, name)
            if column is not None and column.shape != (pairs,):
                raise ValueError(f"{name} is {column.shape}: expected ({pairs},)")
        for name in _COLUMNS:
            _require_finite(name, getattr(self, name), self.pair_ids)
        self.prompt_lengths = _lengths(self.prompt_ids, pairs, "prompt_ids")
        self.chosen_lengths = _lengths(self.chosen_ids, pairs, "chosen_ids")
        self.rejected_lengths = _lengths(self.rejected_ids, pairs, "rejected_ids")
        self.chosen_counts = self._counts("chosen", self.chosen_lengths)
        self.rejected_counts = self._counts("rejected", self.rejected_lengths)

    def _counts(self, side: str, lengths: Lengths) -> Lengths:
        """(N,) scored tokens of one side."""
        rows = getattr(self, f"{side}_scored")
        if rows is not None:
            rows = MaskRows.of(rows)
            setattr(self, f"{side}_scored", rows)
            some = rows.lengths > 0
            if len(rows) != len(lengths) or (rows.lengths[some] != lengths[some]).any():
                raise ValueError(f"{side}_scored: expected a row for each of {side}_ids, as long or empty")
        empty = self.prompt_lengths == 0
        if (empty if rows is None else empty & rows.firsts()).any():
            raise ValueError(
                "prompt_ids: a row is empty, and a token is scored right behind it; expected a token before it"
            )
        counts = lengths if rows is None else rows.counts(lengths)
        if (counts == 0).any():
            raise ValueError(
                f"{side}_scored: row {int(counts.argmin())} has no token that is scored; expected one at least"
            )
        return counts

    @property
    def anchor(self) -> tuple[Floats, Floats]:
        """(N,) each, nats: the anchor's sums of both sides. Raises ValueError if no cache was read."""
        if self.anchor_chosen is None or self.anchor_rejected is None:
            raise ValueError("the pairs hold no sums of an anchor: expected anchor_chosen and anchor_rejected")
        return self.anchor_chosen, self.anchor_rejected

    @property
    def lengths(self) -> Lengths:
        """(N,) tokens of each pair's longer row, to which its two rows are padded."""
        longer: Lengths = self.prompt_lengths + np.maximum(self.chosen_lengths, self.rejected_lengths)
        return longer

    @property
    def shared_lengths(self) -> Lengths:
        """(N,) tokens of each pair with the prompt counted once."""
        together: Lengths = self.prompt_lengths + self.chosen_lengths + self.rejected_lengths
        return together

    def __len__(self) -> int:
        return len(self.pair_ids)

    def __getitem__(self, index: int) -> Batch:
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """The batch of B pairs, before collation (see ``policy.collate``).

        It has no ``labels`` key, by which transformers' Trainer would count tokens and scale the loss.

        Returns:
            ``prompts``, ``chosen``, ``rejected``: B lists of ids each; ``scored``: mask of the scored tokens of the chosen
            completions, then of the rejected ones, None for all; ``lengths`` (2B,): their numbers; the columns of the dataset,
            (B,) or (B, R), float64; ``pair_weights`` (B,); ``indices`` (B,); ``pairs`` and ``tokens``: numbers without weight-0
            pairs, with every prompt counted for each of its completions.
        """
        picked = [index if index >= 0 else ~index for index in indices]
        real = np.array([index >= 0 for index in indices], dtype=np.float64)
        lengths = np.concatenate([self.chosen_lengths[picked], self.rejected_lengths[picked]])
        counts, scored = lengths, None
        if self.chosen_scored is not None or self.rejected_scored is not None:
            counts = np.concatenate([self.chosen_counts[picked], self.rejected_counts[picked]])
            scored = None if (counts == lengths).all() else self._scored(picked, lengths)
        tokens = np.tile(self.prompt_lengths[picked], 2) + lengths
        batch: Batch = {
            "prompts": [self.prompt_ids[i] for i in picked],
            "chosen": [self.chosen_ids[i] for i in picked],
            "rejected": [self.rejected_ids[i] for i in picked],
            "scored": scored,
            "lengths": torch.from_numpy(counts),
            "pair_weights": torch.from_numpy(real),
            "indices": picked,
            "pairs": int(real.sum()),
            "tokens": int((tokens * np.tile(real, 2)).sum()),
        }
        return batch | self.columns(picked)

    def _scored(self, picked: Sequence[int], lengths: Lengths) -> Mask:
        """The concatenated masks of the picked pairs' completions."""
        rows = [() if side is None else side[i] for side in (self.chosen_scored, self.rejected_scored) for i in picked]
        return np.concatenate(
            [row if len(row) else np.ones(n, np.bool_) for row, n in zip(rows, lengths.tolist(), strict=True)]
        )

    def columns(self, picked: Sequence[int] | slice = slice(None)) -> dict[str, Tensor | None]:
        """The columns of some pairs or of all, as float64 tensors: (B, R) or (B,)."""
        names = ("reference_chosen", "reference_rejected", "weights")
        columns: dict[str, Tensor | None] = {name: torch.from_numpy(getattr(self, name)[picked]) for name in names}
        for name in _OPTIONAL:
            column = getattr(self, name)
            columns[name] = None if column is None else torch.from_numpy(column[picked])
        return columns

    def write(self, folder: Path, *, ids_from: Path | None = None) -> None:
        """Write everything to array files for :meth:`open`.

        Args:
            ids_from: a folder written from the same pairs with other targets, whose token ids are linked instead of copied.
        """
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / "pair_ids.npy", np.array([name.encode() for name in self.pair_ids], dtype=np.bytes_))
        for name in (*_IDS, *_MASKS):
            if ids_from is not None:
                for file in (f"{name}.npy", f"{name}.lengths.npy") if (ids_from / f"{name}.npy").exists() else ():
                    try:
                        (folder / file).hardlink_to(ids_from / file)
                    except OSError:  # a file system without links
                        shutil.copyfile(ids_from / file, folder / file)
                continue
            if (given := getattr(self, name)) is not None:
                rows = (MaskRows if name in _MASKS else IdRows).of(given)
                np.save(folder / f"{name}.npy", rows.flat)
                np.save(folder / f"{name}.lengths.npy", rows.lengths)
        for name in _COLUMNS:
            if getattr(self, name) is not None:
                np.save(folder / f"{name}.npy", getattr(self, name))
        if self.step_references is not None:
            (folder / _STEP_REFERENCES).write_text(json.dumps(list(self.step_references)), encoding="utf-8")
        if self.judges is not None:
            self.judges.write(folder / "judges")

    @classmethod
    def open(cls, folder: Path) -> PreferenceExamples:
        """Read what :meth:`write` wrote, with memory-mapped token ids that all processes share.

        Every file is open when this returns, so the folder may be deleted.
        """
        ids: dict[str, Any] = {
            name: rows(np.load(folder / f"{name}.npy", mmap_mode="r"), np.load(folder / f"{name}.lengths.npy"))
            for rows, names in ((IdRows, _IDS), (MaskRows, _MASKS))
            for name in names
            if (folder / f"{name}.npy").is_file()
        }
        columns: dict[str, Any] = {
            name: np.load(path) if (path := folder / f"{name}.npy").is_file() else None for name in _COLUMNS
        }
        names = [name.decode() for name in np.load(folder / "pair_ids.npy").tolist()]
        references = folder / _STEP_REFERENCES
        step = json.loads(references.read_text(encoding="utf-8")) if references.is_file() else None
        judges = cls.open(folder / "judges") if (folder / "judges").is_dir() else None
        return cls(pair_ids=names, **ids, **columns, step_references=step, judges=judges)


_STEP_REFERENCES = "step_references.json"
_OPTIONAL = ("anchor_chosen", "anchor_rejected", "chosen_units", "rejected_units", "margins", "floored_margins")
_IDS = ("prompt_ids", "chosen_ids", "rejected_ids")
_MASKS = ("chosen_scored", "rejected_scored")
_BYTES = ("chosen_bytes", "rejected_bytes")
_COLUMNS = ("reference_chosen", "reference_rejected", "weights", *_OPTIONAL, *_BYTES)


def _require_finite(name: str, column: Floats | None, pair_ids: Sequence[str]) -> None:
    if column is None or not len(pair_ids):
        return
    bad = np.flatnonzero(~np.isfinite(column.reshape(len(pair_ids), -1)).all(axis=1, keepdims=True))
    if len(bad):
        raise RunError(
            f"The column {name.replace('_', ' ')} of the training examples is {column[bad[0]]} for the pair {pair_ids[bad[0]]}, and "
            f"not finite for {len(bad):,} of {len(pair_ids):,} pairs: expected finite numbers. Nothing was trained. Check the cached "
            "log-probs of these pairs (`mrpo cache verify`), rewards given as columns, and `method`."
        )


def _lengths(rows: Sequence[Ids], pairs: int, name: str) -> Lengths:
    if len(rows) != pairs:
        raise ValueError(f"{name} has {len(rows)} rows: expected {pairs}")
    if isinstance(rows, IdRows):
        lengths = rows.lengths
    else:
        lengths = np.fromiter((len(ids) for ids in rows), dtype=np.int64, count=pairs)
    if pairs and lengths.min() == 0 and name != "prompt_ids":
        raise ValueError(f"{name}: row {int(lengths.argmin())} is empty; expected a token at least")
    return lengths
