"""Render a comparison's folder as one self-contained HTML file by a Jinja template."""

from __future__ import annotations

import base64
import hashlib
import shlex
from pathlib import Path
from typing import Any

from mrpo_pipeline.report import audit_tables, comparison_tables, formatting
from mrpo_pipeline.report.audit_plots import at, audit_plots
from mrpo_pipeline.report.charts import Plot
from mrpo_pipeline.report.learning_curves import curve_plots
from mrpo_pipeline.report.method_disagreements import disagreements_of
from mrpo_pipeline.report.palette import css_variables
from mrpo_pipeline.report.result_plots import difference_plots, drift_plots, method_plots
from mrpo_pipeline.report.results_folder import Folder
from mrpo_pipeline.report.task_tables import task_tables
from mrpo_pipeline.report.weight_plots import weight_plots

_TEMPLATES = Path(__file__).parent / "templates"


def render_page(folder: Folder) -> tuple[str, list[Plot]]:
    """The page's HTML and its plots."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    plots = _plots(folder)
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_printable,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    written = ("count", "duration", "fixed", "listed", "number", "one_line", "percent", "points")
    environment.filters |= {name: getattr(formatting, name) for name in written}
    environment.filters |= {"csp_hash": _csp_hash, "shell": lambda text: shlex.quote(formatting.one_line(text))}
    html = environment.get_template("report.html.j2").render(
        folder=folder,
        document=folder.document,
        names=comparison_tables.Names(folder),
        tables=_tables(folder),
        plots=plots,
        audit=_audit(folder),
        disagreements=disagreements_of(folder),
        palette=css_variables(),
    )
    return html.lstrip(), [plot for group in plots.values() for plot in group]


def _printable(value: Any) -> Any:
    """Every text of the template with visible control characters, before Jinja escapes it."""
    return formatting.visible(value) if type(value) is str else value


def _csp_hash(script: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"


def _plots(folder: Folder) -> dict[str, list[Plot]]:
    references = folder.audit.get("references") if folder.audit else None
    asked = folder.document.comparisons
    # The first question is the verdict's.
    question = asked[0].question if asked else ""
    return {
        "audit": audit_plots(references, folder.references) if isinstance(references, dict) else [],
        "methods": method_plots(folder),
        "drift": drift_plots(folder),
        "differences": difference_plots(folder, folder.document.verdict_metric, question),
        "curves": curve_plots(folder),
        "weights": weight_plots(folder),
    }


def _tables(folder: Folder) -> dict[str, Any]:
    pairs, notes = comparison_tables.pairs_table(folder)
    return {
        "methods": comparison_tables.methods_table(folder),
        "references": comparison_tables.references_table(folder),
        "pairs": pairs,
        "pair_notes": notes,
        "results": comparison_tables.results_table(folder),
        "own": comparison_tables.own_metrics_table(folder),
        "differences": comparison_tables.difference_tables(folder),
        "sweep": comparison_tables.sweep_table(folder),
        "diagnostics": comparison_tables.diagnostics_table(folder),
        "seconds": comparison_tables.seconds_table(folder),
        "tasks": task_tables(folder),
    }


def _audit(folder: Folder) -> dict[str, Any] | None:
    audit = folder.audit
    if audit is None:
        return None
    references = audit.get("references")
    weightings = audit.get("weightings")
    return {
        "findings": audit_tables.audit_findings(audit, "findings"),
        "warnings": audit_tables.audit_findings(audit, "warnings"),
        "figures": audit_tables.figures_table(folder, references if isinstance(references, dict) else {}),
        "agreement": audit_tables.agreement_table(folder, audit.get("agreement")),
        "weightings": audit_tables.weightings_table(folder, weightings),
        "validation_on": weightings.get("validation_on") if isinstance(weightings, dict) else None,
        "effective": at(audit, "mrpo.effective_k"),
    }
