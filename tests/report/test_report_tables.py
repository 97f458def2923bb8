"""The tables of synthetic folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from made_comparison import make_comparison
from page_reader import Page

from mrpo_pipeline.report import write_report
from mrpo_pipeline.report.comparison_tables import Cell, Names, difference_tables, own_metrics_table, results_table
from mrpo_pipeline.report.result_plots import drift_plots
from mrpo_pipeline.report.results_folder import Folder, read_folder
from mrpo_pipeline.report.task_tables import task_tables


def changed(folder: Path, **parts: Any) -> Folder:
    document = json.loads((folder / "comparison.json").read_text())
    (folder / "comparison.json").write_text(json.dumps(document | parts))
    return read_folder(folder)


@pytest.fixture
def made(tmp_path: Path) -> Path:
    return make_comparison(
        tmp_path / "made", methods=("dpo", "mrpo"), references=("base",), seeds=(0, 1), stepwise=(), steps=20
    )


def texts(row: Any) -> list[str]:
    return [cell.text if isinstance(cell, Cell) else cell for cell in row]


def test_the_figures_seen_first_are_those_of_the_two_that_the_verdict_names(made: Path) -> None:
    metric = {"metric": "accuracy/policy", "method": "mrpo", "against": "dpo"}
    difference = metric | {"difference": 0.0213, "low": 0.004, "high": 0.0391}
    verdict = {"sentence": "mrpo is better.", "kind": "better", "method": "mrpo", "against": "dpo"}
    folder = changed(made, comparisons=[difference], verdict=verdict)
    page = Page(write_report(folder.path).read_text())
    assert page.all("section", class_="good")[0].attributes["id"] == "verdict"
    assert page.all("p", class_="chip")[0].text == "A difference is shown"
    tiles = [tile.text for tile in page.all("div") if tile.parents[-1] == "dl" and "tiles" in page.source]
    assert tiles[0].startswith("mrpo") and tiles[1].startswith("dpo, a single reference")
    assert tiles[2] == "Difference in points+2.195% interval +0.4 to +3.9" and tiles[3].startswith("Held-out pairs60")


@pytest.mark.parametrize(("kind", "bold"), [("better", ["mrpo"]), ("worse", ["dpo"]), ("none", []), ("one seed", [])])
def test_bold_is_only_what_the_verdict_shows(made: Path, kind: str, bold: list[str]) -> None:
    verdict = {"sentence": "…", "kind": kind, "method": "mrpo", "against": "dpo"}
    table = results_table(changed(made, verdict=verdict))
    best = [
        (texts(row)[0], at)
        for row in table.rows
        for at, cell in enumerate(row)
        if isinstance(cell, Cell) and cell.kind == "best"
    ]
    assert best == [(name, 1) for name in bold]


def test_drift_by_token_and_by_byte_is_beside_the_accuracies(made: Path) -> None:
    folder = read_folder(made)
    table = results_table(folder)
    titles = [column if isinstance(column, str) else column[0] for column in table.columns]
    at = titles.index("Drift, chosen")
    assert titles[at + 1] == "Drift, rejected" and table.columns[at] == ("Drift, chosen", "nats a token")
    assert [[(cell.text, cell.below) for cell in row[at : at + 2]] for row in table.rows[1:]] == [
        [("0.000", "−0.002 to 0.002; 0.0000 a byte"), ("0.000", "−0.002 to 0.002; 0.0000 a byte")],
        [("0.020", "0.018 to 0.022; 0.0050 a byte"), ("−0.050", "−0.052 to −0.048; −0.0125 a byte")],
    ]
    assert not any("drift" in str(column).lower() for column in own_metrics_table(folder).columns)
    (plot,) = drift_plots(folder)
    mean = 100 * folder.document.methods[1].metrics["accuracy/policy"].mean
    assert f"mrpo {mean:.1f} %, 0.020 and −0.050" in plot.description
    # A comparison of an earlier version has none, and its table is as before.
    for method in (document := json.loads((made / "comparison.json").read_text()))["methods"]:
        method["metrics"] = {name: one for name, one in method["metrics"].items() if not name.startswith("drift/")}
    old = changed(made, methods=document["methods"])
    assert not drift_plots(old) and not any("Drift" in str(column) for column in results_table(old).columns)


def test_the_mark_of_training_without_a_reference_is_hollow(made: Path) -> None:
    methods = json.loads((made / "comparison.json").read_text())["methods"]
    methods[1] |= {"name": "simpo", "reference_free": True}
    names = Names(changed(made, methods=methods))
    assert [names.method(name).kind for name in ("dpo", "simpo")] == ["hollow", "hollow"]


def test_differences_are_grouped_by_question_and_coloured_only_where_the_corrected_p_shows_something(
    made: Path,
) -> None:
    base = {"metric": "accuracy/policy", "low": 0.0, "high": 0.1, "p": 0.01, "pairs_needed": 0}
    comparisons = [
        base | {"method": "mrpo", "against": "dpo", "difference": 0.05, "p_corrected": 0.2, "question": "several"},
        base | {"method": "mrpo", "against": "start", "difference": -0.05, "p_corrected": 0.02, "question": "training"},
    ]
    folder = changed(made, comparisons=comparisons)
    first, second = difference_tables(folder)
    assert second.title == "Training: prefers chosen"
    assert texts(second.rows[0])[:3] == ["mrpo", "before training", "\u22125.0"]
    shown = [row[2].kind for table in (first, second) for row in table.rows if isinstance(row[2], Cell)]
    assert shown == ["", "bad"] and texts(first.rows[0])[-1] == "enough"
    page = Page(write_report(folder.path).read_text())
    assert [summary.text for summary in page.all("summary")][-2] == "Training: prefers chosen"
    assert sum("Difference from dpo" in (plot.attributes["aria-label"] or "") for plot in page.all("svg")) == 1


def test_tasks_are_shown_over_seeds_and_with_their_interval_where_there_is_one_seed(made: Path) -> None:
    change = {
        "task": "gsm8k",
        "metric": "exact_match",
        "filter": "strict-match",
        "documents": 1319,
        "before": 0.2,
        "low": -0.01,
        "high": 0.05,
    }
    for seed, after in ((0, 0.22), (1, 0.26)):
        tasks = {"tasks": [change | {"after": after, "difference": after - 0.2}]}
        (made / "mrpo" / f"seed-{seed}" / "evaluation.json").write_text(json.dumps(tasks))
    (table,) = task_tables(read_folder(made))
    assert table.title == "gsm8k: exact_match (strict-match), 1,319 documents"
    (row,) = table.rows
    assert texts(row) == ["mrpo", "20.0", "24.0", "+4.0", "–"]
    assert isinstance(row[3], Cell) and row[3].below == "+2.0 to +6.0"
    (made / "mrpo" / "seed-1" / "evaluation.json").unlink()
    (table,) = task_tables(read_folder(made))
    assert texts(table.rows[0])[3:] == ["+2.0", "\u22121.0 to +5.0"]
