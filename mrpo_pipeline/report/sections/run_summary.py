"""What was run: methods, references, pairs."""

from __future__ import annotations

from dataclasses import dataclass, field

from mrpo_pipeline.report.formatting import count, listed, one_line
from mrpo_pipeline.report.palette import method_styles, reference_styles
from mrpo_pipeline.report.results_folder import Folder
from mrpo_pipeline.report.schema import MethodResult
from mrpo_pipeline.report.sections.tables import Cell, Column, Row, name_cell

_IN, _OUT, _DROPPED = "pairs in", "pairs out", "pairs dropped: "


@dataclass
class RanSection:
    """Three tables and the sentence over them."""

    sentence: str
    methods: list[Row] = field(default_factory=list)
    method_columns: list[Column] = field(default_factory=list)
    references: list[Row] = field(default_factory=list)
    reference_columns: list[Column] = field(default_factory=list)
    pairs: list[Row] = field(default_factory=list)
    pair_columns: list[Column] = field(default_factory=list)
    pair_notes: list[str] = field(default_factory=list)


def ran_section(folder: Folder) -> RanSection:
    """From ``comparison.json`` and the recipe."""
    document = folder.document
    section = RanSection(_sentence(folder))
    styles = method_styles(folder.names)
    section.method_columns = [Column("Method"), Column("What it is")]
    section.methods = [
        Row([
            name_cell(method.name, styles[method.name], hollow=method.baseline),
            Cell(one_line(method.describes) or "–", below=_besides(method), kind="words"),
        ])
        for method in document.methods
    ]  # fmt: skip
    _add_references(section, folder)
    _add_pairs(section, document.pairs)
    return section


def _besides(method: MethodResult) -> str:
    parts = [f"also: {listed([one_line(name) for name in method.also])}"] if method.also else []
    if method.swept:
        parts.append("by the sweep: " + ", ".join(one_line(f"{key} {value}") for key, value in method.swept.items()))
    return "; ".join(parts)


def _sentence(folder: Folder) -> str:
    document = folder.document
    methods, seeds = len(document.methods), document.seeds
    trained = f"{methods} method{'' if methods == 1 else 's'}"
    text = f"{trained} trained from the same start"
    if seeds:
        numbers = listed([str(seed) for seed in seeds])
        text += f", each with seed{'' if len(seeds) == 1 else 's'} {numbers} (the same first weights and order of pairs per seed)"
    policy = folder.recipe.get("policy")
    model = policy.get("model") if isinstance(policy, dict) else None
    text += f"; the policy is {one_line(str(model))}" if model else ""
    return f"{text}; measured on {count(document.held_out)} held-out pairs."


def _add_references(section: RanSection, folder: Folder) -> None:
    listed_ = folder.recipe.get("references")
    if not isinstance(listed_, dict):
        return
    styles = reference_styles(folder.references)
    section.reference_columns = [Column("Reference"), Column("Model"), Column("Besides")]
    for place, (name, settings) in enumerate(listed_.items()):
        own = settings if isinstance(settings, dict) else {}
        besides = ["the anchor: where the policy starts"] if place == 0 else []
        besides += [
            f"{key} {one_line(str(own[key]))}"
            for key in ("revision", "adapter", "quantization", "tokenizer", "template", "dtype")
            if own.get(key) not in (None, "auto")
        ]
        section.references.append(
            Row(
                [
                    name_cell(str(name), styles[str(name)]),
                    Cell(one_line(str(own.get("model", "–"))), kind="path"),
                    Cell(", ".join(besides) or "–", kind="words"),
                ]
            )
        )


def _add_pairs(section: RanSection, splits: dict[str, dict[str, int]]) -> None:
    section.pair_columns = [
        Column("Split"),
        Column("Pairs in", number=True),
        Column("Pairs out", number=True),
        Column("Dropped", number=True),
        Column("Why dropped"),
    ]
    notes: list[str] = []
    for split, counts in splits.items():
        name = one_line(split)
        dropped = {
            one_line(key.removeprefix(_DROPPED)): value for key, value in counts.items() if key.startswith(_DROPPED)
        }
        total = sum(dropped.values())
        given, kept = counts.get(_IN), counts.get(_OUT)
        reasons = "; ".join(f"{reason}: {count(value)}" for reason, value in dropped.items() if value)
        section.pairs.append(
            Row(
                [
                    Cell(name),
                    Cell(count(given)),
                    Cell(count(kept)),
                    Cell(count(total)),
                    Cell(reasons or "–", kind="words"),
                ]
            )
        )
        if given is not None and kept is not None and given != kept + total:
            notes.append(
                f"{name}: the counts do not add up ({count(given)} in, {count(kept)} out, {count(total)} dropped)."
            )
        others = [
            f"{one_line(key)} {count(value)}"
            for key, value in counts.items()
            if value and key not in (_IN, _OUT) and not key.startswith(_DROPPED)
        ]
        if others:
            notes.append(f"{name}: {', '.join(others)}.")
    section.pair_notes = notes
