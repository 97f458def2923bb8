"""Which methods are compared: those of the recipe, DPO against each single reference, and what a sweep or leaving out adds."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.recipe import Method, Recipe, method_for

START = "start"

# What a loss against one reference does not read.
_OF_SEVERAL = ("name", "weights", "weights_options", "trust_region", "compatibility")


@dataclass(frozen=True)
class Contender:
    """A method under its name in the comparison, which is also its folder's.

    Attributes:
        without: the reference that is left out of the recipe's.
        settings: what a sweep set in it, by name.
    """

    name: str
    method: Method
    references: tuple[str, ...]
    without: str | None = None
    settings: Mapping[str, float] = field(default_factory=dict)

    @property
    def single(self) -> str | None:
        """The one reference that it trains against; None where there are several."""
        if len(self.references) == 1:
            return self.references[0]
        if self.method.name == "dpo":
            return self.references[0]
        if self.method.aggregate.startswith("single:"):
            return self.method.aggregate.removeprefix("single:")
        return None

    @property
    def baseline(self) -> bool:
        """Whether it is DPO against a single reference."""
        return self.single is not None

    def reads(self) -> str:
        """What its loss reads of its settings: the same text for two methods that are one."""
        document = self.method.model_dump(mode="json")
        if self.single is not None:
            for key in _OF_SEVERAL:
                document.pop(key, None)
            document["aggregate"] = f"single:{self.single}"
        elif self.method.name == "multi-dpo":
            document.pop("aggregate")
        return json.dumps(document, sort_keys=True)


def contenders(recipe: Recipe) -> list[Contender]:
    """Every method that the recipe's comparison trains, DPO against each reference first where the recipe does not list it.

    Where the recipe lists no methods, Multi-DPO and the recipe's own stand beside DPO against each reference.

    Raises:
        UserError: for a name that cannot be a folder, or a sweep that changes nothing.
    """
    names = tuple(recipe.references)
    listed = [Contender(name, method_for(recipe, name), names) for name in recipe.compare.methods]
    if not listed and len(names) > 1:
        multi = {"name": "multi-dpo", "aggregate": "harmonic"}
        listed = [Contender("multi-dpo", _changed(recipe.method, multi), names), *_own(recipe, names)]
    known = {one.reads() for one in listed}
    added = [one for one in _singles(recipe, names, {one.name for one in listed}) if one.reads() not in known]
    found = [*added, *listed]
    if recipe.compare.leave_one_out:
        found += _left_out(recipe, names, found)
    for one in found:
        _check_name(one.name)
    return found


def _own(recipe: Recipe, names: tuple[str, ...]) -> list[Contender]:
    """The recipe's method, under a name that says what it is; none where it is one of the others."""
    own = Contender(recipe.method.name, recipe.method, names)
    return [] if own.baseline or own.name == "multi-dpo" else [own]


def _singles(recipe: Recipe, names: tuple[str, ...], taken: set[str]) -> list[Contender]:
    """DPO against each reference, with the loss of the recipe's method."""
    found = []
    for name in names:
        title = f"dpo-{name}"
        if title in taken:
            title += "-alone"
        method = _changed(recipe.method, {"name": "mrpo", "aggregate": f"single:{name}", "compatibility": "none"})
        found.append(Contender(title, method, names))
    return found


def _left_out(recipe: Recipe, names: tuple[str, ...], found: list[Contender]) -> list[Contender]:
    """The recipe's method without each reference but the anchor, which the trust region and ``accuracy/anchor`` need.

    Of two references none needs it: DPO against the other one is what is left.
    """
    own = Contender(recipe.method.name, recipe.method, names)
    if len(names) < 3 or own.baseline:
        return []
    title = next((one.name for one in found if one.reads() == own.reads()), own.name)
    if isinstance(recipe.method.weights, list):
        raise UserError(
            "compare.leave_one_out is on and method.weights are numbers, one for each reference: what the others get without "
            "one of them is not said. Expected weights by name (uniform, adaptive, …). Change method.weights, or switch it off."
        )
    return [
        Contender(f"{title}-without-{name}", recipe.method, tuple(x for x in names if x != name), name)
        for name in names[1:]
    ]


def settings_of(recipe: Recipe, one: Contender) -> list[Contender]:
    """The contender at every point of the recipe's sweep; itself alone where none of the swept settings touches it."""
    sweep = recipe.compare.sweep
    axes = {name: values for name, values in sweep.model_dump().items() if values}
    if one.baseline:
        axes = {name: values for name, values in axes.items() if name == "beta"}
    found: dict[str, Contender] = {}
    for values in itertools.product(*axes.values()):
        point = dict(zip(axes, values, strict=True))
        told = "-".join(f"{name}-{value:g}" for name, value in point.items())
        there = Contender(
            f"{one.name}-{told}" if told else one.name, _at(one.method, point), one.references, one.without, point
        )
        found.setdefault(there.reads(), there)
    return list(found.values())


def _at(method: Method, point: Mapping[str, float]) -> Method:
    changes: dict[str, Any] = {}
    if "beta" in point:
        changes["beta"] = point["beta"]
    if "epsilon" in point:
        changes["trust_region"] = {**method.trust_region.model_dump(), "epsilon": point["epsilon"]}
    if "temperature" in point:
        changes["weights_options"] = {**method.weights_options.model_dump(), "temperature": point["temperature"]}
    return _changed(method, changes)


def _changed(method: Method, changes: Mapping[str, Any]) -> Method:
    return Method.model_validate({**method.model_dump(mode="json"), **changes})


def _check_name(name: str) -> None:
    taken = name in ("", ".", "..", START, "plots", "sweep")
    if taken or len(name) > 100 or not name.isprintable() or "/" in name or "\\" in name or name.startswith("."):
        raise UserError(
            f"A method of the comparison is named {name[:80]!r}: expected at most 100 printable characters that can be a folder "
            f"beside {START!r} and 'plots', such as mrpo-uniform. Rename it under compare.methods."
        )
