"""A folder without a comparison is refused with a message."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from made_comparison import make_comparison
from mrpo_cli.commands import app
from typer.testing import CliRunner

from mrpo_pipeline.errors import UserError
from mrpo_pipeline.evaluation.staleness import adapter_content
from mrpo_pipeline.report import write_report
from mrpo_pipeline.report.results_folder import read_folder


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "holds no comparison.json"),
        ("{", "can't be read as JSON"),
        ("[]", "has version None"),
        (json.dumps({"pairs": 300, "methods": []}), "has version None"),
        (json.dumps({"version": 2}), "has version 2"),
        (json.dumps({"version": 1, "methods": [{"describes": "no name"}]}), "methods.0.name"),
    ],
)
def test_a_folder_that_is_no_comparison_is_refused(tmp_path: Path, content: str | None, says: str) -> None:
    if content is not None:
        (tmp_path / "comparison.json").write_text(content)
    with pytest.raises(UserError, match="mrpo compare") as refused:
        write_report(tmp_path)
    assert says in str(refused.value) and str(tmp_path) in str(refused.value)
    assert not (tmp_path / "report.html").exists()


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no such folder"):
        write_report(tmp_path / "nowhere")


def test_the_command_writes_the_report_again_and_names_its_file(tmp_path: Path) -> None:
    folder = make_comparison(tmp_path / "made", methods=("dpo", "mrpo"), references=("base",), seeds=(0,), stepwise=())
    result = CliRunner().invoke(app, ["report", str(folder)])
    assert result.exit_code == 0 and result.stdout.split() == [str(folder / "report.html")]
    refused = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert isinstance(refused.exception, UserError)


def test_plots_of_another_hand_stay_and_those_of_an_earlier_report_go(tmp_path: Path) -> None:
    folder = make_comparison(tmp_path / "made", methods=("dpo", "mrpo"), references=("base",), seeds=(0,), stepwise=())
    write_report(folder)
    plots = folder / "plots"
    mine = {path.name for path in plots.iterdir()}
    listed = json.loads((plots / "plots.json").read_text())
    name = next(name for name in listed if name.endswith(".svg"))
    for made in ("stale.svg", "edited.svg"):  # files of an earlier report with other methods
        (plots / made).write_bytes((plots / name).read_bytes())
    listed |= {"stale.svg": listed[name], "edited.svg": listed[name], "../../other.svg": listed[name]}
    (plots / "plots.json").write_text(json.dumps(listed))
    (plots / "edited.svg").write_text("edited")
    (plots / "photo.png").write_bytes(b"a photo")
    (tmp_path / "other.svg").write_bytes((plots / name).read_bytes())
    (plots / name).unlink()
    (plots / name).symlink_to(tmp_path / "other.svg")
    (tmp_path / "other.svg").write_text("another's")
    write_report(folder)
    assert {path.name for path in plots.iterdir()} == mine | {"edited.svg", "photo.png"}
    assert (tmp_path / "other.svg").read_text() == "another's" and not (plots / name).is_symlink()


def test_through_a_link_no_plot_is_written_or_removed(tmp_path: Path) -> None:
    folder = make_comparison(tmp_path / "made", methods=("dpo", "mrpo"), references=("base",), seeds=(0,), stepwise=())
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    (pictures / "photo.png").write_bytes(b"a photo")
    (folder / "plots").symlink_to(pictures)
    assert write_report(folder).is_file()
    assert [path.name for path in pictures.iterdir()] == ["photo.png"]


def test_a_method_whose_name_leads_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    folder = make_comparison(tmp_path / "made", methods=("dpo", "mrpo"), references=("base",), seeds=(0,), stepwise=())
    document = json.loads((folder / "comparison.json").read_text())
    document["methods"][0]["name"] = "../made/mrpo"
    document["methods"][1]["name"] = ".."
    (folder / "comparison.json").write_text(json.dumps(document))
    assert read_folder(folder).runs == {}


def test_seeds_of_an_earlier_comparison_and_tasks_of_an_earlier_adapter_are_left_out(tmp_path: Path) -> None:
    folder = make_comparison(
        tmp_path / "made", methods=("dpo", "mrpo"), references=("base",), seeds=(0, 1), steps=20, audited=True
    )
    document = json.loads((folder / "comparison.json").read_text())
    (folder / "comparison.json").write_text(json.dumps({**document, "seeds": [1]}))
    run = folder / "mrpo" / "seed-1"
    (run / "adapter_model.safetensors").write_bytes(b"the first")
    tasks = {"tasks": [{"task": "gsm8k"}], "adapter": adapter_content(run)}
    (run / "evaluation.json").write_text(json.dumps(tasks))
    found = read_folder(folder)
    assert [[one.seed for one in runs] for runs in found.runs.values()] == [[1], [1]]
    assert found.runs["mrpo"][0].tasks == tasks["tasks"] and found.notices == []
    (run / "adapter_model.safetensors").write_bytes(b"the second")
    found = read_folder(folder)
    assert found.runs["mrpo"][0].tasks == [] and "trained again since" in found.notices[0]


def test_seeds_are_read_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    folder = make_comparison(
        tmp_path / "made", methods=("dpo", "mrpo"), references=("base",), seeds=(10, 2, 1), steps=20
    )
    (folder / "dpo" / "seed-x").mkdir()
    assert [run.seed for run in read_folder(folder).runs["dpo"]] == [1, 2, 10]
