"""From a comparison's folder to ``report.html`` and ``plots/``."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mrpo_pipeline.files.atomic import write_whole, write_whole_json
from mrpo_pipeline.files.folder_lock import held
from mrpo_pipeline.files.hashing import sha256_of_small
from mrpo_pipeline.report.palette import css_variables
from mrpo_pipeline.report.results_folder import Folder, read_folder

log = logging.getLogger("mrpo")

REPORT = "report.html"
PLOTS = "plots"
LIST = "plots.json"
_TEMPLATES = Path(__file__).parent / "templates"
_DARK = (
    "color-scheme: dark; {variables} --page: #0e1013; --line: #2a3038; --soft: #1d2229; --link: #7db8ff; --good: #5fd3a8; "
    "--good-soft: #12332a; --bad: #ff9686; --bad-soft: #3a1c19; --warn: #f0c064; --warn-soft: #352a12; --calm: #a9c6ec; "
    "--calm-soft: #1c2a3d;"
)


@dataclass(frozen=True)
class _Shown:
    """A plot as the template takes it."""

    name: str
    title: str
    note: str
    svg: Any


def write_report(folder: str | Path) -> Path:
    """Write ``report.html`` and ``plots/*.svg|png`` into a comparison's folder, from what lies in it.

    The same folder gives the same bytes. What is missing (an audit, weights by step, texts) is left out and named.

    Raises:
        UserError: where the folder holds no comparison that can be read.
    """
    found = read_folder(folder)
    with held(found.path, "mrpo report"):
        return _write(found)


def _write(found: Folder) -> Path:
    page, plots = _page(found)
    _write_plots(found.path / PLOTS, plots)
    target = found.path / REPORT
    write_whole(target, page)
    return target


def _write_plots(place: Path, plots: list[Any]) -> None:
    """Write the plots, and remove those that an earlier report wrote and this one does not have.

    What another hand put there stays: a list beside the plots says which files, with which content, are a report's. Nothing
    is written through a link.
    """
    if place.is_symlink():
        log.warning("%s is a link: no plots are written there, and those in %s are complete.", place, REPORT)
        return
    place.mkdir(exist_ok=True)
    before = _listed(place)
    for plot in plots:
        plot.write(place)
    names = [f"{plot.name}.{kind}" for plot in plots for kind in ("svg", "png")]
    for name, digest in before.items():
        old = place / name
        if name not in names and old.is_file() and not old.is_symlink() and sha256_of_small(old) == digest:
            old.unlink()
    write_whole_json(place / LIST, {name: sha256_of_small(place / name) for name in names})


def _listed(place: Path) -> dict[str, str]:
    """The files that an earlier report wrote, with their SHA-256."""
    try:
        found = json.loads((place / LIST).read_text(encoding="utf-8"))
        return {
            name: digest for name, digest in found.items() if Path(name).suffix in (".svg", ".png") and "/" not in name
        }
    except (OSError, ValueError, AttributeError):
        return {}


def _page(folder: Folder) -> tuple[str, list[Any]]:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    from mrpo_pipeline.report.drawing import Plot
    from mrpo_pipeline.report.formatting import one_line
    from mrpo_pipeline.report.sections.audit import audit_section
    from mrpo_pipeline.report.sections.glossary import WORDS
    from mrpo_pipeline.report.sections.pairs import pairs_section
    from mrpo_pipeline.report.sections.rerun import again_section, costs_section
    from mrpo_pipeline.report.sections.results import results_section
    from mrpo_pipeline.report.sections.run_summary import ran_section
    from mrpo_pipeline.report.sections.tasks import tasks_section
    from mrpo_pipeline.report.sections.training import training_section
    from mrpo_pipeline.report.sections.verdict import verdict_section

    plots: list[Plot] = []

    def shown(own: list[Plot]) -> list[_Shown]:
        plots.extend(own)
        # The plot's own serialiser has escaped what is text in it.
        return [_Shown(plot.name, plot.title, plot.note, Markup(plot.inline())) for plot in own]

    audit, results, training, pairs = (
        audit_section(folder), results_section(folder), training_section(folder), pairs_section(folder),
    )  # fmt: skip
    costs = costs_section(folder)
    script = (_TEMPLATES / "script.js").read_text(encoding="utf-8").strip()
    variables = {
        "version": one_line(folder.document.mrpo) or "?",
        "written": _written(folder),
        "title": _title(folder),
        "style": Markup(_style()),
        "script": Markup(script),
        "script_hash": f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}",
        "verdict": (verdict := verdict_section(folder)),
        "tiles": verdict.tiles,
        "ran": ran_section(folder),
        "audit": audit and {**vars(audit), "plots": shown(audit.plots)},
        "results": {
            **vars(results),
            "plots": shown(results.plots),
            "difference_plots": shown(results.difference_plots),
        },
        "training": {**vars(training), "curves": shown(training.curves), "weights": shown(training.weights)},
        "tasks": (tasks := tasks_section(folder)),
        "pairs": pairs,
        "costs": costs,
        "again": again_section(folder),
        "notices": _notices(folder),
        "words": WORDS,
    }
    sections = [
        ("verdict", "Verdict", True),
        ("ran", "What was run", True),
        ("audit", "Data and references", audit is not None),
        ("results", "Results", True),
        ("tasks", "Tasks", tasks is not None),
        ("training", "Learning curves", bool(training.curves or training.sentence)),
        ("weights", "Weights", bool(training.weights)),
        ("pairs", "Disagreements", pairs is not None),
        ("costs", "Costs", bool(costs.rows)),
        ("again", "Run it again", True),
        ("words", "Words", True),
    ]
    contents = [{"anchor": anchor, "title": title} for anchor, title, there in sections if there]
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("report.html.j2").render(**variables, contents=contents), plots


def _style() -> str:
    sheet = (_TEMPLATES / "style.css").read_text(encoding="utf-8")
    dark = _DARK.format(variables=css_variables("dark"))
    return sheet.replace("@LIGHT@", css_variables("light")).replace("@DARKER@", dark)


def _title(folder: Folder) -> str:
    from mrpo_pipeline.report.formatting import one_line, shorten

    place = Path(str(folder.recipe.get("output_dir") or "")).parts[-2:]
    return f"mrpo comparison · {shorten(one_line('/'.join(place)), 60)}" if place else "mrpo comparison"


def _written(folder: Folder) -> str:
    from mrpo_pipeline.report.formatting import one_line

    extra = folder.document.model_extra or {}
    return next((one_line(str(extra[key])) for key in ("finished", "written", "time", "date") if extra.get(key)), "")


def _notices(folder: Folder) -> list[str]:
    from mrpo_pipeline.report.formatting import one_line

    notices = [one_line(notice) for notice in folder.notices]
    notices += [
        one_line(f"{run.get('run')} failed: {run.get('reason')}")
        for run in folder.document.failed
        if isinstance(run, dict)
    ]
    if folder.audit is None:
        notices.append("No audit.json lies in the folder: nothing is said of the references before training.")
    if folder.held_out is None:
        notices.append("No held_out.parquet lies in the folder: the pairs on which methods disagree can’t be shown.")
    missing = [
        one_line(name) for name in folder.names if not any(run.pairs is not None for run in folder.runs.get(name, []))
    ]
    if missing:
        notices.append(f"No sums of the held-out pairs (pairs.parquet) were left by {', '.join(missing)}.")
    if not folder.recipe_text:
        notices.append("No recipe.yaml lies in the folder: references’ models and the recipe are not shown.")
    return notices
