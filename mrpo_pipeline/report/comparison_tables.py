"""The tables of the page as data, from ``comparison.json`` and the recipe."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mrpo_pipeline.report import palette
from mrpo_pipeline.report.comparison_schema import Difference, Estimate
from mrpo_pipeline.report.formatting import (
    before_training,
    count,
    fixed,
    listed,
    number,
    p_value,
    percent,
    points,
    real,
)
from mrpo_pipeline.report.results_folder import Folder

COMPARABLE = ("accuracy/policy", "accuracy/policy_per_token", "accuracy/anchor")
_LABELS = {
    "accuracy/policy": "Prefers chosen",
    "accuracy/policy_per_token": "Prefers chosen, per token",
    "accuracy/anchor": "Moved to chosen",
    "rewards/accuracies": "Reward higher on chosen",
    "rewards/margins": "Reward margin",
    "loss": "Loss",
}


@dataclass(frozen=True)
class Cell:
    """One cell: text, small text below it, its CSS classes, and the CSS variable of its method's or reference's colour."""

    text: str
    below: str = ""
    kind: str = ""
    colour: str = ""


Row = Sequence[Cell | str]
Columns = Sequence[str | tuple[str, str]]


@dataclass(frozen=True)
class Table:
    """``columns``: a title, or (title, unit) for a column of numbers. The first cell of a row is its header."""

    title: str
    columns: Columns
    rows: Sequence[Row]


class Names:
    """Cells with the names and colours of methods and references; marks of baselines are hollow."""

    def __init__(self, folder: Folder) -> None:
        self.hollow = {method.name for method in folder.document.methods if method.hollow}
        self.methods = palette.styles(folder.names, palette.METHODS)
        self.references = palette.styles(folder.references, palette.REFERENCES)

    def method(self, name: str) -> Cell:
        style = self.methods.get(name)
        return Cell(
            before_training(name),
            kind="hollow" if name in self.hollow else "",
            colour=style.colour.name if style else "",
        )

    def reference(self, name: str) -> Cell:
        return Cell(name, colour=self.references[name].colour.name)


def methods_table(folder: Folder) -> Table:
    """The description of each method."""
    names = Names(folder)
    rows: list[Row] = []
    for method in folder.document.methods:
        notes = [f"also: {listed(method.also)}"] if method.also else []
        if method.swept:
            notes.append("by the sweep: " + ", ".join(f"{key} {value}" for key, value in method.swept.items()))
        rows.append([names.method(method.name), Cell(method.describes or "–", "; ".join(notes), "words")])
    return Table("Methods", ["Method", "Description"], rows)


def references_table(folder: Folder) -> Table:
    """Each reference of the recipe with its model."""
    names = Names(folder)
    rows: list[Row] = []
    given = folder.recipe.get("references")
    for name, settings in given.items() if isinstance(given, dict) else ():
        own = settings if isinstance(settings, dict) else {}
        notes = [] if rows else ["the anchor: where the policy starts"]
        notes += [
            f"{key} {own[key]}"
            for key in ("revision", "adapter", "quantization", "tokenizer", "template", "dtype")
            if own.get(key) not in (None, "auto")
        ]
        model = Cell(str(own.get("model", "–")), kind="words")
        rows.append([names.reference(str(name)), model, Cell(", ".join(notes) or "–", kind="words")])
    return Table("References", ["Reference", "Model", "Settings"], rows)


def pairs_table(folder: Folder) -> tuple[Table, list[str]]:
    """Pairs read, used and dropped by split, and a note with the other counts of each split."""
    rows, notes = list[Row](), list[str]()
    for split, counts in folder.document.pairs.items():
        lost = sum(counts.dropped.values())
        reasons = "; ".join(f"{reason}: {count(value)}" for reason, value in counts.dropped.items() if value)
        rows.append([split, *map(count, (counts.read, counts.used, lost)), Cell(reasons or "–", kind="words")])
        if counts.read != counts.used + lost:
            notes.append(f"{split}: the counts do not add up ({counts}).")
        others = [f"rows skipped ({reason}) {count(value)}" for reason, value in counts.skipped_rows.items()]
        others += [f"pairs with a cut prompt {count(counts.cut_prompts)}"] if counts.cut_prompts else []
        others += [f"completions cut {count(counts.cut_completions)}"] if counts.cut_completions else []
        if others:
            notes.append(f"{split}: {', '.join(others)}.")
    columns: Columns = ["Split", ("Pairs read", ""), ("Used", ""), ("Dropped", ""), "Reasons"]
    return Table("Pairs", columns, rows), notes


def results_table(folder: Folder) -> Table:
    """The metrics that are comparable across methods, and the drift; the verdict's method is bold if it shows a difference."""
    names = Names(folder)
    document = folder.document
    keys = [key for key in _metrics(folder) if key in COMPARABLE]
    sides = [
        side
        for side in ("chosen", "rejected")
        if any(x.mean(f"drift/{side}_per_token") is not None for x in document.methods)
    ]
    shown = {"better": document.verdict.method, "worse": document.verdict.against}.get(document.verdict.kind)
    rows: list[Row] = []
    if any(document.start.get(key) is not None for key in keys):
        # Before training all pairs tie by definition.
        shares = ["–" if key == "accuracy/anchor" else percent(document.start.get(key)) for key in keys]
        start = {name: Estimate(mean=value) for name, value in document.start.items() if name.startswith("drift/")}
        drift = [_drift(start, side) for side in sides]
        rows.append([Cell(before_training("start"), kind="start"), *shares, *drift, "–"])
    for method in document.methods:
        best = document.verdict_metric if method.name == shown else ""
        cells = [_estimate(method.metrics.get(key), key, "best" if key == best else "") for key in keys]
        cells += [_drift(method.metrics, side) for side in sides]
        seconds = known(method.train_seconds)
        rows.append([names.method(method.name), *cells, f"{np.mean(seconds):,.1f} s" if seconds else "–"])
    drifts = ((f"Drift, {side}", "nats a token") for side in sides)
    columns: Columns = ["Method", *((_label(folder, key), "%") for key in keys), *drifts, ("Training", "mean")]
    return Table("Methods and their metrics", columns, rows)


def own_metrics_table(folder: Folder) -> Table:
    """The metrics against each method's own target."""
    names = Names(folder)
    keys = [key for key in _metrics(folder) if key not in COMPARABLE and not key.startswith("drift/")]
    rows: list[Row] = [
        [names.method(method.name), *(_estimate(method.metrics.get(key), key) for key in keys)]
        for method in folder.document.methods
    ]
    columns: Columns = ["Method", *((_label(folder, key), "%" if "accurac" in key else "") for key in keys)]
    return Table("Metrics of each method against its own target", columns, rows if keys else [])


def difference_tables(folder: Folder) -> list[Table]:
    """A table for each question and metric, the verdict's first."""
    document, names = folder.document, Names(folder)
    questions = list(dict.fromkeys(one.question for one in document.comparisons))
    metrics = sorted(
        dict.fromkeys(one.metric for one in document.comparisons), key=lambda key: key != document.verdict_metric
    )
    columns: Columns = [
        "Method", "Against", ("Difference", "points"), ("95% interval", ""), ("p", "corrected"), ("p", "alone"),
        ("More pairs to see 1 point", ""),
    ]  # fmt: skip
    tables = []
    for question, metric in itertools.product(questions, metrics):
        rows: list[Row] = [
            [
                names.method(one.method),
                Cell(before_training(one.against)),
                Cell(points(one.difference), kind=_tone(one)),
                f"{points(one.low)} to {points(one.high)}" if one.low is not None else "–",
                p_value(one.p_corrected),
                p_value(one.p),
                "enough" if one.pairs_needed == 0 else count(one.pairs_needed),
            ]
            for one in document.comparisons
            if (one.metric, one.question) == (metric, question)
        ]
        label = _label(folder, metric)
        title = f"{question[:1].upper()}{question[1:]}: {label.lower()}" if question else label
        tables += [Table(title, columns, rows)] if rows else []
    return tables


def sweep_table(folder: Folder) -> Table:
    """The settings that a sweep tried, with their results on the third split."""
    names = Names(folder)
    metric, rows = folder.document.verdict_metric, list[Row]()
    for tried in folder.document.sweep:
        settings = tried.get("settings")
        text = ", ".join(f"{key} {value}" for key, value in settings.items()) if isinstance(settings, dict) else ""
        share = Cell(percent(real(tried.get(metric))), kind="best" if tried.get("chosen") else "")
        name = names.method(str(tried.get("method")))
        rows.append([name, text or "as in the recipe", share, "chosen" if tried.get("chosen") else ""])
    return Table("Settings that the sweep tried", ["Method", "Settings", (_label(folder, metric), "%"), ""], rows)


def diagnostics_table(folder: Folder) -> Table:
    """Diagnostics of the references in the targets of each method with several references."""
    names = Names(folder)
    parts = {"argmin_share": "smallest", "clip_rate": "clipped", "sign_flips": "flipped"}
    references, rows = folder.references, list[Row]()
    for method in folder.document.methods if references else ():
        if method.baseline or not method.diagnostics:
            continue
        cells = []
        for name in references:
            figures = {key: real(method.diagnostics.get(f"refs/{name}/{key}")) for key in ("weight", *parts)}
            weight = figures.pop("weight")
            below = "\n".join(
                f"{parts[key]} {percent(value, 0)}" for key, value in figures.items() if value is not None
            )
            cells.append(Cell("by step" if weight is None and below else percent(weight, 0), below))
        effective = number(real(method.diagnostics.get("refs/effective_k")))
        rows.append([names.method(method.name), effective, *cells])
    columns: Columns = ["Method", ("Effective references", ""), *((name, "%") for name in references)]
    return Table("Reference diagnostics of each method", columns, rows)


def seconds_table(folder: Folder) -> Table:
    """Seconds of training by method and seed."""
    names = Names(folder)
    document = folder.document
    most = max((len(method.train_seconds) for method in document.methods), default=0)
    seeds = document.seeds if len(document.seeds) == most else range(1, most + 1)
    rows: list[Row] = []
    for method in document.methods:
        seconds = known(method.train_seconds)
        own = [*method.train_seconds, *[None] * (most - len(method.train_seconds))] if most > 1 else []
        if seconds:
            rows.append([names.method(method.name), f"{np.mean(seconds):,.1f}", *(fixed(one, 1) for one in own)])
    columns: Columns = ["Method", ("Mean", "s"), *((f"Seed {seed}", "s") for seed in (seeds if most > 1 else ()))]
    return Table("Seconds of training by method", columns, rows)


def known(values: Any) -> list[float]:
    """The values that are not None."""
    return [value for value in values if value is not None]


def _metrics(folder: Folder) -> list[str]:
    methods = folder.document.methods
    return list(dict.fromkeys([*folder.document.metrics, *(key for method in methods for key in method.metrics)]))


def _label(folder: Folder, key: str) -> str:
    return _LABELS.get(key) or str(folder.document.metrics.get(key) or key)


def _estimate(figures: Estimate | None, key: str, kind: str = "") -> Cell:
    if figures is None or figures.mean is None:
        return Cell("–")
    write = percent if "accurac" in key else number
    span = f"{write(figures.low)} to {write(figures.high)}" if figures.low is not None else ""
    return Cell(write(figures.mean), span, kind)


def _drift(figures: Mapping[str, Estimate], side: str) -> Cell:
    """The drift of one side in nats a token, with its interval and nats a byte below."""
    by_token, by_byte = (figures.get(f"drift/{side}_per_{unit}", Estimate()) for unit in ("token", "byte"))
    below = [f"{fixed(by_token.low, 3)} to {fixed(by_token.high, 3)}"] if by_token.low is not None else []
    below += [f"{fixed(by_byte.mean, 4)} a byte"] if by_byte.mean is not None else []
    return Cell(fixed(by_token.mean, 3), "; ".join(below))


def _tone(one: Difference) -> str:
    """The colour of a difference, if the corrected p shows one."""
    p = one.p_corrected if one.p_corrected is not None else one.p
    if p is None or p >= 0.05 or not one.difference:
        return ""
    return "good" if one.difference > 0 else "bad"
