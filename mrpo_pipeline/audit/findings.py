"""What a finding is, and what it rests on."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from mrpo_pipeline.audit.origin import Origin
from mrpo_pipeline.audit.patterns import Patterns

BROKEN, SUSPECT = "broken", "suspect"

# Fewer are too few for what is true on average: one prompt says nothing of how a model reads prompts.
ENOUGH_COMPLETIONS, ENOUGH_PROMPTS, ENOUGH_TOKENS = 20, 20, 400
# A share of rows that stand otherwise than their text: from here on it is a fault and no odd row.
SOME, MOST = 0.05, 0.5


@dataclass(frozen=True)
class Finding:
    """A reference that looks broken.

    Attributes:
        reference: its name.
        fault: ``padding``, ``template``, ``tokenizer``, ``bos``, ``shuffled``, ``rounding``, ``copy``, ``constant``,
            ``zeros`` or ``unknown``.
        sentence: what was seen, what it suggests and what to do.
        severity: ``broken`` (no sound model gives such numbers) or ``suspect``.
    """

    reference: str
    fault: str
    sentence: str
    severity: str = BROKEN

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Evidence:
    """What is known of one reference."""

    name: str
    patterns: Patterns
    origin: Origin

    @property
    def enough(self) -> bool:
        """Whether there is enough to tell faults by the numbers."""
        return (
            self.patterns.completions >= ENOUGH_COMPLETIONS
            and self.patterns.prompts >= ENOUGH_PROMPTS
            and self.patterns.tokens >= ENOUGH_TOKENS
        )


def again(name: str, *, capital: bool = True) -> str:
    """What to do about numbers that look wrong."""
    start = "Compute" if capital else "compute"
    return (
        f"{start} some of them again: `mrpo cache verify RECIPE --check 64 --only {name}`. If they differ, remove them "
        f"(`mrpo cache prune --cache CACHE --reference {name} --all`) and run `mrpo score-refs RECIPE`."
    )
