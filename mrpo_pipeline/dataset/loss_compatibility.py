"""Check that the losses fit the target, and compute the margins of ``hypo-each``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.losses.functional import LOSSES
from mrpo_pipeline.losses.settings import check_loss
from mrpo_pipeline.recipe import Method
from mrpo_pipeline.targets.aggregate import AGGREGATES
from mrpo_pipeline.targets.compute import Targets

Floats = npt.NDArray[np.float64]


def check_losses(method: Method, names: Sequence[str]) -> None:
    """Refuse losses that can't be combined with each other or with the target.

    Raises:
        UserError: naming the key.
    """
    check_loss(method)
    if not method.has_reference:
        _check_without_reference(method)
    several = method.name == "multi-dpo" and len(names) > 1
    sorting = [name for name in method.losses if LOSSES[name].sorts_batch]
    if several and sorting:
        raise UserError(
            f"The loss {sorting[0]} (method.loss) sorts log-ratios over the batch, and method.name is multi-dpo, which weights the losses "
            "of a pair's references: after sorting no loss belongs to a pair. Set method.name to mrpo, or take another loss."
        )
    if "hypo-each" in method.losses:
        against = {
            "method.name is multi-dpo, where `hypo` floors each reference's margin already": several,
            f"method.weights is {method.weights}, which changes from step to step": method.is_step_scoped(names),
            "method.compatibility is official-code, which has no such loss": method.official(names),
            "method.aggregate_over is span, and the spans of the two sides are not the same": method.mixes_spans(names),
        }
        for reason, holds in against.items():
            if holds:
                raise UserError(
                    f"The loss hypo-each (method.loss) needs one aggregate of margins for each pair, and {reason}. Take the loss "
                    "hypo, or change that setting."
                )


def _check_without_reference(method: Method) -> None:
    """Refuse losses that need more than the difference of both sides' log-probs, for training without a reference."""
    fit = [name for name, loss in LOSSES.items() if loss.of_difference or not loss.reads_references]
    for name in method.losses:
        if name not in fit:
            raise UserError(
                f"The loss {name} (method.loss) compares each side with the reference, or uses the reference's margin, and "
                f"method.reference is none: expected a loss of the difference of both sides only ({', '.join(fit)}). Set one of these, or "
                "set method.reference to cached."
            )
    if method.f_divergence_type != "reverse_kl":
        raise UserError(
            f"The setting method.f_divergence_type is {method.f_divergence_type} and method.reference is none: there is no reference to "
            "diverge from. Expected reverse_kl. Set it, or set method.reference to cached."
        )


def floored_margins(method: Method, names: Sequence[str], targets: Targets) -> Floats | None:
    """The aggregate of max{0, Δ_k} over the references, (N,), after the trust region and in the unit of ``normalize``; None
    if no loss uses it."""
    if "hypo-each" not in method.losses:
        return None
    kind = "geometric" if method.single(names) is not None else method.aggregate
    floored: Floats = np.maximum(targets.clipped_chosen - targets.clipped_rejected, 0.0)
    return AGGREGATES[kind](floored, targets.weights)
