"""What a finding is, and what it rests on."""

from __future__ import annotations

from dataclasses import dataclass

from mrpo_pipeline.audit import thresholds
from mrpo_pipeline.audit.logprob_stats import Patterns
from mrpo_pipeline.audit.tokenization import Origin

BROKEN, SUSPECT = "broken", "suspect"


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
        return self.patterns.first_over_text - 2 * self.patterns.first_error > thresholds.SURPRISE

    @property
    def shows_another_template(self) -> bool:
        """Whether the surprise at the first token is the template's and not the texts' own.

        Texts that begin in few ways (records, verdicts, refusals) may be strange to a sound model, all alike. Where each prompt
        has the very number of tokens that the reference's own template gives, another template is unlikely: then the other end
        has to be strange as well.
        """
        if not (self.is_surprised and self.reads_turns and self.patterns.rest_over_table < 0):
            return False
        if not self.patterns.first_kinds >= thresholds.KINDS:
            return False
        confirmed = self.origin.other_prompts == 0 and not self.origin.not_own_prompts > thresholds.MOST
        return not confirmed or self._ends_later_than(thresholds.VERY_LATE, thresholds.VERY_LATE_TIMES)

    @property
    def ends_late(self) -> bool:
        """Whether the end-of-turn token is far stranger to it than the text."""
        return self._ends_later_than(thresholds.LATE, thresholds.LATE_TIMES)

    def _ends_later_than(self, nats: float, times: float) -> bool:
        return self.patterns.last > nats and self.patterns.last > times * self.patterns.rest

    @property
    def enough(self) -> bool:
        """Whether there is enough to tell faults by the numbers."""
        return (
            self.patterns.completions >= thresholds.ENOUGH_COMPLETIONS
            and self.patterns.prompts >= thresholds.ENOUGH_PROMPTS
            and self.patterns.tokens >= thresholds.ENOUGH_TOKENS
        )


def again(name: str, *, capital: bool = True) -> str:
    """What to do about numbers that look wrong."""
    start = "Compute" if capital else "compute"
    return (
        f"{start} some of them again: `mrpo cache verify RECIPE --check 64 --only {name}`. If they differ, remove them "
        f"(`mrpo cache prune --cache CACHE --reference {name} --all`) and run `mrpo score-refs RECIPE`."
    )
