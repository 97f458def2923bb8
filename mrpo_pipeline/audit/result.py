"""The audit as plain data and as text."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from mrpo_pipeline.audit.findings import Finding

VERSION = 1


@dataclass(frozen=True)
class Audit:
    """What the cached references are worth on the pairs of a recipe.

    Attributes:
        split: the split that the figures are of: ``train``, or ``eval`` where there are no training pairs.
        pairs: by split, pairs in, out, dropped by reason.
        prompts: distinct prompts of that split.
        references: NAME → figures: ``nats_per_byte``, ``nats_per_token``, ``ranked_rightly``, ``ties``, ``delta``,
            ``by_length`` over all pairs; ``argmin_share``, ``clip_rate``, ``sign_flips`` under MRPO; ``weights`` by weighting;
            ``patterns`` and ``origin`` of the sampled completions; ``looks``: ``broken``, ``suspect``,
            ``doubtful`` (no fault is shown, but it knows so little of this text that it should be looked at), ``sound``.
        agreement: for each two references, how alike they rank.
        weightings: mean α by weighting, and what VDW and VAW were computed on.
        mrpo: settings, ``effective_k``.
        sampled: completions whose single tokens were looked at.
        findings: references that look broken.
        remarks: what else is worth knowing: ``reference``, ``sentence``.
    """

    split: str
    pairs: dict[str, dict[str, int]]
    prompts: int
    references: dict[str, dict[str, Any]]
    agreement: list[dict[str, Any]]
    weightings: dict[str, Any]
    mrpo: dict[str, Any]
    sampled: int
    findings: list[Finding] = field(default_factory=list)
    remarks: list[dict[str, str]] = field(default_factory=list)

    @property
    def broken(self) -> list[str]:
        """The names of the references that look broken, or are suspected to be."""
        return list(dict.fromkeys(finding.reference for finding in self.findings))

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON; what could not be computed is None."""
        plain: dict[str, Any] = _plain(
            {
                "version": VERSION,
                "split": self.split,
                "pairs": self.pairs,
                "prompts": self.prompts,
                "sampled_completions": self.sampled,
                "references": self.references,
                "agreement": self.agreement,
                "weightings": self.weightings,
                "mrpo": self.mrpo,
                "findings": [asdict(finding) for finding in self.findings],
                "remarks": self.remarks,
            }
        )
        return plain

    def table(self, width: int = 100) -> str:
        """For a person at a terminal."""
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
