"""Results with intervals, and what is and is not shown against each single reference."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import Any

from mrpo_pipeline.report.drawing import Plot
from mrpo_pipeline.report.forest import difference_forests, method_forests
from mrpo_pipeline.report.formatting import before_training, count, number, one_line, p_value, percent, points
from mrpo_pipeline.report.palette import method_styles
from mrpo_pipeline.report.results_folder import Folder
from mrpo_pipeline.report.schema import Difference, Estimate
from mrpo_pipeline.report.sections.tables import Cell, Column, Row, name_cell

_COMPARABLE = ("accuracy/policy", "accuracy/policy_per_token", "accuracy/anchor")
_LABELS = {
    "accuracy/policy": "Prefers chosen",
    "accuracy/policy_per_token": "Prefers chosen, per token",
    "accuracy/anchor": "Moved to chosen",
    "rewards/accuracies": "Reward higher on chosen",
    "rewards/margins": "Reward margin",
    "loss": "Loss",
}


@dataclass
class Group:
    """The differences that one question asks for, in one metric; ``prints``: on paper too, where nothing can be unfolded."""

    title: str
    rows: list[Row]
    open: bool
    prints: bool


@dataclass
class ResultsSection:
    """Plots and tables of the results."""

    sentence: str
    plots: list[Plot] = field(default_factory=list)
    plot_note: str = ""
    rows: list[Row] = field(default_factory=list)
    columns: list[Column] = field(default_factory=list)
    own_rows: list[Row] = field(default_factory=list)
    own_columns: list[Column] = field(default_factory=list)
    differences: list[Group] = field(default_factory=list)
    difference_columns: list[Column] = field(default_factory=list)
    difference_plots: list[Plot] = field(default_factory=list)
    difference_sentence: str = ""
    sweep: list[Row] = field(default_factory=list)
    sweep_columns: list[Column] = field(default_factory=list)
    diagnostics: list[Row] = field(default_factory=list)
    diagnostic_columns: list[Column] = field(default_factory=list)


def results_section(folder: Folder) -> ResultsSection:
    """From ``comparison.json``."""
    document = folder.document
    section = ResultsSection(_sentence(folder))
    section.plots = method_forests(folder)
    ticks = ", thin ticks below single seeds" if len(document.seeds) > 1 else ""
    hollow = "hollow marks are single references" if any(method.baseline for method in document.methods) else ""
    section.plot_note = "Marks are means, lines 95% intervals" + ticks + (f"; {hollow}." if hollow else ".")
    metrics = list(dict.fromkeys([*document.metrics, *(key for method in document.methods for key in method.metrics)]))
    shares = [key for key in metrics if key in _COMPARABLE]
    own = [key for key in metrics if key not in _COMPARABLE]
    section.columns, section.rows = _table(folder, shares, start=True)
    if own:
        section.own_columns, section.own_rows = _table(folder, own, start=False)
    _add_differences(section, folder)
    _add_sweep(section, folder)
    _add_diagnostics(section, folder)
    return section


def _sentence(folder: Folder) -> str:
    document = folder.document
    text = (
        "“Prefers chosen”: the share of pairs whose chosen side the policy itself finds likelier; it needs no reference. “Moved to "
        "chosen”: the share on which training moved the policy towards the chosen side, against its start. Both mean the same "
        "for every method."
    )
    if len(document.seeds) == 1:
        return (
            f"{text} With one seed, the intervals hold the luck of the pairs drawn and nothing of the luck of the seed."
        )
    return f"{text} The intervals hold both kinds of luck: which pairs were held out, and which seed was drawn."


def _label(document: Any, key: str) -> str:
    given = document.metrics.get(key)
    if isinstance(given, dict):
        given = given.get("label")
    return _LABELS.get(key) or one_line(str(given or key))


def _is_share(key: str) -> bool:
    return "accurac" in key


def _table(folder: Folder, keys: list[str], *, start: bool) -> tuple[list[Column], list[Row]]:
    document = folder.document
    styles = method_styles(folder.names)
    columns = [Column("Method")]
    columns += [Column(_label(document, key), "%" if _is_share(key) else "", number=True) for key in keys]
    if start:
        columns.append(Column("Training", "mean", number=True))
    rows = []
    if start and any(document.start.get(key) is not None for key in keys):
        # Before training nothing has moved: half of all pairs tie, by definition.
        cells = [Cell("–" if key == "accuracy/anchor" else percent(document.start.get(key))) for key in keys]
        rows.append(Row([Cell("before training"), *cells, Cell("–")], kind="start"))
    best = {key: _best(folder, key) for key in keys if start}
    for method in document.methods:
        cells = [_figure_cell(method.metrics.get(key), key, best=method.name in best.get(key, ())) for key in keys]
        if start:
            seconds = [value for value in method.train_seconds if value is not None]
            mean = sum(seconds) / len(seconds) if seconds else None
            cells.append(Cell("–" if mean is None else f"{mean:,.1f} s"))
        rows.append(Row([name_cell(method.name, styles[method.name], hollow=method.baseline), *cells]))
    return columns, rows


def _best(folder: Folder, key: str) -> list[str]:
    means = {
        method.name: round(figures.mean, 9)
        for method in folder.document.methods
        if (figures := method.metrics.get(key)) is not None and figures.mean is not None
    }
    return [name for name, mean in means.items() if len(means) > 1 and mean == max(means.values())]


def _figure_cell(figures: Estimate | None, key: str, *, best: bool) -> Cell:
    if figures is None or figures.mean is None:
        return Cell("–")
    write = percent if _is_share(key) else number
    span = f"{write(figures.low)} to {write(figures.high)}" if figures.low is not None else ""
    return Cell(write(figures.mean), below=span, kind="best" if best else "")


def _add_differences(section: ResultsSection, folder: Folder) -> None:
    """A table for each question and metric; the question and metric of the verdict first, the others folded."""
    document = folder.document
    main = document.verdict_metric
    questions = list(dict.fromkeys(one.question for one in document.comparisons))
    metrics = sorted(dict.fromkeys(one.metric for one in document.comparisons), key=lambda key: key != main)
    if not questions:
        return
    section.difference_columns = [
        Column("Method"),
        Column("Against"),
        Column("Difference", "points", number=True),
        Column("95% interval", number=True),
        Column("p", "corrected", number=True),
        Column("p", "alone", number=True),
        Column("More pairs to see 1 point", number=True),
    ]
    for metric, question in sorted(itertools.product(metrics, questions), key=lambda two: questions.index(two[1])):
        asked = [one for one in document.comparisons if (one.metric, one.question) == (metric, question)]
        if asked:
            title = f"{one_line(question).capitalize()}: " if question else ""
            title += _label(document, metric).lower() if question else _label(document, metric)
            first = question == questions[0] and metric == metrics[0]
            section.differences.append(Group(title, _difference_rows(folder, asked), first, metric == metrics[0]))
    section.difference_plots = difference_forests(folder, metrics[0], questions[0])
    several = len([one for one in document.comparisons if (one.metric, one.question) == (metrics[0], questions[0])])
    section.difference_sentence = (
        "The first minus the second, on the same pairs and seeds. An interval that crosses zero shows no difference either way."
        + (
            f" Of {several} differences that are looked at together, some stand out by chance: the corrected p allows for that, "
            "and is the one to go by."
            if several > 1
            else ""
        )
    )


def _difference_rows(folder: Folder, asked: list[Difference]) -> list[Row]:
    styles = method_styles(folder.names)
    baselines = {method.name for method in folder.document.methods if method.baseline}
    return [
        Row(
            [
                name_cell(one.method, styles.get(one.method), hollow=one.method in baselines),
                name_cell(before_training(one.against)),
                Cell(points(one.difference), kind=_shown(one)),
                Cell(f"{points(one.low)} to {points(one.high)}" if one.low is not None else "–"),
                Cell(p_value(one.p_corrected)),
                Cell(p_value(one.p)),
                Cell("enough" if one.pairs_needed == 0 else count(one.pairs_needed)),
            ]
        )
        for one in asked
    ]


def _add_sweep(section: ResultsSection, folder: Folder) -> None:
    """The settings that a sweep tried, each method's by what they gave on the third split."""
    metric = folder.document.verdict_metric
    for tried in folder.document.sweep:
        settings = tried.get("settings")
        told = (
            ", ".join(f"{one_line(str(key))} {value}" for key, value in settings.items())
            if isinstance(settings, dict)
            else ""
        )
        share = _real(tried.get(metric))
        section.sweep.append(
            Row(
                [
                    name_cell(str(tried.get("method"))),
                    Cell(one_line(told) or "as in the recipe"),
                    Cell(percent(share), kind="best" if tried.get("chosen") else ""),
                    Cell("chosen" if tried.get("chosen") else ""),
                ]
            )
        )
    section.sweep_columns = [
        Column("Method"),
        Column("Settings"),
        Column(_label(folder.document, metric), "%", number=True),
        Column(""),
    ]


def _shown(found: Difference) -> str:
    """Coloured only where the corrected p says that there is something."""
    p = found.p_corrected if found.p_corrected is not None else found.p
    if p is None or p >= 0.05 or not found.difference:
        return ""
    return "good" if found.difference > 0 else "bad"


def _add_diagnostics(section: ResultsSection, folder: Folder) -> None:
    parts = (
        ("weight", "weight"),
        ("argmin_share", "smallest"),
        ("clip_rate", "clipped"),
        ("sign_flips", "flipped"),
    )
    methods = [method for method in folder.document.methods if method.diagnostics and not method.baseline]
    names = folder.references
    styles = method_styles(folder.names)
    if not methods or not names:
        return
    section.diagnostic_columns = [Column("Method"), Column("Effective references", number=True)]
    section.diagnostic_columns += [Column(one_line(name), "%", number=True) for name in names]
    for method in methods:
        effective = _real(method.diagnostics.get("refs/effective_k"))
        cells = [name_cell(method.name, styles[method.name]), Cell(number(effective, 3))]
        for name in names:
            shown = {word: _real(method.diagnostics.get(f"refs/{name}/{key}")) for key, word in parts}
            weight = shown.pop("weight")
            below = "\n".join(f"{word} {percent(value, 0)}" for word, value in shown.items() if value is not None)
            cells.append(Cell("by step" if weight is None and below else percent(weight, 0), below=below))
        section.diagnostics.append(Row(cells))


def _real(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
