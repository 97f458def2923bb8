"""The result of recomputing a reference's log-probs: as plain data and as text."""

from __future__ import annotations

import shlex
from dataclasses import asdict, dataclass
from typing import Any

from mrpo_pipeline.verify.comparison import Differences
from mrpo_pipeline.verify.tolerances import Limits

EXCERPT_CHARACTERS = 60


@dataclass(frozen=True)
class Worst:
    """The completion that differs most, and the token that shows it: the first different id, else the largest difference.

    Attributes:
        completion_id: 32 hex digits.
        text: the beginning of the completion.
        position: of the token in the completion, from 0.
        cached_id, token_id: its id in the cache and in the text; None beyond the end of either.
        token: its text; empty for the end-of-turn token, and beyond the end.
        cached, recomputed: log-probs in nats; None where the ids differ.
    """

    completion_id: str
    text: str
    position: int
    cached_id: int | None
    token_id: int | None
    token: str
    cached: float | None
    recomputed: float | None

    def __str__(self) -> str:
        where = f"completion {self.completion_id} ({self.text!r}), token {self.position}"
        if self.cached is None or self.recomputed is None:
            ids = ["none" if one is None else str(one) for one in (self.cached_id, self.token_id)]
            return f"{where}: id {ids[0]} in the cache, {ids[1]} in the text"
        token = repr(self.token) if self.token else "end of turn"
        return (
            f"{where} (id {self.token_id}, {token}): {_value(self.cached)} cached, {_value(self.recomputed)} recomputed"
        )


@dataclass(frozen=True)
class Drift:
    """A reference's cached log-probs against recomputed ones.

    Attributes:
        reference, cache: the reference's name, and its folder or URL.
        dtype, quantization: of the manifest.
        served: completions of the pairs that the cache has, of which ``differences.completions`` were compared.
        shortest_tokens, longest_tokens: of the compared completions.
        differences, limits: nats.
        different_ids, different_prompts: completions whose token ids, or prompt length, are not those of the text.
        worst: None where nothing was compared.
        reasons: possible causes, most likely first.
        scored_by: engine, versions and machine by the manifest. recomputed_by: engine, versions, device, dtype, and a note on its
            limits, empty for transformers.
        time: ISO 8601.
    """

    reference: str
    cache: str
    dtype: str
    quantization: str
    served: int
    shortest_tokens: int
    longest_tokens: int
    differences: Differences
    limits: Limits
    different_ids: int
    different_prompts: int
    worst: Worst | None
    reasons: list[str]
    scored_by: dict[str, Any]
    recomputed_by: dict[str, Any]
    time: str

    @property
    def within_limits(self) -> bool:
        """Whether the log-probs agree, whatever the ids."""
        found, limits = self.differences, self.limits
        return found.token_max <= limits.token_max and found.token_mean <= limits.token_mean

    @property
    def passed(self) -> bool:
        return self.within_limits and not self.different_ids and not self.different_prompts

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "passed": self.passed}

    def summary(self) -> str:
        """Lines for a terminal."""
        found, limits = self.differences, self.limits
        lines = [
            f"{self.reference}: {found.completions:,} of {self.served:,} completions recomputed ({self.shortest_tokens:,} to "
            f"{self.longest_tokens:,} tokens, {found.tokens:,} in all; {self._number_format()}): "
            + ("they agree" if self.passed else "THEY DIFFER"),
            f"  |difference| per token       mean {found.token_mean:.1e} (limit {limits.token_mean:g}), 99th percentile "
            f"{found.token_p99:.1e}, maximum {found.token_max:.1e} nats (limit {limits.token_max:g})",
            f"  |difference| per completion  mean {found.sum_mean:.1e}, maximum {found.sum_max:.1e} nats",
        ]
        if self.different_ids or self.different_prompts:
            lines.append(
                f"  different token ids in {self.different_ids:,} completions, prompts of another length in {self.different_prompts:,}"
            )
        lines += [f"  worst: {self.worst}"] if self.worst is not None else []
        lines += [f"  likely: {reason}" for reason in self.reasons]
        lines.append(f"  scored by {_by(self.scored_by)}; recomputed by {_by(self.recomputed_by)}")
        lines += [f"  note: {note}"] if (note := self.recomputed_by.get("note")) else []
        return "\n".join(lines)

    def failure(self) -> str | None:
        """The error message; None where the check passes."""
        if self.passed:
            return None
        found, limits = self.differences, self.limits
        parts = []
        if self.different_ids:
            parts.append(f"{self.different_ids:,} have different token ids")
        if self.different_prompts:
            parts.append(f"{self.different_prompts:,} have a prompt of another length")
        if not self.within_limits:
            parts.append(
                f"the log-probs differ by {found.token_mean:.2g} nats per token on average and {found.token_max:.2g} at most, expected "
                f"{limits.token_mean:g} and {limits.token_max:g} in {self._number_format()}"
            )
        worst = f" Worst: {self.worst}." if self.worst is not None else ""
        likely = f" Likely cause: {'; '.join(self.reasons)}." if self.reasons else ""
        engine = str(self.recomputed_by["engine"]).split(",")[0]
        root = shlex.quote(self.cache.removesuffix(self.reference).rstrip("/"))
        return (
            f"The cached log-probs of reference {self.reference} are not those that {engine} computes from the manifest's model and "
            f"settings. Of {found.completions:,} completions: {'; '.join(parts)}.{worst}{likely} The cache was not changed. Fix the "
            f"cause, delete these numbers (`mrpo cache prune --cache {root} --reference {self.reference} --all`) and score again "
            "(`mrpo score-refs`)."
        )

    def _number_format(self) -> str:
        return self.dtype if self.quantization in ("none", self.dtype) else f"{self.dtype}, {self.quantization}"


def excerpt(text: str) -> str:
    """The first characters of a text, with an ellipsis where it is longer."""
    return text if len(text) <= EXCERPT_CHARACTERS else text[:EXCERPT_CHARACTERS] + "…"


def _by(recorded: dict[str, Any]) -> str:
    versions = recorded.get("versions")
    named = ", ".join(f"{name} {value}" for name, value in versions.items()) if isinstance(versions, dict) else ""
    where = recorded.get("device") or recorded.get("machine")
    return f"{recorded.get('engine', 'an unknown engine')}{f' ({named})' if named else ''}{f' on {where}' if where else ''}"


def _value(logp: float) -> str:
    """A log-prob with float32's digits; an impossible one in short."""
    return f"{logp:.6f}" if 1e-3 < abs(logp) < 1e4 else f"{logp:.3g}"
