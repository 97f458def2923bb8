"""The settings of a target, checked: the part of a recipe's ``method`` that decides log π̃."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.targets import trust_region
from mrpo_pipeline.targets.aggregate import AGGREGATES

NAMES = ("mrpo", "multi-dpo", "dpo")
# Which pairs decide the weights: those of a third, held-out split once; all pairs, step by step.
HELD_OUT_WEIGHTS = ("validation-discrimination", "validation-accuracy")
STEP_WEIGHTS = ("sliding-window", "thompson")
WEIGHTS = ("uniform", "adaptive", *HELD_OUT_WEIGHTS, *STEP_WEIGHTS)
COMPATIBILITIES = ("none", "official-code")
UNITS = ("sum", "token", "byte")
SINGLE = "single:"


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetSettings:
    """How K references become the target of a preference loss.

    Raises:
        UserError: at construction, for a value that is not offered or does not fit the others.
    """

    reference_names: Sequence[str]
    """The K references, the anchor first."""
    name: str = "mrpo"
    """``mrpo`` (one π̃) | ``multi-dpo`` (one DPO loss for each reference, weighted) | ``dpo`` (the anchor alone)."""
    aggregate: str = "harmonic"
    """``harmonic`` | ``geometric`` | ``arithmetic`` | ``single:NAME``; of ``mrpo`` only."""
    weights: str | Sequence[float] = "adaptive"
    """A name of ``WEIGHTS``, or one number for each reference (divided by their sum)."""
    window: int = 64
    """``sliding-window``: over how many other pairs adaptive weights are averaged."""
    prior: float = 1.0
    """``thompson``: every reference begins with so many successes and as many failures."""
    pairs: int = 64
    """``thompson``: how many pairs of the weights split are looked at to judge a reference."""
    every: int = 1
    """``thompson``: for how many steps a reference is drawn, and after how many it is judged."""
    temperature: float = 1.0
    """α_k ∝ α_k^(1/T), whatever the weights; applied before the floor."""
    floor: float = 0.0
    """α_k ← floor + (1 − K·floor)·α_k: no weight below it. At most 1/K."""
    trust_region: str = "adaptive"
    """``adaptive`` | ``fixed`` | ``off``; ``dpo`` and ``single:`` ignore it."""
    epsilon: float = 0.1
    """ε_max of the adaptive trust region, ε of the fixed one."""
    compatibility: str = "none"
    """``official-code``: the arithmetic of the authors' published code, for K = 2."""
    normalize: str = "sum"
    """The unit of every log-prob: ``sum`` (nats), ``token`` (nats per policy token), ``byte`` (nats per byte)."""

    def __post_init__(self) -> None:
        if isinstance(self.reference_names, str) or len(self.reference_names) == 0:
            raise UserError(
                f"The references are {self.reference_names!r}: expected a list of at least one name, the anchor first."
            )
        if len(set(self.reference_names)) != len(self.reference_names):
            raise UserError(
                f"The references {', '.join(self.reference_names)} hold a name twice: give each a name of its own."
            )
        _one_of("method.name", self.name, NAMES)
        _one_of("method.trust_region.kind", self.trust_region, trust_region.KINDS)
        _one_of("method.compatibility", self.compatibility, COMPATIBILITIES)
        _one_of("method.normalize", self.normalize, UNITS)
        _number("method.trust_region.epsilon", self.epsilon, "of 0 or more", self.epsilon >= 0)
        _number("method.weights_options.temperature", self.temperature, "above 0", self.temperature > 0)
        _number("method.weights_options.floor", self.floor, "of 0 or more", self.floor >= 0)
        _number("method.weights_options.prior", self.prior, "above 0", self.prior > 0)
        for key in ("window", "pairs", "every"):
            _number(f"method.weights_options.{key}", getattr(self, key), "of 1 or more", getattr(self, key) >= 1)
        self._check_aggregate()
        self._check_weights()
        if self.official:
            self._check_official()

    @property
    def single(self) -> int | None:
        """The position of the one reference that is the target (``dpo``, ``single:NAME``); None where all count."""
        if self.name == "dpo":
            return 0
        if self.name == "mrpo" and self.aggregate.startswith(SINGLE):
            return list(self.reference_names).index(self.aggregate.removeprefix(SINGLE))
        return None

    @property
    def is_step_scoped(self) -> bool:
        """Whether the weights change from step to step, so that no pair has a target of its own."""
        return self.weights in STEP_WEIGHTS and self._weights_count

    @property
    def is_windowed(self) -> bool:
        """Whether the weights are those of a sliding window."""
        return self.is_step_scoped and self.weights == "sliding-window"

    @property
    def needs_held_out(self) -> bool:
        """Whether a third split of the pairs is looked at: once for the weights, or to judge what a step was worth."""
        return self.weights in (*HELD_OUT_WEIGHTS, "thompson") and self._weights_count

    @property
    def _weights_count(self) -> bool:
        """Whether there is anything to weight."""
        return isinstance(self.weights, str) and self.single is None and len(self.reference_names) > 1

    @property
    def official(self) -> bool:
        """Whether the authors' arithmetic is asked for and would differ: with one reference alone there is no α."""
        return self.compatibility == "official-code" and self.single is None

    def _check_aggregate(self) -> None:
        names = ", ".join(self.reference_names)
        if not self.aggregate.startswith(SINGLE):
            _one_of("method.aggregate", self.aggregate, (*AGGREGATES, "single:NAME"))
            return
        name = self.aggregate.removeprefix(SINGLE)
        if name not in self.reference_names:
            raise UserError(
                f"The setting method.aggregate is {self.aggregate!r}, but there is no reference of that name: expected "
                f"single: and one of {names}. Correct the name."
            )
        if self.name == "multi-dpo" or (self.name == "dpo" and name != self.reference_names[0]):
            raise UserError(
                f"The setting method.aggregate is {self.aggregate!r} while method.name is {self.name!r}: a single "
                "reference belongs to the name mrpo (dpo is the anchor alone, multi-dpo all references). Set "
                "method.name to mrpo, or take method.aggregate out."
            )

    def _check_weights(self) -> None:
        count = len(self.reference_names)
        if isinstance(self.weights, str):
            _one_of("method.weights", self.weights, WEIGHTS, also=f"a list of {count} numbers")
        elif self.single is None:
            numbers = all(isinstance(w, Real) and not isinstance(w, bool) for w in self.weights)
            if not numbers or len(self.weights) != count:
                raise UserError(
                    f"The setting method.weights is {list(self.weights)!r}: expected one number for each of the "
                    f"{count} references ({', '.join(self.reference_names)}). Give {count}, or a name: {', '.join(WEIGHTS)}."
                )
            if not (all(w >= 0 for w in self.weights) and 0 < sum(self.weights) < math.inf):
                raise UserError(
                    f"The setting method.weights is {list(self.weights)!r}: expected finite numbers of 0 or more, not "
                    "all 0. Correct them."
                )
        if self.single is None and self.floor > 1 / count:
            raise UserError(
                f"The setting method.weights_options.floor is {self.floor}: with {count} references expected at most "
                f"1/{count} = {1 / count:.4g}, where the weights are uniform. Lower it."
            )

    def _check_official(self) -> None:
        has = {
            "method.aggregate": (self.aggregate, "harmonic", self.name == "mrpo"),
            "method.normalize": (self.normalize, "sum", True),
            "method.weights_options.temperature": (self.temperature, 1.0, True),
            "method.weights_options.floor": (self.floor, 0.0, True),
        }
        for key, (found, expected, applies) in has.items():
            if applies and found != expected:
                raise UserError(
                    f"The setting {key} is {found!r} with method.compatibility: official-code: the authors' code has "
                    f"{expected!r} alone. Set it to that, or set method.compatibility to none."
                )
        if self.weights in (*HELD_OUT_WEIGHTS, *STEP_WEIGHTS):
            raise UserError(
                f"The setting method.weights is {self.weights!r} with method.compatibility: official-code: the authors' code "
                "has adaptive weights, and given ones. Set it to adaptive or to numbers, or set method.compatibility to none."
            )
        if len(self.reference_names) != 2:
            raise UserError(
                f"The setting method.compatibility is official-code with {len(self.reference_names)} references "
                f"({', '.join(self.reference_names)}): the authors' code takes exactly 2, the anchor and one other. "
                "Give two, or set method.compatibility to none."
            )


def _one_of(key: str, found: object, allowed: Sequence[str], also: str = "") -> None:
    if found not in allowed:
        offered = ", ".join(allowed) + (f", or {also}" if also else "")
        raise UserError(f"The setting {key} is {found!r}: expected one of {offered}. Correct it.")


def _number(key: str, found: float, expected: str, holds: bool) -> None:
    if not (holds and math.isfinite(found)):
        raise UserError(f"The setting {key} is {found!r}: expected a finite number {expected}. Correct it.")
