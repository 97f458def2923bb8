"""Learning curves, and weights over time."""

from __future__ import annotations

from dataclasses import dataclass, field

from mrpo_pipeline.report.curves import curve_plots
from mrpo_pipeline.report.drawing import Plot
from mrpo_pipeline.report.formatting import one_line
from mrpo_pipeline.report.palette import method_styles, reference_styles
from mrpo_pipeline.report.results_folder import Folder
from mrpo_pipeline.report.sections.tables import LegendEntry, swatch
from mrpo_pipeline.report.weights import weight_plots, weights_by_step


@dataclass
class TrainingSection:
    """Curves by method, weights by reference, and the legends of both."""

    sentence: str = ""
    curves: list[Plot] = field(default_factory=list)
    legend: list[LegendEntry] = field(default_factory=list)
    weight_sentence: str = ""
    weights: list[Plot] = field(default_factory=list)
    weight_legend: list[LegendEntry] = field(default_factory=list)


def training_section(folder: Folder) -> TrainingSection:
    """From the runs' ``trainer_state.json`` and ``weights.parquet``, and the methods' diagnostics."""
    section = TrainingSection()
    section.curves = curve_plots(folder)
    if section.curves:
        many = len(folder.names) > 5
        seeds = len(folder.document.seeds)
        behind = (
            f" Thick lines are means over {seeds} seeds, {'thin lines single seeds' if many else 'bands their range'}."
        )
        section.sentence = (
            "What training logged, each point the mean of up to a fortieth of it. Loss and margin are each method’s own and may "
            "not be compared between methods; the accuracies may. Point at a name to single it out."
            + (behind if seeds > 1 else "")
        )
        if not any(plot.name.startswith("curve-held-out") for plot in section.curves):
            section.sentence += " Held-out pairs were not looked at during training (eval_strategy in the recipe)."
        section.legend = method_legend(folder)
    elif folder.runs:
        section.sentence = "The runs left no log of their training (trainer_state.json): there are no curves to show."
    section.weights = weight_plots(folder)
    if section.weights:
        over_time = weights_by_step(folder)
        parts = []
        if over_time:
            parts.append(
                "Where weights change while training, they are shown by step, as the mean over seeds and over up to a fortieth "
                "of the steps; a method that draws one reference a step shows how often it drew each."
            )
        if any(plot.name == "weights-mean" for plot in section.weights):
            parts.append("Bars are means over the training pairs.")
        section.weight_sentence = " ".join(parts)
        section.weight_legend = reference_legend(
            list(dict.fromkeys([*folder.references, *(name for found in over_time for name in found.shares)]))
        )
    return section


def method_legend(folder: Folder) -> list[LegendEntry]:
    """The methods in their order."""
    styles = method_styles(folder.names)
    return [LegendEntry(one_line(name), str(place), swatch(styles[name])) for place, name in enumerate(folder.names)]


def reference_legend(names: list[str]) -> list[LegendEntry]:
    """The references in their order, the anchor first."""
    styles = reference_styles(names)
    return [LegendEntry(one_line(name), f"r{place}", swatch(styles[name])) for place, name in enumerate(names)]
