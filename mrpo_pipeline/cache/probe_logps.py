"""A probe: a model's log-probs of fixed texts, which identify it where its weights can't be hashed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

FIELD = "probe"
"""The probe's field in a fingerprint, compared within its tolerance instead of as text."""


@dataclass(frozen=True)
class Probe:
    """Token ids and log-probs (nats) of fixed texts, and the mean difference (nats per token) within which it is the same model."""

    token_ids: Sequence[Sequence[int]]
    logps: Sequence[Sequence[float]]
    tolerance: float

    @classmethod
    def of(cls, token_ids: Iterable[Any], logps: Iterable[Any], tolerance: float) -> Probe:
        """Make a probe from arrays; log-probs are rounded to 1e-5."""
        ids = [[int(one) for one in text] for text in token_ids]
        return cls(ids, [[round(float(one), 5) for one in text] for text in logps], tolerance)

    def text(self) -> str:
        """The value of the fingerprint's field."""
        document = {"token_ids": self.token_ids, "logps": self.logps, "tolerance": self.tolerance}
        return json.dumps(document, separators=(",", ":"))

    @classmethod
    def read(cls, text: str) -> Probe:
        """Parse a probe. Raises ValueError."""
        try:
            document = json.loads(text)
            return cls.of(document["token_ids"], document["logps"], float(document["tolerance"]))
        except (KeyError, TypeError, RecursionError, OverflowError) as error:
            raise ValueError("it is not a probe") from error


def difference(recorded: str, found: str) -> tuple[str, str] | None:
    """The difference of two probes, a text for each; None if they are of the same model by the first one's tolerance."""
    if recorded == found:
        return None
    try:
        first, second = Probe.read(recorded), Probe.read(found)
    except ValueError:
        return "no readable probe", "log-probs of fixed texts"
    if first.token_ids != second.token_ids or [*map(len, first.logps)] != [*map(len, second.logps)]:
        return "log-probs of fixed texts", "those of other token ids"
    far = float(np.abs(np.concatenate([*first.logps]) - np.concatenate([*second.logps])).mean()) if first.logps else 0.0
    if far <= first.tolerance:
        return None
    return (
        "the log-probs that the served model gave fixed texts",
        f"others, {far:.2g} nats a token away on average ({first.tolerance:g} at most are of one model): another model is served now",
    )
