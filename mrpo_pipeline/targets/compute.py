"""Compute the targets of pairs: from the log-probs of K references to the inputs of the loss."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mrpo_pipeline.errors import RunError
from mrpo_pipeline.targets import aggregate, weights
from mrpo_pipeline.targets.aggregate import Floats
from mrpo_pipeline.targets.diagnostics import diagnose
from mrpo_pipeline.targets.settings import TargetSettings, WeightsOptions, check_target
from mrpo_pipeline.targets.spans import PairSpans, SpanCounts, mix
from mrpo_pipeline.targets.trust_region import clip_to_anchor

# Tolerance of given weights that should sum to 1.
SUM_TOLERANCE = 1e-6


@dataclass(frozen=True, slots=True)
class LossInputs:
    """The references' inputs of ``losses.preference.preference_loss``, for N pairs.

    R is 1 for π̃ and K for Multi-DPO. Log-probs are sums in nats whatever ``normalize`` is: the loss divides policy minus reference
    by the units.
    """

    reference_chosen: Floats
    """(N, R), nats."""
    reference_rejected: Floats
    """(N, R), nats."""
    weights: Floats
    """(N, R), rows summing to 1."""
    chosen_units: Floats | None
    """(N,) policy tokens or bytes of the chosen sides; None with ``normalize: sum``."""
    rejected_units: Floats | None
    """(N,) of the rejected sides."""


@dataclass(frozen=True, slots=True)
class Targets:
    """The targets of N pairs. Every log-prob is in the unit of ``normalize``."""

    weights: Floats
    """α (N, K); for ``dpo`` and ``single:NAME`` 1 for that reference and 0 for the others."""
    clipped_chosen: Floats
    """(N, K) after the trust region."""
    clipped_rejected: Floats
    """(N, K) after the trust region."""
    target_chosen: Floats
    """log π̃ (N,); for ``multi-dpo``, which has no π̃, Σ_k α_k ℓ_k."""
    target_rejected: Floats
    """log π̃ (N,)."""
    diagnostics: dict[str, float]
    """See :func:`mrpo_pipeline.targets.diagnostics.diagnose`."""
    notices: tuple[str, ...]
    """Sentences for the user."""
    per_reference: bool
    """Whether the loss is a weighted sum of one loss per reference (``multi-dpo``)."""
    chosen_units: Floats | None
    rejected_units: Floats | None
    step_scoped: bool = False
    """Whether weights change from step to step: ``weights`` and the targets here are then those of uniform weights, and
    ``step_inputs`` computes those of a step."""
    adaptive: Floats | None = None
    """(N, K), only with ``sliding-window``: each pair's own adaptive weights, which the window averages."""

    def loss_inputs(self) -> LossInputs:
        """The inputs of the loss; with step-scoped weights those of ``step_inputs``: all K references after the trust region."""
        if self.per_reference or self.step_scoped:
            chosen, rejected = self.clipped_chosen, self.clipped_rejected
            alpha = self.weights if self.adaptive is None else self.adaptive
        else:
            chosen, rejected = self.target_chosen[:, None], self.target_rejected[:, None]
            alpha = np.ones_like(chosen)
        if self.chosen_units is not None and self.rejected_units is not None:
            chosen, rejected = chosen * self.chosen_units[:, None], rejected * self.rejected_units[:, None]
        return LossInputs(chosen, rejected, alpha, self.chosen_units, self.rejected_units)


def compute_targets(
    logps_chosen: npt.ArrayLike,
    logps_rejected: npt.ArrayLike,
    method: TargetSettings,
    names: Sequence[str],
    *,
    units_chosen: npt.ArrayLike | None = None,
    units_rejected: npt.ArrayLike | None = None,
    held_out_weights: npt.ArrayLike | None = None,
    chosen_references: npt.ArrayLike | None = None,
    spans: Iterable[PairSpans] | None = None,
) -> Targets:
    """Weights, trust region and aggregate of arXiv 2405.16388 for N pairs and K references.

    With ``reference: none`` log π̃ is 0, and K may be 0.

    With ``normalize: token`` or ``byte`` every log-prob, of every reference, is first divided by its side's count. Weights,
    trust region, π̃ and the policy's log-ratio are then in nats per token or byte, so that β has to be larger by about the
    length of a completion for the same effect.

    Args:
        logps_chosen, logps_rejected: (N, K), nats, sums over each completion; the anchor is column 0.
        method: the recipe's. names: of the K references, the anchor first.
        units_chosen, units_rejected: (N,), the divisors: scored *policy* tokens (the references' token counts are not
            comparable), or scored bytes. Unused with ``normalize: sum``.
        held_out_weights: (K,), from :func:`validation_weights`, for weights by a held-out split.
        chosen_references: (N,), the index of each pair's reference; only for weights by a column.
        spans: log-probs of all N pairs span by span, in order and in parts; only with ``aggregate_over: span``. In nats whatever
            ``normalize`` is: references are mixed in nats, and log π̃ is divided by the side's count.

    Raises:
        UserError: for a method that does not match the references.
        ValueError: for shapes that do not match; missing units, spans, held-out weights or chosen references; or units that are
            not above 0.
        RunError: for log-probs that are not finite, naming the reference.
    """
    check_target(method, names)
    single = method.single(names)
    chosen, rejected, units = normalized(
        logps_chosen, logps_rejected, method, names, units_chosen=units_chosen, units_rejected=units_rejected
    )
    if not method.has_reference:
        return _without_reference(chosen, rejected, units)
    alpha, notices = _weights(chosen - rejected, method, names, held_out_weights, chosen_references)
    if single is None:
        clipped = clip_to_anchor(chosen, rejected, method.trust_region.kind, method.trust_region.epsilon)
    else:
        clipped = chosen, rejected

    # With weight 1 on one reference every aggregate equals it exactly; Multi-DPO reports the weighted mean.
    kind = "geometric" if method.name == "multi-dpo" or single is not None else method.aggregate
    # The authors' code computes ℓ_1 + ℓ_2 − log(α·e^ℓ_2 + (1−α)·e^ℓ_1) with α of reference 2: the harmonic aggregate with
    # the two weights swapped. Its Multi-DPO does not swap them.
    used = alpha[:, ::-1] if method.official(names) and method.name == "mrpo" else alpha
    counts = None
    if method.mixes_spans(names):
        (target_chosen, target_rejected), counts = _over_spans(kind, spans, (chosen, rejected), clipped, used, units)
    else:
        target_chosen, target_rejected = (aggregate.AGGREGATES[kind](side, used) for side in clipped)
    diagnostics = diagnose(
        names,
        logps=(chosen, rejected),
        clipped=clipped,
        weights=alpha,
        aggregate=kind,
        aggregate_weights=used,
        spans=counts,
    )
    if method.is_step_scoped(names):
        # Training reports the diagnostics that depend on the weights.
        diagnostics = {k: v for k, v in diagnostics.items() if not k.endswith(("/weight", "/effective_k"))}
    return Targets(
        weights=alpha,
        clipped_chosen=clipped[0],
        clipped_rejected=clipped[1],
        target_chosen=target_chosen,
        target_rejected=target_rejected,
        diagnostics=diagnostics,
        notices=notices,
        per_reference=method.name == "multi-dpo",
        chosen_units=units[0] if units else None,
        rejected_units=units[1] if units else None,
        step_scoped=method.is_step_scoped(names),
        adaptive=weights.adaptive(chosen - rejected) if method.is_windowed(names) else None,
    )


def _over_spans(
    kind: str,
    spans: Iterable[PairSpans] | None,
    logps: tuple[Floats, Floats],
    clipped: tuple[Floats, Floats],
    alpha: Floats,
    units: tuple[Floats, Floats] | None,
) -> tuple[tuple[Floats, Floats], SpanCounts]:
    """log π̃ of both sides, (N,) each, in the unit of ``normalize``."""
    pairs = len(alpha)
    largest = alpha.argmax(axis=1)[:, None]
    targets = [np.take_along_axis(side, largest, axis=1)[:, 0] for side in clipped]
    counts, start = SpanCounts.none(alpha.shape[1]), 0
    for part in spans or ():
        rows = slice(start, start + len(part.chosen.lengths))
        start = rows.stop
        if start > pairs:
            break
        for at, side in enumerate((part.chosen, part.rejected)):
            apart, found = mix(kind, side, logps[at][rows], clipped[at][rows], alpha[rows])
            targets[at][rows] += apart if units is None else apart / units[at][rows]
            counts.add(found)
    if start != pairs:
        raise ValueError(f"aggregate_over is span: spans of {start} pairs, expected those of {pairs}")
    return (targets[0], targets[1]), counts


def _without_reference(chosen: Floats, rejected: Floats, units: tuple[Floats, Floats] | None) -> Targets:
    """log π̃ = 0, without weights and diagnostics."""
    nothing = np.zeros(len(chosen))
    return Targets(
        weights=np.zeros_like(chosen),
        clipped_chosen=chosen,
        clipped_rejected=rejected,
        target_chosen=nothing,
        target_rejected=nothing,
        diagnostics={},
        notices=(),
        per_reference=False,
        chosen_units=units[0] if units else None,
        rejected_units=units[1] if units else None,
    )


def normalized(
    logps_chosen: npt.ArrayLike,
    logps_rejected: npt.ArrayLike,
    method: TargetSettings,
    names: Sequence[str],
    *,
    units_chosen: npt.ArrayLike | None = None,
    units_rejected: npt.ArrayLike | None = None,
) -> tuple[Floats, Floats, tuple[Floats, Floats] | None]:
    """The log-probs in the unit of ``normalize``, (N, K) each, and the units, (N,) each, or None for sums.

    Arguments and errors as in :func:`compute_targets`.
    """
    chosen, rejected = _checked(logps_chosen, logps_rejected, names)
    if method.normalize == "sum":
        return chosen, rejected, None
    units = _checked_units(units_chosen, len(chosen)), _checked_units(units_rejected, len(chosen))
    return chosen / units[0][:, None], rejected / units[1][:, None], units


def temper_and_lift(alpha: Floats, options: WeightsOptions) -> Floats:
    """Apply the temperature, then the floor, to weights (N, K)."""
    return weights.lift(weights.temper(alpha, options.temperature), options.floor)


def _weights(
    margins: Floats,
    method: TargetSettings,
    names: Sequence[str],
    held_out: npt.ArrayLike | None,
    chosen_references: npt.ArrayLike | None,
) -> tuple[Floats, tuple[str, ...]]:
    pairs, references = margins.shape
    single = method.single(names)
    if single is not None:
        return np.tile(np.eye(references)[single], (pairs, 1)), ()
    notices: tuple[str, ...] = ()
    if method.by_column(names) is not None:
        positions = np.asarray([] if chosen_references is None else chosen_references, dtype=np.int64)
        if positions.shape != (pairs,):
            raise ValueError(f"chosen references of shape {positions.shape}: expected ({pairs},)")
        alpha = np.eye(references)[positions]
    elif not isinstance(method.weights, list):
        if method.weights == "uniform" or method.is_step_scoped(names):
            alpha = weights.uniform(pairs, references)
        elif method.needs_held_out(names):
            row = None if held_out is None else np.asarray(held_out, dtype=np.float64)
            if row is None or row.shape != (references,):
                found = "none" if row is None else str(row.shape)
                raise ValueError(f"weights from held-out pairs: {found}, expected ({references},)")
            alpha = weights.given(row.tolist(), pairs)
        else:
            alpha = weights.adaptive_official(margins) if method.official(names) else weights.adaptive(margins)
    else:
        values = [float(value) for value in method.weights]
        alpha = weights.given(values, pairs)
        if abs(sum(values) - 1) > SUM_TOLERANCE:
            shares = ", ".join(f"{name} {value / sum(values):.4g}" for name, value in zip(names, values, strict=True))
            notices = (f"The weights given sum to {sum(values):.4g}, not 1; divided by their sum: {shares}.",)
    return temper_and_lift(alpha, method.weights_options), notices


def _checked(logps_chosen: npt.ArrayLike, logps_rejected: npt.ArrayLike, names: Sequence[str]) -> tuple[Floats, Floats]:
    sides = np.asarray(logps_chosen, dtype=np.float64), np.asarray(logps_rejected, dtype=np.float64)
    if sides[0].shape != sides[1].shape or sides[0].ndim != 2 or sides[0].shape[1] != len(names):
        raise ValueError(
            f"log-probs of shapes {sides[0].shape} and {sides[1].shape}: expected (N, {len(names)}) twice, a column "
            f"for each of {', '.join(names)}"
        )
    for side, logps in zip(("chosen", "rejected"), sides, strict=True):
        for column, name in enumerate(names):
            bad = np.flatnonzero(~np.isfinite(logps[:, column]))
            if len(bad):
                raise RunError(
                    f"Reference {name}: {len(bad):,} of {len(logps):,} {side} completions have a log-prob that is not "
                    f"finite (the first, {logps[bad[0], column]}, in pair {bad[0]}): expected finite nats. A model in "
                    "float16 may have overflowed; score this reference again in another dtype."
                )
    return sides


def _checked_units(units: npt.ArrayLike | None, pairs: int) -> Floats:
    if units is None:
        raise ValueError("normalize is token or byte: expected units_chosen and units_rejected, (N,) counts")
    counts = np.asarray(units, dtype=np.float64)
    if counts.shape != (pairs,) or not np.all(np.isfinite(counts) & (counts > 0)):
        raise ValueError(f"units of shape {counts.shape}: expected ({pairs},) finite counts above 0")
    return counts
