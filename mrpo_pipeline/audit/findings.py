"""What a finding is, and what it rests on."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from mrpo_pipeline.audit.logprob_stats import Patterns
from mrpo_pipeline.audit.tokenization import Origin

BROKEN, SUSPECT = "broken", "suspect"

# Fewer are too few for what is true on average: one prompt says nothing of how a model reads prompts.
ENOUGH_COMPLETIONS, ENOUGH_PROMPTS, ENOUGH_TOKENS = 20, 20, 400
# A share of rows that stand otherwise than their text: from here on it is a fault and no odd row.
SOME, MOST = 0.05, 0.5
# Nats by which the first token's cost exceeds that of a table: a sound model that reads another language than its own pays 0.5
# (SmolLM2-135M-Instruct, Chinese), one behind another model's template 1 to 5.
SURPRISE = 0.9
# Beginnings, in effect, below which a surprise at the first token may be the texts' own: records all begin with the same brace.
KINDS = 4


@dataclass(frozen=True)
class Finding:
    """A reference that looks broken.

    Attributes:
        reference: its name.
        fault: ``padding``, ``template``, ``tokenizer``, ``bos``, ``shuffled``, ``rounding``, ``copy``, ``constant``
            or ``zeros``.
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
    """What is known of one reference.

    Attributes:
        plain: its manifest says that it was read by the plain template: it has none of its own, as a base model.
        plain_by_choice: it was read by the plain template although it has one of its own.
        thinks_first: its template's generation prompt is not what stands before an answer (an opened or an empty block of
            thinking), so that the model expects another first token than the answer's.
    """

    name: str
    patterns: Patterns
    origin: Origin
    plain: bool = False
    plain_by_choice: bool = False
    thinks_first: bool = False

    @property
    def reads_turns(self) -> bool:
        """Whether a sound model would begin and end an answer where these completions do: then numbers at their ends show another
        model's template."""
        return not self.plain and not self.thinks_first

    @property
    def is_surprised(self) -> bool:
        """Whether the first token costs more than a table of the text's tokens would have it, by more than chance."""
        return self.patterns.first_over_text - 2 * self.patterns.first_error > SURPRISE

    @property
    def shows_another_template(self) -> bool:
        """Whether the surprise at the first token is the template's and not the texts' own.

        Texts that begin in few ways (records, verdicts, refusals) may be strange to a sound model, all alike. Where each prompt
        has the very number of tokens that the reference's own template gives, another template is unlikely: then the other end
        has to be strange as well.
        """
        if not (self.is_surprised and self.reads_turns and self.patterns.rest_over_table < 0):
            return False
        if not self.patterns.first_kinds >= KINDS:
            return False
        confirmed = self.origin.other_prompts == 0 and not self.origin.not_own_prompts > MOST
        return not confirmed or (self.patterns.last > 8 and self.patterns.last > 2 * self.patterns.rest)

    @property
    def ends_late(self) -> bool:
        """Whether the end-of-turn token is far stranger to it than the text."""
        return self.patterns.last > 4 and self.patterns.last > 3 * self.patterns.rest

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
