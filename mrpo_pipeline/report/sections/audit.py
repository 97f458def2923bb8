"""The audit of data and references, as ``audit.json`` holds it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from mrpo_pipeline.report.drawing import Plot
from mrpo_pipeline.report.formatting import fixed, one_line, percent
from mrpo_pipeline.report.palette import reference_styles
from mrpo_pipeline.report.reference_plots import figure_of, real, reference_plots
from mrpo_pipeline.report.results_folder import Folder
from mrpo_pipeline.report.sections.tables import Cell, Column, LegendEntry, Row, name_cell, swatch

_TONES = {"broken": "broken", "suspect": "doubt"}
_CHIPS = {"broken": "broken", "doubt": "suspect", "note": "note"}


@dataclass(frozen=True)
class Finding:
    """One fault that a reference seems to have."""

    tone: str
    chip: str
    sentence: str


@dataclass
class AuditSection:
    """Findings in words, a table of figures, plots, and what each weighting would give."""

    sentence: str = ""
    findings: list[Finding] = field(default_factory=list)
    remarks: list[Finding] = field(default_factory=list)
    columns: list[Column] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    plots: list[Plot] = field(default_factory=list)
    legend: list[LegendEntry] = field(default_factory=list)
    weightings: list[Row] = field(default_factory=list)
    weighting_columns: list[Column] = field(default_factory=list)
    weighting_note: str = ""


def audit_section(folder: Folder) -> AuditSection | None:
    """From ``audit.json``; None where there is none. A part that it lacks is left out."""
    audit = folder.audit
    if audit is None:
        return None
    references = audit.get("references")
    own = [str(name) for name in references] if isinstance(references, dict) else []
    order = list(dict.fromkeys([*folder.references, *own]))
    section = AuditSection(findings=_findings(audit.get("findings")), remarks=_findings(audit.get("remarks")))
    section.sentence = _sentence(audit)
    if isinstance(references, dict) and references:
        section.columns, section.rows = _figures(references, order)
        section.plots = reference_plots(audit, order)
        styles = reference_styles(order)
        if any(plot.name == "reference-length" for plot in section.plots):
            section.legend = [
                LegendEntry(one_line(name), f"r{place}", swatch(styles[name])) for place, name in enumerate(order)
            ]
    given = audit.get("weightings")
    if isinstance(given, dict) and given.get("validation_on"):
        section.weighting_note = f"The validation weightings were computed on {one_line(str(given['validation_on']))}."
    section.weighting_columns, section.weightings = _weightings(given, order)
    return section


def _sentence(audit: dict[str, Any]) -> str:
    text = (
        "What the references’ cached log-probs say of themselves on these pairs. A reference that was scored wrongly (another "
        "template, a shifted token) shows here; it would pull the policy the wrong way."
    )
    effective = figure_of(audit, "mrpo", "effective_k")
    names = audit.get("references")
    if effective is not None and isinstance(names, dict):
        text += f" Under the harmonic mean, {len(names)} references count for {fixed(effective, 1)} on these pairs."
    return text


def _findings(given: Any) -> list[Finding]:
    found = []
    for finding in given if isinstance(given, list) else []:
        if isinstance(finding, dict) and finding.get("sentence"):
            severity = str(finding.get("severity") or "")
            tone = _TONES.get(severity, "note")
            chip = f"{one_line(str(finding.get('reference') or 'data'))}: {_CHIPS[tone]}"
            found.append(Finding(tone, chip, one_line(str(finding["sentence"]))))
    return sorted(found, key=lambda one: ("broken", "doubt", "note").index(one.tone))


def _figures(references: dict[str, Any], order: list[str]) -> tuple[list[Column], list[Row]]:
    """A column for each figure that any of the references has."""
    known: list[tuple[Column, Callable[[Any], Cell | None]]] = [
        (Column("Ranked rightly", "%", number=True), _ranked),
        (Column("Nats per byte", "chosen", number=True), _plain(3, "nats_per_byte", "chosen")),
        (Column("Nats per byte", "rejected", number=True), _plain(3, "nats_per_byte", "rejected")),
        (Column("Nats per token", "chosen", number=True), _plain(2, "nats_per_token", "chosen")),
        (Column("Mean Δ", "nats", number=True), _plain(2, "delta", "mean")),
        (Column("Median size of Δ", "nats", number=True), _plain(2, "delta", "median_size")),
        (Column("Δ by length", "rank correlation", number=True), _plain(2, "delta", "by_length_difference")),
        (Column("Smallest of all", "%", number=True), _share("argmin_share")),
        (Column("Clipped", "%", number=True), _share("clip_rate")),
        (Column("Sign flipped", "%", number=True), _share("sign_flips")),
    ]
    styles = reference_styles(order)
    used = [
        (column, cell) for column, cell in known if any(cell(figures) is not None for figures in references.values())
    ]
    rows = [
        Row([name_cell(str(name), styles[str(name)]), *(cell(figures) or Cell("–") for _, cell in used)])
        for name, figures in references.items()
    ]
    return [Column("Reference"), *(column for column, _ in used)], rows


def _ranked(figures: Any) -> Cell | None:
    share, low, high = (figure_of(figures, "ranked_rightly", part) for part in ("share", "low", "high"))
    if share is None:
        return None
    return Cell(percent(share), below=f"{percent(low)} to {percent(high)}" if low is not None else "")


def _plain(places: int, *path: str) -> Callable[[Any], Cell | None]:
    def cell(figures: Any) -> Cell | None:
        value = figure_of(figures, *path)
        return None if value is None else Cell(fixed(value, places))

    return cell


def _share(*path: str) -> Callable[[Any], Cell | None]:
    def cell(figures: Any) -> Cell | None:
        value = figure_of(figures, *path)
        return None if value is None else Cell(percent(value))

    return cell


def _weightings(given: Any, order: list[str]) -> tuple[list[Column], list[Row]]:
    columns = [Column("Weighting"), *(Column(one_line(name), "%", number=True) for name in order)]
    rows = []
    by_name = given.get("weights") if isinstance(given, dict) else None
    for name, weights in by_name.items() if isinstance(by_name, dict) else ():
        cells = [Cell(percent(real(weights.get(one))) if isinstance(weights, dict) else "–") for one in order]
        if any(cell.text != "–" for cell in cells):
            rows.append(Row([name_cell(str(name)), *cells]))
    return columns, rows
