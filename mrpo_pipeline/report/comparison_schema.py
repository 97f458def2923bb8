"""The schema of ``comparison.json``, by which the report validates the file."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict

from mrpo_pipeline.pairs.counts import Counts


def _finite(value: Any) -> Any:
    """None for NaN and infinities, which Python's JSON may hold."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


Figure = Annotated[float | None, BeforeValidator(_finite)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True)


class Estimate(_Part):
    """One metric of one method: the mean over pairs and seeds, its 95% interval, and the mean of each seed."""

    mean: Figure = None
    low: Figure = None
    high: Figure = None
    per_seed: list[Figure] = []


class MethodResult(_Part):
    """One method. ``baseline``: DPO against a single reference; ``reference_free``: training without references; ``pairs``: number
    of training pairs; ``also``: other names of the same training."""

    name: str
    describes: str = ""
    method: dict[str, Any] = {}
    baseline: bool = False
    reference_free: bool = False
    pairs: int | None = None
    also: list[str] = []
    swept: dict[str, Any] = {}
    metrics: dict[str, Estimate] = {}
    train_seconds: list[Figure] = []
    diagnostics: dict[str, Any] = {}

    @property
    def hollow(self) -> bool:
        """Whether its mark is hollow: a method that those with several references have to beat."""
        return self.baseline or self.reference_free

    def mean(self, metric: str) -> float | None:
        """The mean of one metric over pairs and seeds; None if it was not measured."""
        return self.metrics[metric].mean if metric in self.metrics else None


class Difference(_Part):
    """``method`` minus ``against`` in one metric, with its interval, and p before and after correction for multiple tests.

    ``against`` may be the start. ``question`` names the family of the correction. ``pairs_needed``: the number of additional
    held-out pairs to show one point after the correction; None if more pairs would not help.
    """

    metric: str
    method: str
    against: str
    difference: Figure = None
    low: Figure = None
    high: Figure = None
    p: Figure = None
    p_corrected: Figure = None
    sd_pairs: Figure = None
    sd_seeds: Figure = None
    pairs_needed: int | None = None
    question: str = ""


class Verdict(_Part):
    """What the comparison shows, in words."""

    sentence: str = ""
    kind: str = "none"
    method: str | None = None
    against: str | None = None
    drop: list[str] = []
    sentences: list[str] = []


class Document(_Part):
    """The whole file."""

    version: Literal[1]
    mrpo: str = ""
    finished: str = ""
    versions: dict[str, str] = {}
    pairs: dict[str, Counts] = {}
    held_out: int = 0
    seeds: list[int] = []
    metrics: dict[str, Any] = {}
    verdict_metric: str = "accuracy/policy"
    start: dict[str, Figure] = {}
    methods: list[MethodResult] = []
    comparisons: list[Difference] = []
    verdict: Verdict = Verdict()
    costs: dict[str, Any] = {}
    sweep: list[dict[str, Any]] = []
    failed: list[dict[str, Any]] = []
