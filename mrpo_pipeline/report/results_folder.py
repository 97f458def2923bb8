"""A comparison's folder, read: what is missing or damaged is left out and named, so that the rest can still be told."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
import yaml
from pydantic import ValidationError

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.evaluation.staleness import EVALUATION, is_of
from mrpo_pipeline.report.schema import Document

COMPARISON = "comparison.json"


@dataclass
class Run:
    """One method and seed: its log by step, its sums of the held-out pairs, its weights by step (None where not there), its tasks."""

    seed: int
    log: list[dict[str, Any]] = field(default_factory=list)
    pairs: pl.DataFrame | None = None
    weights: pl.DataFrame | None = None
    tasks: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Folder:
    """Everything that the report tells of. ``notices``: what could not be read, a sentence each."""

    path: Path
    document: Document
    audit: dict[str, Any] | None
    recipe_text: str
    recipe: dict[str, Any]
    held_out: pl.DataFrame | None
    start: pl.DataFrame | None
    runs: dict[str, list[Run]]
    notices: list[str]

    @property
    def names(self) -> list[str]:
        """The methods in the order of the comparison, which is their order, colour and marker everywhere."""
        return [method.name for method in self.document.methods]

    @property
    def references(self) -> list[str]:
        """The references in the recipe's order, the anchor first; the audit's where there is no recipe."""
        listed = self.recipe.get("references")
        if isinstance(listed, dict) and listed:
            return [str(name) for name in listed]
        audited = (self.audit or {}).get("references")
        return [str(name) for name in audited] if isinstance(audited, dict) else []


def read_folder(path: str | Path) -> Folder:
    """Read what ``mrpo compare`` left.

    Raises:
        UserError: where the folder holds no comparison, or one that cannot be read.
    """
    root = Path(path)
    document = _document(root)
    notices: list[str] = []
    recipe_text = _text(root / "recipe.yaml", notices)
    audit = _json(root / "audit.json", notices)
    runs = {
        method.name: _runs(root / method.name, document.seeds, notices)
        for method in document.methods
        # A method's name names its folder: one that leads elsewhere is no method of this comparison.
        if method.name not in ("", ".", "..") and Path(method.name).name == method.name
    }
    return Folder(
        path=root,
        document=document,
        audit=audit if isinstance(audit, dict) else None,
        recipe_text=recipe_text,
        recipe=_recipe(recipe_text, notices),
        held_out=_table(root / "held_out.parquet", {"pair_id", "prompt", "chosen", "rejected"}, notices),
        start=_table(root / "start" / "pairs.parquet", {"pair_id", "logps_chosen", "logps_rejected"}, notices),
        runs=runs,
        notices=notices,
    )


def _document(root: Path) -> Document:
    path = root / COMPARISON
    again = "Give the folder that `mrpo compare` wrote (its `output_dir`), or run `mrpo compare` on its recipe again."
    if not path.is_file():
        found = "there is no such folder" if not root.is_dir() else f"it holds no {COMPARISON}"
        raise UserError(f"{root} is not a comparison's folder: {found}. {again}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} can't be read as JSON ({error}). {again}") from None
    version = content.get("version") if isinstance(content, dict) else None
    if version != 1:
        raise UserError(f"{path} has version {version!r}: this mrpo reads version 1. {again}")
    try:
        return Document.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{path}: {where}: {first['msg']}. {again}") from None


def _runs(place: Path, seeds: Sequence[int], notices: list[str]) -> list[Run]:
    """The comparison's own: a folder may hold seeds of an earlier one, with other settings."""
    found = []
    for seed in sorted(seeds):
        folder = place / f"seed-{seed}"
        if not folder.is_dir():
            continue
        state = _json(folder / "trainer_state.json", notices)
        log = state.get("log_history") if isinstance(state, dict) else None
        run = Run(
            seed=seed,
            log=[entry for entry in log if isinstance(entry, dict)] if isinstance(log, list) else [],
            pairs=_table(folder / "pairs.parquet", {"pair_id", "logps_chosen", "logps_rejected"}, notices),
            tasks=_tasks(folder, notices),
            weights=_table(folder / "weights.parquet", {"step", "reference", "weight"}, notices),
        )
        found.append(run)
    return found


def _tasks(folder: Path, notices: list[str]) -> list[dict[str, Any]]:
    """What ``mrpo evaluate --tasks`` found for the run's adapter."""
    path = folder / EVALUATION
    evaluation = _json(path, notices)
    tasks = evaluation.get("tasks") if isinstance(evaluation, dict) else None
    if not isinstance(tasks, list) or not tasks:
        return []
    if not is_of(evaluation, folder):
        notices.append(
            f"{_place(path)} is of an adapter that has been trained again since: its tasks are left out. Measure it again "
            "(`mrpo evaluate RECIPE --tasks NAMES --adapter FOLDER`)."
        )
        return []
    return [change for change in tasks if isinstance(change, dict)]


def _table(path: Path, columns: set[str], notices: list[str]) -> pl.DataFrame | None:
    if not path.is_file():
        return None
    try:
        frame = pl.read_parquet(path)
    except (OSError, pl.exceptions.PolarsError) as error:
        notices.append(f"{_place(path)} can't be read ({str(error).splitlines()[0][:200]}).")
        return None
    if missing := sorted(columns - set(frame.columns)):
        notices.append(f"{_place(path)} lacks the columns {', '.join(missing)}.")
        return None
    return frame


def _json(path: Path, notices: list[str]) -> Any:
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        notices.append(f"{_place(path)} can't be read ({error}).")
        return None


def _text(path: Path, notices: list[str]) -> str:
    if not path.is_file():
        return ""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        notices.append(f"{_place(path)} can't be read ({error}).")
        return ""


def _recipe(text: str, notices: list[str]) -> dict[str, Any]:
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        notices.append(f"recipe.yaml can't be read ({' '.join(str(error).split())[:200]}).")
        return {}
    return document if isinstance(document, Mapping) and isinstance(document, dict) else {}


def _place(path: Path) -> str:
    """The last parts of a path, so that the same folder gives the same report wherever it lies."""
    parts = path.parts
    return "/".join(parts[-3:] if len(parts) > 2 and parts[-2].startswith("seed-") else parts[-1:])
