"""The audit as plain data and as text."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from mrpo_pipeline.audit.findings import Finding
from mrpo_pipeline.pairs.counts import Counts

VERSION = 2


@dataclass(frozen=True)
class Audit:
    """How well the cached references rank the pairs of a recipe, and which look broken.

    Attributes:
        split: of the metrics: ``train``, or ``eval`` without training pairs.
        pairs: counts by split.
        prompts: distinct prompts of that split.
        references: NAME → over all pairs ``nats_per_byte``, ``nats_per_token``, ``accuracy`` (of the ranking), ``ties``, ``delta``,
            ``by_length``; under MRPO ``argmin_share``, ``clip_rate``, ``sign_flips``; ``weights`` by weighting; of the sampled
            completions ``stats`` (see ``LogprobStats``) and ``tokenization``; ``assessment``: ``broken``, ``suspect``, ``doubtful``
            (no fault is shown, but it predicts this text badly) or ``sound``.
        agreement: of each two references.
        weightings: mean α by weighting, and the pairs of VDW and VAW.
        mrpo: ``settings``, ``effective_k``.
        sampled_completions: completions whose tokens were examined.
        findings: references that look broken.
        warnings: other sentences with their ``reference``.
    """

    split: str
    pairs: dict[str, Counts]
    prompts: int
    references: dict[str, dict[str, Any]]
    agreement: list[dict[str, Any]]
    weightings: dict[str, Any]
    mrpo: dict[str, Any]
    sampled_completions: int
    findings: list[Finding]
    warnings: list[dict[str, str]]

    @property
    def broken(self) -> list[str]:
        """Names of the references with a finding."""
        return list(dict.fromkeys(finding.reference for finding in self.findings))

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON; None for what could not be computed."""
        findings = [asdict(finding) for finding in self.findings]
        pairs = {split: counts.as_dict() for split, counts in self.pairs.items()}
        plain: dict[str, Any] = _plain({"version": VERSION, **vars(self), "findings": findings, "pairs": pairs})
        return plain

    def table(self, width: int = 100) -> str:
        """The audit as text for a terminal."""
        from mrpo_pipeline.audit.table import render

        return render(self, width)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, bool | str | int) or value is None:
        return value
    number = float(value)
    return number if math.isfinite(number) else None
