"""What ``comparison.json`` holds, checked: the report reads a file that lies in a folder, and says what is wrong with it."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict


def _finite(value: Any) -> Any:
    """JSON as Python writes it may hold NaN and infinities; a figure that is not a number is a figure that is missing."""
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
    """One method; ``baseline`` marks DPO against a single reference, ``also`` other names of the same training."""

    name: str
    describes: str = ""
    method: dict[str, Any] = {}
    baseline: bool = False
    also: list[str] = []
    swept: dict[str, Any] = {}
    metrics: dict[str, Estimate] = {}
    train_seconds: list[Figure] = []
    diagnostics: dict[str, Any] = {}


class Difference(_Part):
    """``method`` minus ``against`` in one metric, with its interval, and p before and after correction for many.

    ``against`` may be the start. ``question`` names the family that p is corrected in. ``pairs_needed``: how many more
    held-out pairs it takes to show one point after that correction; None where none would do.
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
    """What is and what is not shown, in words."""

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
    pairs: dict[str, dict[str, int]] = {}
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
