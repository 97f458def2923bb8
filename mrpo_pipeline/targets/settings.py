"""The keys of a recipe's ``method`` that determine log π̃, and their check against the references."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BeforeValidator, Field, field_validator

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.settings_base import Settings

# Weights computed once from the third split, and weights that change from step to step.
HELD_OUT_WEIGHTS = ("validation-discrimination", "validation-accuracy")
STEP_WEIGHTS = ("sliding-window", "thompson")
WEIGHTS = ("uniform", "adaptive", *HELD_OUT_WEIGHTS, *STEP_WEIGHTS)
SINGLE = "single:"

# Keys of weights by a column; every other key is a value of the column.
COLUMN, OTHER = "column", "other"


class ByColumn(NamedTuple):
    """The one reference of each pair, by the value of a column of the pairs."""

    column: str
    references: dict[str, str]
    """Value → reference."""
    other: str | None
    """The reference of every other value, and of rows without one."""


def _off(value: Any) -> Any:
    """YAML 1.1 reads an unquoted ``off`` as false."""
    return "off" if value is False else value


class TrustRegion(Settings):
    kind: Annotated[Literal["adaptive", "fixed", "off"], BeforeValidator(_off)] = "adaptive"
    """`adaptive` divides ε between the two sides of a pair, `fixed` uses ε on both, `off` disables clipping."""
    epsilon: float = Field(0.1, ge=0, le=1)
    """Half the band's width as a share of the anchor's log-prob: ε_max of `adaptive`, ε of `fixed`."""


class WeightsOptions(Settings):
    """``window`` belongs to the weights ``sliding-window``; ``prior``, ``pairs`` and ``every`` to ``thompson``."""

    floor: float = Field(0.0, ge=0, lt=1)
    """No weight below this; at most 1 / K."""
    temperature: float = Field(1.0, gt=0)
    """α ∝ α^(1/T): above 1 makes the weights more equal. Applied before the floor."""
    window: int = Field(64, ge=1)
    """`sliding-window`: number of earlier pairs whose adaptive weights are averaged."""
    prior: float = Field(1.0, gt=0)
    """`thompson`: initial number of successes, and of failures, of each reference."""
    pairs: int = Field(64, ge=1)
    """`thompson`: number of pairs of the third split on which steps are judged."""
    every: int = Field(1, ge=1)
    """`thompson`: number of steps between two draws of a reference."""


class TargetSettings(Settings):
    """How K references become the target of a preference loss. ``names`` of methods are the references' names, the anchor first."""

    name: Literal["mrpo", "multi-dpo", "dpo"] = "mrpo"
    """`mrpo`: one loss against π̃. `multi-dpo`: a weighted sum of one loss per reference. `dpo`: DPO against the anchor."""
    reference: Literal["cached", "none"] = "cached"
    """`none`: train and evaluate without any reference (log π̃ = 0); no cache is read, and `references` may be left out."""
    aggregate: str = "harmonic"
    """How K references become π̃: `harmonic` (MRPO), `geometric`, `arithmetic`, or `single:NAME` (DPO against that reference)."""
    aggregate_over: Literal["completion", "span"] = "completion"
    """What `harmonic` and `arithmetic` mix: the log-probs of whole completions; or those of each span between two token ends that all
    references share (usually a word), summed over the spans."""
    weights: str | list[float] | dict[str, str] = "adaptive"
    """`uniform`, `adaptive`, one number per reference, `validation-discrimination`, `validation-accuracy`, `sliding-window` or
    `thompson`; or one reference per pair, by a column of the pairs (`{column: domain, code: coder, other: base}`)."""
    weights_options: WeightsOptions = WeightsOptions()
    """Options of the weights."""
    trust_region: TrustRegion = TrustRegion()
    """The band around the anchor to which every other reference is clipped."""
    compatibility: Literal["none", "official-code"] = "none"
    """`official-code`: the arithmetic of the authors' published code, for K = 2."""
    normalize: Literal["sum", "token", "byte"] = "sum"
    """The unit of every log-prob: nats, nats per policy token, or nats per byte. For margins of the same size, β per token or byte
    must be larger by about the mean length of a completion in that unit; see `docs/concepts.md`."""

    @field_validator("aggregate")
    @classmethod
    def _offered(cls, aggregate: str) -> str:
        if aggregate not in ("harmonic", "geometric", "arithmetic") and not re.match("single:.", aggregate):
            raise ValueError("harmonic, geometric, arithmetic, or single: and a reference's name")
        return aggregate

    @property
    def has_reference(self) -> bool:
        """Whether log π̃ comes from references; if not, their names are ignored."""
        return self.reference == "cached"

    def single(self, names: Sequence[str]) -> int | None:
        """The index of the single reference that is the target (``dpo``, ``single:NAME``); None with several references or none."""
        if not self.has_reference:
            return None
        if self.name == "dpo":
            return 0
        if self.name == "mrpo" and self.aggregate.startswith(SINGLE):
            return list(names).index(self.aggregate.removeprefix(SINGLE))
        return None

    def by_column(self, names: Sequence[str]) -> ByColumn | None:
        """The weights by a column of the pairs; None with other weights, or without several references to weight."""
        if (
            not isinstance(self.weights, dict)
            or not self.has_reference
            or self.single(names) is not None
            or len(names) == 1
        ):
            return None
        references = {value: name for value, name in self.weights.items() if value not in (COLUMN, OTHER)}
        return ByColumn(self.weights.get(COLUMN, ""), references, self.weights.get(OTHER))

    def mixes_spans(self, names: Sequence[str]) -> bool:
        """Whether references are mixed span by span. Not with ``geometric``, which is the same over spans as over completions, nor
        with weight 1 on one reference, which every aggregate then equals."""
        several = self.has_reference and self.name == "mrpo" and self.single(names) is None and len(names) > 1
        return several and self.aggregate_over == "span" and self.aggregate != "geometric" and not self.is_one_hot

    @property
    def is_one_hot(self) -> bool:
        """Whether each pair has weight 1 on one reference: weights by a column, without a floor."""
        return isinstance(self.weights, dict) and not self.weights_options.floor

    def is_step_scoped(self, names: Sequence[str]) -> bool:
        """Whether the weights change from step to step, so that a pair has no fixed target."""
        return self.weights in STEP_WEIGHTS and self._weights_count(names)

    def is_windowed(self, names: Sequence[str]) -> bool:
        """Whether the weights are ``sliding-window``."""
        return self.is_step_scoped(names) and self.weights == "sliding-window"

    def needs_held_out(self, names: Sequence[str]) -> bool:
        """Whether the third split is used: once for the weights, or to judge the steps of ``thompson``."""
        return self.weights in (*HELD_OUT_WEIGHTS, "thompson") and self._weights_count(names)

    def _weights_count(self, names: Sequence[str]) -> bool:
        """Whether weights have an effect."""
        return self.has_reference and self.single(names) is None and len(names) > 1

    def official(self, names: Sequence[str]) -> bool:
        """Whether the authors' arithmetic applies: requested, and not for a single reference, which has no α."""
        return self.has_reference and self.compatibility == "official-code" and self.single(names) is None


def check_target(method: TargetSettings, names: Sequence[str]) -> None:
    """Refuse settings that do not match the references or each other.

    Raises:
        UserError: naming the key.
    """
    if not method.has_reference:
        return
    if isinstance(names, str) or len(names) == 0:
        raise UserError(f"The references are {names!r}: expected a list of at least one name, the anchor first.")
    if len(set(names)) != len(names):
        raise UserError(f"The references {', '.join(names)} hold a name twice: give each a name of its own.")
    _check_aggregate(method, names)
    _check_weights(method, names)
    if method.official(names):
        _check_official(method, names)
    if method.mixes_spans(names) and method.is_step_scoped(names):
        raise UserError(
            f"The setting method.weights is {method.weights!r} with method.aggregate_over: span: such weights change with every training "
            "step, for which only the log-probs of whole completions are kept. Expected weights fixed for the run or the pair "
            "(uniform, adaptive, validation-discrimination, validation-accuracy, or numbers). Set one of the two."
        )


def _check_aggregate(method: TargetSettings, names: Sequence[str]) -> None:
    if not method.aggregate.startswith(SINGLE):
        return
    name = method.aggregate.removeprefix(SINGLE)
    if name not in names:
        raise UserError(
            f"The setting method.aggregate is {method.aggregate!r}, but there is no reference of that name: expected "
            f"single: and one of {', '.join(names)}. Correct the name."
        )
    if method.name == "multi-dpo" or (method.name == "dpo" and name != names[0]):
        raise UserError(
            f"The setting method.aggregate is {method.aggregate!r} while method.name is {method.name!r}: a single "
            "reference needs the name mrpo (dpo is the anchor alone, multi-dpo all references). Set "
            "method.name to mrpo, or remove method.aggregate."
        )


def _check_weights(method: TargetSettings, names: Sequence[str]) -> None:
    count, weights, floor = len(names), method.weights, method.weights_options.floor
    if isinstance(weights, str):
        if weights not in WEIGHTS:
            raise UserError(
                f"The setting method.weights is {weights!r}: expected one of {', '.join(WEIGHTS)}, or a list of {count} "
                "numbers. Correct it."
            )
    elif isinstance(weights, dict):
        _check_by_column(weights, names)
    elif method.single(names) is None:
        if len(weights) != count:
            raise UserError(
                f"The setting method.weights is {weights!r}: expected one number for each of the {count} references "
                f"({', '.join(names)}). Give {count}, or a name: {', '.join(WEIGHTS)}."
            )
        if not (all(w >= 0 for w in weights) and 0 < sum(weights) < math.inf):
            raise UserError(
                f"The setting method.weights is {weights!r}: expected finite numbers of 0 or more, not all 0. Correct them."
            )
    if method.single(names) is None and floor > 1 / count:
        raise UserError(
            f"The setting method.weights_options.floor is {floor}: with {count} references expected at most "
            f"1/{count} = {1 / count:.4g}, where the weights are uniform. Lower it."
        )


def _check_by_column(weights: dict[str, str], names: Sequence[str]) -> None:
    if not weights.get(COLUMN) or len(weights) < 2:
        raise UserError(
            f"The setting method.weights is {weights!r}: expected `column`, a column of the pairs, and the reference of each of its "
            "values, such as {column: domain, code: coder, other: base}. Add what is missing."
        )
    for value, name in weights.items():
        if value != COLUMN and name not in names:
            raise UserError(
                f"The setting method.weights.{value} is {name!r}, but there is no reference of that name: expected one of "
                f"{', '.join(names)}. Correct the name."
            )


def _check_official(method: TargetSettings, names: Sequence[str]) -> None:
    options = method.weights_options
    has = {
        "method.aggregate": (method.aggregate, "harmonic", method.name == "mrpo"),
        "method.aggregate_over": (method.aggregate_over, "completion", method.name == "mrpo"),
        "method.normalize": (method.normalize, "sum", True),
        "method.weights_options.temperature": (options.temperature, 1.0, True),
        "method.weights_options.floor": (options.floor, 0.0, True),
    }
    for key, (found, expected, applies) in has.items():
        if applies and found != expected:
            raise UserError(
                f"The setting {key} is {found!r} with method.compatibility: official-code: the authors' code supports "
                f"{expected!r} alone. Set it to that, or set method.compatibility to none."
            )
    if method.weights in (*HELD_OUT_WEIGHTS, *STEP_WEIGHTS) or isinstance(method.weights, dict):
        raise UserError(
            f"The setting method.weights is {method.weights!r} with method.compatibility: official-code: the authors' code "
            "has adaptive weights, and given ones. Set it to adaptive or to numbers, or set method.compatibility to none."
        )
    if len(names) != 2:
        raise UserError(
            f"The setting method.compatibility is official-code with {len(names)} references "
            f"({', '.join(names)}): the authors' code takes exactly 2, the anchor and one other. "
            "Give two, or set method.compatibility to none."
        )
