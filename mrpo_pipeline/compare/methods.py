"""The methods to compare: those of the recipe, DPO against each single reference, SimPO without references, and variants: the settings
of a sweep, leaving out one reference, training on selected pairs."""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from mrpo_pipeline.dataset.loss_compatibility import check_losses
from mrpo_pipeline.errors import UserError
from mrpo_pipeline.recipe import Method, Recipe, method_for

log = logging.getLogger("mrpo")

START = "start"

# The baseline without references: SimPO with usual settings (arXiv 2405.14734).
SIMPO = Method(reference="none", loss="simpo", beta=2.0, simpo_gamma=1.0, normalize="token")

# Settings without effect on a single reference.
_OF_SEVERAL = ("name", "weights", "weights_options", "trust_region", "compatibility")


@dataclass(frozen=True)
class Contender:
    """A method and its name in the comparison, which is also its folder's name.

    Attributes:
        without: the reference that is left out.
        settings: the settings that a sweep changed.
        whole: if it is trained on selected pairs only, the name of the same method trained on all pairs.
        pairs: number of training pairs; 0 before they are read.
    """

    name: str
    method: Method
    references: tuple[str, ...]
    without: str | None = None
    settings: Mapping[str, float] = field(default_factory=dict)
    whole: str | None = None
    pairs: int = 0

    @property
    def single(self) -> str | None:
        """The reference of a method with a single one; None with several or none."""
        if self.reference_free:
            return None
        if len(self.references) == 1:
            return self.references[0]
        if self.method.name == "dpo":
            return self.references[0]
        if self.method.aggregate.startswith("single:"):
            return self.method.aggregate.removeprefix("single:")
        return None

    @property
    def baseline(self) -> bool:
        """Whether it is DPO against a single reference, on all pairs."""
        return self.single is not None and self.whole is None

    @property
    def several(self) -> bool:
        """Whether it trains against several references on all pairs, possibly without one of the recipe's."""
        return self.single is None and not self.reference_free and self.whole is None

    @property
    def reference_free(self) -> bool:
        """Whether it trains without references."""
        return not self.method.has_reference

    def reads(self) -> str:
        """The settings that affect its loss, as JSON: equal for equivalent methods."""
        document = self.method.model_dump(mode="json")
        if self.single is not None or self.reference_free:
            for key in _OF_SEVERAL:
                document.pop(key, None)
            document["aggregate"] = f"single:{self.single}"
        elif self.method.name == "multi-dpo":
            document.pop("aggregate")
        if self.method.by_column(self.references) is not None and self.method.is_one_hot:
            document.pop("aggregate", None)
        if not self.method.mixes_spans(self.references):
            document.pop("aggregate_over")
        return json.dumps(document, sort_keys=True)


def contenders(recipe: Recipe) -> list[Contender]:
    """All methods to train: DPO against each reference, SimPO, the methods that the recipe lists, and their variants.

    A baseline that the recipe lists itself is not added; a listed method without references takes the place of SimPO. If the recipe
    lists no methods, Multi-DPO and the recipe's own method are added.

    Raises:
        UserError: for a name that cannot be a folder, or a sweep that changes nothing.
    """
    names = tuple(recipe.references)
    listed = [_listed(recipe, name, names) for name in recipe.compare.methods]
    if not listed and len(names) > 1:
        multi = {"name": "multi-dpo", "aggregate": "harmonic"}
        listed = [*_fitting(Contender("multi-dpo", _changed(recipe.method, multi), names)), *_own(recipe, names)]
    known = {one.reads() for one in listed}
    added = [one for one in _singles(recipe, names, {one.name for one in listed}) if one.reads() not in known]
    found = [*added, *_free(listed), *listed]
    if recipe.compare.leave_one_out:
        found += _left_out(recipe, names, found)
    if recipe.compare.selection is not None:
        found.append(_selected(recipe, names, found))
    for one in found:
        _check_name(one.name)
    return found


def _listed(recipe: Recipe, name: str, names: tuple[str, ...]) -> Contender:
    method = method_for(recipe, name)
    return Contender(name, method, names if method.has_reference else ())


def _free(listed: list[Contender]) -> list[Contender]:
    """Training without references, unless a listed method does that."""
    if any(one.reference_free for one in listed):
        return []
    return [Contender("simpo" if all(one.name != "simpo" for one in listed) else "simpo-alone", SIMPO, ())]


def _fitting(one: Contender) -> list[Contender]:
    """The method if its loss supports it, else nothing: a method that was added automatically must not stop the comparison."""
    try:
        check_losses(one.method, one.references)
    except UserError as error:
        log.info("%s is not among the methods: %s", one.name, error)
        return []
    return [one]


def _own(recipe: Recipe, names: tuple[str, ...]) -> list[Contender]:
    """The recipe's method, named by its type; empty if it equals one of the others."""
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
    """The recipe's method without each reference except the anchor, which the trust region and ``accuracy/anchor`` need.

    Empty for two references, where only DPO against the anchor would be left.
    """
    own = Contender(recipe.method.name, recipe.method, names)
    if len(names) < 3 or own.baseline:
        return []
    title = next((one.name for one in found if one.reads() == own.reads()), own.name)
    if not isinstance(recipe.method.weights, str):
        raise UserError(
            "compare.leave_one_out is on and method.weights lists every reference (as numbers or by a column), which leaves the weights "
            "without one of them undefined. Expected weights by name (uniform, adaptive, …). Change method.weights, or switch it off."
        )
    return [
        Contender(f"{title}-without-{name}", recipe.method, tuple(x for x in names if x != name), name)
        for name in names[1:]
    ]


def _selected(recipe: Recipe, names: tuple[str, ...], found: list[Contender]) -> Contender:
    """The recipe's method, trained on the selected pairs only."""
    own = Contender(recipe.method.name, recipe.method, names)
    whole = next((one for one in found if one.without is None and one.reads() == own.reads()), None)
    if whole is None:
        raise UserError(
            f"compare.selection (--selection) is {recipe.compare.selection}: it compares the recipe's method on these pairs with the "
            "same on all pairs, and compare.methods do not list it. Expected a method without changes. Add one, such as `own: {}`."
        )
    return replace(whole, name=f"{whole.name}-selected", whole=whole.name)


def settings_of(recipe: Recipe, one: Contender) -> list[Contender]:
    """The contender at every point of the sweep; only itself if no swept setting affects it."""
    sweep = recipe.compare.sweep
    axes = {name: values for name, values in sweep.model_dump().items() if values}
    if one.single is not None or one.reference_free:
        axes = {name: values for name, values in axes.items() if name == "beta"}
    if one.method.normalize != recipe.method.normalize:
        axes.pop("beta", None)  # the values are in the unit of the recipe's method
    found: dict[str, Contender] = {}
    for values in itertools.product(*axes.values()):
        point = dict(zip(axes, values, strict=True))
        suffix = "".join(f"-{name}-{value:g}" for name, value in point.items())
        variant = replace(one, name=one.name + suffix, method=_at(one.method, point), settings=point)
        found.setdefault(variant.reads(), variant)
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
