"""Costs, and how to run it again."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from typing import Any

from mrpo_pipeline.report.formatting import count, duration, number, one_line, visible
from mrpo_pipeline.report.palette import method_styles
from mrpo_pipeline.report.results_folder import Folder
from mrpo_pipeline.report.sections.tables import Cell, Column, Row, name_cell

_TITLES = {
    "train_seconds_total": "Training, all runs",
    "evaluate_seconds_total": "Measuring, all runs",
    "wall_seconds": "By the clock, the last call that made runs",
    "runs": "Runs",
    "runs_made_now": "Of them made by the last call",
    "processes": "Processes at once",
    "threads": "Threads of each",
    "machine": "Machine",
}


@dataclass(frozen=True)
class Fact:
    """One figure of the costs."""

    title: str
    value: str


@dataclass(frozen=True)
class Command:
    """One command and what it does."""

    text: str
    says: str


@dataclass
class CostsSection:
    """Facts of the whole and seconds by method."""

    sentence: str = ""
    facts: list[Fact] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    columns: list[Column] = field(default_factory=list)


@dataclass
class AgainSection:
    """Commands and the recipe."""

    commands: list[Command]
    recipe: str


def costs_section(folder: Folder) -> CostsSection:
    """From ``costs`` and the methods' seconds."""
    document = folder.document
    costs = document.costs
    section = CostsSection(
        "The references were scored once, into the cache, for all methods and seeds: what follows is the policy’s training alone."
    )
    for key in [*_TITLES, *(key for key in costs if key not in _TITLES)]:
        value = costs.get(key)
        if isinstance(value, str | int | float):
            told = duration(value) if "seconds" in key and not isinstance(value, str) else _plain(value)
            section.facts.append(Fact(_TITLES.get(key) or one_line(key).replace("_", " ").capitalize(), told))
    styles = method_styles(folder.names)
    most = max((len(method.train_seconds) for method in document.methods), default=0)
    section.columns = [Column("Method"), Column("Mean", "s", number=True)]
    if most > 1:
        seeds = (
            [str(seed) for seed in document.seeds] if len(document.seeds) == most else [str(i + 1) for i in range(most)]
        )
        section.columns += [Column(f"Seed {seed}", "s", number=True) for seed in seeds]
    for method in document.methods:
        seconds = [value for value in method.train_seconds if value is not None]
        if not seconds:
            continue
        cells = [
            name_cell(method.name, styles[method.name], hollow=method.baseline),
            Cell(f"{sum(seconds) / len(seconds):,.1f}"),
        ]
        if most > 1:
            own = [*method.train_seconds, *[None] * (most - len(method.train_seconds))]
            cells += [Cell("–" if value is None else f"{value:,.1f}") for value in own]
        section.rows.append(Row(cells))
    return section


def _plain(value: Any) -> str:
    if isinstance(value, bool | str):
        return one_line(str(value))
    return count(value) if isinstance(value, int) else number(value)


def again_section(folder: Folder) -> AgainSection:
    """The commands, by the folder's name in the recipe: the same wherever the folder lies now."""
    place = str(folder.recipe.get("output_dir") or "FOLDER")
    recipe = shlex.quote(one_line(f"{place.rstrip('/')}/recipe.yaml"))
    commands = [
        Command(f"mrpo score-refs {recipe}", "each reference once; only what the cache lacks"),
        Command(f"mrpo audit {recipe}", "what the references are worth, before any training"),
        Command(f"mrpo compare {recipe}", "every method and seed; finished ones are kept"),
        Command(f"mrpo report {shlex.quote(one_line(place))}", "this page again"),
    ]
    best = folder.document.verdict.method or (folder.names[0] if folder.names else None)
    runs = folder.runs.get(best or "", [])
    if best and runs:
        adapter = shlex.quote(one_line(f"{place.rstrip('/')}/{best}/seed-{runs[0].seed}"))
        commands.append(Command(f"mrpo merge {adapter} --output merged", "one adapter as a plain checkpoint"))
    return AgainSection(commands, visible(folder.recipe_text).rstrip("\n"))
