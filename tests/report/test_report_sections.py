"""What single sections say, from folders made for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from made_comparison import make_comparison

from mrpo_pipeline.report.drawing import WIDTH, _look, width_of
from mrpo_pipeline.report.forest import method_forests
from mrpo_pipeline.report.formatting import duration, fixed, listed, number, p_value, points, shorten, visible
from mrpo_pipeline.report.results_folder import Folder, read_folder
from mrpo_pipeline.report.sections.results import results_section
from mrpo_pipeline.report.sections.tasks import tasks_section
from mrpo_pipeline.report.sections.verdict import verdict_section


def changed(folder: Path, **parts: Any) -> Folder:
    document = json.loads((folder / "comparison.json").read_text())
    (folder / "comparison.json").write_text(json.dumps(document | parts))
    return read_folder(folder)


@pytest.fixture
def made(tmp_path: Path) -> Path:
    return make_comparison(
        tmp_path / "made", methods=("dpo", "mrpo"), references=("base",), seeds=(0, 1), stepwise=(), steps=20
    )


def test_the_figures_seen_first_are_those_of_the_two_that_the_verdict_names(made: Path) -> None:
    difference = {
        "metric": "accuracy/policy",
        "method": "mrpo",
        "against": "dpo",
        "difference": 0.0213,
        "low": 0.004,
        "high": 0.0391,
    }
    verdict = {"sentence": "mrpo is better.", "kind": "better", "method": "mrpo", "against": "dpo", "drop": ["atlas"]}
    section = verdict_section(changed(made, comparisons=[difference], verdict=verdict))
    assert (section.tone, section.chip, section.drop) == (
        "better",
        "A difference is shown",
        "Not worth having on these pairs: atlas.",
    )
    assert [tile.title for tile in section.tiles] == [
        "mrpo",
        "dpo, a single reference",
        "Difference, in points",
        "Held-out pairs",
    ]
    assert (section.tiles[2].value, section.tiles[2].below) == ("+2.1", "95% interval +0.4 to +3.9")


def test_differences_are_told_by_question_and_coloured_only_where_the_corrected_p_shows_something(made: Path) -> None:
    base = {"metric": "accuracy/policy", "low": 0.0, "high": 0.1, "p": 0.01, "pairs_needed": 0}
    comparisons = [
        base | {"method": "mrpo", "against": "dpo", "difference": 0.05, "p_corrected": 0.2, "question": "several"},
        base | {"method": "mrpo", "against": "start", "difference": -0.05, "p_corrected": 0.02, "question": "training"},
    ]
    section = results_section(changed(made, comparisons=comparisons))
    first, second = section.differences
    assert (first.open, second.open) == (True, False) and second.title == "Training: prefers chosen"
    assert [cell.text for cell in second.rows[0].cells][:3] == ["mrpo", "before training", "\u22125.0"]
    assert first.rows[0].cells[2].kind == "" and second.rows[0].cells[2].kind == "bad"
    assert first.rows[0].cells[-1].text == "enough"
    assert [plot.title for plot in section.difference_plots] == ["Against dpo"]


def test_tasks_are_told_over_seeds_and_with_their_interval_where_there_is_one_seed(made: Path) -> None:
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
    section = tasks_section(read_folder(made))
    assert section is not None
    ((title, (row,)),) = section.groups
    assert title == "gsm8k: exact_match (strict-match), 1,319 documents"
    assert [cell.text for cell in row.cells] == ["mrpo", "20.0", "24.0", "+4.0", "–"] and row.cells[
        3
    ].below == "+2.0 to +6.0"
    (made / "mrpo" / "seed-1" / "evaluation.json").unlink()
    section = tasks_section(read_folder(made))
    assert section is not None and [cell.text for cell in section.groups[0][1][0].cells][3:] == [
        "+2.0",
        "\u22121.0 to +5.0",
    ]


def test_labels_of_twelve_methods_with_long_names_overlap_nowhere_and_stay_inside(tmp_path: Path) -> None:
    methods = tuple(f"a-method-with-a-name-of-forty-chars-{number:04d}" for number in range(12))
    assert len(methods[0]) == 40
    folder = make_comparison(tmp_path / "made", methods=methods, seeds=(0, 1), stepwise=(), steps=20)
    with _look("test"):
        figure = method_forests(read_folder(folder))[0].draw(True)
        figure.canvas.draw()
        (axes,) = figure.axes
        boxes = {text.get_text(): text.get_window_extent() for text in [*axes.texts, *figure.texts] if text.get_text()}
    assert set(methods) <= set(boxes), "no name is shortened"
    placed = list(boxes.items())
    for place, (text, box) in enumerate(placed):
        assert box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y0 >= 0 and box.y1 <= figure.bbox.y1, text
        for other, other_box in placed[place + 1 :]:
            apart = (
                box.x1 <= other_box.x0
                or other_box.x1 <= box.x0
                or box.y1 <= other_box.y0 + 0.5
                or other_box.y1 <= box.y0 + 0.5
            )
            assert apart, (text, other)
    assert width_of(methods[0]) < WIDTH


def test_numbers_are_written_one_way() -> None:
    assert [points(value) for value in (0.0213, -0.05, 0.0, -0.0001, None)] == ["+2.1", "\u22125.0", "0.0", "0.0", "–"]
    assert [number(value) for value in (1234.5, 0.01234, -2.5, 0, 3e-7, None)] == [
        "1,234",
        "0.0123",
        "\u22122.50",
        "0",
        "3.00e\u221207",
        "–",
    ]
    assert [fixed(value, 2) for value in (-0.001, -1.239, None)] == ["0.00", "\u22121.24", "–"]
    assert [p_value(value) for value in (0.00001, 0.0456, None)] == ["< 0.001", "0.046", "–"]
    assert [duration(value) for value in (8.24, 512.4, 7300.0, 59.99)] == ["8.2 s", "8 min 32 s", "2 h 1 min", "60.0 s"]
    assert listed(["a", "b", "c"]) == "a, b and c" and listed([]) == ""


def test_a_shortened_name_keeps_both_ends() -> None:
    assert shorten("mrpo-geometric-seed-7", 12) == "mrpo-ge…ed-7" and len(shorten("x" * 100, 12)) == 12
    assert visible("a\r\nb\tc\x00\x85\ufffe") == "a\nb\tc␀¦U+0085¦\ufffd"
