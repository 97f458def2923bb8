"""The verdict and the figures behind it."""

from __future__ import annotations

from dataclasses import dataclass

from mrpo_pipeline.report.formatting import count, listed, one_line, percent, points
from mrpo_pipeline.report.results_folder import Folder
from mrpo_pipeline.report.schema import Difference, Document, MethodResult

_CHIPS = {
    "better": ("better", "A difference is shown"),
    "none": ("none", "No clear difference"),
    "worse": ("worse", "Shown to be worse"),
    "one seed": ("one-seed", "One seed: nothing can be claimed"),
}


@dataclass(frozen=True)
class Tile:
    """One figure that is seen first."""

    title: str
    value: str
    unit: str
    below: str


@dataclass(frozen=True)
class VerdictSection:
    """``tone`` is a class of the style sheet, ``chip`` the verdict in three words."""

    tone: str
    chip: str
    sentence: str
    sentences: list[str]
    drop: str
    tiles: list[Tile]


def verdict_section(folder: Folder) -> VerdictSection:
    """The verdict's sentence, and the figures of the methods that it names."""
    document = folder.document
    verdict = document.verdict
    tone, chip = _CHIPS.get(verdict.kind, ("none", one_line(verdict.kind).capitalize() or "Verdict"))
    sentence = one_line(verdict.sentence) or "The comparison gives no verdict."
    drop = [one_line(name) for name in verdict.drop]
    said = " ".join(one_line(text) for text in verdict.sentences)
    return VerdictSection(
        tone=tone,
        chip=chip,
        sentence=sentence,
        sentences=[one_line(text) for text in verdict.sentences],
        # The verdict's own sentences may have said so.
        drop=f"Not worth having on these pairs: {listed(drop)}."
        if drop and not all(name in said for name in drop)
        else "",
        tiles=_tiles(document),
    )


def _tiles(document: Document) -> list[Tile]:
    found = _main_difference(document)
    several, single = _named(document, found)
    weighed = [("several", several), ("single", single if single != several else None)]
    tiles = [_share(document, method, kind) for kind, method in weighed if method is not None]
    if found is not None and found.difference is not None:
        tiles.append(
            Tile(
                "Difference, in points",
                points(found.difference),
                "",
                f"95% interval {points(found.low)} to {points(found.high)}" if found.low is not None else "no interval",
            )
        )
    if document.held_out:
        seeds = len(document.seeds)
        start = document.start.get(document.verdict_metric)
        below = f"{seeds} seed{'' if seeds == 1 else 's'} each"
        if start is not None and document.verdict_metric != "accuracy/anchor":
            below += f"; {percent(start)} % before training"
        tiles.append(Tile("Held-out pairs", count(document.held_out), "", below))
    return tiles


def _share(document: Document, method: MethodResult, kind: str) -> Tile:
    figures = method.metrics[document.verdict_metric]
    title = one_line(method.name) + (", a single reference" if kind == "single" and method.baseline else "")
    says = "moved to the chosen side" if document.verdict_metric == "accuracy/anchor" else "prefers the chosen side"
    span = f" · {percent(figures.low)} to {percent(figures.high)}" if figures.low is not None else ""
    return Tile(title, percent(figures.mean), "%", f"{says}{span}")


def _main_difference(document: Document) -> Difference | None:
    verdict = document.verdict
    for found in document.comparisons:
        if found.metric == document.verdict_metric and (found.method, found.against) == (
            verdict.method,
            verdict.against,
        ):
            return found
    return None


def _named(document: Document, found: Difference | None) -> tuple[MethodResult | None, MethodResult | None]:
    """The two methods that the verdict weighs; where it names none, the best of several references and of single ones."""
    measured = [
        method
        for method in document.methods
        if method.metrics.get(document.verdict_metric) and method.metrics[document.verdict_metric].mean is not None
    ]
    by_name = {method.name: method for method in measured}

    def best(baseline: bool) -> MethodResult | None:
        own = [method for method in measured if method.baseline is baseline]
        return max(own, key=lambda method: method.metrics[document.verdict_metric].mean or 0.0) if own else None

    if found is not None:
        return by_name.get(found.method), by_name.get(found.against)
    named = by_name.get(document.verdict.method or "")
    return (named or best(False)), (by_name.get(document.verdict.against or "") or best(True))
