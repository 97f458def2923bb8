"""What was found on computing a reference's numbers again: as plain data, and in words."""

from __future__ import annotations

import shlex
from dataclasses import asdict, dataclass
from typing import Any

from mrpo_pipeline.verify.comparison import Figures
from mrpo_pipeline.verify.tolerances import Limits

TEXT_CHARACTERS = 60


@dataclass(frozen=True)
class Worst:
    """The completion that is furthest from right, and the token in it that shows it.

    Where token ids differ it is one of those completions, and the token the first that differs; else the largest difference
    of all.

    Attributes:
        completion_id: 32 hex digits.
        text: the completion's beginning.
        place: of the token in the completion, from 0.
        cached_id, token_id: its id in the cache and by the text; None where one of them has no token there.
        token: its text; empty for the end-of-turn token, and where the text has none there.
        cached, again: its log-probs in nats; None where they cannot be compared.
    """

    completion_id: str
    text: str
    place: int
    cached_id: int | None
    token_id: int | None
    token: str
    cached: float | None
    again: float | None

    def __str__(self) -> str:
        told = f"completion {self.completion_id} ({self.text!r}), token {self.place}"
        if self.cached is None or self.again is None:
            ids = ["none" if one is None else str(one) for one in (self.cached_id, self.token_id)]
            return f"{told}: id {ids[0]} cached, {ids[1]} in the text"
        token = repr(self.token) if self.token else "end of turn"
        return (
            f"{told} (id {self.token_id}, {token}): {_value(self.cached)} cached, {_value(self.again)} computed again"
        )


@dataclass(frozen=True)
class Drift:
    """One reference's cached log-probs against the same computed again by plain transformers.

    Attributes:
        reference, cache: the reference's name and its folder or URL.
        dtype, quantization: of the numbers, by the manifest.
        served: completions of the pairs that the cache serves, of which ``figures.completions`` were compared.
        shortest, longest: tokens of the shortest and the longest completion compared.
        figures: |differences| in nats.
        limits: what they were held against.
        other_ids, other_prompts: completions whose token ids, or number of prompt tokens, are not those of the text.
        worst: None where nothing was compared.
        reasons: guesses at a fault, most telling first; empty where there is none, or nothing to tell it by.
        scored_by: what the manifest records of the engine, versions and machine that began the cache.
        computed_by: engine, versions, device, dtype.
        time: when, ISO 8601.
        fingerprint_hash: of the manifest.
    """

    reference: str
    cache: str
    dtype: str
    quantization: str
    served: int
    shortest: int
    longest: int
    figures: Figures
    limits: Limits
    other_ids: int
    other_prompts: int
    worst: Worst | None
    reasons: list[str]
    scored_by: dict[str, Any]
    computed_by: dict[str, Any]
    time: str
    fingerprint_hash: str

    @property
    def passed(self) -> bool:
        within = self.figures.token_max <= self.limits.token_max and self.figures.token_mean <= self.limits.token_mean
        return within and not self.other_ids and not self.other_prompts

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "passed": self.passed}

    def summary(self) -> str:
        """A block of lines for a person."""
        found, limits = self.figures, self.limits
        lines = [
            f"{self.reference}: {found.completions:,} of {self.served:,} completions computed again ({self.shortest:,} to "
            f"{self.longest:,} tokens, {found.tokens:,} in all; {self._made_in()}): "
            + ("they agree" if self.passed else "THEY DIFFER"),
            f"  |difference| a token       mean {found.token_mean:.1e} (limit {limits.token_mean:g}), 99th percentile "
            f"{found.token_p99:.1e}, maximum {found.token_max:.1e} nats (limit {limits.token_max:g})",
            f"  |difference| a completion  mean {found.sum_mean:.1e}, maximum {found.sum_max:.1e} nats",
        ]
        if self.other_ids or self.other_prompts:
            lines.append(
                f"  other token ids in {self.other_ids:,} completions, another number of prompt tokens in {self.other_prompts:,}"
            )
        if self.worst is not None:
            lines.append(f"  worst: {self.worst}")
        lines += [f"  likely: {reason}" for reason in self.reasons]
        lines.append(f"  scored by {_by(self.scored_by)}; computed again by {_by(self.computed_by)}")
        return "\n".join(lines)

    def failure(self) -> str | None:
        """What to tell the user where the numbers do not pass; None where they do."""
        if self.passed:
            return None
        found, limits = self.figures, self.limits
        parts = []
        other = [
            f"{count:,} have {what}"
            for count, what in (
                (self.other_ids, "other token ids"),
                (self.other_prompts, "another number of prompt tokens"),
            )
            if count
        ]
        if other:
            parts.append(
                f"of {found.completions:,} completions {' and '.join(other)} than their text has by this reference"
            )
        if found.token_max > limits.token_max or found.token_mean > limits.token_mean:
            parts.append(
                f"over {found.completions:,} completions the log-probs differ by {found.token_mean:.2g} nats a token on average "
                f"and {found.token_max:.2g} at most, expected {limits.token_mean:g} and {limits.token_max:g} in {self._made_in()}"
            )
        worst = f" The worst: {self.worst}." if self.worst is not None else ""
        likely = f" Likely: {'; '.join(self.reasons)}." if self.reasons else ""
        root = shlex.quote(self.cache.removesuffix(self.reference).rstrip("/"))
        return (
            f"The cached numbers of reference {self.reference} are not those that transformers computes from what the manifest "
            f"names: {'; '.join(parts)}.{worst}{likely} The cache was not changed. Mend the cause, delete these numbers (`mrpo "
            f"cache prune --cache {root} --reference {self.reference} --all`) and score again (`mrpo score-refs`)."
        )

    def _made_in(self) -> str:
        return self.dtype if self.quantization == "none" else f"{self.dtype}, {self.quantization}"


def beginning(text: str) -> str:
    """The first characters of a text, marked where it goes on."""
    return text if len(text) <= TEXT_CHARACTERS else text[:TEXT_CHARACTERS] + "…"


def _by(recorded: dict[str, Any]) -> str:
    versions = recorded.get("versions")
    named = ", ".join(f"{name} {value}" for name, value in versions.items()) if isinstance(versions, dict) else ""
    where = recorded.get("device") or recorded.get("machine")
    return f"{recorded.get('engine', 'an unknown engine')}{f' ({named})' if named else ''}{f' on {where}' if where else ''}"


def _value(logp: float) -> str:
    """A log-prob to the last digit that float32 tells; what is no log-prob as it is."""
    return f"{logp:.6f}" if 1e-3 < abs(logp) < 1e4 else f"{logp:.3g}"
