"""A finding, and the evidence that it is based on."""

from __future__ import annotations

from dataclasses import dataclass

from mrpo_pipeline.audit import thresholds
from mrpo_pipeline.audit.cached_ids_check import Tokenization
from mrpo_pipeline.audit.logprob_stats import LogprobStats

BROKEN, SUSPECT = "broken", "suspect"


@dataclass(frozen=True)
class Finding:
    """A reference that looks broken.

    Attributes:
        reference: its name.
        fault: ``padding``, ``template``, ``tokenizer``, ``bos``, ``shuffled``, ``rounding``, ``copy``, ``constant`` or ``zeros``.
        sentence: the evidence, the likely cause and the fix.
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
        plain: it was rendered with the plain template and has none of its own, like a base model.
        plain_by_choice: it was rendered with the plain template although it has its own.
        thinks_first: its generation prompt opens or closes a block of thinking, so that it expects another first token.
    """

    name: str
    stats: LogprobStats
    tokenization: Tokenization
    plain: bool = False
    plain_by_choice: bool = False
    thinks_first: bool = False

    @property
    def expects_turns(self) -> bool:
        """Whether a sound model would begin and end an answer as these completions do."""
        return not self.plain and not self.thinks_first

    @property
    def is_surprised(self) -> bool:
        """Whether the first token costs significantly more than by the unigram frequencies of the text."""
        return self.stats.first_over_text - 2 * self.stats.first_error > thresholds.SURPRISE

    @property
    def shows_another_template(self) -> bool:
        """Whether the surprise at the first token comes from the template and not from the texts.

        Texts with few beginnings (records, verdicts, refusals) may all be unexpected to a sound model. Where each prompt has the
        token count of the reference's own template, the end of turn has to be unexpected as well.
        """
        if not (self.is_surprised and self.expects_turns and self.stats.rest_over_unigram < 0):
            return False
        if not self.stats.first_variety >= thresholds.FIRST_VARIETY:
            return False
        own = self.tokenization
        confirmed = own.different_prompts == 0 and not own.foreign_prompts > thresholds.MOST
        return not confirmed or self._ends_late(thresholds.VERY_LATE_NATS, thresholds.VERY_LATE_TIMES)

    @property
    def ends_late(self) -> bool:
        """Whether the end-of-turn token is far less expected than the text."""
        return self._ends_late(thresholds.LATE_NATS, thresholds.LATE_TIMES)

    def _ends_late(self, nats: float, times: float) -> bool:
        return self.stats.last > nats and self.stats.last > times * self.stats.rest

    @property
    def enough(self) -> bool:
        """Whether the sample is large enough for checks by log-probs."""
        return (
            self.stats.completions >= thresholds.MIN_COMPLETIONS
            and self.stats.prompts >= thresholds.MIN_PROMPTS
            and self.stats.tokens >= thresholds.MIN_TOKENS
        )

    def finding(self, fault: str, sentence: str, *, severity: str = BROKEN, fix: str | None = None) -> Finding:
        """A finding of this reference; the fix by default is to recompute."""
        return Finding(self.name, fault, f"{sentence} {recompute(self.name) if fix is None else fix}", severity)


def recompute(name: str) -> str:
    """What to do about suspicious log-probs."""
    return (
        f"Recompute some (`mrpo cache verify RECIPE --check 64 --only {name}`); if they differ, delete all (`mrpo cache prune --cache "
        f"CACHE --reference {name} --all`) and run `mrpo score-refs RECIPE`."
    )
