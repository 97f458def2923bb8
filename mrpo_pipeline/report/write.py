"""Write ``report.html`` and ``plots/`` for a comparison's folder."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from mrpo_pipeline.files.atomic import write_whole, write_whole_json
from mrpo_pipeline.files.folder_lock import held
from mrpo_pipeline.files.hashing import sha256_of_small
from mrpo_pipeline.report.results_folder import Folder, read_folder

if TYPE_CHECKING:
    from mrpo_pipeline.report.charts import Plot

log = logging.getLogger("mrpo")

REPORT = "report.html"
PLOTS = "plots"
LIST = "plots.json"


def write_report(folder: str | Path) -> Path:
    """Write ``report.html`` and ``plots/*.svg|png`` into a comparison's folder.

    The same folder gives the same bytes. Missing parts (an audit, weights by step, texts) are left out and named.

    Raises:
        UserError: if the folder holds no comparison that can be read.
    """
    found = read_folder(folder)
    with held(found.path, "mrpo report"):
        return _write(found)


def _write(found: Folder) -> Path:
    from mrpo_pipeline.report.charts import plot_style
    from mrpo_pipeline.report.page import render_page

    with plot_style():
        page, plots = render_page(found)
        _write_plots(found.path / PLOTS, plots)
    target = found.path / REPORT
    write_whole(target, page)
    return target


def _write_plots(place: Path, plots: list[Plot]) -> None:
    """Write the plots, and remove those of an earlier report that this one does not have.

    Other files stay: ``plots.json`` lists the files of the last report with their checksums. Nothing is written through a
    symbolic link.
    """
    if place.is_symlink():
        log.warning("%s is a symbolic link: no plots are written there; %s contains all of them.", place, REPORT)
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
    """The files of the last report with their SHA-256."""
    try:
        found = json.loads((place / LIST).read_text(encoding="utf-8"))
        return {
            name: digest for name, digest in found.items() if Path(name).suffix in (".svg", ".png") and "/" not in name
        }
    except (OSError, ValueError, AttributeError):
        return {}
