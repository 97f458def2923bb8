"""Read a comparison's folder. Missing or damaged parts are left out and named in the report's notices."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import polars as pl
from pydantic import ValidationError

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.evaluation.staleness import EVALUATION, is_of
from mrpo_pipeline.recipe.plain_yaml import read_yaml
from mrpo_pipeline.report.comparison_schema import Document

T = TypeVar("T")
COMPARISON = "comparison.json"
_SUMS = {"pair_id": pl.String, "logps_chosen": pl.Float64, "logps_rejected": pl.Float64}
_WEIGHTS = {"step": pl.Float64, "reference": pl.String, "weight": pl.Float64}
_TEXTS = dict.fromkeys(("pair_id", "prompt", "chosen", "rejected"), pl.String)


@dataclass
class Run:
    """One method and seed: its log by step, its sums of the held-out pairs, its weights by step, and its tasks."""

    seed: int
    log: list[dict[str, Any]] = field(default_factory=list)
    pairs: pl.DataFrame | None = None
    weights: pl.DataFrame | None = None
    tasks: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Folder:
    """The contents of the report. ``notices``: a sentence for each part that is missing or can't be read."""

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
        """The methods in the order of the comparison."""
        return [method.name for method in self.document.methods]

    @property
    def references(self) -> list[str]:
        """The recipe's references, the anchor first; then others that the audit, diagnostics or weights name."""
        named: list[Any] = [*_mapping(self.recipe.get("references")), *_mapping((self.audit or {}).get("references"))]
        keys = [key.split("/") for method in self.document.methods for key in method.diagnostics]
        named += [parts[1] for parts in keys if len(parts) == 3 and (parts[0], parts[2]) == ("refs", "weight")]
        frames = [run.weights for runs in self.runs.values() for run in runs if run.weights is not None]
        named += [name for frame in frames for name in frame["reference"].unique(maintain_order=True)]
        return list(dict.fromkeys(map(str, named)))


def read_folder(path: str | Path) -> Folder:
    """Read the results of ``mrpo compare``.

    Raises:
        UserError: if the folder holds no comparison that can be read.
    """
    root = Path(path)
    document = _document(root)
    notices: list[str] = []
    text = _read(root / "recipe.yaml", _text, notices) or ""
    folder = Folder(
        path=root,
        document=document,
        audit=_read(root / "audit.json", _json_mapping, notices),
        recipe_text=text,
        recipe=_read(root / "recipe.yaml", lambda _: _mapping(read_yaml(text)), notices) or {} if text else {},
        held_out=_read(root / "held_out.parquet", _table(_TEXTS), notices),
        start=_read(root / "start" / "pairs.parquet", _table(_SUMS), notices),
        runs={
            name: _runs(root / name, document.seeds, notices)
            for name in dict.fromkeys(method.name for method in document.methods)
            # A method's name is its folder's name, never a path to another folder.
            if name not in ("", ".", "..") and Path(name).name == name
        },
        notices=notices,
    )
    notices += _missing(folder)
    return folder


def _document(root: Path) -> Document:
    path = root / COMPARISON
    again = "Give the folder that `mrpo compare` wrote (its `output_dir`), or run `mrpo compare` on its recipe again."
    if not path.is_file():
        found = "there is no such folder" if not root.is_dir() else f"it holds no {COMPARISON}"
        raise UserError(f"{root} is not a comparison's folder: {found}. {again}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
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


def _runs(place: Path, seeds: Iterable[int], notices: list[str]) -> list[Run]:
    """The runs of the comparison's seeds; a folder may also hold other seeds of an earlier comparison."""
    found = []
    for seed in sorted(seeds):
        folder = place / f"seed-{seed}"
        if folder.is_dir():
            state = _read(folder / "trainer_state.json", _json_mapping, notices) or {}
            run = Run(
                seed,
                _mappings(state.get("log_history")),
                _read(folder / "pairs.parquet", _table(_SUMS), notices),
                _read(folder / "weights.parquet", _table(_WEIGHTS), notices),
                _tasks(folder, notices),
            )
            found.append(run)
    return found


def _tasks(folder: Path, notices: list[str]) -> list[dict[str, Any]]:
    """The results of ``mrpo evaluate --tasks`` for the run's adapter."""
    path = folder / EVALUATION
    evaluation = _read(path, _json_mapping, notices) or {}
    tasks = _mappings(evaluation.get("tasks"))
    if tasks and not is_of(evaluation, folder):
        notices.append(
            f"{_place(path)} is of an adapter that has been trained again since: its tasks are left out. Measure it again "
            "(`mrpo evaluate RECIPE --tasks NAMES --adapter FOLDER`)."
        )
        return []
    return tasks


def _read(path: Path, read: Callable[[Path], T], notices: list[str]) -> T | None:
    """The result of ``read`` for a file; None if it does not exist, or can't be read, which adds a notice."""
    if not path.is_file():
        return None
    try:
        return read(path)
    except (OSError, ValueError, RecursionError, pl.exceptions.PolarsError) as error:
        notices.append(f"{_place(path)} can't be read ({' '.join(str(error).split())[:200]}).")
        return None


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _json_mapping(path: Path) -> dict[str, Any]:
    return _mapping(json.loads(_text(path)))


def _table(columns: dict[str, Any]) -> Callable[[Path], pl.DataFrame]:
    return lambda path: pl.read_parquet(path).select(pl.col(name).cast(kind) for name, kind in columns.items())


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _mappings(value: Any) -> list[dict[str, Any]]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def _place(path: Path) -> str:
    """The last parts of a path, so that a report does not depend on the folder's location."""
    parts = path.parts
    return "/".join(parts[-3:] if len(parts) > 2 and parts[-2].startswith("seed-") else parts[-1:])


def _missing(folder: Folder) -> list[str]:
    """Notices on the parts that the folder lacks."""
    missing = [f"{run.get('run')} failed: {run.get('reason')}" for run in folder.document.failed]
    if folder.audit is None:
        missing.append("There is no audit.json: the section on data and references is left out.")
    if folder.held_out is None:
        missing.append("There is no held_out.parquet: the pairs on which methods disagree are left out.")
    runs = folder.runs
    if without := [name for name in folder.names if all(run.pairs is None for run in runs.get(name, []))]:
        missing.append(f"There are no log-probs of the held-out pairs (pairs.parquet) of {', '.join(without)}.")
    if not folder.recipe_text:
        missing.append("There is no recipe.yaml: the references' models and the recipe are left out.")
    return missing
