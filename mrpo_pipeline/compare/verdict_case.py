"""The verdict, and the comparisons of one metric that it is made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from mrpo_pipeline.compare.comparisons import SEVERAL, Compared
from mrpo_pipeline.compare.methods import Contender
from mrpo_pipeline.evaluation.intervals import Known

# Means over the same pairs and seeds that differ by less are equal: it is rounding.
LEVEL_WITHIN = 1e-9

BETTER, NONE, WORSE, ONE_SEED = "better", "none", "worse", "one seed"


@dataclass
class Verdict:
    """``kind``: better, none, worse, or one seed. ``drop``: references without which the method does better."""

    sentence: str
    kind: str
    method: str | None = None
    against: str | None = None
    drop: list[str] = field(default_factory=list)
    sentences: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def text(self) -> str:
        return "\n".join([self.sentence, *self.sentences])


class Case:
    """The comparisons of one metric, by method."""

    def __init__(
        self,
        contenders: dict[str, Contender],
        compared: list[Compared],
        shares: Mapping[str, Mapping[str, Known]],
        metric: str,
    ) -> None:
        self.contenders, self.compared, self.metric = contenders, compared, metric
        self.mean = {name: shares[name][metric].mean for name in contenders}
        self.free = [x.name for x in contenders.values() if x.reference_free]
        self.several = [x.name for x in contenders.values() if x.several and x.without is None]
        self.singles = [x.name for x in contenders.values() if x.baseline]

    def best(self, names: Sequence[str]) -> str:
        return max(names, key=lambda name: self.mean[name])

    def of(self, method: str, question: str) -> dict[str, Compared]:
        return {x.against: x for x in self.compared if x.method == method and x.question == question}

    def subject(self) -> str:
        """The method with several references that the verdict is about: MRPO, else the best one."""
        own = [name for name in self.several if self.contenders[name].method.name == "mrpo"]
        return "mrpo" if "mrpo" in own else self.best(own or self.several)

    def winners(self) -> list[str]:
        """The methods with several references that are better than every single one."""
        return [name for name in self.several if all(x.better for x in self.of(name, SEVERAL).values())]

    def level(self, name: str) -> list[str]:
        """The single references with the same mean as this one, including itself."""
        return [other for other in self.singles if abs(self.mean[other] - self.mean[name]) < LEVEL_WITHIN]

    def is_level(self, name: str) -> bool:
        return len(self.level(name)) > 1

    def best_single(self, name: str) -> str:
        """How a sentence names the best single reference: together with those that are level with it."""
        if not self.is_level(name):
            return f"the best single reference ({self.single(name)})"
        names = [self.single(other) for other in self.level(name)]
        return f"the single references {', '.join(names[:-1])} and {names[-1]}, which are level"

    def single(self, name: str) -> str:
        """How a sentence names the reference of DPO against a single one."""
        return str(self.contenders[name].single)

    def called(self, name: str) -> str:
        """How a sentence names a method."""
        return f"DPO against {self.single(name)}" if name in self.singles else name
