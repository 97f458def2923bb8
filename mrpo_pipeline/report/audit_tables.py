"""The audit's findings and tables from ``audit.json``. Missing parts are left out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mrpo_pipeline.report.audit_plots import at
from mrpo_pipeline.report.comparison_tables import Cell, Names, Row, Table
from mrpo_pipeline.report.formatting import fixed, percent, real
from mrpo_pipeline.report.results_folder import Folder

# Title, unit, decimals (None: a share), and the path in each reference's figures.
_FIGURES = (
    ("Ranked correctly", "%", None, "accuracy.share"),
    ("Nats per byte", "chosen", 3, "nats_per_byte.chosen"),
    ("Nats per byte", "rejected", 3, "nats_per_byte.rejected"),
    ("Nats per token", "chosen", 2, "nats_per_token.chosen"),
    ("Mean Δ", "nats", 2, "delta.mean"),
    ("Median |Δ|", "nats", 2, "delta.median_abs"),
    ("Δ by length", "rank correlation", 2, "delta.length_correlation"),
    ("Smallest of all", "%", None, "argmin_share"),
    ("Clipped", "%", None, "clip_rate"),
    ("Sign flipped", "%", None, "sign_flips"),
)
_SEVERITIES = ("broken", "suspect", "note")


def audit_findings(audit: Mapping[str, Any], key: str) -> list[dict[str, str]]:
    """The sentences under ``findings`` or ``warnings`` with their severity, the worst first."""
    found = []
    given = audit.get(key)
    for one in given if isinstance(given, list) else []:
        if isinstance(one, dict) and one.get("sentence"):
            severity = one.get("severity") if one.get("severity") in _SEVERITIES else "note"
            reference = str(one.get("reference") or "data")
            found.append({"severity": str(severity), "reference": reference, "sentence": str(one["sentence"])})
    return sorted(found, key=lambda one: _SEVERITIES.index(one["severity"]))


def figures_table(folder: Folder, references: Mapping[str, Any]) -> Table:
    """A table with a column for each figure that a reference has."""
    names = Names(folder)
    used = [one for one in _FIGURES if any(at(figures, one[3]) is not None for figures in references.values())]
    rows: list[Row] = []
    for name, figures in references.items():
        cells = []
        for _, _, places, path in used:
            value = at(figures, path)
            low, high = (
                at(figures, path.replace(".share", f".{end}")) if ".share" in path else None for end in ("low", "high")
            )
            text = percent(value) if places is None else fixed(value, places)
            cells.append(Cell(text, f"{percent(low)} to {percent(high)}" if low is not None else ""))
        rows.append([names.reference(name), *cells])
    return Table("Figures of each reference", ["Reference", *((title, unit) for title, unit, _, _ in used)], rows)


def agreement_table(folder: Folder, given: Any) -> Table:
    """For each two references, the share of pairs that they rank alike."""
    shares: dict[frozenset[str], float | None] = {}
    for one in given if isinstance(given, list) else []:
        if isinstance(one, dict) and isinstance(one.get("references"), list):
            shares[frozenset(map(str, one["references"]))] = real(one.get("same_ranking"))
    names = [name for name in folder.references if any(name in two for two in shares)]
    rows: list[Row] = []
    for name in names:
        cells = ["" if name == other else percent(shares.get(frozenset((name, other)))) for other in names]
        rows.append([Names(folder).reference(name), *cells])
    return Table("Pairs that two references rank alike", ["Reference", *((name, "%") for name in names)], rows)


def weightings_table(folder: Folder, given: Any) -> Table:
    """The weights of the references under each weighting."""
    by_name = given.get("weights") if isinstance(given, dict) else None
    rows: list[Row] = []
    for name, weights in by_name.items() if isinstance(by_name, dict) else ():
        own = weights if isinstance(weights, dict) else {}
        cells = [percent(real(own.get(other))) for other in folder.references]
        if any(cell != "–" for cell in cells):
            rows.append([str(name), *cells])
    return Table("Weights under each weighting", ["Weighting", *((name, "%") for name in folder.references)], rows)
